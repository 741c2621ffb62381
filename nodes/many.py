"""Every face of a picture, each with a driver: Reenact Many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from anifacediff_core.capture.detector import Detection
from anifacediff_core.capture.extract import crop_portrait
from anifacediff_core.capture.paste import FEATHER, SHAPES
from anifacediff_core.capture.people import Person, find_people, paste_people, shown_areas
from anifacediff_core.errors import InputError
from anifacediff_core.head.alignment import align, source_frame
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.provenance.mark import require_size
from anifacediff_core.sampling.fingerprint import fingerprint
from anifacediff_core.sampling.segments import ResumableVideo, Segment, SegmentState, plan_segments
from anifacediff_core.sampling.timeline import LENGTHS, Timeline

from .capture import (
    known_faces,
    landmarks_inputs,
    least_confidence_input,
    missing_input,
    on_device,
    smoothing_input,
)
from .conditioning import encode_source
from .fingerprints import facts_of_model, workflow_fingerprint
from .head import camera_input, head_input, load_head
from .host.api import io
from .host.runtime import ModelPatcher, Notes, Progress
from .host.video import file_of
from .images import checked
from .label import UNLABELED, label_input, label_of
from .long_video import Result, read_driver, reading_of, sampling_of, video_inputs
from .sampling import model_input
from .segments import DECODED, Finishing, Networks, SegmentMaker, require_plain
from .sockets import (
    FaceCaptureSocket,
    PoseEncoderSocket,
    ReferenceNetSocket,
    head_model_input,
    make_schema,
    paste_inputs,
    size_input,
)

FACES = 6  # that can have a driver of their own


class ReenactMany(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffReenactMany",
            stage="Sampling",
            display_name="Reenact Many",
            description="Everybody in a picture comes alive: each face with a driving video of its own, or "
            "one for all, pasted back into the picture, who stands in front last. Faces are numbered from "
            "left to right; one without a driver stays as it is.",
            search_aliases=[
                "several faces",
                "group picture",
                "multiple faces",
                "face reenactment",
                "two people",
                "dialogue",
            ],
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
            advanced="smoothing missing camera head sampler_name scheduler window overlap shared_noise "
            "segment feather match_color least_confidence",
            inputs=[*_network_inputs(), *_face_inputs(), *video_inputs(), *_optional_inputs()],
            outputs=[
                io.Video.Output(
                    display_name="video", tooltip="The finished file: the whole picture, with sound."
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="How many faces there are, who is driven by what, and where the file is.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        reference_net: ModelPatcher | None,
        vae: Any,
        clip_vision: Any,
        pose_encoder: ModelPatcher | None,
        face_capture: Any,
        source_image: Tensor,
        size: int,
        length: str,
        camera: str,
        head: str,
        segment: int,
        mark: bool,
        filename_prefix: str,
        shape: str,
        feather: float = FEATHER,
        match_color: float = 0.0,
        driving: Any = None,
        head_model: Any = None,
        face_landmarks: dict[str, Any] | None = None,
        bounding_boxes: Any = None,
        label: str = UNLABELED,
        **settings: Any,
    ) -> io.NodeOutput:
        encoder = require_plain(pose_encoder, "Reenact Many")
        image = checked(source_image, "source image")[0][:1]
        if mark:
            require_size(*image.shape[-2:])
        sampling, reading, notes = sampling_of(settings), reading_of(settings), Notes()
        if len(source_image) > 1:
            notes(f"The source image has {len(source_image)} pictures: the first is taken.")
        people = _people(image, face_capture, known_faces(image, face_landmarks, bounding_boxes))
        own = {number: settings.get(name) for number, name in _names()}
        drivers = _drivers(own, driving, len(people))
        notes(_who(people, drivers))
        timeline = Timeline.of(set(drivers.values()), length)
        # in a workflow the workflow counts: on a GPU, networks give not quite the same tensors every time
        tensors = [facts_of_model(model), [person.parameters for person in people]]
        given = workflow_fingerprint(cls.hidden) or tensors
        looks = [size, length, camera, segment, shape, feather, match_color, mark, label]
        key = fingerprint(given, image, [sampling, reading, looks], drivers)
        result = Result(filename_prefix, key, timeline.timing, notes)
        finishing = Finishing(image, None, feather, match_color, mark, label_of(label))
        with result.video.begin() as work:
            networks = workflow_fingerprint(cls.hidden, "face_capture")
            motions = _motions(work, drivers, face_capture, reading, networks, notes)
            frames = len(motions[timeline.lead])
            progress = Progress(frames)

            def make_face(person: Person, turn: int) -> SegmentMaker:
                path = drivers[person.number]
                motion = timeline.fit(motions[path], path, frames)
                parameters = align(source_frame(person.parameters), motion, camera)
                portrait = crop_portrait(image, person.square, size)
                reference = encode_source(reference_net, vae, clip_vision, portrait)
                own_head = head_model or load_head(head, parameters)
                drawn = Networks(model, reference, vae, encoder, own_head, sampling)
                own_finishing = replace(finishing, square=person.square, mark=False, label=None)
                return SegmentMaker(drawn, parameters, own_finishing, progress, turn, len(drivers))

            driven = [person for person in people if person.number in drivers]
            makers = {person.number: make_face(person, turn) for turn, person in enumerate(driven)}
            areas = shown_areas(people, drivers.keys(), *image.shape[-2:])
            make = GroupMaker(people, makers, areas, shape, finishing, progress)
            segments = plan_segments(frames, segment, sampling["overlap"])
            made = work.run(result.file, segments, make, progress)
        return result.output(made, work.timing.rate)


@dataclass(frozen=True)
class GroupMaker:
    """Makes segments of the whole picture from those of its faces; see `segments.SegmentFn`."""

    people: list[Person]
    makers: Mapping[int, SegmentMaker]
    areas: Mapping[int, Tensor]
    shape: str
    finishing: Finishing
    progress: Progress

    def __call__(self, segment: Segment, state: SegmentState) -> tuple[Iterator[Tensor], SegmentState]:
        latents, colors = {}, {}
        after: dict[str, Tensor] = {}
        for number, maker in self.makers.items():
            own = f"{number}."
            mine = {name.removeprefix(own): one for name, one in state.items() if name.startswith(own)}
            latents[number], reached = maker.sample(segment, mine)
            colors[number] = reached["colors"]
            after |= {own + name: one for name, one in reached.items()}
        return self._pictures(segment, latents, colors), after

    def _pictures(
        self, segment: Segment, latents: dict[int, Tensor], colors: dict[int, Tensor]
    ) -> Iterator[Tensor]:
        for start in range(0, segment.stop - segment.start, DECODED):
            portraits = {
                number: maker.networks.decode(latents[number][start : start + DECODED], segment.start + start)
                for number, maker in self.makers.items()
            }
            assert self.finishing.original is not None
            frames = paste_people(
                self.people, portraits, self.finishing.original, self.areas,
                feather=self.finishing.feather, shape=self.shape, colors=colors,
            )  # fmt: skip
            self.progress.show(segment.stop, len(next(iter(self.makers.values())).parameters), frames[-1])
            yield self.finishing.disclosed(frames)


def _people(image: Tensor, face_capture: Any, faces: list[list[Detection]] | None) -> list[Person]:
    with on_device(face_capture) as models:
        return find_people(image, models, None if faces is None else faces[0], Progress(1))


def _names() -> list[tuple[int, str]]:
    return [(number, f"driving_{number}") for number in range(1, FACES + 1)]


def _drivers(own: Mapping[int, Any], common: Any, faces: int) -> dict[int, Path]:
    """The driver's file of every face that has one, by its number.

    Raises:
        InputError: nobody has one, or somebody who is not there.
    """
    surplus = [number for number, video in own.items() if video is not None and number > faces]
    if surplus:
        there = "is one face" if faces == 1 else f"are {faces} faces"
        raise InputError(
            f"There {there} in the picture but driving_{surplus[0]} is connected: disconnect it, or connect "
            "it to the number of a face, counted from the left."
        )
    chosen = {number: own.get(number) for number in range(1, faces + 1)}
    chosen = {number: common if video is None else video for number, video in chosen.items()}
    files = {id(video): file_of(video) for video in chosen.values() if video is not None}
    if not files:
        raise InputError("No face has a driver: connect a video to driving, or to the number of a face.")
    return {number: files[id(video)] for number, video in chosen.items() if video is not None}


def _who(people: list[Person], files: Mapping[int, Path]) -> str:
    """A sentence about who is driven by what."""
    there = "is one face" if len(people) == 1 else f"are {len(people)} faces, from left to right"
    drivers = {person.number: files.get(person.number) for person in people}
    each = [f"{n} {'stays' if path is None else f'is driven by {path.name}'}" for n, path in drivers.items()]
    return f"There {there}: {', '.join(each)}."


def _motions(
    work: ResumableVideo,
    drivers: Mapping[int, Path],
    face_capture: Any,
    reading: dict[str, Any],
    networks: str | None,
    say: Callable[[str], None],
) -> dict[Path, FaceParameters]:
    """The motion of each driver, its frames streamed, each read once."""
    motions = {}
    for number, path in enumerate(sorted(set(drivers.values())), 1):
        read = partial(read_driver, path, face_capture, {"mode": "auto", "face": 0, **reading})
        motions[path], note = work.parameters(fingerprint(path, reading, networks), read, f"_{number}")
        say(f"{path.name}: {note}")
    return motions


def _network_inputs() -> list[io.Input]:
    return [
        model_input(),
        ReferenceNetSocket.Input("reference_net", tooltip="ReferenceNet of Load AniFaceDiff."),
        io.Vae.Input("vae", tooltip="VAE of Load AniFaceDiff."),
        io.ClipVision.Input("clip_vision", tooltip="CLIP_VISION of Load AniFaceDiff."),
        PoseEncoderSocket.Input("pose_encoder", tooltip="Pose encoder of Load AniFaceDiff."),
        FaceCaptureSocket.Input(
            "face_capture",
            tooltip="What finds and reads the faces, of the picture and of the drivers: face detector and "
            "encoder of Load AniFaceDiff, or DECA of Load DECA.",
        ),
        io.Image.Input(
            "source_image",
            tooltip="Picture with one face or many. Of a video the first frame is taken.",
        ),
    ]


def _face_inputs() -> list[io.Input]:
    return [
        size_input("Side in pixels at which each face is made; the bundled model was trained at 256."),
        io.Combo.Input(
            "length",
            options=list(LENGTHS),
            default="longest",
            tooltip="Which driver says how long the video is. longest: where another one has ended, its face "
            "rests. shortest: the video ends with it. Times and sound are of that driver, too.",
        ),
        smoothing_input(),
        missing_input(skip=False),
        camera_input(default="source"),
        head_input(),
        io.Combo.Input(
            "shape",
            options=list(SHAPES),
            default="ellipse",
            tooltip="What shows of each portrait. ellipse: the upright oval around the head. square: all of "
            "it. In both, nobody's portrait covers another one's face.",
        ),
        *paste_inputs(
            colors="How much to bring each portrait's colors to those of the picture around it: 0 leaves "
            "them."
        ),
    ]


def _optional_inputs() -> list[io.Input]:
    return [
        io.Video.Input(
            "driving",
            optional=True,
            tooltip="The driving video of every face that has none of its own, straight from Load Video.",
        ),
        *(
            io.Video.Input(name, optional=True, tooltip=f"The driving video of face {number} from the left.")
            for number, name in _names()
        ),
        head_model_input(),
        *landmarks_inputs(),
        least_confidence_input(),
        label_input(),
    ]
