"""Face parameters dialed by hand: Expression Editor. Its sliders, its head and its result are in web/."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from anifacediff_core.claims import parse_json
from anifacediff_core.errors import InputError
from anifacediff_core.head.alignment import align, source_frame
from anifacediff_core.head.editing import edit, without_motion
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.motion.keyframes import MOST_FRAMES, Keyframe, animate, edits_at, read_keyframes
from anifacediff_core.motion.parts import require_motion
from anifacediff_core.sampling.settings import SamplingSettings

from .head import on_device
from .host.api import io
from .host.live import live_session
from .loading import origin_of
from .segments import Networks, network_inputs, require_plain
from .sockets import FaceParametersSocket, connected, make_schema, parameters_output

SILENCE = 90.0  # seconds: browsers let pages in the background work once a minute


class ExpressionEditor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffExpressionEditor",
            stage="Motion",
            display_name="Expression Editor",
            description="Dial an expression, gaze and head pose with sliders while a 3D head, and the result "
            "if you like, shows them; from nothing or on top of a captured motion, still or by keyframes.",
            search_aliases=["face pose", "blendshapes", "ARKit", "puppet", "smile", "gaze", "head rotation"],
            hidden=[io.Hidden.unique_id],
            advanced="show_result",
            inputs=[
                io.Combo.Input(
                    "apply",
                    options=["add", "replace"],
                    default="add",
                    tooltip="What happens to connected parameters: the sliders are added to every frame, or "
                    "replace its expression and head rotation.",
                ),
                io.String.Input(
                    "expression",
                    default="{}",
                    tooltip="The sliders that are not at rest, as JSON: ARKit's names from 0 to 1 (down to "
                    "-1 to take away), headYaw, headPitch, headRoll in degrees, zoom, shiftX, shiftY; or "
                    "keyframes of them.",
                ),
                FaceParametersSocket.Input(
                    "parameters",
                    optional=True,
                    tooltip="Face parameters to edit, all frames alike unless there are keyframes; without "
                    "them the neutral bundled head is dialed.",
                ),
                io.Boolean.Input(
                    "show_result",
                    default=False,
                    optional=True,
                    tooltip="Wait here and show the result beside the head while sliders move, until you go "
                    "on. The eye button in the node switches it on for one run. It needs the inputs below.",
                ),
                *_result_inputs(),
            ],
            outputs=[
                parameters_output(
                    "What is dialed: as many frames as the connected parameters have; otherwise one, or up "
                    "to the last keyframe."
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, show_result: bool = False, **_: object) -> str:
        """While the result is shown, what is dialed comes from the page."""
        return secrets.token_hex() if show_result else ""

    @classmethod
    def execute(
        cls,
        apply: str,
        expression: str,
        parameters: FaceParameters | None = None,
        show_result: bool = False,
        source: FaceParameters | None = None,
        **networks: Any,
    ) -> io.NodeOutput:
        head = HeadModel.bundled()
        keyframes = read_keyframes(expression, head)
        base = head.neutral()
        if parameters is not None:
            base = require_motion(parameters, "parameters")
            base = without_motion(base) if apply == "replace" else base
        first_frame = [] if parameters is None else [_motion(base)]
        if show_result:
            shown = Result(base, source_frame(_given(source, "source")), _networks(head, **networks))
            keyframes = shown.dial(str(cls.hidden.unique_id), keyframes, {"first_frame": first_frame})
        return io.NodeOutput(animate(head, base, keyframes), ui={"first_frame": first_frame})


@dataclass(frozen=True)
class Dialed:
    """What the page asks for: the result of a frame, under a number of the page's own."""

    number: int
    frame: int
    keyframes: list[Keyframe]


@dataclass(frozen=True)
class Result:
    """Draws the source with what is dialed, for as long as the page wants it."""

    base: FaceParameters
    source: FaceParameters
    networks: Networks

    def dial(self, node: str, keyframes: list[Keyframe], told: dict[str, Any]) -> list[Keyframe]:
        """Show results to the page until it goes on; what was dialed last.

        Args:
            node: number of the node.
            keyframes: those of the start.
            told: what the page gets at the beginning.
        """
        head, before = self.networks.head, None
        with (
            on_device(head),
            live_session(
                node,
                needs="The Expression Editor shows its result in",
                otherwise="switch show_result off",
                told=told,
                read=partial(read_dialed, head=head),
                silence=SILENCE,
            ) as session,
        ):
            for _, dialed in session.frames():
                keyframes = dialed.keyframes
                now = edits_at(keyframes, dialed.frame), self.frame(dialed.frame)
                if now != before:  # a page says in the same way that it is still there
                    before, image = now, self.draw(*now)
                session.show(image, {"asked": dialed.number})
            waiting = session.newest.take(0)
        return keyframes if waiting is None else waiting.item[1].keyframes

    def frame(self, number: int) -> int:
        """The frame of the parameters below that is edited."""
        return min(number, len(self.base) - 1)

    def draw(self, edits: dict[str, float], frame: int) -> Tensor:
        """The image (3, size, size) in [0, 1] on the CPU."""
        networks = self.networks
        parameters = align(self.source, edit(networks.head, self.base[frame], edits))
        pose = networks.pose(parameters)
        latents = networks.sample(parameters, pose, report=lambda done, total, image: None, quiet=True)
        return networks.decode(latents)[0].cpu()


def read_dialed(data: bytes, head: HeadModel) -> Dialed:
    """What the page sends: ``{"number": 3, "frame": 0, "expression": "{}"}``.

    Raises:
        InputError: it is nothing of that kind.
    """
    try:
        values = parse_json(data)
        number, frame, expression = (values[name] for name in ("number", "frame", "expression"))
    except (ValueError, TypeError, KeyError) as error:
        raise _nothing_dialed() from error
    if type(number) is not int or type(frame) is not int or not isinstance(expression, str):
        raise _nothing_dialed()
    return Dialed(number, max(0, min(frame, MOST_FRAMES)), read_keyframes(expression, head))


def _nothing_dialed() -> InputError:
    return InputError("What was dialed is not an object of number, frame and expression: send such a one.")


def _motion(params: FaceParameters) -> dict[str, Any]:
    """What the head in the node starts from: the first frame without the sliders."""
    first = params[0]
    return {name: getattr(first, name)[0].float().tolist() for name in ("expression", "pose", "camera")}


def _result_inputs() -> list[io.Input]:
    inputs = network_inputs()
    for entry in inputs:
        entry.optional = True
        entry.tooltip = f"To show the result: {entry.tooltip}"
    return inputs


def _networks(
    head: HeadModel,
    model: Any = None,
    reference: Any = None,
    vae: Any = None,
    pose_encoder: Any = None,
) -> Networks:
    """Sampled as the checkpoint wants to be."""
    model, reference = _given(model, "model"), _given(reference, "reference")
    vae, encoder = _given(vae, "vae"), require_plain(_given(pose_encoder, "pose_encoder"), "the result")
    origin = origin_of(model)
    wanted = SamplingSettings() if origin is None else origin.checkpoint.sampling
    sampling = {name: getattr(wanted, name) for name in ("steps", "cfg", "sampler", "scheduler")}
    sampling |= {"seed": SamplingSettings.seed, "window": 1, "overlap": 0}
    return Networks(model, reference, vae, encoder, head, sampling)


def _given(value: Any, name: str) -> Any:
    return connected(
        value,
        f"{name} at the Expression Editor to show the result with",
        "connect it, or switch show_result off",
    )
