"""Face parameters to depth, normals and a shaded head: Render Guidance."""

from __future__ import annotations

from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.head.render import iterate_guidance, split_guidance
from anifacediff_core.head.texture import Appearance, TextureModel
from anifacediff_core.weights.importers.texture import load_texture

from .head import head_input, load_head, on_device
from .host.api import io
from .host.folders import FLAME, file_names, file_path
from .host.runtime import Progress, notify
from .images import to_host
from .sockets import AppearanceSocket, FaceParametersSocket, head_model_input, make_schema, size_input

NONE = "none"


class RenderGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        textures = [name for name in file_names(FLAME) if name.endswith(".npz")]
        return make_schema(
            node_id="AniFaceDiffRenderGuidance",
            stage="Guidance",
            display_name="Render Guidance",
            description="Draw depth, surface normals and the shaded, textured head, frame by frame: the "
            "three pictures that guide MagicPortrait.",
            search_aliases=["magicportrait", "depth", "albedo", "texture"],
            advanced="head texture",
            inputs=[
                FaceParametersSocket.Input(
                    "parameters",
                    tooltip="Face parameters to draw: those of Facial Shape Align with camera set to source.",
                ),
                size_input(
                    "Side of the square pictures in pixels; the same as in ReferenceNet Encode. "
                    "MagicPortrait was trained at 512."
                ),
                head_input(),
                io.Combo.Input(
                    "texture",
                    options=[NONE, *textures],
                    default=textures[0] if textures else NONE,
                    tooltip="FLAME_texture.npz in models/flame, for the color of the skin. none: gray skin.",
                ),
                head_model_input(),
                AppearanceSocket.Input(
                    "appearance",
                    optional=True,
                    tooltip="Texture and light of the source picture, from DECA Extract with DECA. By "
                    "default average skin in even light.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="depth", tooltip="One picture per frame: white is near, black is far."
                ),
                io.Image.Output(
                    display_name="normals",
                    tooltip="One picture per frame: colors are directions, black is background and what "
                    "points to the left or down.",
                ),
                io.Image.Output(
                    display_name="render",
                    tooltip="One picture per frame: the source's skin in the source's light.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        parameters: FaceParameters,
        size: int,
        head: str,
        texture: str = NONE,
        head_model: HeadModel | None = None,
        appearance: Appearance | None = None,
    ) -> io.NodeOutput:
        model = head_model or load_head(head, parameters)
        model.require(parameters)
        skin = None if texture == NONE else load_texture(file_path(FLAME, texture), model.faces.cpu())
        _notify_of_what_is_missing(skin, appearance)
        progress, parts = Progress(len(parameters)), []
        with on_device(model):
            for part in iterate_guidance(model, parameters, size, appearance=appearance, texture=skin):
                parts.append(part)
                progress.show(sum(map(len, parts)), len(parameters), image=part[-1, -3:])
        return io.NodeOutput(*map(to_host, split_guidance(parts).values()))


def _notify_of_what_is_missing(texture: TextureModel | None, appearance: Appearance | None) -> None:
    notes = []
    if texture is None:
        notes.append("There is no texture: the skin is gray.")
    if appearance is None:
        notes.append("There is no appearance of the source: the light is even.")
    if notes:
        notify(" ".join(notes))
