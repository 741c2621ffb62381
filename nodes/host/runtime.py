"""What the host lends a running node: a device, a progress bar with previews, lines of text, cancelling."""

from __future__ import annotations

import logging
from collections.abc import Callable

import comfy.model_management
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy_execution.utils import get_executing_context
from PIL import Image
from torch import Tensor

from anifacediff_core.errors import printable
from anifacediff_core.video import to_pixels

__all__ = ["ModelPatcher", "Notes", "Progress", "device", "make_room", "notify", "show_text"]

PREVIEW_SIDE = 512


def device() -> torch.device:
    """Where the host computes."""
    return comfy.model_management.get_torch_device()


def make_room(size: int) -> None:
    """Have the host move its models away until so many bytes are free where it computes."""
    comfy.model_management.free_memory(size, device())


class Progress:
    """The bar on the node that runs, callable as the core's `progress(done, total)`.

    Every call also looks whether the user has cancelled the run.
    """

    def __init__(self, total: int) -> None:
        self.bar = comfy.utils.ProgressBar(total)

    def __call__(self, done: int, total: int) -> None:
        self.show(done, total)

    def show(self, done: int, total: int, image: Tensor | None = None) -> None:
        """Move the bar and, where there is one, show a picture (3, height, width) in [0, 1] on the node."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        preview = None if image is None else ("JPEG", Image.fromarray(to_pixels(image.float())), PREVIEW_SIDE)
        self.bar.update_absolute(done, total, preview)


def notify(text: str, level: int = logging.INFO) -> None:
    """Write lines into the log as well as onto the node that runs."""
    for line in text.splitlines():
        logging.log(level, "AniFaceDiff: %s", printable(line))
    show_text(text)


class Notes:
    """Sentences for a node's report, each of which is shown at once as well."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def __call__(self, text: str) -> None:
        self.sentences.append(text)
        notify(text)

    def __str__(self) -> str:
        return " ".join(self.sentences)


def show_text(text: str) -> None:
    """Write lines onto the node that runs, where there is a front-end to show them.

    Older ones take them for HTML, and there are names of strangers' files in them. Newer ones escape
    themselves: so only what opens a tag is escaped here, which suffices.
    """
    context = get_executing_context()
    if context is None:
        return
    from server import PromptServer

    server: PromptServer | None = getattr(PromptServer, "instance", None)
    send: Callable[[str, str], None] | None = getattr(server, "send_progress_text", None)
    if send is not None:
        shown = "\n".join(map(printable, text.splitlines()))
        send(shown.replace("<", "&lt;"), context.node_id)
