"""Capture: the square, the networks, following a face, reading it back, landmarks and ARKit coefficients."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from anifacediff_core.capture import mediapipe, mesh
from anifacediff_core.capture.arkit import from_arkit, from_face_landmarks
from anifacediff_core.capture.detector import (
    CANVAS,
    Detection,
    PortraitDetector,
    choose,
    decode,
    encode,
    face_square,
    letterbox,
)
from anifacediff_core.capture.encoder import CROP, FaceEncoder, Reading
from anifacediff_core.capture.extract import CaptureModels, crop_portrait, extract_parameters, prepare
from anifacediff_core.capture.missing import format_ranges
from anifacediff_core.capture.tracker import Tracker, fill_gaps, portrait_square, smooth_parameters
from anifacediff_core.errors import InputError
from anifacediff_core.head import rotation
from anifacediff_core.head.camera import crop_camera, project
from anifacediff_core.head.gaze import look_along
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return HeadModel.bundled()


def moving_head(head: HeadModel, frames: int, scale: float = 2.5) -> FaceParameters:
    """A head that turns, talks and wanders through the picture."""
    time = torch.linspace(0, 1, frames)
    params = head.neutral(frames)
    params.pose[:, 4] = 0.4 * torch.sin(6 * time)
    params.expression[:, head.expression_names.index("jawOpen")] = time
    params.camera[:, 0] = scale * (1 + 0.1 * time)
    params.camera[:, 1] = 0.05 * time
    params.camera[:, 2] = 0.03 * torch.cos(4 * time)
    return params


class Truth:
    """Stands for trained networks: knows all parameters and reads a crop's place from its pixels."""

    def __init__(
        self, head: HeadModel, params: FaceParameters, missing: tuple[int, ...] = (), jitter: float = 0.0
    ):
        self.head, self.params, self.missing = head, params, missing
        self.squares = face_square(head, params)
        noise = torch.randn(len(params), 3, generator=torch.Generator().manual_seed(0))
        self.squares = self.squares + jitter * noise * self.squares[:, 2:]
        self.seen = 0

    def frames(self, height: int, width: int) -> Tensor:
        """Red tells x, green y, blue the frame's number."""
        longer = max(height, width)
        x = ((torch.arange(width) + 0.5) / longer).expand(height, width)
        y = ((torch.arange(height) + 0.5) / longer)[:, None].expand(height, width)
        return torch.stack(
            [torch.stack([x, y, torch.full_like(x, i / 255)]) for i in range(len(self.params))]
        )

    def detect(self, frames: Tensor) -> list[list[Detection]]:
        indices = (frames[:, 2, 0, 0] * 255).round().int().tolist()
        square = [tuple(self.squares[i].tolist()) for i in indices]
        return [[] if i in self.missing else [Detection(0.9, s)] for i, s in zip(indices, square)]

    def read(self, pixels: Tensor) -> Reading:
        assert pixels.shape[1:] == (3, CROP, CROP)
        self.seen += len(pixels)
        index = (pixels[:, 2, 112, 112] * 255).round().long()
        # The middle half of the crop lies inside the picture, where the colors are linear.
        first, last = pixels[:, :2, 56, 56], pixels[:, :2, 167, 167]
        step = (last - first).mean(1, keepdim=True) / 111
        square = torch.cat([first - 56.5 * step, step * CROP], dim=1)
        params = self.params[index]
        camera = crop_camera(params.camera, square)
        return Reading(params.shape, params.expression, params.pose[:, 3:6], camera)

    def models(self) -> CaptureModels:
        return CaptureModels(self, self, self.head)


class BestCentered(Truth):
    """Networks as they are: the detector is off, and the encoder the more so the less centered a face is."""

    OFF = torch.tensor([0.2, 0.1, 0.0])  # shares of the square's side

    def detect(self, frames: Tensor) -> list[list[Detection]]:
        found = [face.square for (face,) in super().detect(frames)]
        return [[Detection(0.9, tuple((torch.tensor(s) + self.OFF * s[2]).tolist()))] for s in found]

    def read(self, pixels: Tensor) -> Reading:
        reading = super().read(pixels)
        seen = replace(self.head.neutral(len(pixels)), shape=reading.shape, camera=reading.camera)
        left, top, side = face_square(self.head, seen).T
        away = torch.hypot(left + side / 2 - 0.5, top + side / 2 - 0.5)
        return reading._replace(expression=reading.expression + away[:, None])


# ---- the face square and the networks


def test_face_square_holds_the_face_and_ignores_speech(head):
    params = moving_head(head, 5)
    square = face_square(head, params)
    points = project(head(params)[:, head.landmarks], params.camera)[..., :2] / 2 + 0.5
    inside = (points > square[:, None, :2]) & (points < square[:, None, :2] + square[:, None, 2:])
    assert inside.all()
    silent = replace(params, expression=torch.zeros_like(params.expression))
    torch.testing.assert_close(face_square(head, silent), square)


def test_face_square_follows_the_camera(head):
    params = moving_head(head, 4)
    part = torch.tensor([0.2, 0.1, 0.5])
    inner = face_square(head, replace(params, camera=crop_camera(params.camera, part)))
    outer = torch.cat([part[:2] + inner[:, :2] * part[2], inner[:, 2:] * part[2]], dim=1)
    torch.testing.assert_close(outer, face_square(head, params), atol=1e-5, rtol=0)


def test_encoder_sizes_and_normalization():
    encoder = FaceEncoder()
    assert 2.0e6 < sum(p.numel() for p in encoder.parameters()) < 2.6e6
    reading = Reading(torch.randn(9, 100), torch.rand(9, 52), torch.randn(9, 3) * 0.2, torch.randn(9, 3) + 7)
    encoder.set_statistics(reading)
    vector = encoder.normalize(reading)
    assert vector.shape == (9, 158)
    torch.testing.assert_close(vector.mean(0), torch.zeros(158), atol=1e-4, rtol=0)
    with torch.no_grad():
        encoder.answer.weight.zero_()
    torch.testing.assert_close(encoder.read(torch.rand(1, 3, CROP, CROP)).camera[0], reading.camera.mean(0))


def test_networks_come_back_from_half_precision_weights():
    encoder, detector = FaceEncoder(7, 5), PortraitDetector()
    again = FaceEncoder.from_weights({name: tensor.half() for name, tensor in encoder.state_dict().items()})
    pixels = torch.rand(1, 3, CROP, CROP)
    assert again(pixels).shape == (1, 7 + 5 + 6) and not again.training
    torch.testing.assert_close(again(pixels), encoder(pixels), atol=2e-2, rtol=0)
    assert sum(p.numel() for p in detector.parameters()) < 0.3e6
    PortraitDetector.from_weights({name: tensor.half() for name, tensor in detector.state_dict().items()})


def test_eyes_can_be_told_apart_by_the_encoder():
    """The last map is flattened: the same mark at another place gives another answer."""
    encoder = FaceEncoder().eval()
    left, right = torch.full((1, 3, CROP, CROP), 0.5), torch.full((1, 3, CROP, CROP), 0.5)
    left[..., 90:100, 60:80], right[..., 90:100, 144:164] = 0.0, 0.0
    assert (encoder(left) - encoder(right)).abs().max() > 1e-4


def test_detector_targets_are_decoded_to_the_same_squares():
    squares = torch.tensor([[[0.10, 0.20, 0.30], [0.60, 0.52, 0.22]], [[0.1, 0.1, 0.85], [0.0, 0.0, 0.0]]])
    heat, values = encode(squares)
    assert heat.amax((1, 2)).tolist() == [1.0, 1.0]
    answer = torch.cat([torch.logit(heat * 0.98 + 0.01)[:, None], values], dim=1)
    found = [decode(answer[i], 0.3) for i in range(2)]
    assert [len(faces) for faces in found] == [2, 1]
    for truth in squares[0]:
        nearest = min((torch.tensor(face.square) - truth).abs().max() for face in found[0])
        assert nearest < 1e-4
    assert encode(torch.zeros(1, 2, 3))[0].max() == 0


def test_letterbox_keeps_places():
    picture = torch.zeros(1, 3, 90, 160)
    picture[..., 40:50, 120:130] = 1.0
    canvas = letterbox(picture)
    assert canvas.shape == (1, 3, CANVAS, CANVAS)
    y, x = divmod(int(canvas[0, 0, :72].argmax()), CANVAS)
    assert abs((x + 0.5) / CANVAS - 125 / 160) < 0.03 and abs((y + 0.5) / CANVAS - 45 / 160) < 0.03
    assert (canvas[..., 80:, :] == 0.5).all()


def test_the_large_central_face_is_chosen():
    small, large, edge = (Detection(0.9, s) for s in ((0.45, 0.4, 0.1), (0.3, 0.3, 0.4), (0.0, 0.0, 0.42)))
    assert choose([small, large, edge], 1, 1) is large
    assert choose([], 1, 1) is None


# ---- tracking


def test_tracker_stays_with_its_face():
    tracker = Tracker()
    for step in range(20):
        own = Detection(0.8, (0.20 + 0.01 * step, 0.3, 0.3))
        other = Detection(0.99, (0.65 - 0.01 * step, 0.3, 0.28 + 0.01 * step))
        found = tracker.follow([other, own] if step else [own], 1, 1)
        assert found is own
    assert tracker.crowded == 19 and tracker.most == 2


def test_tracker_takes_faces_from_the_left():
    faces = [Detection(0.9, (x, 0.3, 0.2)) for x in (0.7, 0.1, 0.4)]
    assert Tracker(face=1).follow(faces, 1, 1) is faces[1]
    assert Tracker(face=3).follow(faces, 1, 1) is faces[0]
    assert Tracker(face=4).follow(faces, 1, 1) is None


def test_tracker_survives_a_gap_and_refuses_a_jump():
    tracker = Tracker()
    near, far = Detection(0.9, (0.1, 0.1, 0.2)), Detection(0.9, (0.75, 0.7, 0.2))
    assert tracker.follow([near], 1, 1) is near
    assert tracker.follow([far], 1, 1) is None, "another face is not taken for the lost one at once"
    for _ in range(3):
        tracker.follow([], 1, 1)
    assert tracker.follow([near], 1, 1) is near


def test_a_face_may_come_back_the_farther_the_longer_it_was_away():
    near, moved = Detection(0.9, (0.1, 0.1, 0.2)), Detection(0.9, (0.4, 0.1, 0.2))
    for away in (0, 4):
        tracker = Tracker()
        tracker.follow([near], 1, 1)
        for _ in range(away):
            tracker.follow([], 1, 1)
        assert (tracker.follow([moved], 1, 1) is moved) == (away == 4)


def test_steadied_crop_is_calmer_but_follows():
    generator = torch.Generator().manual_seed(1)
    tracker, steadied, raw = Tracker(), [], []
    for step in range(60):
        noise = 0.01 * torch.randn(1, generator=generator).item()
        raw.append(0.2 + 0.002 * step + noise)
        steadied.append(tracker.crop((raw[-1], 0.3, 0.4))[0])
    trembling = [torch.tensor(values).diff(n=2).std() for values in (steadied, raw)]
    assert trembling[0] < 0.5 * trembling[1]
    assert abs(steadied[-1] - (0.2 + 0.002 * 59)) < 0.03
    assert tracker.crop((0.8, 0.3, 0.4))[0] == 0.8, "a jump is followed at once"


def test_gaps_are_filled_from_their_neighbors():
    values = torch.tensor([9.0, 1.0, 9.0, 9.0, 4.0, 9.0])[:, None]
    valid = torch.tensor([False, True, False, False, True, False])
    torch.testing.assert_close(fill_gaps(values, valid)[:, 0], torch.tensor([1.0, 1, 2, 3, 4, 4]))


def test_smoothing_parameters_calms_the_head_but_keeps_blinks(head):
    params = moving_head(head, 48)
    blink = head.expression_names.index("eyeBlinkLeft")
    params.expression[20:24, blink] = torch.tensor([0.5, 1.0, 0.7, 0.2])
    noise = torch.randn(48, 3, generator=torch.Generator().manual_seed(0)) * 0.006
    noisy = replace(
        params, pose=torch.cat([params.pose[:, :3], params.pose[:, 3:6] + noise, params.pose[:, 6:]], 1)
    )
    calm = smooth_parameters(noisy, head.expression_names, 0.6)
    assert (calm.pose - params.pose).std() < 0.75 * (noisy.pose - params.pose).std()
    assert calm.expression[21, blink] > 0.85
    untouched = smooth_parameters(noisy, head.expression_names, 0.0)
    assert torch.equal(untouched.pose, noisy.pose) and torch.equal(untouched.camera, noisy.camera)


def test_portrait_square_is_stable_and_holds_all_heads(head):
    params = moving_head(head, 30)
    faces, valid = face_square(head, params), torch.ones(30, dtype=torch.bool)
    left, top, side = portrait_square(faces, valid, 1.0, 0.75).tolist()
    assert side < 1 and left >= 0 and top >= 0 and top + side <= 0.75 + 1e-6
    low, high = faces[:, :2], faces[:, :2] + faces[:, 2:]
    margin = torch.tensor([left, top])
    assert (low > margin - 0.02).all() and (high < margin + side + 0.02).all()
    large = faces.new_tensor([[0.17, 0.2, 0.66]]).expand(30, 3)
    assert portrait_square(large, valid, 1.0, 1.0).tolist() == [0, 0, 1]
    assert portrait_square(large, valid, 1.0, 1.0, "portrait")[2] == pytest.approx(0.825)
    assert portrait_square(faces, valid, 1.0, 0.75, "whole").tolist() == [0, 0, 1]


# ---- the whole way


def test_a_face_is_read_again_from_a_centered_square(head):
    params = moving_head(head, 3)
    truth = BestCentered(head, params)
    found = extract_parameters(truth.frames(320, 320), truth.models(), "whole", smoothing=0.0)
    assert truth.seen == 2 * 3
    torch.testing.assert_close(found.parameters.expression, params.expression, atol=0.05, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(300, 400), (400, 300), (320, 320)])
def test_capture_reads_back_what_is_in_the_pictures(head, height, width):
    params = moving_head(head, 12)
    if height < width:
        params = replace(params, camera=params.camera + torch.tensor([0.0, 0.0, 0.1]))
    truth = Truth(head, params, jitter=0.03)
    steps: list[tuple[int, int]] = []
    found = extract_parameters(
        truth.frames(height, width), truth.models(), smoothing=0.0, progress=lambda *at: steps.append(at)
    )
    assert steps[-1] == (12, 12) and found.frames_without_face == []
    expected = crop_camera(params.camera, found.square)
    torch.testing.assert_close(found.parameters.camera, expected, atol=2e-2, rtol=2e-3)
    torch.testing.assert_close(found.parameters.expression, params.expression)
    torch.testing.assert_close(found.parameters.pose[:, 3:6], params.pose[:, 3:6])
    # The cut-out portrait shows the head where its camera says.
    portrait = crop_portrait(truth.frames(height, width), found.square, 128)
    nose = project(head(found.parameters)[:, head.landmarks[30:31]], found.parameters.camera)[:, 0, :2]
    column, row = ((nose + 1) * 64).long().clamp(0, 127).unbind(-1)
    shown = portrait[torch.arange(12), :2, row, column]
    there = project(head(params)[:, head.landmarks[30:31]], params.camera)[:, 0, :2] / 2 + 0.5
    torch.testing.assert_close(shown, there, atol=0.012, rtol=0)


def test_capture_takes_iterators_and_fills_missing_frames(head):
    params = moving_head(head, 10)
    truth = Truth(head, params, missing=(0, 4, 5))
    frames = truth.frames(320, 320)
    whole = extract_parameters(frames, truth.models(), smoothing=0.0)
    streamed = extract_parameters(iter(frames), truth.models(), smoothing=0.0, total=10)
    chunked = extract_parameters(iter(frames.split(3)), truth.models(), smoothing=0.0)
    for other in (streamed, chunked):
        torch.testing.assert_close(other.parameters.camera, whole.parameters.camera, atol=1e-3, rtol=1e-3)
    assert whole.frames_without_face == [0, 4, 5] and whole.parameters.valid.sum() == 7
    jaw = whole.parameters.expression[:, head.expression_names.index("jawOpen")]
    torch.testing.assert_close(jaw[[0, 4, 5]], torch.tensor([1 / 9, 4 / 9, 5 / 9]), atol=1e-3, rtol=0)
    assert "0, 4-5" in whole.note and "7 of 10" in whole.note


def test_capture_tells_of_several_faces(head):
    params = moving_head(head, 3)
    truth = Truth(head, params)
    single = truth.detect
    truth.detect = lambda frames: [[*faces, Detection(0.9, (0.0, 0.0, 0.05))] for faces in single(frames)]  # type: ignore[method-assign]
    assert "2 faces" in extract_parameters(truth.frames(320, 320), truth.models()).note


def test_huge_pictures_are_read_like_small_ones(head):
    params = moving_head(head, 1)
    truth = Truth(head, params)
    small, large = (
        extract_parameters(truth.frames(size, size), truth.models(), "whole") for size in (400, 4000)
    )
    torch.testing.assert_close(large.parameters.camera, small.parameters.camera, atol=5e-3, rtol=2e-3)


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (torch.rand(1, 3, 1, 1), "1 x 1 pixels"),
        (torch.full((1, 3, 64, 64), math.nan), "NaN"),
        (torch.rand(1, 5, 64, 64), "channels"),
        (torch.rand(0, 3, 64, 64), "no frame"),
        ([torch.rand(3, 64, 64), torch.rand(3, 64, 80)], "differ in size"),
        (torch.rand(2, 3, 64, 64), "no face was found"),
    ],
)
def test_bad_pictures_are_refused_in_one_sentence(head, frames, said):
    truth = Truth(head, moving_head(head, 1))
    truth.detect = lambda pictures: [[] for _ in pictures]  # type: ignore[method-assign]
    with pytest.raises(InputError, match=said) as refusal:
        extract_parameters(frames, truth.models(), what="the driving video")
    text = str(refusal.value)
    assert "driving video" in text and text.endswith(".") and text.count(". ") == 0


def test_gray_and_transparent_pictures_become_rgb():
    gray = prepare(torch.full((2, 1, 32, 32), 0.3), "the picture")
    assert gray.shape == (2, 3, 32, 32) and (gray == 0.3).all()
    clear = torch.rand(1, 4, 32, 32)
    clear[:, 3] = 0
    assert (prepare(clear, "the picture") - 128 / 255).abs().max() < 1e-6


def test_cancelling_stops_capture(head):
    truth = Truth(head, moving_head(head, 40))

    def cancel(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_parameters(truth.frames(64, 64), truth.models(), progress=cancel)


def test_untrained_networks_run(head):
    detector, encoder = PortraitDetector().eval(), FaceEncoder().eval()
    detector.detect = lambda frames: [[Detection(0.9, (0.2, 0.2, 0.6))] for _ in frames]  # type: ignore[method-assign]
    found = extract_parameters(torch.rand(2, 3, 96, 96), CaptureModels(detector, encoder, head))
    assert len(found.parameters) == 2
    found.parameters.require_finite("captured parameters")
    assert (found.parameters.expression >= 0).all() and (found.parameters.expression <= 1).all()


def test_frame_lists_are_short():
    assert format_ranges([1, 2, 3, 7, 9, 10]) == "1-3, 7, 9-10" and format_ranges([]) == ""


# ---- coefficients and landmarks

# MediaPipe's points at the head's iBUG landmarks; two landmarks stand for the point between them.
MESH_AT = {
    33: 36, 133: 39, 362: 42, 263: 45, 127: 0, 356: 16, 234: 1, 454: 15, 93: 2, 323: 14, 132: 3, 361: 13,
    168: 27, 4: 30, 1: 30, 2: 33, 97: 32, 326: 34, 98: 31, 327: 35, 152: 8,
    61: 48, 291: 54, 13: 62, 14: 66, 0: 51, 17: 57,
    160: 37, 159: (37, 38), 158: 38, 144: 41, 145: (41, 40), 153: 40,
    385: 43, 386: (43, 44), 387: 44, 380: 47, 374: (47, 46), 373: 46,
    55: 21, 107: 21, 65: 20, 70: 17, 63: 18, 105: 19, 285: 22, 336: 22, 295: 23, 300: 26, 293: 25, 334: 24,
}  # fmt: skip


def mesh_of(head: HeadModel, params: FaceParameters) -> Tensor:
    """(frames, 478, 3): the points of MediaPipe's mesh that matter here, on the head's surface."""
    vertices = head(params)
    points = torch.zeros(len(params), 478, 3)
    for index, landmark in MESH_AT.items():
        chosen = head.landmarks[list(landmark) if isinstance(landmark, tuple) else [landmark]]
        points[:, index] = vertices[:, chosen].mean(1)
    template = head.template
    for index, height in ((10, 0.075), (151, 0.06), (9, 0.045), (8, 0.038)):
        away = template[:, 0].abs() + (template[:, 1] - height).abs() - template[:, 2]
        points[:, index] = vertices[:, away.argmin()]
    for index, name in ((473, "left_eye"), (468, "right_eye")):
        eye = head.regions[name]
        points[:, index] = vertices[:, eye[template[eye, 2].argmax()]]
    return points


def landmarks_of(head: HeadModel, params: FaceParameters, height: int, width: int) -> dict:
    """FACE_LANDMARKS as ComfyUI's landmarker gives them."""
    longer = max(height, width)
    points = mesh_of(head, params)
    flat = (project(points, params.camera)[..., :2] + 1) / 2 * longer
    deep = torch.cat([flat, -points[..., 2:] * params.camera[:, None, :1] * longer / 2], dim=-1) * 0.4
    used = [*MESH_AT, 10]
    frames = []
    for i in range(len(params)):
        matrix = torch.eye(4)
        matrix[:3, :3] = 1.3 * rotation.matrix(params.pose[i, 3:6])
        box = torch.cat([flat[i, used].amin(0), flat[i, used].amax(0)])
        blendshapes = dict(zip(head.expression_names, params.expression[i].tolist())) | {"_neutral": 0.5}
        face = {"bbox_xyxy": box.numpy(), "blendshapes": blendshapes, "score": 0.9, "presence": 1.0}
        face |= {"landmarks_xy": flat[i].numpy(), "landmarks_3d": deep[i].numpy()}
        frames.append([face | {"transformation_matrix": matrix.numpy()}])
    return {"frames": frames, "image_size": (height, width)}


def talking_head(head: HeadModel, frames: int) -> FaceParameters:
    params = moving_head(head, frames)
    params.pose[:, 3] = 0.15
    params.camera[:, 1:] += torch.tensor([0.05, 0.1])
    for name, value in {"mouthSmileLeft": 0.7, "eyeLookOutLeft": 0.6, "browInnerUp": 0.4}.items():
        params.expression[:, head.expression_names.index(name)] = value
    return params


def test_face_landmarks_become_parameters(head):
    params = talking_head(head, 6)
    found = from_face_landmarks(landmarks_of(head, params, 480, 640), head, smoothing=0.0)
    torch.testing.assert_close(found.parameters.expression, params.expression, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.parameters.pose[:, 3:6], params.pose[:, 3:6], atol=1e-4, rtol=0)
    expected = crop_camera(params.camera, found.square)
    torch.testing.assert_close(found.parameters.camera, expected, atol=5e-3, rtol=5e-3)
    assert found.parameters.pose[0, 10] > 0.2, "the left eye looks out, to +x"
    assert (found.parameters.shape == 0).all() and found.square[2] < 1


def test_landmarks_without_matrix_or_points_still_tell_rotation_and_place(head):
    params = talking_head(head, 6)
    landmarks = landmarks_of(head, params, 480, 640)
    for faces in landmarks["frames"]:
        del faces[0]["transformation_matrix"]
    meshed = from_face_landmarks(landmarks, head, smoothing=0.0)
    turned = rotation.angle_between(meshed.parameters.pose[:, 3:6], params.pose[:, 3:6])
    assert turned.max() < math.radians(7)
    boxed = landmarks_of(head, params, 480, 640)
    for faces in boxed["frames"]:
        del faces[0]["landmarks_xy"], faces[0]["landmarks_3d"]
    found = from_face_landmarks(boxed, head, "whole", smoothing=0.0)
    true, seen = face_square(head, params), face_square(head, found.parameters)
    assert ((true - seen).abs().amax(0) / true[:, 2].mean() < 0.12).all()


def test_gaps_and_further_faces_in_landmarks(head):
    params = talking_head(head, 6)
    landmarks = landmarks_of(head, params, 480, 640)
    landmarks["frames"][2] = []
    small = dict(landmarks["frames"][4][0], bbox_xyxy=[0, 0, 20, 20], blendshapes={"jawOpen": 1.0})
    landmarks["frames"][4].insert(0, small)
    found = from_face_landmarks(landmarks, head, smoothing=0.0)
    assert found.frames_without_face == [2] and not found.parameters.valid[2]
    jaw = found.parameters.expression[:, head.expression_names.index("jawOpen")]
    torch.testing.assert_close(jaw, torch.linspace(0, 1, 6), atol=1e-3, rtol=0)
    assert "2 faces" in found.note


@pytest.mark.parametrize("name", ["eyeBlinkLeft", "eyeBlinkRight", "jawOpen", "browInnerUp", "mouthPucker"])
def test_mesh_estimates_grow_with_the_coefficient(head, name):
    params = head.neutral(60)
    column = head.expression_names.index(name)
    params.expression[30:, column] = torch.linspace(0, 1, 30)
    params = replace(params, pose=params.pose + torch.tensor([0.0] * 4 + [0.3] + [0.0] * 10))
    seen = mesh.estimate_expression(mesh_of(head, params))[name][30:]
    assert (seen.diff() > -0.02).all() and seen[-1] - seen[0] > 0.3, seen


@pytest.mark.parametrize(("name", "sign"), [("eyeLookOutLeft", 1), ("eyeLookInLeft", -1)])
def test_mesh_estimates_follow_the_gaze(head, name, sign):
    params = head.neutral(60)
    for side, other in (("Left", "Out" if sign > 0 else "In"), ("Right", "In" if sign > 0 else "Out")):
        params.expression[40:, head.expression_names.index(f"eyeLook{other}{side}")] = torch.linspace(
            0, 0.8, 20
        )
    params = look_along(params, head.expression_names)
    seen = mesh.estimate_expression(mesh_of(head, params))
    assert seen[name][-1] > 0.35 and (seen[name][40:].diff() > -0.02).all()
    opposite = "eyeLookInRight" if sign > 0 else "eyeLookOutRight"
    assert seen[opposite][-1] > 0.35 and seen["eyeBlinkLeft"].max() < 0.3


def test_smile_and_frown_are_told_apart(head):
    for shown, hidden in (("mouthSmile", "mouthFrown"), ("mouthFrown", "mouthSmile")):
        params = head.neutral(60)
        for side in ("Left", "Right"):
            params.expression[45:, head.expression_names.index(shown + side)] = 0.9
        seen = mesh.estimate_expression(mesh_of(head, params))
        assert seen[f"{shown}Left"][-1] > 0.3 > seen[f"{hidden}Left"][-1]


def test_mesh_only_landmarks_are_estimated(head):
    landmarks = landmarks_of(head, talking_head(head, 6), 480, 640)
    for faces in landmarks["frames"]:
        faces[0]["blendshapes"] = {}
    found = from_face_landmarks(landmarks, head, smoothing=0.0)
    assert "estimated" in found.note
    jaw = found.parameters.expression[:, head.expression_names.index("jawOpen")]
    assert (jaw.diff() >= 0).all() and jaw[-1] > 0.5


def test_coefficients_from_anywhere(head):
    angles = torch.tensor([[0.3, -0.1, 0.05], [0.0, 0.0, 0.0]])
    square = torch.tensor([0.2, 0.25, 0.5])
    params = from_arkit([{"jawOpen": 0.5, "unknown": 1.0}, {}], angles, square, head)
    torch.testing.assert_close(face_square(head, params), square.expand(2, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        params.pose[:, 3:6], rotation.from_euler(*angles.unbind(-1)), atol=1e-5, rtol=0
    )
    assert params.expression[0, head.expression_names.index("jawOpen")] == 0.5
    again = from_arkit(params.expression, rotation.matrix(params.pose[:, 3:6]), square, head)
    torch.testing.assert_close(again.camera, params.camera, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("landmarks", "said"),
    [
        ({}, "frames"),
        ({"frames": [], "image_size": (4, 4)}, "no frame"),
        ({"frames": [[], []], "image_size": (480, 640)}, "No face was found"),
        (
            {"frames": [[{"bbox_xyxy": [1, 2, 60, 70]}]], "image_size": (480, 640)},
            "neither blendshapes nor mesh",
        ),
        (
            {
                "frames": [[{"bbox_xyxy": [1, 2, 60, 70], "blendshapes": {"jawOpen": 0.1}}]],
                "image_size": (480, 640),
            },
            "rotation is missing",
        ),
    ],
)
def test_poor_landmarks_are_refused_in_one_sentence(head, landmarks, said):
    with pytest.raises(InputError, match=said) as refusal:
        from_face_landmarks(landmarks, head)
    assert str(refusal.value).endswith(".") and str(refusal.value).count(". ") == 0


def test_bad_coefficients_are_refused(head):
    square, still = torch.tensor([0.0, 0.0, 1.0]), torch.zeros(1, 3)
    with pytest.raises(InputError, match="NaN"):
        from_arkit([{"jawOpen": math.nan}], still, square, head)
    with pytest.raises(InputError, match="52"):
        from_arkit(torch.zeros(1, 51), still, square, head)
    with pytest.raises(InputError, match="rotations for 1"):
        from_arkit([{}, {}], still, square, head)


@pytest.mark.skipif(mediapipe.available(), reason="MediaPipe is installed")
def test_missing_mediapipe_is_told():
    with pytest.raises(InputError, match="not installed"):
        mediapipe.detect_landmarks(torch.rand(1, 3, 64, 64))


@pytest.mark.skipif(not mediapipe.available(), reason="MediaPipe is not installed (optional)")
def test_mediapipe_runs_and_finds_no_face_in_noise():
    found = mediapipe.detect_landmarks(torch.rand(2, 3, 96, 128) * 0.1)
    assert found == {"frames": [[], []], "image_size": (96, 128)}
