"""Streaming: one by one against the whole clip, smoothing without lag, lost faces, neutral, other sources."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from anifacediff_core.capture.extract import CaptureModels, crop_portrait, extract_parameters
from anifacediff_core.errors import InputError
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.motion.causal import KNOWN, CausalSmoother
from anifacediff_core.motion.smoothing import smooth_motion
from anifacediff_core.network.autoencoder import AutoEncoder
from anifacediff_core.network.config import NetworkConfig
from anifacediff_core.network.model import AniFaceDiff
from anifacediff_core.network.temporal import TemporalAttention, TemporalMemory, TemporalModule
from anifacediff_core.sampling.pipeline import Pipeline
from anifacediff_core.sampling.stream import KEPT, LiveMotion, Stream
from anifacediff_core.video import read_frames, read_image
from anifacediff_core.weights.checkpoint import load_checkpoint
from anifacediff_core.weights.faces import load_face_models
from harness.extension import ROOT
from harness.files import BUNDLED
from harness.weights import randomize

EXAMPLES = ROOT / "anifacediff_core" / "assets" / "examples"
SIDE = 128
FRAMES = 8


@pytest.fixture(scope="module")
def models() -> CaptureModels:
    return load_face_models(load_checkpoint(BUNDLED))


@pytest.fixture(scope="module")
def pipeline(models: CaptureModels) -> Pipeline:
    return Pipeline.from_checkpoint(load_checkpoint(BUNDLED), head=models.head)


@pytest.fixture(scope="module")
def clip() -> Tensor:
    return torch.stack(list(read_frames(EXAMPLES / "driving.mp4"))[8 : 8 + FRAMES])


@pytest.fixture(scope="module")
def source(models: CaptureModels) -> tuple[Tensor, FaceParameters]:
    picture = read_image(EXAMPLES / "source.png")
    found = extract_parameters(picture, models, what="the source")
    return crop_portrait(picture, found.square, SIDE), found.parameters


@pytest.fixture(scope="module")
def motion(models: CaptureModels, clip: Tensor) -> FaceParameters:
    return extract_parameters(clip, models, smoothing=0.0).parameters


def psnr(first: Tensor, second: Tensor) -> float:
    return float(-10 * torch.log10((first - second).square().mean((1, 2, 3))).mean())


def trembling(params: FaceParameters) -> float:
    """Mean change of the head's place and turn from frame to frame."""
    return float(torch.cat([params.camera, params.pose[:, :6]], 1).diff(dim=0).abs().mean())


def noisy(motion: FaceParameters, frames: int, seed: int = 0) -> FaceParameters:
    """The first frame, held, as a network reads it: with a tremble."""
    still = motion[[0] * frames]
    generator = torch.Generator().manual_seed(seed)
    noise = 2e-3 * torch.randn(frames, 18, generator=generator)
    return replace(still, pose=still.pose + noise[:, :15], camera=still.camera + noise[:, 15:])


def one_by_one(params: FaceParameters, names: list[str], strength: float) -> FaceParameters:
    smoother = CausalSmoother(names, strength)
    return FaceParameters.concatenate([smoother(params[frame]) for frame in range(len(params))])


# ---- smoothing


def test_a_still_face_becomes_as_still_as_offline(models: CaptureModels, motion: FaceParameters) -> None:
    raw, names = noisy(motion, 60), models.head.expression_names
    calmed = one_by_one(raw, names, 0.3)
    assert trembling(calmed[20:]) < 0.4 * trembling(raw[20:])
    assert trembling(calmed[20:]) < 2.5 * trembling(smooth_motion(raw, names, 0.3, 0.3)[20:])


def test_a_quick_turn_and_a_blink_are_shown_within_a_frame(
    models: CaptureModels, motion: FaceParameters
) -> None:
    raw, names = noisy(motion, 40), models.head.expression_names
    raw.pose[20:, 4] += 0.3
    blink = names.index("eyeBlinkLeft")
    raw.expression[30, blink] = 1.0
    calmed = one_by_one(raw, names, 1.0)
    assert calmed.pose[20:24, 4].sub(raw.pose[20:24, 4]).abs().max() < 0.02
    assert (
        calmed.expression[30, blink] > 0.9 and calmed.expression[31, blink] < raw.expression[31, blink] + 0.1
    )


def test_no_smoothing_changes_nothing_and_memory_is_bounded(
    models: CaptureModels, motion: FaceParameters
) -> None:
    smoother = CausalSmoother(models.head.expression_names, 0.0)
    for frame in range(KNOWN + 20):
        given = motion[frame % len(motion)]
        assert torch.equal(smoother(given).pose, given.pose)
    assert len(smoother._readings) == KNOWN
    smoother.strength = float("nan")
    with pytest.raises(InputError, match="smoothing"):
        smoother(motion[0])


# ---- pictures


def test_pictures_are_those_of_the_whole_clip(
    pipeline: Pipeline, models: CaptureModels, clip: Tensor, source: tuple[Tensor, FaceParameters]
) -> None:
    offline = extract_parameters(clip, models, mode="whole", smoothing=0.0).parameters
    whole = torch.cat(list(pipeline.reenact(*source, offline)))
    stream = Stream(pipeline, models, *source, mode="whole", smoothing=0.0)
    live = torch.stack([stream(frame) for frame in clip])
    assert live.shape == whole.shape and live.dtype == torch.float32
    assert psnr(live, whole) > 34
    # what moves from frame to frame is as calm as where the temporal modules see all of it
    assert live.diff(dim=0).abs().mean() < 1.1 * whole.diff(dim=0).abs().mean()


def test_pictures_are_the_same_in_windows_of_one_frame(
    pipeline: Pipeline, source: tuple[Tensor, FaceParameters], motion: FaceParameters
) -> None:
    whole = torch.cat(list(pipeline.reenact(*source, motion[:3], window=1, overlap=0)))
    stream = Stream(pipeline, None, *source, kept=0, smoothing=0.0)
    live = torch.stack([stream.follow(motion[frame]) for frame in range(3)])
    torch.testing.assert_close(live, whole, atol=1e-3, rtol=0)


def test_the_first_picture_is_that_of_a_face_that_was_still(
    pipeline: Pipeline, source: tuple[Tensor, FaceParameters], motion: FaceParameters
) -> None:
    still = motion[[0] * (KEPT + 1)]
    *_, whole = torch.cat(list(pipeline.reenact(*source, still)))
    stream = Stream(pipeline, None, *source, smoothing=0.0)
    first = stream.follow(motion[0])
    assert psnr(first[None], whole[None]) > 45
    again = Stream(pipeline, None, *source, smoothing=0.0)
    again.follow(motion[5])
    again.change_source(*source)  # and forgets what was seen
    torch.testing.assert_close(again.follow(motion[0]), first, atol=1e-5, rtol=0)


def test_what_is_kept_is_compiled_once_for_the_first_frame_and_once_for_all_others() -> None:
    counted = CompileCounter()
    config = NetworkConfig.tiny()
    module = randomize(TemporalModule(config, 24 * config.norm_num_groups, 3), 0)
    memories = TemporalMemory(2), TemporalMemory(2)
    compiled = torch.compile(module, backend=counted, fullgraph=True, dynamic=False)
    with torch.no_grad():
        for _ in range(5):
            hidden = torch.randn(2, module.in_channels, 3, 3)
            expected = module(hidden, 1, memories[0])
            torch.testing.assert_close(compiled(hidden, 1, memories[1]), expected, atol=1e-4, rtol=1e-4)
    assert counted.frame_count == 2


@pytest.mark.slow
def test_pictures_flicker_as_little_as_the_whole_clip(pipeline: Pipeline, models: CaptureModels) -> None:
    """At the usual size; without what the temporal modules keep it is 1.03."""
    picture = read_image(EXAMPLES / "source.png")
    found = extract_parameters(picture, models, what="the source")
    given = crop_portrait(picture, found.square, 256), found.parameters
    frames = torch.stack(list(read_frames(EXAMPLES / "driving.mp4"))[:16])
    params = extract_parameters(frames, models).parameters
    whole = torch.cat(list(pipeline.reenact(*given, params)))
    stream = Stream(pipeline, None, *given, smoothing=0.0)
    live = torch.stack([stream.follow(params[frame]) for frame in range(16)])
    flicker = live.diff(n=2, dim=0).abs().mean() / whole.diff(n=2, dim=0).abs().mean()
    assert abs(flicker - 1) < 0.02


def test_what_is_kept_makes_the_attention_of_a_window() -> None:
    """Where the tokens of earlier frames depend on no others, as in the first attention."""
    attention = randomize(TemporalAttention(24, 3), 0)
    places = torch.randn(9, 24)
    tokens = torch.randn(2, 6, 5, 24)  # clips, frames, positions
    memory = TemporalMemory(3)
    for frame in range(6):
        found = attention.follow(tokens[:, frame], places, memory)
    window = tokens[:, 2:] + places[:4, None]
    expected = attention(window.flatten(0, 1), 4).unflatten(0, (2, 4))[:, -1]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_source_can_be_changed_between_two_frames(
    pipeline: Pipeline, source: tuple[Tensor, FaceParameters], motion: FaceParameters
) -> None:
    portrait, parameters = source
    stream = Stream(pipeline, None, portrait, parameters, smoothing=0.0)
    before = stream.follow(motion[0])
    stream.change_source(portrait.flip(1), parameters)  # red and blue change places
    other = stream.follow(motion[0])
    assert psnr(before[None], other[None]) < 30
    assert psnr(before.flip(0)[None], other[None]) > psnr(before[None], other[None])
    stream.change_source(portrait, parameters)
    torch.testing.assert_close(stream.follow(motion[0]), before, atol=1e-3, rtol=0)


# ---- motion


def test_a_lost_face_holds_and_goes_on(models: CaptureModels, clip: Tensor, motion: FaceParameters) -> None:
    live = LiveMotion(models.head, motion[0], models, smoothing=0.0)
    empty = torch.full_like(clip[0], 0.5)
    resting = live.read(empty)
    assert live.lost and torch.equal(resting.pose, motion[0].pose)  # nobody was seen yet: the source rests
    seen = live.read(clip[0])
    assert not live.lost
    held = live.read(empty)
    assert live.lost and torch.equal(held.pose, seen.pose) and torch.equal(held.camera, seen.camera)
    back = live.read(clip[3])
    assert not live.lost and not torch.equal(back.pose, seen.pose)


def test_neutral_counts_from_that_frame(models: CaptureModels, motion: FaceParameters) -> None:
    source = models.head.neutral(1)
    live = LiveMotion(models.head, source, smoothing=0.0)
    driver = motion[4]
    assert torch.equal(live.follow(driver).pose[:, :9], driver.pose[:, :9])
    live.neutral()
    at_rest = live.follow(driver)
    torch.testing.assert_close(at_rest.pose, source.pose, atol=1e-5, rtol=0)
    torch.testing.assert_close(at_rest.camera, source.camera, atol=1e-4, rtol=0)
    assert at_rest.expression.abs().max() < 1e-6
    assert not torch.allclose(live.follow(motion[0]).pose, source.pose, atol=1e-3)


def test_gains_still_or_exaggerate(models: CaptureModels, motion: FaceParameters) -> None:
    source = models.head.neutral(1)
    live = LiveMotion(models.head, source, smoothing=0.0, expression_gain=0.0, head_gain=1.0)
    drawn = live.follow(motion[4])
    assert drawn.expression.abs().max() < 1e-6
    torch.testing.assert_close(drawn.pose[:, 3:6], motion[4].pose[:, 3:6], atol=1e-5, rtol=0)
    live.expression_gain, live.head_gain = 1.0, 0.0
    drawn = live.follow(motion[4])
    torch.testing.assert_close(drawn.expression, motion[4].expression.clamp(0, 1))
    torch.testing.assert_close(drawn.pose[:, 3:6], source.pose[:, 3:6], atol=1e-5, rtol=0)


def test_the_portrait_is_chosen_once_and_again_at_neutral(models: CaptureModels, clip: Tensor) -> None:
    """A wide frame whose face has moved to the side: it stays there, until it is said to be neutral."""
    live = LiveMotion(models.head, models.head.neutral(1), models, smoothing=0.0)

    def wide(frame: Tensor, left: int) -> Tensor:
        whole = torch.full((3, 256, 512), 0.6)
        whole[:, :, left : left + 256] = frame
        return whole

    first = live.read(wide(clip[0], 128))
    for left in (150, 175, 200):
        aside = live.read(wide(clip[0], left))
    place = [float(params.camera[0, 1]) for params in (first, aside)]
    assert place[1] - place[0] > 0.03
    live.neutral()
    again = live.read(wide(clip[0], 200))
    assert abs(float(again.camera[0, 1])) < 1e-4


def test_nothing_grows_with_the_number_of_frames(models: CaptureModels, clip: Tensor) -> None:
    live = LiveMotion(models.head, models.head.neutral(1), models)

    def tensors_after(frames: int) -> int:
        for _ in range(frames):
            live.read(clip[0])
        # by type: to ask a weak proxy for its class raises once what it stands for is gone
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    for _ in range(KNOWN):  # what tells the noise
        live.follow(models.head.neutral(1))
    assert tensors_after(2) == tensors_after(6)


def test_no_bytes_stay_of_frames_that_were_drawn(models: CaptureModels) -> None:
    """What a thousand and ten thousand take says benchmarks/stream.py."""
    pipeline = Pipeline(
        randomize(AniFaceDiff(NetworkConfig.tiny(), motion=True), 0), AutoEncoder(), models.head
    )
    stream = Stream(pipeline, None, torch.rand(1, 3, 64, 64), models.head.neutral(1))
    motion = models.head.neutral(5)

    def bytes_after(frames: int) -> int:
        for frame in range(frames):
            stream.follow(motion[frame % 5])
        gc.collect()
        tensors = [thing for thing in gc.get_objects() if type(thing) in (Tensor, torch.nn.Parameter)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    for _ in range(KNOWN):  # what tells the noise
        stream.motion.follow(motion[0])
    assert bytes_after(2) == bytes_after(2) == bytes_after(3)


def test_frames_without_readers_or_sense_are_refused(models: CaptureModels, clip: Tensor) -> None:
    with pytest.raises(InputError, match="nothing that reads faces"):
        LiveMotion(models.head, models.head.neutral(1)).read(clip[0])
    live = LiveMotion(models.head, models.head.neutral(1), models)
    with pytest.raises(InputError, match="NaN"):
        live.read(clip[0] * torch.nan)
