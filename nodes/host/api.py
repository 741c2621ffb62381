"""The host's API, in the version that the nodes are written for: what the newest one says may change."""

from comfy_api.v0_0_2 import ComfyExtension, InputImpl, io, ui

__all__ = ["ComfyExtension", "InputImpl", "io", "ui"]
