"""Entry of the extension: the two names that ComfyUI looks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .nodes import AniFaceDiffExtension

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> AniFaceDiffExtension:
    from .nodes import AniFaceDiffExtension  # only a process that holds ComfyUI can import it

    return AniFaceDiffExtension()
