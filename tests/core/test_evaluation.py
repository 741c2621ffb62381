"""Measures against hand-computed cases, the benchmark's own consistency, pictures and videos on disk."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction
from itertools import combinations
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from anifacediff_core.errors import InputError
from anifacediff_core.head.camera import project, to_pixels
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.regions import SPOTS, disks, emphasis, face_spots, region_masks
from anifacediff_core.lab.avatars.studio import Studio
from anifacediff_core.lab.cli import COMMANDS, main
from anifacediff_core.lab.evaluation import report
from anifacediff_core.lab.evaluation.ablation import (
    VARIANTS,
    compare,
    difference_table,
    find_variant,
    interval,
    markdown,
    paired,
    scale_name,
    table,
)
from anifacediff_core.lab.evaluation.avatars import (
    CaseTargets,
    Record,
    Reenactor,
    evaluate,
    measure,
    reenact_cases,
    starting_noise,
    summarize,
    visible_actions,
)
from anifacediff_core.lab.evaluation.cases import Cases, Pictures, draw_cases, render_cases, stylize_cases
from anifacediff_core.lab.evaluation.judges import (
    IdentityNet,
    Judges,
    MotionNet,
    judge_weights,
    save_judges,
)
from anifacediff_core.lab.evaluation.protocol import Protocol
from anifacediff_core.lab.metrics import correlation, flicker, psnr, read_back, rotation_error, ssim
from anifacediff_core.network.autoencoder import AutoEncoder
from anifacediff_core.network.model import AniFaceDiff
from anifacediff_core.sampling.pipeline import Pipeline
from anifacediff_core.video import VideoWriter, contact_sheet, probe, read_frames, read_image, write_image
from harness.weights import narrow_config


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return HeadModel.bundled()


# ---- measures


def test_psnr_of_a_known_error_and_within_a_mask() -> None:
    truth = torch.full((2, 3, 8, 8), 0.5)
    image = truth.clone()
    image[0] += 0.1
    assert psnr(image, truth).tolist() == pytest.approx([20.0, 100.0], abs=1e-3)
    half = truth.clone()
    half[:, :, :4] += 0.01
    mask = torch.zeros(2, 1, 8, 8)
    mask[:, :, :4] = 1
    assert psnr(half, truth, mask).tolist() == pytest.approx([40.0, 40.0], abs=1e-2)
    assert psnr(half, truth, 1 - mask).min() == 100


def test_ssim_is_one_for_equals_and_follows_the_formula_for_flat_pictures() -> None:
    torch.manual_seed(0)
    noisy = torch.rand(1, 3, 32, 32)
    assert float(ssim(noisy, noisy)) == pytest.approx(1, abs=1e-5)
    a, b = 0.2, 0.7
    expected = (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
    found = ssim(torch.full((1, 3, 16, 16), a), torch.full((1, 3, 16, 16), b))
    assert float(found) == pytest.approx(expected, abs=1e-3)


def test_flicker_compares_the_frame_differences() -> None:
    truth = torch.linspace(0, 1, 5).view(1, 5, 1, 1, 1).expand(1, 5, 3, 4, 4)
    assert flicker(truth, truth) == pytest.approx(1)
    trembling = truth + 0.25 * torch.tensor([1, -1, 1, -1, 1.0]).view(1, 5, 1, 1, 1)
    assert flicker(trembling, truth) == pytest.approx(2)  # steps of -.25, .75, -.25, .75 against .25
    assert flicker(truth.mean(1, keepdim=True).expand_as(truth), truth) == 0
    assert math.isnan(flicker(truth[:, :1], truth[:, :1]))


def test_correlation_by_column_and_nan_for_a_constant_one() -> None:
    x = torch.tensor([[0.0, 1, 5], [1, 0, 5], [2, -1, 5]])
    y = torch.tensor([[1.0, 1, 1], [3, 2, 2], [5, 3, 3]])
    values = correlation(x, y)
    assert values[:2].tolist() == pytest.approx([1, -1])
    assert values[2].isnan()


def test_rotation_error_is_the_angle_of_neck_and_root_together(head: HeadModel) -> None:
    truth = head.neutral(2)
    pose = truth.pose.clone()
    pose[0, 1], pose[0, 4] = math.radians(20), math.radians(-15)
    pose[1, 3] = math.radians(3)
    assert rotation_error(replace(truth, pose=pose), truth).tolist() == pytest.approx([5, 3], abs=1e-3)


def test_read_back_leaves_out_frames_without_a_face_and_invisible_actions(head: HeadModel) -> None:
    generator = torch.Generator().manual_seed(0)
    truth = replace(head.neutral(20), expression=torch.rand(20, head.n_expression, generator=generator))
    found = replace(truth, expression=truth.expression.clone(), valid=truth.valid.clone())
    found.expression[:5] = 9.0
    found.valid[:5] = False
    found.expression[:, 1] = torch.rand(20, generator=generator)
    visible = torch.zeros(head.n_expression, dtype=torch.bool)
    visible[[0, 2]] = True
    read = read_back(found, truth, head.expression_names, visible)
    assert read.frames == 15
    assert read.correlation == pytest.approx(1, abs=1e-5)
    assert set(read.by_action) == {head.expression_names[0], head.expression_names[2]}


# ---- regions


def test_spots_lie_on_eyes_and_mouth_and_grow_with_the_picture(head: HeadModel) -> None:
    params = head.neutral(2)
    spots = face_spots(head, params, 256)
    assert torch.allclose(face_spots(head, params, 512), spots * 2, atol=1e-3)
    pixels = to_pixels(project(head(params), params.camera), 256)
    left = pixels[:, head.regions["left_eye"], :2].mean(1)
    assert torch.allclose(spots[:, SPOTS.index("left_eye"), :2], left)
    lips = pixels[:, head.regions["lips"], :2]
    center, radius = spots[:, SPOTS.index("mouth"), None, :2], spots[:, SPOTS.index("mouth"), 2:]
    assert ((lips - center).norm(dim=-1) < 1.1 * radius).all()
    masks = region_masks(spots, 256)
    assert all(mask.shape == (2, 1, 256, 256) for mask in masks.values())


def test_disks_have_the_area_of_disks_also_in_coarse_windows() -> None:
    spots = torch.tensor([[[40.0, 24.0, 12.0]]])
    whole = disks(spots, torch.zeros(1, 2), 64)
    assert float(whole.sum()) == pytest.approx(math.pi * 144, rel=0.02)
    window = disks(spots, torch.tensor([[20.0, 4.0]]), 40)
    assert torch.allclose(window[0, 0], whole[0, 0, 4:44, 20:60])
    coarse = disks(spots, torch.zeros(1, 2), 16, step=4.0)
    assert float(coarse.sum()) * 16 == pytest.approx(math.pi * 144, rel=0.05)


def test_emphasis_is_one_away_from_the_face() -> None:
    spots = torch.tensor([[[10.0, 20, 3], [22, 20, 3], [16, 40, 5], [16, 30, 20]]])
    weight = emphasis(spots, torch.zeros(1, 2), 64, 1.0, head=2.0, details=3.0)[0, 0]
    assert weight[20, 10] == 3 and weight[40, 16] == 3 and weight[30, 16] == 2 and weight[60, 60] == 1


# ---- the benchmark


def toy_network() -> AniFaceDiff:
    torch.manual_seed(0)
    model = AniFaceDiff(narrow_config(levels=3), motion=True)
    for parameter in model.parameters():  # the zero layers too, so that every condition counts
        torch.nn.init.normal_(parameter, std=0.08)
    return model.eval()


def test_batched_clips_equal_the_pipeline_clip_by_clip(head: HeadModel) -> None:
    model, autoencoder = toy_network(), AutoEncoder().eval()
    protocol = Protocol(pairs=2, frames=3, size=64, steps=3, shared_noise=0.5)
    cases: Cases = draw_cases(protocol, head)
    source = torch.rand(2, 3, 64, 64)
    pipeline = Pipeline(model, autoencoder, head)
    noise = starting_noise(2, 3, protocol, 0)
    expected, normals = [], []
    for pair in range(2):
        motion = cases.aligned[3 * pair : 3 * pair + 3]
        conditioning = pipeline.conditioning(source[pair : pair + 1], cases.still[pair], motion)
        latents = pipeline.sample(conditioning, steps=3, cfg=2.5, noise=noise[3 * pair : 3 * pair + 3])
        expected.append(torch.cat(list(pipeline.decode(latents))))
        from anifacediff_core.head.render import render_normals

        normals.append(render_normals(head, motion, 64))
    found = Reenactor(model, autoencoder)(
        source, torch.cat(normals), cases.motion.expression, noise, steps=3, cfg=2.5
    )
    torch.testing.assert_close(found, torch.cat(expected), atol=2e-4, rtol=1e-3)


def test_cases_follow_their_seed_and_differ_from_other_seeds(head: HeadModel) -> None:
    first, again, other = (draw_cases(Protocol(pairs=3, frames=4, seed=s), head) for s in (1, 1, 2))
    assert torch.equal(first.motion.expression, again.motion.expression)
    assert torch.equal(first.sources.shape, again.sources.shape)
    assert not torch.equal(first.sources.shape, other.sources.shape)
    assert not torch.equal(first.sources.shape, first.drivers.shape)
    assert torch.equal(first.aligned.shape[4:8], first.sources.shape[1:2].expand(4, -1))
    assert torch.equal(first.part(1, 2, torch.device("cpu")).motion.pose, first.motion.pose[4:8])


def test_noise_of_a_pair_does_not_depend_on_how_the_pairs_are_divided() -> None:
    protocol = Protocol(pairs=4, frames=2, size=64)
    whole = starting_noise(4, 2, protocol, 0)
    assert torch.equal(whole[4:], starting_noise(2, 2, protocol, 2))
    assert torch.equal(whole[0], whole[1]) and not torch.equal(whole[0], whole[2])


def test_reports_of_several_processes_are_joined(head: HeadModel) -> None:
    truth = torch.rand(4, 3, 32, 32)
    masks = {"head": torch.ones(4, 1, 32, 32)}
    protocol = Protocol(pairs=4, frames=2, variants=("full",))
    clips = measure((truth + 0.1).clamp(0, 2), truth, masks, frames=2)
    assert len(clips) == 2 and clips[0]["psnr"] == pytest.approx(20, abs=0.1)
    joined = summarize(
        [Record({"full": clips}, {}, [], {}), Record({"full": clips}, {}, [], {})], head, protocol
    )
    assert joined["results"]["full"]["psnr"] == pytest.approx(20, abs=0.1)
    assert "| full | 20.0 |" in table(joined)


def test_a_clip_too_lively_does_not_hide_one_too_stiff() -> None:
    truth = torch.rand(1, 3, 16, 16) + torch.linspace(0, 0.3, 4)[:, None, None, None]
    lively, stiff = (truth[:1] + (truth - truth[:1]) * pace for pace in (1.5, 0.5))
    clips = measure(torch.cat([lively, stiff]), torch.cat([truth, truth]), {}, frames=4)
    assert sum(clip["flicker"] for clip in clips) / 2 == pytest.approx(1, abs=1e-4)
    assert [clip["flicker_off"] for clip in clips] == pytest.approx([0.5, 0.5], abs=1e-4)


def test_actions_that_nobody_uses_are_not_visible(head: HeadModel) -> None:
    params = head.neutral(50)
    expression = torch.zeros(50, head.n_expression)
    names = head.expression_names
    expression[:, names.index("jawOpen")] = torch.rand(50)
    expression[:, names.index("eyeLookUpLeft")] = torch.rand(50)
    seen = visible_actions(head, replace(params, expression=expression))
    assert {name for name, on in zip(names, seen) if on} == {"jawOpen", "eyeLookUpLeft"}


# ---- statistics and tables of the benchmark


def test_an_interval_is_that_of_the_normal_approximation() -> None:
    mean, half = interval([1.0, 2.0, 3.0, 4.0, math.nan])
    assert mean == 2.5
    assert half == pytest.approx(1.96 * math.sqrt(5 / 3) / 2)  # s² = 5 / 3 of four values
    assert interval([7.0])[0] == 7 and math.isnan(interval([7.0])[1])
    assert all(math.isnan(value) for value in interval([math.nan]))


def test_paired_differences_see_what_the_spread_of_the_pairs_hides() -> None:
    before = [10.0, 20.0, 30.0, 40.0]
    after = [value + change for value, change in zip(before, (1.0, 1.2, 0.8, 1.0))]
    mean, half = paired(after, before)
    assert mean == pytest.approx(1)
    assert half == pytest.approx(1.96 * math.sqrt(0.08 / 3) / 2)
    assert interval(before)[1] > 10, "the means themselves are uncertain"
    with pytest.raises(ValueError):
        paired(after, before[:3])


def clips_of(values: list[float], **others: float) -> list[dict[str, float]]:
    return [{"psnr": value, "csim": value / 100, **others} for value in values]


def test_a_report_has_intervals_single_pairs_and_the_ablations_differences(head: HeadModel) -> None:
    protocol = Protocol(
        pairs=3, frames=2, variants=("full", "no_adapter", "driver_shape", "no_fsa_no_adapter", "scale_0.5")
    )
    values = {
        "full": [30.0, 20.0, 10.0],
        "no_adapter": [29.0, 18.0, 9.0],
        "driver_shape": [25.0, 15.0, 5.0],
        "no_fsa_no_adapter": [24.0, 14.0, 4.0],
        "scale_0.5": [30.0, 20.0, 10.0],
    }
    # Of two processes, the second has the last pair.
    first = Record({name: clips_of(v[:2], flicker=1) for name, v in values.items()}, {}, [], {})
    last = Record({name: clips_of(v[2:], flicker=1) for name, v in values.items()}, {}, [], {})
    summary = summarize([first, last], head, protocol)
    assert summary["pairs"]["full"]["psnr"] == [30, 20, 10]
    assert summary["intervals"]["full"]["psnr"] == pytest.approx(1.96 * 10 / math.sqrt(3))
    assert summary["results"]["full"]["psnr_interval"] == summary["intervals"]["full"]["psnr"]
    found = {(entry["of"], entry["minus"]): entry["measures"]["psnr"] for entry in summary["differences"]}
    assert found["full", "no_adapter"] == pytest.approx((4 / 3, 1.96 * math.sqrt(1 / 3) / math.sqrt(3)))
    assert found["full", "driver_shape"] == (5, 0)
    assert found["no_adapter", "no_fsa_no_adapter"][0] == pytest.approx(14 / 3)
    assert found["scale_0.5", "full"] == (0, 0)
    text = markdown(summary)
    rows = [line for line in text.splitlines() if line.startswith(("| ✓ |", "| – |"))]
    order = [
        f"| {row}"
        for row in ("– | – | – | 0.140", "✓ | – | – | 0.187", "– | ✓ | – | 0.150", "✓ | ✓ | – | 0.200")
    ]
    assert [row[:19] for row in rows] == order, "the rows of the paper's Table 2"
    assert "20.00 ± 11.32" in rows[-1]
    assert "**+5.00 ± 0.00**" in text and "| 0.5 | – | 0.200" in text


def test_the_frechet_distance_is_that_of_all_frames_of_all_processes(head: HeadModel) -> None:
    protocol = Protocol(pairs=2, frames=3, variants=("full",))
    truth = torch.tensor([[0.0], [2.0], [4.0], [0.0], [2.0], [4.0]])
    records = [
        Record({"full": clips_of([20.0])}, {}, [], {}, [], {"full": [2 * part + 1], "truth": [part]})
        for part in truth.split(3)
    ]
    # Means 2 and 5; deviations s and 2 s with s² = 16 / 5.
    distance = summarize(records, head, protocol)["results"]["full"]["frechet"]
    assert distance == pytest.approx(9 + 16 / 5)


def test_without_judges_the_cells_are_empty_and_a_note_says_why(head: HeadModel) -> None:
    protocol = Protocol(pairs=2, frames=2, variants=("full", "no_adapter"))
    clips = [{"psnr": 20.0, "flicker": 1.0}, {"psnr": 22.0, "flicker": 1.0}]
    text = markdown(summarize([Record({"full": clips, "no_adapter": clips}, {}, [], {})], head, protocol))
    assert "| ✓ | ✓ | – | – | – | – | – | 21.00 ± 1.96 |" in text
    assert "--judges" in text and "can't be compared" not in text
    judged = summarize([Record({"full": clips, "no_adapter": clips}, {}, [], {})], head, protocol)
    assert "can't be compared" in markdown(judged | {"judges": {"file": "judges.safetensors"}})
    measures = {"auc_anyone": 0.99, "auc_shape": 0.9, "expression_r": 0.8, "rotation": 1.23}
    assert "same look with 0.9000" in markdown(judged | {"judges": {"held_out": measures}})


def test_strengths_of_the_adapter_are_variants_and_nonsense_is_refused() -> None:
    assert [scale_name(value) for value in (0.0, 0.5, 1.0, 1.5)] == [
        "no_adapter",
        "scale_0.5",
        "full",
        "scale_1.5",
    ]
    assert find_variant("scale_1.5").scale == 1.5 and find_variant("scale_1.5").aligned
    two = {(VARIANTS[n].aligned, VARIANTS[n].scale > 0) for n in ("full", "no_adapter", "driver_shape")}
    plain = VARIANTS["no_fsa_no_adapter"]
    assert two | {(plain.aligned, plain.scale > 0)} == {(a, b) for a in (True, False) for b in (True, False)}
    for name in ("scale_", "scale_nan", "best"):
        with pytest.raises(InputError, match=name):
            find_variant(name)
    with pytest.raises(InputError, match="choose from cross, same"):
        Protocol(protocol="other")
    with pytest.raises(InputError, match="knows no 'int8'; choose from fp16, bf16, fp32"):
        Protocol(precision="int8")


def test_reports_are_compared_pair_by_pair_and_only_about_the_same_pairs(head: HeadModel) -> None:
    protocol = Protocol(pairs=3, frames=2, variants=("full",))
    reports = [
        summarize([Record({"full": clips_of(values)}, {}, [], {})], head, protocol)
        for values in ([10.0, 20.0, 30.0], [12.0, 21.0, 33.0])
    ]
    (found,) = compare(*reports)
    assert found["measures"]["psnr"][0] == pytest.approx(2)
    assert found["measures"]["psnr"][1] == pytest.approx(1.96 / math.sqrt(3))
    assert "| full |" in difference_table([found]) and "**+2.00 ± 1.13**" in difference_table([found])
    other = summarize(
        [Record({"full": clips_of([1.0, 2.0, 3.0])}, {}, [], {})], head, replace(protocol, seed=4)
    )
    with pytest.raises(InputError, match="seed 0 and 4"):
        compare(reports[0], other)
    with pytest.raises(InputError, match="write both anew"):
        compare({"results": {}}, reports[0])


# ---- judged


def toy_judges() -> Judges:
    torch.manual_seed(1)
    identity, motion = IdentityNet(64, (8, 8, 8, 16)), MotionNet(52, 64, (8, 8, 8, 16))
    motion.mean[-3] = 8.0  # a camera's scale
    motion.deviation.fill_(0.1)
    torch.nn.init.normal_(motion.answer.weight, std=0.5)
    return Judges(identity.eval(), motion.eval(), 64)


def test_the_truth_is_most_like_itself_and_the_source_like_the_source(head: HeadModel) -> None:
    protocol = Protocol(pairs=2, frames=2, size=64)
    cases = draw_cases(protocol, head)
    pictures = render_cases(cases, Studio(head), head, 64)
    targets = CaseTargets.of(toy_judges(), cases, pictures)
    truth, source = (
        targets.judge(image)[0] for image in (pictures.truth, pictures.source.repeat_interleave(2, 0))
    )
    for clip in truth:
        assert clip["csim_truth"] == pytest.approx(1, abs=1e-5)
        assert clip["csim"] < 1 - 1e-5 and clip["aed_exact"] > 0
    for clip, true_clip in zip(source, truth):
        assert clip["csim"] == pytest.approx(1, abs=1e-5) and clip["csim_truth"] < 1 - 1e-5
        assert clip["csim_truth"] == pytest.approx(true_clip["csim"], abs=1e-5)
    for clip in targets.judge(pictures.driving)[0]:
        assert clip["apd"] == clip["aed"] == clip["camera"] == 0, "the driver moves like itself"
        assert clip["apd_exact"] > 0, "but a reading is not the exact truth"


def test_the_pairs_of_a_style_share_no_look_and_do_not_hang_on_their_batch(head: HeadModel) -> None:
    """Source and truth of a pair have one look, which nothing but its number and the seed decides."""
    flat = torch.full((2, 3, 64, 64), 0.4) + torch.linspace(0, 0.3, 64)
    plain = Pictures(flat, *(flat.repeat_interleave(2, 0) for _ in range(4)))
    protocol = Protocol(pairs=3, frames=2, size=64, style="duotone")
    styled = stylize_cases(plain, protocol, 0)
    for pair in range(2):
        for frame in styled.truth[2 * pair : 2 * pair + 2]:
            torch.testing.assert_close(frame, styled.source[pair])
        assert (styled.source[pair] - styled.driving[2 * pair]).abs().max() > 0.01
    assert (styled.source[0] - styled.source[1]).abs().max() > 0.01
    assert torch.equal(styled.normals, plain.normals)
    alone = Pictures(flat[:1], *(flat[:1].repeat_interleave(2, 0) for _ in range(4)))
    torch.testing.assert_close(stylize_cases(alone, protocol, 1).source[0], styled.source[1])
    assert stylize_cases(plain, replace(protocol, style="plain"), 0) is plain
    with pytest.raises(InputError, match="no 'oil'"):
        Protocol(style="oil")  # type: ignore[arg-type]


def test_the_same_identity_protocol_starts_from_the_first_frame_of_its_own_track(head: HeadModel) -> None:
    cases = draw_cases(Protocol(pairs=2, frames=3, protocol="same"), head)
    assert torch.equal(cases.sources.shape, cases.drivers.shape)
    assert torch.equal(cases.aligned.shape, cases.motion.shape) and len(cases.motion) == 6
    steps = [(cases.still.pose[i] - cases.motion.pose[3 * i]).abs().max() for i in range(2)]
    far = [(cases.still.pose[i] - cases.motion.pose[3 * i + 2]).abs().max() for i in range(2)]
    assert max(steps) < 0.2 and sum(steps) < sum(far), "the track goes on where the source is"


def test_every_variant_is_a_result_of_its_own_or_left_out_where_it_would_be_another_again(
    head: HeadModel,
) -> None:
    reenact = Reenactor(toy_network(), AutoEncoder().eval())
    names = ("full", "no_adapter", "driver_shape", "no_fsa_no_adapter", "no_temporal", "scale_0.5", "source")
    protocol = Protocol(pairs=1, frames=2, size=64, steps=1, cfg=1.0, variants=names)
    cases, pictures = (
        draw_cases(protocol, head),
        Pictures(*(torch.rand(n, 3, 64, 64) for n in (1, 2, 2, 2, 2))),
    )

    def made(settings: Protocol) -> dict[str, torch.Tensor]:
        return dict(reenact_cases(reenact, cases, pictures, settings, 0, head, None))

    results = made(protocol)
    assert tuple(results) == names
    for first, second in combinations(names, 2):
        assert not torch.equal(results[first], results[second]), f"{first} is {second}"
    assert set(names) - set(made(replace(protocol, protocol="same"))) == {"driver_shape", "no_fsa_no_adapter"}
    reenact.network.motion = None
    assert set(names) - set(made(protocol)) == {"no_temporal"}, "stage 1 has none to leave out"


def test_a_judged_report_has_the_judges_measures_of_results_and_truth(head: HeadModel) -> None:
    reenact = Reenactor(toy_network(), AutoEncoder().eval())
    protocol = Protocol(pairs=1, frames=1, size=64, steps=1, cfg=1.0, variants=("full", "source"))
    summary = summarize(
        [evaluate(reenact, head, Studio(head), protocol, judges=toy_judges())], head, protocol
    )
    assert summary["results"]["source"]["csim"] == pytest.approx(1, abs=1e-5)
    assert summary["results"]["full"]["csim"] < 1 and summary["results"]["full"]["aed"] > 0
    assert summary["judged_truth"]["csim_truth"] == pytest.approx(1, abs=1e-5)
    assert math.isnan(summary["results"]["full"]["frechet"]), "one picture has no covariance"
    assert "read_back" not in summary, "nobody was there to read"


def test_a_checkpoint_is_judged_read_back_and_reported_in_one_call(tmp_path: Path) -> None:
    judges = toy_judges()
    save_judges(tmp_path / "judges.safetensors", judge_weights(judges.identity, judges.motion), {"seed": 7})
    protocol = Protocol(
        pairs=2, frames=2, size=64, steps=1, cfg=1.0, variants=("full", "source"), read_back="encoder"
    )
    bundled = Path(report.__file__).parents[2] / "assets" / "demo.safetensors"
    found = report.evaluate_checkpoint(
        bundled,
        protocol,
        json_path=tmp_path / "report.json",
        sheet=tmp_path / "sheet.jpg",
        device=torch.device("cpu"),
        judges=tmp_path / "judges.safetensors",
    )
    assert found is not None
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["judges"] == {"seed": 7, "file": "judges.safetensors"}
    assert len(written["pairs"]["full"]["csim"]) == 2 and written["intervals"]["full"]["aed"] > 0
    assert set(written["read_back"]) == {"truth", "full"} and written["read_back"]["full"]["frames"] == 4
    assert written["read_back"]["truth"]["rotation"] < 15, "the encoder looks where the faces are"
    assert (tmp_path / "sheet.jpg").stat().st_size > 1000
    with pytest.raises(InputError, match="demo.safetensors"):
        report.find_judges(bundled, torch.device("cpu"))


def test_reports_are_compared_from_the_command_line(
    tmp_path: Path, head: HeadModel, capsys: pytest.CaptureFixture[str]
) -> None:
    protocol = Protocol(pairs=2, frames=2, variants=("full",))
    for name, values in (("old", [10.0, 20.0]), ("new", [11.0, 22.0])):
        found = summarize([Record({"full": clips_of(values, flicker=math.nan)}, {}, [], {})], head, protocol)
        (tmp_path / f"{name}.json").write_text(json.dumps(report.finite(found), allow_nan=False))
    old, new, out = (str(tmp_path / f"{name}.json") for name in ("old", "new", "differences"))
    assert main(["evaluate", "compare", old, new, "--json", out]) == 0
    assert "+1.50 ± 0.98" in capsys.readouterr().out
    (comparison,) = json.loads(Path(out).read_text())
    assert comparison["variants"][0]["measures"]["psnr"] == pytest.approx([1.5, 0.98])
    assert comparison["variants"][0]["measures"]["flicker"] == [None, None]
    assert main(["evaluate", "compare", old]) == 2
    (tmp_path / "broken.json").write_text("{")
    assert main(["evaluate", "compare", old, str(tmp_path / "broken.json")]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 2 and "broken.json" in told[1]


# ---- pictures and videos


def write_sound_video(path: Path, frames: int, rate: Fraction) -> None:
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=rate)
        video.width = video.height = 32
        video.pix_fmt = "yuv420p"
        sound = container.add_stream("aac", rate=16000)
        tone = (np.sin(np.arange(16000) / 8) * 8000).astype(np.int16)[None]
        chunk = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
        chunk.sample_rate = 16000
        for index in range(frames):
            pixels = np.full((32, 32, 3), 10 * index, np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode())
        container.mux(sound.encode(chunk))
        container.mux(sound.encode())


def test_a_video_keeps_frames_rate_and_sound(tmp_path: Path) -> None:
    rate = Fraction(30000, 1001)
    write_sound_video(tmp_path / "driver.mp4", 20, rate)
    info = probe(tmp_path / "driver.mp4")
    assert (info.width, info.frames, info.rate, info.has_audio) == (32, 20, rate, True)
    frames = torch.stack(list(read_frames(tmp_path / "driver.mp4")))
    assert frames.shape == (20, 3, 32, 32)
    assert frames[10].mean() == pytest.approx(100 / 255, abs=0.03)
    with VideoWriter(tmp_path / "out.mp4", info.rate, audio_from=tmp_path / "driver.mp4") as video:
        video.write(frames[:7])
        video.write(frames[7:])
    out = probe(tmp_path / "out.mp4")
    assert (out.frames, out.rate, out.has_audio) == (20, rate, True)
    with av.open(str(tmp_path / "driver.mp4")) as a, av.open(str(tmp_path / "out.mp4")) as b:
        before, after = ([bytes(p) for p in c.demux(c.streams.audio[0]) if p.size] for c in (a, b))
        assert before == after, "the sound is copied, not encoded again"


def test_sound_can_end_with_the_pictures(tmp_path: Path) -> None:
    write_sound_video(tmp_path / "driver.mp4", 24, Fraction(24))
    driver = tmp_path / "driver.mp4"
    with VideoWriter(tmp_path / "out.mp4", Fraction(24), audio_from=driver, cut_sound=True) as video:
        video.write(torch.rand(6, 3, 32, 32))
    with av.open(str(tmp_path / "out.mp4")) as out:
        sound = out.streams.audio[0]
        assert float(sound.duration * sound.time_base) == pytest.approx(0.25, abs=0.05)


def test_an_unfinished_video_is_removed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "out.mp4", Fraction(24)) as video:
        video.write(torch.rand(3, 3, 32, 32))
        raise KeyboardInterrupt
    assert not (tmp_path / "out.mp4").exists()


def test_odd_sizes_are_padded(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "out.mp4", Fraction(24)) as video:
        video.write(torch.rand(2, 3, 31, 45))
    assert (probe(tmp_path / "out.mp4").width, probe(tmp_path / "out.mp4").height) == (46, 32)


def test_pictures_with_alpha_gray_and_nonsense(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.zeros((4, 5, 4), np.uint8)).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png").shape == (1, 3, 4, 5)
    assert read_image(tmp_path / "clear.png").mean() == pytest.approx(128 / 255)
    Image.fromarray(np.full((4, 5), 51, np.uint8)).save(tmp_path / "gray.png")
    assert torch.allclose(read_image(tmp_path / "gray.png"), torch.tensor(0.2))
    Image.fromarray(np.full((4, 5), 51 * 257, np.uint16)).save(tmp_path / "gray16.png")
    assert torch.allclose(read_image(tmp_path / "gray16.png"), torch.tensor(0.2))
    Image.fromarray(np.full((4, 5), 70_000, np.int32)).save(tmp_path / "gray32.tif")
    assert read_image(tmp_path / "gray32.tif").min() == 1, "white; it wraps around nowhere"
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nonsense")
    with pytest.raises(InputError, match=r"broken\.png could not be read"):
        read_image(tmp_path / "broken.png")
    with pytest.raises(InputError, match="no video stream|could not be read"):
        probe(tmp_path / "broken.png")
    sheet = contact_sheet([torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)])
    write_image(tmp_path / "sheet.png", sheet)
    assert torch.allclose(read_image(tmp_path / "sheet.png")[0], sheet, atol=1 / 255)


# ---- command line


@pytest.mark.parametrize(
    "command",
    [
        "reenact --source a.png --driving b.mp4 --out c.bmp",
        "mark --input a.mp4 --out c.mov",
        "avatars gallery --out c.xyz",
        "evaluate avatars --sheet c",
    ],
)
def test_names_that_do_not_fit_are_refused_before_the_work(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(command.split())
    name, told = command.split()[-1], capsys.readouterr().err
    assert f"{name} has to end in ." in told or f"{name} is of no known form: end it in ." in told


def test_bad_input_is_one_sentence_and_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(
        ["render-normals", "--parameters", str(tmp_path / "none.safetensors"), "--out", str(tmp_path)]
    )
    told = capsys.readouterr().err.strip()
    assert code == 2 and told.count("\n") == 0 and "none.safetensors" in told
    assert main(["evaluate", "avatars", "--checkpoint", str(tmp_path / "none.safetensors")]) == 2
    assert main(["evaluate", "avatars", "--variants", "best"]) == 2
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "avatars", "--pairs", "0"])
    assert stop.value.code == 2


def test_the_options_of_the_benchmark_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Protocol] = []
    monkeypatch.setattr(report, "evaluate_checkpoint", lambda path, protocol, **_: given.append(protocol))
    options = "--pairs 3 --seed 5 --steps 7 --cfg 2 --shared-noise 0.25 --precision bf16 --read-back none"
    command = f"evaluate avatars {options} --variants full --scales 0.5 --device cpu"
    assert main(command.split()) == 0
    (found,) = given
    assert (found.pairs, found.seed, found.steps, found.cfg) == (3, 5, 7, 2)
    assert (found.shared_noise, found.precision, found.read_back) == (0.25, "bf16", "none")
    assert found.variants == ("full", "scale_0.5")
    assert main(["evaluate", "avatars", "--device", "cpu"]) == 0
    assert (given[1].steps, given[1].cfg) == (1, 1.0), "as the bundled checkpoint wants it"


@pytest.mark.parametrize("command", ["evaluate", "avatars", *COMMANDS])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    assert len(capsys.readouterr().out) > 200


def test_avatars_and_normals_from_the_command_line(tmp_path: Path, head: HeadModel) -> None:
    small = ["--size", "64", "--device", "cpu"]
    assert (
        main(
            ["avatars", "gallery", "--out", str(tmp_path / "g.png"), "--rows", "1", "--columns", "2", *small]
        )
        == 0
    )
    assert read_image(tmp_path / "g.png").shape == (1, 3, 64, 128)
    clips = [
        "avatars",
        "clips",
        "--out",
        str(tmp_path),
        "--count",
        "1",
        "--frames",
        "3",
        "--fps",
        "30000/1001",
    ]
    assert main([*clips, *small]) == 0
    assert probe(tmp_path / "clip_0000.mp4").rate == Fraction(30000, 1001)
    normals = ["render-normals", "--parameters", str(tmp_path / "clip_0000.safetensors"), "--out"]
    assert main([*normals, str(tmp_path / "n.mp4"), "--size", "64"]) == 0
    assert probe(tmp_path / "n.mp4").frames == 3
    assert (
        main(["avatars", "data", "--out", str(tmp_path / "d"), "--count", "1", "--frames", "2", *small]) == 0
    )
    assert len(list((tmp_path / "d").glob("*_normals.png"))) == 2
