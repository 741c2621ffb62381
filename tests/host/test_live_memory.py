"""What the host's temporal modules keep from frame to frame: the core's, for each call of the UNet."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from test_parity import WHOLE_RUN, Twin, make_twin, noise_for, relative_error, run_host
from torch import Tensor

from anifacediff_core.network.temporal import TemporalMemory
from anifacediff_core.sampling.pipeline import Pipeline
from anifacediff_core.sampling.sampler import sample
from anifacediff_core.sampling.stream import Stream
from anifacediff_core.video import read_frames, read_image
from anifacediff_core.weights.checkpoint import load_checkpoint
from anifacediff_core.weights.faces import load_face_models
from harness.extension import ROOT, Extension
from harness.files import BUNDLED

EXAMPLES = ROOT / "anifacediff_core" / "assets" / "examples"
FRAMES, KEPT, SIDE = 6, 3, 128


@pytest.fixture(scope="module", params=["bundled", "narrow"])
def twin(request: pytest.FixtureRequest, host: SimpleNamespace) -> Twin:
    return make_twin(host, request.param, frames=FRAMES)


@pytest.fixture(scope="module")
def tiny(host: SimpleNamespace) -> Twin:
    return make_twin(host, "tiny", frames=FRAMES)


def in_host(
    comfy: ModuleType,
    host: SimpleNamespace,
    twin: Twin,
    memory: Any,
    steps: int,
    cfg: float,
    model: Any = None,
) -> Tensor:
    """Frames of a stream, one by one."""
    model = host.apply.attach_expression_adapter(twin.model if model is None else model, twin.adapter)
    conds = host.apply.image_conditioning(twin.conditioning.context)
    latents = []
    for frame in range(FRAMES):
        one = host.apply.apply_anifacediff(
            model,
            reference=twin.conditioning.reference,
            pose=tuple(level[frame : frame + 1] for level in twin.conditioning.pose),
            expression=twin.expression[frame : frame + 1],
            motion=twin.motion,
            window=1,
            overlap=0,
            memory=memory,
        )
        latents.append(run_host(comfy, one, *conds, noise_for(twin, 1), steps, cfg))
    return torch.cat(latents)


def in_core(twin: Twin, kept: int, steps: int, cfg: float) -> Tensor:
    memories = [TemporalMemory(kept) for _ in range(steps)]
    device = torch.device("cpu")
    options: dict[str, Any] = {"steps": steps, "cfg": cfg, "window": 1, "overlap": 0, "device": device}
    frames = [twin.conditioning.window(range(n, n + 1), device, None) for n in range(FRAMES)]
    noise = noise_for(twin, 1)
    return torch.cat([sample(twin.core, frame, noise, memories=memories, **options) for frame in frames])


@pytest.mark.parametrize(("steps", "cfg"), [(1, 1.0), (2, 2.5)])
def test_frames_of_a_stream_are_those_of_the_core(
    comfy: ModuleType, host: SimpleNamespace, twin: Twin, steps: int, cfg: float
) -> None:
    found = in_host(comfy, host, twin, host.stream.StreamMemory(KEPT), steps, cfg)
    assert relative_error(found, in_core(twin, KEPT, steps, cfg)) < WHOLE_RUN
    assert relative_error(found, in_core(twin, 1, steps, cfg)) > 10 * WHOLE_RUN


def test_halves_of_guidance_that_run_one_after_the_other_keep_their_own(
    comfy: ModuleType, host: SimpleNamespace, tiny: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = in_host(comfy, host, tiny, host.stream.StreamMemory(KEPT), 2, 2.5)
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_, **__: 0)
    memory = host.stream.StreamMemory(KEPT)
    found = in_host(comfy, host, tiny, memory, 2, 2.5)
    assert len(memory._memories) == 4, "two steps of two halves"
    assert relative_error(found, together) < WHOLE_RUN


def test_a_sampler_that_looks_twice_a_step_keeps_each_look(
    comfy: ModuleType, host: SimpleNamespace, tiny: Twin
) -> None:
    memory = host.stream.StreamMemory(KEPT)
    memory.begin()
    first, second = memory.of_call([0, 1]), memory.of_call([0, 1])
    memory.begin()
    assert memory.of_call([0, 1]) is first is not second
    assert memory.of_call([1]) not in (first, second)


def test_no_more_is_kept_than_the_modules_have_places_for(
    comfy: ModuleType, host: SimpleNamespace, tiny: Twin
) -> None:
    longest = host.places.longest_window(tiny.motion)
    memory = host.stream.StreamMemory(longest + 5)
    in_host(comfy, host, tiny, memory, 1, 1.0)
    assert memory.frames == longest - 1


def test_compiled_frames_are_one_graph_for_the_first_and_one_for_the_others(
    comfy: ModuleType, host: SimpleNamespace, tiny: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    from comfy.ldm.modules.attention import attention_pytorch
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    # the host's default attention on the CPU reads the free memory, which no graph can hold
    monkeypatch.setattr("comfy.ldm.modules.attention.optimized_attention", attention_pytorch)
    expected = in_host(comfy, host, tiny, host.stream.StreamMemory(KEPT), 2, 2.5)
    model = tiny.model.clone()
    set_torch_compile_wrapper(model, backend="eager", fullgraph=True, dynamic=False)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    found = in_host(comfy, host, tiny, host.stream.StreamMemory(KEPT), 2, 2.5, model)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    assert relative_error(found, expected) < WHOLE_RUN


@pytest.mark.parametrize(
    ("options", "replayed"),
    [({"mode": "reduce-overhead"}, True), ({"backend": "cudagraphs"}, True), ({"mode": "default"}, False)],
)
def test_kernels_that_are_replayed_are_known(
    host: SimpleNamespace, tiny: Twin, options: dict[str, str], replayed: bool
) -> None:
    from anifacediff_host.compile import replays
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    model = tiny.model.clone()
    assert not replays(model)
    set_torch_compile_wrapper(model, **{"backend": "eager", **options})
    assert replays(model) == replayed and not replays(tiny.model)


# ---- the node


class Session:
    """A page that sends a clip."""

    newest = SimpleNamespace(dropped=0)

    def __init__(self, clip: list[Tensor]) -> None:
        self.clip, self.shown = clip, list[Tensor]()

    def frames(self) -> Iterator[tuple[float, Tensor]]:
        yield from ((number / 25, frame) for number, frame in enumerate(self.clip))

    def asked(self) -> set[str]:
        return set()

    def show(self, image: Tensor, _: dict[str, Any]) -> None:
        self.shown.append(image)


def run_node(
    extension: Extension, clip: list[Tensor], monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> Tensor:
    """What Live Reenactment shows of the bundled example."""
    shutil.copy(BUNDLED, extension.base / "models" / "anifacediff" / "live.safetensors")
    loaded = extension.run("Loader", checkpoint="live.safetensors")
    model, vae, clip_vision, reference_net, pose_encoder, face_capture = loaded[:6]
    model, *_ = extension.run("ExpressionAdapterLoader", model=model, checkpoint="same as model", weight=1.0)
    picture = read_image(EXAMPLES / "source.png").movedim(1, -1)
    source, portrait, *_ = extension.run(
        "DECAExtract", face_capture=face_capture, image=picture, region="auto", size=SIDE, face=0,
        smoothing=0.0, missing="interpolate",
    )  # fmt: skip
    (reference,) = extension.run(
        "ReferenceNetEncode", reference_net=reference_net, vae=vae, clip_vision=clip_vision,
        source_image=portrait, size=SIDE,
    )  # fmt: skip
    node, session = extension.classes["AniFaceDiffLive"], Session(clip)

    @contextmanager
    def live_session(_: str) -> Iterator[Session]:
        yield session

    monkeypatch.setattr(sys.modules[node.__module__], "live_session", live_session)
    monkeypatch.setattr(
        extension.classes["AniFaceDiffLive"], "hidden", SimpleNamespace(unique_id="1"), raising=False
    )
    sampling = {"seed": 0, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}
    given = {"region": "whole", "face": 0, "smoothing": 0.0, "expression": 1.0, "head_motion": 1.0}
    extension.run(
        "Live", model=model, reference=reference, vae=vae, pose_encoder=pose_encoder, source=source,
        face_capture=face_capture, most_frames=10, head="bundled", **sampling, **given, **settings,
    )  # fmt: skip
    return torch.stack(session.shown)


def psnr(first: Tensor, second: Tensor) -> float:
    return float(-10 * torch.log10((first - second).square().mean((1, 2, 3))).mean())


def test_pictures_of_the_node_are_those_of_the_command(
    extension: Extension, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anifacediff_core.capture.extract import crop_portrait, extract_parameters

    clip = list(read_frames(EXAMPLES / "driving.mp4"))[8 : 8 + FRAMES]
    live = run_node(extension, clip, monkeypatch)
    checkpoint = load_checkpoint(BUNDLED)
    models = load_face_models(checkpoint)
    pipeline = Pipeline.from_checkpoint(checkpoint, head=models.head)
    picture = read_image(EXAMPLES / "source.png")
    found = extract_parameters(picture, models, what="the source")
    source = crop_portrait(picture, found.square, SIDE), found.parameters

    def headless(kept: int) -> Tensor:
        stream = Stream(pipeline, models, *source, mode="whole", smoothing=0.0, steps=1, cfg=1.0, kept=kept)
        return torch.stack([stream(frame) for frame in clip])

    offline = extract_parameters(torch.stack(clip), models, mode="whole", smoothing=0.0).parameters
    whole = torch.cat(list(pipeline.reenact(*source, offline)))
    kept, alone = headless(KEPT), headless(0)
    assert psnr(live, kept) > 60 > psnr(alone, kept)
    assert psnr(live, whole) > 34
    assert live.diff(dim=0).abs().mean() < 1.1 * whole.diff(dim=0).abs().mean()
