"""The avatar benchmark: cross-identity reenactment of unseen avatars, where the truth is known exactly.

Driver B moves as a track says; source A must do the same. The studio renders A under B's pose, expression and
camera: that picture is the truth. Tables compare the full method with its ablations, with copying the source,
and with what the autoencoder alone would leave of the truth. The bundled face encoder reads pose and
expression back from the results.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from einops import repeat
from torch import Tensor

from ..avatars.identity import Identity
from ..avatars.poses import random_frames
from ..avatars.studio import Studio
from ..avatars.tracks import random_tracks
from ..head.alignment import align
from ..head.model import HeadModel
from ..head.parameters import FaceParameters
from ..head.render import draw_normals
from ..network.attention import Conditions, project_reference
from ..network.autoencoder import AutoEncoder, StableAutoEncoder
from ..network.encoders import clip_preprocess
from ..network.model import AniFaceDiff, append_zero_rows, run_unet
from ..progress import Progress
from ..sampling.schedule import NoiseSchedule, euler_step
from ..sampling.windows import initial_noise
from .metrics import ReadBack, flicker, psnr, read_back, ssim
from .regions import face_spots, region_masks

SEED_OFFSET = 500_000_000  # far from the seeds of training pools
VARIANTS = {
    "full": "full",
    "no_adapter": "without expression adapter",
    "driver_shape": "driver's shape",
    "captured": "captured parameters",
    "source": "source copied",
    "autoencoder": "autoencoder on the truth",
}
GENERATED = ("full", "no_adapter", "driver_shape", "captured")
FaceReader = Callable[[Tensor], FaceParameters]
"""Pictures of one clip (frames, 3, size, size) -> their captured parameters, on the CPU."""


@dataclass(frozen=True)
class Protocol:
    """What to measure on what.

    Arguments:
        pairs: number of source and driver pairs.
        seed: of identities, tracks and noise.
        frames, fps: length and rate of the driving clips.
        size: side of the pictures.
        steps, cfg: of the sampler.
        shared_noise: share of the initial noise's variance that the frames of a clip have in common.
        batch: pairs handled at once.
        variants: which of `VARIANTS` to measure.
    """

    pairs: int = 64
    seed: int = 0
    frames: int = 24
    fps: float = 24.0
    size: int = 256
    steps: int = 10
    cfg: float = 1.5
    shared_noise: float = 1.0
    batch: int = 4
    variants: tuple[str, ...] = tuple(VARIANTS)


@dataclass(frozen=True)
class Cases:
    """P pairs of source A and driver B with F frames each, as parameters.

    Arguments:
        sources, drivers: P identities each.
        still: (P) A's parameters in the source picture.
        motion: (P * F) the driver's track; its shape is B's.
    """

    sources: Identity
    drivers: Identity
    still: FaceParameters
    motion: FaceParameters
    frames: int

    def __len__(self) -> int:
        return len(self.still)

    def part(self, start: int, stop: int, device: torch.device) -> Cases:
        return Cases(
            self.sources[slice(start, stop)].to(device),
            self.drivers[slice(start, stop)].to(device),
            self.still[start:stop].to(device),
            self.motion[start * self.frames : stop * self.frames].to(device),
            self.frames,
        )

    @property
    def aligned(self) -> FaceParameters:
        """The driver's motion on the source's shape (equation 2)."""
        return replace(self.motion, shape=self.sources.shape.repeat_interleave(self.frames, 0))


@dataclass(frozen=True)
class Pictures:
    """Rendered cases: source (P, 3, H, W), the others (P * F, 3, H, W); foreign normals have B's shape."""

    source: Tensor
    driving: Tensor
    truth: Tensor
    normals: Tensor
    foreign_normals: Tensor


def draw_cases(protocol: Protocol, head: HeadModel) -> Cases:
    """Random pairs, on the CPU: they depend on the seed and their number, not on the machine."""
    generator = torch.Generator().manual_seed(SEED_OFFSET + protocol.seed)
    count, frames = protocol.pairs, protocol.frames
    sources = Identity.random(count, generator, head)
    drivers = Identity.random(count, generator, head)
    still = random_frames(count, generator, head)
    # A source picture is a calm portrait.
    still = replace(still, shape=sources.shape, expression=still.expression * 0.5, pose=still.pose * 0.6)
    motion = random_tracks(count, frames, protocol.fps, generator, head)
    motion = replace(motion, shape=drivers.shape.repeat_interleave(frames, 0))
    return Cases(sources, drivers, still, motion, frames)


@torch.no_grad()
def render_cases(cases: Cases, studio: Studio, head: HeadModel, size: int, batch: int = 96) -> Pictures:
    def avatars(identity: Identity, params: FaceParameters) -> Tensor:
        parts = [slice(i, i + batch) for i in range(0, len(params), batch)]
        return torch.cat([studio.render(identity[p], params[p], size=size) for p in parts])

    def normals(params: FaceParameters) -> Tensor:
        return torch.cat(
            [draw_normals(head, params[i : i + batch], size) for i in range(0, len(params), batch)]
        )

    return Pictures(
        source=avatars(cases.sources, cases.still),
        driving=avatars(cases.drivers.repeat_interleave(cases.frames), cases.motion),
        truth=avatars(cases.sources.repeat_interleave(cases.frames), cases.aligned),
        normals=normals(cases.aligned),
        foreign_normals=normals(cases.motion),
    )


@dataclass(frozen=True)
class Reenactor:
    """The networks of a checkpoint, for many clips at once: `sampling.pipeline`, batched."""

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
    ) -> Tensor:
        """Reenact P sources with F frames each.

        Args:
            source: (P, 3, H, W); normals: (P * F, 3, H, W), pair-major; expression: (P * F, E).
            noise: (P * F, 4, h, w).

        Returns:
            (P * F, 3, H, W) in [0, 1].
        """
        net = self.network
        rows, frames = len(normals), len(normals) // len(source)
        guided = cfg != 1.0
        device = source.device
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            image = net.encode_image(clip_preprocess(source, net.config.image_size))
            latents = self.autoencoder.encode(source) * net.config.latent_scale
            conditions = Conditions(
                conditional_rows=rows,
                reference=project_reference(net.unet, net.encode_reference(latents, image)),
                expression=net.expression_adapter.keys_values(net.encode_expression(expression)),
                expression_weight=expression_scale,
            )
            pose = net.encode_pose(normals, chunk=64)
            halves = 2 if guided else 1
            context = append_zero_rows(repeat(image, "s t d -> (s f) t d", f=frames), halves * rows)

            def predict(x: Tensor, timestep: int) -> Tensor:
                prediction = run_unet(
                    net.unet,
                    torch.cat([x] * halves),
                    torch.full((halves * rows,), timestep, device=device),
                    context,
                    conditions=conditions,
                    pose=tuple(torch.cat([level] * halves) for level in pose),
                    motion=net.motion,
                    frames=frames,
                ).float()
                if not guided:
                    return prediction
                seen, unseen = prediction.chunk(2)
                return unseen + cfg * (seen - unseen)

            schedule = NoiseSchedule.of(net.config)
            timesteps, sigmas = schedule.trailing(steps)
            x = schedule.noisy(noise, sigmas[0].to(device))
            for timestep, sigma, following in zip(
                timesteps.tolist(), sigmas.to(device), sigmas[1:].to(device)
            ):
                prediction = predict(schedule.model_input(x, sigma), timestep)
                x = euler_step(x, schedule.denoised(prediction, x, sigma), sigma, following)
            result = x / net.config.latent_scale
            return torch.cat([self.autoencoder.decode(part).float() for part in result.split(64)]).clamp(0, 1)


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
    noise = starting_noise(len(cases), cases.frames, protocol, first).to(pictures.source.device)
    expression = cases.motion.expression
    options: dict[str, Any] = {"steps": protocol.steps, "cfg": protocol.cfg}
    for variant in protocol.variants:
        if variant == "full":
            yield variant, reenact(pictures.source, pictures.normals, expression, noise, **options)
        elif variant == "no_adapter":
            yield (
                variant,
                reenact(
                    pictures.source, pictures.normals, expression, noise, expression_scale=0.0, **options
                ),
            )
        elif variant == "driver_shape":
            yield variant, reenact(pictures.source, pictures.foreign_normals, expression, noise, **options)
        elif variant == "captured" and read_face is not None:
            found = capture_cases(cases, pictures, read_face).to(pictures.source.device)
            normals = torch.cat([draw_normals(head, part, protocol.size) for part in split(found, 96)])
            yield variant, reenact(pictures.source, normals, found.expression, noise, **options)
        elif variant == "source":
            yield variant, pictures.source.repeat_interleave(cases.frames, 0)
        elif variant == "autoencoder":
            vae = reenact.autoencoder
            with torch.no_grad():
                parts = [
                    vae.decode(vae.encode(part)).float().clamp(0, 1) for part in pictures.truth.split(64)
                ]
            yield variant, torch.cat(parts)


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
    return [dict(zip(per_clip, values)) for values in zip(*per_clip.values())]


@dataclass
class Record:
    """What one process found: measures of each clip by variant, and what was read back, with its truth."""

    clips: dict[str, list[dict[str, float]]]
    read: dict[str, list[FaceParameters]]
    truth: list[FaceParameters]
    sheet: dict[str, list[Tensor]]


def evaluate(
    reenact: Reenactor,
    head: HeadModel,
    studio: Studio,
    protocol: Protocol,
    *,
    read_face: FaceReader | None = None,
    share: tuple[int, int] | None = None,
    sheet_rows: int = 12,
    progress: Progress | None = None,
) -> Record:
    """Run the benchmark, or with `share` = (first, last + 1) the pairs of one process."""
    device = head.template.device
    drawn = draw_cases(protocol, head)
    first, last = share or (0, protocol.pairs)
    record = Record({name: [] for name in protocol.variants}, defaultdict(list), [], {})
    reenact.network.eval()
    for start in range(first, last, protocol.batch):
        stop = min(start + protocol.batch, last)
        cases = drawn.part(start, stop, device)
        pictures = render_cases(cases, studio, head, protocol.size)
        masks = region_masks(face_spots(head, cases.aligned, protocol.size), protocol.size)
        middle = slice(cases.frames // 2, None, cases.frames)
        wanted = start < sheet_rows
        if wanted:
            _keep(
                record,
                source=pictures.source,
                driving=pictures.driving[middle],
                normals=pictures.normals[middle],
            )
        if read_face is not None:
            record.truth.append(cases.motion.to("cpu"))
            record.read["truth"] += _read(read_face, pictures.truth, cases.frames)
        for variant, image in reenact_cases(reenact, cases, pictures, protocol, start, head, read_face):
            record.clips[variant] += measure(image, pictures.truth, masks, cases.frames)
            if wanted and variant in GENERATED:
                _keep(record, **{variant: image[middle]})
            if read_face is not None and variant in GENERATED:
                record.read[variant] += _read(read_face, image, cases.frames)
        if wanted:
            _keep(record, truth=pictures.truth[middle])
        if progress is not None:
            progress(stop - first, last - first)
    return record


def _read(read_face: FaceReader, pictures: Tensor, frames: int) -> list[FaceParameters]:
    return [read_face(clip) for clip in pictures.split(frames)]


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
    """Join the processes' records into the report: means with 95 % intervals over the pairs."""
    results: dict[str, dict[str, float]] = {}
    for variant in (v for v in protocol.variants if any(record.clips[v] for record in records)):
        clips = [clip for record in records for clip in record.clips[variant]]
        results[variant] = _means(clips)
    report: dict[str, Any] = {"protocol": asdict(protocol), "results": results}
    truth = [part for record in records for part in record.truth]
    if truth:
        true_params = FaceParameters.concatenate(truth)
        visible = visible_actions(head, true_params, protocol.size)
        report["visible_actions"] = [name for name, seen in zip(head.expression_names, visible) if seen]
        report["read_back"] = {}
        for variant in ("truth", *[v for v in GENERATED if v in results]):
            found = FaceParameters.concatenate([part for record in records for part in record.read[variant]])
            read: ReadBack = read_back(found, true_params, head.expression_names, visible)
            report["read_back"][variant] = asdict(read)
    return report


def _means(clips: list[dict[str, float]]) -> dict[str, float]:
    means: dict[str, float] = {}
    for name in clips[0] if clips else ():
        values = torch.tensor([clip[name] for clip in clips], dtype=torch.float64)
        values = values[values.isfinite()]
        means[name] = float(values.mean()) if len(values) else float("nan")
        if name == "psnr" and len(values) > 1:
            means["psnr_interval"] = float(1.96 * values.std() / len(values) ** 0.5)
    return means


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    columns = {"psnr": 1, "ssim": 3, "head": 1, "eyes": 1, "mouth": 1, "flicker": 2}
    titles = [
        "unseen avatars",
        "PSNR",
        "SSIM",
        "head",
        "eyes",
        "mouth",
        "flicker",
        "expression r",
        "rotation °",
    ]
    rows = [titles, ["---"] * len(titles)]
    read = report.get("read_back", {})
    for variant, values in report["results"].items():
        cells = [_number(values.get(name), digits) for name, digits in columns.items()]
        rows.append([VARIANTS[variant], *cells, *_read_cells(read.get(variant, {}))])
    if "truth" in read:
        rows.append(["truth, read back", *["–"] * len(columns), *_read_cells(read["truth"])])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _read_cells(read: dict[str, Any]) -> list[str]:
    return [_number(read.get("correlation"), 3), _number(read.get("rotation"), 2)]


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None or value != value else f"{value:.{digits}f}"


def sheet_columns(records: list[Record], rows: int = 12) -> list[Tensor]:
    """Columns of the contact sheet: source | driving | normals | results | truth, one frame of each pair."""
    columns: dict[str, list[Tensor]] = {}
    for record in records:
        for name, parts in record.sheet.items():
            columns.setdefault(name, []).extend(parts)
    return [torch.cat(parts)[:rows] for parts in columns.values()]
