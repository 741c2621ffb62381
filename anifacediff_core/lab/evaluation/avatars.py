"""The avatar benchmark: cross-identity reenactment of unseen avatars, where the truth is known exactly.

Driver B moves as a track says; source A must do the same. The studio renders A under B's pose, expression and
camera: that picture is the truth. Tables compare the full method with its ablations, with copying the source,
and with what the autoencoder alone would leave of the truth. Judges tell identity, pose and expression:
networks that take no part in making the results (`.judges`). The bundled face encoder reads pose and
expression as well.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from math import nan
from typing import Any

import torch
from torch import Tensor

from anifacediff_core.head.alignment import align
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.head.regions import face_spots, region_masks
from anifacediff_core.head.render import draw_normals
from anifacediff_core.network.autoencoder import AutoEncoder, StableAutoEncoder
from anifacediff_core.network.encoders import clip_preprocess
from anifacediff_core.network.model import AniFaceDiff
from anifacediff_core.progress import Progress
from anifacediff_core.sampling.sampler import sample
from anifacediff_core.sampling.windows import initial_noise

from ..avatars.studio import Studio
from ..metrics import ReadBack, flicker, psnr, read_back, ssim
from .ablation import Columns, Variant, columns_of, differences, find_variant, interval
from .cases import Cases, Pictures, draw_cases, render_cases, stylize_cases
from .frechet import RunningGaussian, frechet_distance
from .judges import (
    Judges,
    Motion,
    camera_distance,
    expression_distance,
    pose_distance,
    similarity,
    true_motion,
)
from .protocol import TYPES, Protocol

FaceReader = Callable[[Tensor], FaceParameters]
"""Pictures of one clip (frames, 3, size, size) -> their captured parameters, on the CPU."""
KnownReader = Callable[[Tensor, FaceParameters], FaceParameters]
"""Pictures of many clips, and parameters that tell where the faces are -> their parameters, on the CPU."""


@dataclass(frozen=True)
class Reenactor:
    """The networks of a checkpoint, for many clips at once, in the precision of autocast."""

    network: AniFaceDiff
    autoencoder: AutoEncoder | StableAutoEncoder

    @torch.no_grad()
    def __call__(
        self,
        source: Tensor,
        normals: Tensor,
        expression: Tensor,
        noise: Tensor,
        *,
        steps: int,
        cfg: float,
        expression_scale: float = 1.0,
        temporal: bool = True,
        precision: str = "fp16",
    ) -> Tensor:
        """Reenact P sources with F frames each.

        Args:
            source: (P, 3, H, W); normals: (P * F, 3, H, W), pair-major; expression: (P * F, E).
            noise: (P * F, 4, h, w).
            temporal: run the temporal modules, if the network has any.
            precision: of the multiplications on a GPU, see `Protocol`; elsewhere fp32.

        Returns:
            (P * F, 3, H, W) in [0, 1].
        """
        net, device, frames = self.network, source.device, len(normals) // len(source)
        reduced = device.type == "cuda" and precision != "fp32"
        with torch.autocast(device.type, TYPES[precision], enabled=reduced):
            conditioning = net.encode_conditioning(
                self.autoencoder.encode(source) * net.config.scaling_factor,
                clip_preprocess(source, net.config.image_size),
                normals,
                expression,
            )
            latents = sample(
                net,
                conditioning,
                noise,
                steps=steps,
                cfg=cfg,
                window=frames,
                overlap=0,
                expression_scale=expression_scale,
                temporal=temporal,
                device=device,
                finite=False,  # a network that is still in training may be shown as it is
            )
            parts = (latents / net.config.scaling_factor).split(64)
            return torch.cat([self.autoencoder.decode(part).float() for part in parts]).clamp(0, 1)


def starting_noise(cases: int, frames: int, protocol: Protocol, first: int, channels: int = 4) -> Tensor:
    """Noise of `cases` pairs from the pair number `first` on, (cases * frames, 4, h, w), on the CPU."""
    side = protocol.size // 8
    seeds = [protocol.seed * 1_000_003 + pair for pair in range(first, first + cases)]
    return torch.cat(
        [initial_noise(frames, channels, side, side, seed, protocol.shared_noise) for seed in seeds]
    )


def reenact_cases(
    reenact: Reenactor,
    cases: Cases,
    pictures: Pictures,
    protocol: Protocol,
    first: int,
    head: HeadModel,
    read_face: FaceReader | None,
) -> Iterator[tuple[str, Tensor]]:
    """Results of every variant of the protocol that can be made: (P * F, 3, H, W)."""
    channels = reenact.network.config.latent_channels
    noise = starting_noise(len(cases), cases.frames, protocol, first, channels).to(pictures.source.device)
    for name in protocol.variants:
        variant = find_variant(name)
        if name == "source":
            yield name, pictures.source.repeat_interleave(cases.frames, 0)
        elif name == "autoencoder":
            yield name, through_autoencoder(reenact.autoencoder, pictures.truth)
        elif _possible(variant, reenact, protocol, read_face):
            normals = pictures.normals if variant.aligned else pictures.foreign_normals
            expression = cases.motion.expression
            if variant.captured and read_face is not None:
                found = capture_cases(cases, pictures, read_face).to(pictures.source.device)
                normals = torch.cat([draw_normals(head, part, protocol.size) for part in split(found, 96)])
                expression = found.expression
            yield (
                name,
                reenact(
                    pictures.source,
                    normals,
                    expression,
                    noise,
                    steps=protocol.steps,
                    cfg=protocol.cfg,
                    expression_scale=variant.scale,
                    temporal=variant.temporal,
                    precision=protocol.precision,
                ),
            )


def _possible(variant: Variant, reenact: Reenactor, protocol: Protocol, read_face: FaceReader | None) -> bool:
    """Whether a variant is another one than full here, and can be made."""
    if not variant.aligned and protocol.protocol == "same":
        return False
    if not variant.temporal and reenact.network.motion is None:
        return False
    return not variant.captured or read_face is not None


@torch.no_grad()
def through_autoencoder(vae: AutoEncoder | StableAutoEncoder, pictures: Tensor) -> Tensor:
    return torch.cat([vae.decode(vae.encode(part)).float().clamp(0, 1) for part in pictures.split(64)])


def capture_cases(cases: Cases, pictures: Pictures, read_face: FaceReader) -> FaceParameters:
    """Aligned parameters as an artist gets them: all read from the source's and the driver's pictures."""
    clips = pictures.driving.split(cases.frames)
    pairs = zip(pictures.source.split(1), clips, strict=True)
    return FaceParameters.concatenate([align(read_face(source), read_face(clip)) for source, clip in pairs])


def split(params: FaceParameters, count: int) -> list[FaceParameters]:
    return [params[start : start + count] for start in range(0, len(params), count)]


def measure(image: Tensor, truth: Tensor, masks: dict[str, Tensor], frames: int) -> list[dict[str, float]]:
    """Measures of every clip of (P * F, 3, H, W) pictures."""
    per_frame = {"psnr": psnr(image, truth), "ssim": ssim(image, truth)}
    per_frame |= {name: psnr(image, truth, mask) for name, mask in masks.items()}
    per_clip = {name: values.view(-1, frames).mean(1).tolist() for name, values in per_frame.items()}
    clips, true_clips = image.unflatten(0, (-1, frames)), truth.unflatten(0, (-1, frames))
    per_clip["flicker"] = [flicker(a[None], b[None]) for a, b in zip(clips, true_clips)]
    # The mean of the above says little: a clip that is too lively hides one that is too stiff.
    per_clip["flicker_off"] = [abs(value - 1) for value in per_clip["flicker"]]
    return [dict(zip(per_clip, values)) for values in zip(*per_clip.values())]


@dataclass(frozen=True)
class CaseTargets:
    """What the judges find in the true pictures of a batch of cases, to compare every result with."""

    judges: Judges
    source: Tensor
    truth: Tensor
    driver: Motion
    exact: Motion
    frames: int

    @classmethod
    def of(cls, judges: Judges, cases: Cases, pictures: Pictures) -> CaseTargets:
        return cls(
            judges,
            judges.predict(pictures.source).face.repeat_interleave(cases.frames, 0),
            judges.predict(pictures.truth).face,
            judges.predict(pictures.driving).motion,
            true_motion(cases.motion),
            cases.frames,
        )

    def judge(self, image: Tensor) -> tuple[list[dict[str, float]], Tensor]:
        """Judge (P * F, 3, H, W) pictures.

        Returns:
            measures of every clip, means over its frames; features of the pictures (P * F, 256), on the CPU.
        """
        found = self.judges.predict(image)
        per_frame = {
            "csim": similarity(found.face, self.source),
            "csim_truth": similarity(found.face, self.truth),
            "apd": pose_distance(found.motion, self.driver),
            "aed": expression_distance(found.motion, self.driver),
            "apd_exact": pose_distance(found.motion, self.exact),
            "aed_exact": expression_distance(found.motion, self.exact),
            "camera": camera_distance(found.motion, self.driver),
        }
        per_clip = {name: v.view(-1, self.frames).mean(1).tolist() for name, v in per_frame.items()}
        return [dict(zip(per_clip, values)) for values in zip(*per_clip.values())], found.features.cpu()


@dataclass
class Record:
    """What one process found: measures of each clip by variant, and what was read back, with its truth.

    Attributes:
        judged_truth: what the judges say of each clip's true pictures: how well a perfect result would do.
        features: the judges' features of all pictures by variant, and of the true ones under "truth".
    """

    clips: dict[str, list[dict[str, float]]]
    read: dict[str, list[FaceParameters]]
    truth: list[FaceParameters]
    sheet: dict[str, list[Tensor]]
    judged_truth: list[dict[str, float]] = field(default_factory=list)
    features: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))


def evaluate(
    reenact: Reenactor,
    head: HeadModel,
    studio: Studio,
    protocol: Protocol,
    *,
    read_face: FaceReader | None = None,
    read_known: KnownReader | None = None,
    judges: Judges | None = None,
    share: tuple[int, int] | None = None,
    sheet_rows: int = 12,
    progress: Progress | None = None,
) -> Record:
    """Run the benchmark, or with `share` = (first, last + 1) the pairs of one process.

    Args:
        read_face: captures the parameters of the variant "captured", and reads results back by "capture".
        read_known: reads results back by "encoder".
        judges: tell identity, pose and expression; without them these stay unknown.
    """
    device = head.template.device
    drawn = draw_cases(protocol, head)
    first, last = share or (0, protocol.pairs)
    record = Record({name: [] for name in protocol.variants}, defaultdict(list), [], {})
    reenact.network.eval()
    for start in range(first, last, protocol.batch):
        stop = min(start + protocol.batch, last)
        cases = drawn.part(start, stop, device)
        pictures = stylize_cases(render_cases(cases, studio, head, protocol.size), protocol, start)
        masks = region_masks(face_spots(head, cases.aligned, protocol.size), protocol.size)
        middle = slice(cases.frames // 2, None, cases.frames)
        wanted = start < sheet_rows
        read = _reader(protocol, cases, read_face, read_known)
        targets = None if judges is None else CaseTargets.of(judges, cases, pictures)
        if wanted:
            _keep(
                record,
                source=pictures.source,
                driving=pictures.driving[middle],
                normals=pictures.normals[middle],
            )
        if read is not None:
            record.truth.append(cases.motion.to("cpu"))
            record.read["truth"].append(read(pictures.truth))
        if targets is not None:
            judged, features = targets.judge(pictures.truth)
            record.judged_truth += judged
            record.features["truth"].append(features)
        for name, image in reenact_cases(reenact, cases, pictures, protocol, start, head, read_face):
            clips = measure(image, pictures.truth, masks, cases.frames)
            if targets is not None:
                judged, features = targets.judge(image)
                clips = [clip | more for clip, more in zip(clips, judged, strict=True)]
                record.features[name].append(features)
            record.clips[name] += clips
            if wanted and name in protocol.generated:
                _keep(record, **{name: image[middle]})
            if read is not None and name in protocol.generated:
                record.read[name].append(read(image))
        if wanted:
            _keep(record, truth=pictures.truth[middle])
        if progress is not None:
            progress(stop - first, last - first)
    return record


def _reader(
    protocol: Protocol, cases: Cases, read_face: FaceReader | None, read_known: KnownReader | None
) -> Callable[[Tensor], FaceParameters] | None:
    """Reads pictures (P * F, 3, H, W) of the cases back as the protocol says, or None."""
    if protocol.read_back == "capture" and read_face is not None:
        clip_reader = read_face
        return lambda image: FaceParameters.concatenate([clip_reader(c) for c in image.split(cases.frames)])
    if protocol.read_back == "encoder" and read_known is not None:
        known_reader = read_known
        return lambda image: known_reader(image, cases.aligned)
    return None


def _keep(record: Record, **columns: Tensor) -> None:
    for name, pictures in columns.items():
        record.sheet.setdefault(name, []).append(pictures.float().cpu())


def visible_actions(head: HeadModel, motion: FaceParameters, size: int = 256) -> Tensor:
    """The actions that the drivers use and that move the picture by a pixel: (expressions,) bool.

    Gaze counts as visible whenever it is used: it turns the eyeballs, not the surface that is measured here.
    """
    used = motion.expression.std(0)
    skin = torch.cat(
        [head.regions[name] for name in ("head_skin", "lips", "tongue") if name in head.regions]
    ).cpu()
    reach = head.expression_basis.cpu()[skin, :2].norm(dim=1).amax(0) * motion.camera[:, 0].mean() * size / 2
    gaze = torch.tensor([name.startswith("eyeLook") for name in head.expression_names])
    return (used > 0.02) & ((reach * used > 1.0) | gaze)


def summarize(records: list[Record], head: HeadModel, protocol: Protocol) -> dict[str, Any]:
    """Join the processes' records into the report.

    Returns:
        by variant under "results" the means of what was measured over the clips, and the Fréchet distance of
        all its frames from the true ones by the judges' features; under "intervals" half the widths of the
        means' 95 % intervals (`ablation.interval`); under "pairs" the values of the single clips, in the
        order of the seed's pairs; under "differences" the ablations' paired differences; under "judged_truth"
        the judges' measures of the true pictures; under "read_back" what the bundled encoder finds.
    """
    pairs: dict[str, Columns] = {}
    for name in protocol.variants:
        clips = [clip for record in records for clip in record.clips[name]]
        if clips:
            pairs[name] = columns_of(clips)
    report: dict[str, Any] = {"protocol": asdict(protocol), "results": {}, "intervals": {}}
    for name, columns in pairs.items():
        report["results"][name], report["intervals"][name] = _means(columns)
        distance = _frechet(records, name)
        if distance is not None:
            report["results"][name]["frechet"] = distance
    truth = columns_of([clip for record in records for clip in record.judged_truth])
    report["judged_truth"] = _means(truth)[0] if truth else None
    report["differences"] = differences(pairs)
    report["pairs"] = {name: _rounded(columns) for name, columns in pairs.items()}
    true_parts = [part for record in records for part in record.truth]
    if true_parts:
        true_params = FaceParameters.concatenate(true_parts)
        visible = visible_actions(head, true_params, protocol.size)
        report["visible_actions"] = [name for name, seen in zip(head.expression_names, visible) if seen]
        report["read_back"] = {}
        for name in ("truth", *[v for v in protocol.generated if v in pairs]):
            found = FaceParameters.concatenate([part for record in records for part in record.read[name]])
            read: ReadBack = read_back(found, true_params, head.expression_names, visible)
            report["read_back"][name] = asdict(read)
    return report


def _frechet(records: list[Record], name: str) -> float | None:
    """Fréchet distance of a variant's pictures from the true ones, by the judges' features."""
    sets = {}
    for which in (name, "truth"):
        sets[which] = RunningGaussian()
        for features in (part for record in records for part in record.features.get(which, [])):
            sets[which].update(features)
    return frechet_distance(sets[name], sets["truth"]) if sets["truth"].count else None


def _means(columns: Columns) -> tuple[dict[str, float], dict[str, float]]:
    """Means and half widths of their intervals; that of PSNR stands among the means as well."""
    both = {name: interval(values) for name, values in columns.items()}
    means = {name: mean for name, (mean, _) in both.items()}
    halves = {name: half for name, (_, half) in both.items()}
    if halves.get("psnr", nan) == halves.get("psnr"):
        means["psnr_interval"] = halves["psnr"]
    return means, halves


def _rounded(columns: Columns) -> Columns:
    return {name: [round(value, 6) for value in values] for name, values in columns.items()}


def sheet_columns(records: list[Record], rows: int = 12) -> list[Tensor]:
    """Columns of the contact sheet: source | driving | normals | results | truth, one frame of each pair."""
    columns: dict[str, list[Tensor]] = {}
    for record in records:
        for name, parts in record.sheet.items():
            columns.setdefault(name, []).extend(parts)
    return [torch.cat(parts)[:rows] for parts in columns.values()]
