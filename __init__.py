"""Entry of the extension: the two names that ComfyUI looks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .nodes import AniFaceDiffExtension

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> AniFaceDiffExtension:
    try:
        from .nodes import AniFaceDiffExtension  # only a process that holds ComfyUI can import it
    except ModuleNotFoundError as error:
        raise ImportError(f"{error.msg}: run install.py of this extension with ComfyUI's Python") from error
    return AniFaceDiffExtension()
