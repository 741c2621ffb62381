"""Pixels or landmarks to face parameters: DECA Extract and Parameters from Face Landmarks."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from anifacediff_core.weights.checkpoint import Checkpoint

from .sockets import make_schema


def load_face_capture(checkpoint: Checkpoint) -> Any:
    return None


class DECAExtract(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(node_id="AniFaceDiffDECAExtract", display_name="DECA Extract", inputs=[], outputs=[])

    @classmethod
    def execute(cls) -> io.NodeOutput:
        raise NotImplementedError


class ParametersFromFaceLandmarks(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffParametersFromFaceLandmarks",
            display_name="Parameters from Face Landmarks",
            inputs=[],
            outputs=[],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        raise NotImplementedError
