"""Training the judges of the avatar benchmark (`evaluation.judges`), on avatars of their own.

Avatars come in families of four: two looks (paint, hair, eyes, accessories) times two face shapes. So a batch
always holds pairs that differ in the face shape alone, and the identity judge can't live on hair and skin.
Light, backdrop and clothes are drawn anew for every picture: they are not who somebody is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anifacediff_core.errors import InputError
from anifacediff_core.head.camera import crop_camera, project
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.video import contact_sheet, write_image

from ..avatars.identity import Identity
from ..avatars.studio import Studio
from ..evaluation import judges as judging
from ..evaluation.avatars import visible_actions
from ..evaluation.judges import SIDE, VIEW, WIDTHS, IdentityNet, Judges, MotionNet
from ..metrics import correlation
from .capture import chosen, crop_resize_square, uniform
from .data import Pool, PoolPlan, random_motion
from .engine import run
from .phase import Phase
from .settings import build
from .task import Tensors, load_weights

# Seeds of no other pool: those begin at 100,000 times the experiment's seed, the benchmark's at 500 million.
TRAINING_SEED, HELD_OUT_SEED = 300_000_000, 400_000_000
HELD_OUT_AVATARS = 384
FAMILY = 4
VIEWS = 2  # pictures of an avatar in a batch
LEAST_DEVIATION = 0.05  # rare expressions must not be blown up


@dataclass(frozen=True)
class JudgesSettings:
    """Batches, disturbances and weights of the losses.

    Args:
        families: families of four avatars in a batch of each process; two pictures of each avatar.
        side: of the view that the judges look at, in pixels.
        widths: channels of the networks' four stages, multiples of 8.
        temperature: of the cosines in the contrastive losses.
        everyone_weight: of the contrastive loss among all avatars of the batch.
        family_weight: of the one within the families, where the negatives share look or shape.
        begin: share of the training in which both rise from a twentieth: first learn where things are, then
            who it is.
        shape_weight: of the shape that a layer, which is thrown away later, must read from the embedding.
        motion_weight: of the motion judge's loss.
        expression_weight: in it, of the expression; the head's rotation and the camera count 1 each.
        points_weight: of the landmarks that both read by the way.
        shift, scale: greatest jitter of the view, in parts of its side.
        color: greatest change of brightness and of each channel.
        noise: greatest deviation of the noise.
    """

    families: int = 48
    side: int = SIDE
    widths: tuple[int, ...] = WIDTHS
    temperature: float = 0.1
    everyone_weight: float = 0.5
    family_weight: float = 0.5
    begin: float = 0.2
    shape_weight: float = 2.0
    motion_weight: float = 1.0
    expression_weight: float = 6.0
    points_weight: float = 2.0
    shift: float = 0.03
    scale: float = 0.05
    color: float = 0.06
    noise: float = 0.03

    def __post_init__(self) -> None:
        if self.side % judging.STRIDE:
            raise InputError(
                f"The judges' side is {self.side} pixels; make it a multiple of {judging.STRIDE}."
            )


class FamilyPool(Pool):
    """A pool whose identities come in families of four: looks A A B B with the shapes a b a b.

    Raises:
        InputError: families would be torn apart.
    """

    def __init__(self, studio: Studio, head: HeadModel, plan: PoolPlan, seed: int) -> None:
        if plan.identities % FAMILY or (plan.batch // plan.frames) % FAMILY or plan.batch < FAMILY:
            raise InputError(
                f"Avatars for the judges come in fours: {plan.identities} identities in batches of "
                f"{plan.batch} frames, {plan.frames} of each, tear families apart; make both multiples of "
                "four avatars."
            )
        super().__init__(studio, head, replace(plan, normals=False), seed)
        total, device = plan.identities * plan.frames, self.spots.device
        self.points = torch.zeros(total, len(head.landmarks), 2, device=device)

    @torch.no_grad()
    def _render(self, place: int) -> None:
        frames, device = self.plan.frames, self.spots.device
        first = place * self.group
        count = min(self.group, self.plan.identities - first)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.groups[place])
        looks = Identity.random(count // 2, generator, self.head)
        order = torch.arange(count // 2).view(-1, 2)
        look, shape = order.repeat_interleave(2, 1).flatten(), order.repeat(1, 2).flatten()
        identity = replace(looks[look], shape=looks.shape[shape]).repeat_interleave(frames)
        # Who somebody is does not depend on where the picture was taken.
        scene = Identity.random(count * frames, generator, self.head)
        identity = replace(identity, light=scene.light, backdrop=scene.backdrop, body=scene.body).to(device)
        motion = random_motion(self.plan, count, self.head, generator).to(device)
        motion = replace(motion, shape=identity.shape)
        where = slice(first * frames, (first + count) * frames)
        self._store(where, self._picture(identity, motion), generator)
        for name in ("shape", "expression", "pose", "camera"):
            getattr(self.params, name)[where] = getattr(motion, name)
        self.points[where] = landmark_places(self.head, motion)


def landmark_places(head: HeadModel, params: FaceParameters) -> Tensor:
    """(frames, 68, 2): x, y of the landmarks as parts of the picture's side."""
    return (project(head(params)[:, head.landmarks], params.camera)[..., :2] + 1) / 2


class JudgeNetworks(nn.Module):
    """Both judges, and layers that are thrown away after training: by them the identity judge proves that it
    sees the face's shape, and both that they know where the landmarks are, which they learn early.
    """

    def __init__(self, identity: IdentityNet, motion: MotionNet, n_shape: int, landmarks: int) -> None:
        super().__init__()
        self.identity, self.motion = identity, motion
        self.shape = nn.Linear(judging.EMBEDDING, n_shape)
        self.identity_points = nn.Linear(identity.mix.in_features, 2 * landmarks)
        self.motion_points = nn.Linear(motion.mix.in_features, 2 * landmarks)

    def forward(self, pictures: Tensor) -> tuple[Tensor, ...]:
        """(rows, 3, side, side) -> embedding, shape, motion, landmarks as either judge sees them."""
        who, how = self.identity.backbone(pictures), self.motion.backbone(pictures)
        embedding = self.identity.answer(self.identity.embed(who))
        points = self.identity_points(who), self.motion_points(how)
        motion = self.motion.answer(self.motion.embed(how))
        return embedding, self.shape(embedding), motion, *points


# ---- batches


def draw_families(pool: Pool, families: int) -> Tensor:
    """Indices of frames (families * 4 * 2,): two different pictures of each avatar of different families."""
    device, frames = pool.spots.device, pool.plan.frames
    family = torch.randperm(pool.identities // FAMILY, device=device)[:families]
    avatar = (family[:, None] * FAMILY + torch.arange(FAMILY, device=device)).flatten()
    first = torch.randint(frames, avatar.shape, device=device)
    second = (first + torch.randint(1, frames, avatar.shape, device=device)) % frames
    return torch.stack([avatar * frames + first, avatar * frames + second], dim=1).flatten()


def jittered_squares(rows: int, settings: JudgesSettings, device: torch.device) -> Tensor:
    """(rows, 3): left, top and side of views that lie a little off, as parts of the picture."""
    left, top, whole = VIEW  # numbers: a tensor of them would make the device wait at every step
    side = whole * (1 + (torch.rand(rows, 1, device=device) * 2 - 1) * settings.scale)
    shift = (torch.rand(rows, 2, device=device) * 2 - 1) * settings.shift * whole + (whole - side) / 2
    return torch.cat([left + shift[:, :1], top + shift[:, 1:], side], dim=1)


def disturb(pictures: Tensor, settings: JudgesSettings) -> Tensor:
    """Soften, tint and add noise, lightly: results are a little soft, and colors are part of who it is."""
    rows, device = len(pictures), pictures.device
    soft = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    softness = uniform(rows, 0, 1, device) * chosen(rows, 0.6, device)
    pictures = torch.lerp(pictures, soft, softness)
    c = settings.color
    gain = uniform(rows, 1 - c, 1 + c, device) * (1 + (torch.rand(rows, 3, 1, 1, device=device) - 0.5) * c)
    pictures = pictures * gain + uniform(rows, -c / 2, c / 2, device)
    return (pictures + torch.randn_like(pictures) * uniform(rows, 0, settings.noise, device)).clamp(0, 1)


def motion_vector(params: FaceParameters, squares: Tensor) -> Tensor:
    """(rows, expressions + 3 + 3): what the motion judge should answer when it looks at the squares."""
    camera = crop_camera(params.camera, squares)
    return torch.cat([params.expression, params.pose[:, 3:6], camera], dim=1)


def points_in(squares: Tensor, points: Tensor) -> Tensor:
    """Landmarks (rows, 68, 2) of the whole picture as (rows, 136) parts of the squares, 0 in the middle."""
    return ((points - squares[:, None, :2]) / squares[:, None, 2:] - 0.5).flatten(1)


# ---- losses


def contrast(embedding: Tensor, temperature: float) -> Tensor:
    """InfoNCE (van den Oord et al. 2018) of unit vectors (groups, rows, 128): rows 2 i and 2 i + 1 are the
    same face, all others of the group are not.
    """
    rows = embedding.shape[1]
    logits = embedding @ embedding.transpose(1, 2) / temperature
    own = torch.eye(rows, dtype=torch.bool, device=embedding.device)
    logits = logits.masked_fill(own, float("-inf"))
    partner = (torch.arange(rows, device=embedding.device) ^ 1).expand(len(embedding), -1)
    return F.cross_entropy(logits.flatten(0, 1), partner.flatten())


def shape_weights(head: HeadModel) -> Tensor:
    """(shape modes,): how far each moves the head, with mean 1."""
    reach = head.shape_basis.flatten(0, 1).norm(dim=0)
    return reach / reach.mean()


def auc(same: Tensor, different: Tensor) -> float:
    """Probability that a pair of the same face (n,) is more alike than one of different faces (m,)."""
    below = torch.searchsorted(different.sort().values, same)
    return float(below.double().mean() / len(different))


class JudgesTask:
    """Identity and motion judge side by side; see `task.Task`.

    Attributes:
        measures: what the last `validate` found.
    """

    name = "judges"
    period = 1

    def __init__(
        self, head: HeadModel, pool: FamilyPool, held_out: FamilyPool, settings: JudgesSettings
    ) -> None:
        if pool.identities < FAMILY * settings.families:
            raise InputError(
                f"The judges' pool has {pool.identities // FAMILY} families and a batch needs "
                f"{settings.families}; lower families, or give the pool more identities."
            )
        self.head, self.pool, self.held_out, self.settings = head, pool, held_out, settings
        s = settings
        self.identity = IdentityNet(s.side, s.widths)
        self.motion = MotionNet(head.n_expression, s.side, s.widths)
        networks = JudgeNetworks(self.identity, self.motion, head.n_shape, len(head.landmarks))
        self.module = networks.to(head.template.device)
        self._set_statistics()
        # However many numbers each has.
        sizes = ((head.n_expression, s.expression_weight), (3, 1.0), (3, 1.0))
        weight = torch.cat([torch.full((count,), value / count) for count, value in sizes])
        self.motion_weights = weight.to(head.template.device)
        self.shape_weights = shape_weights(head)
        self.progress = 0.0
        self.measures: dict[str, float] = {}

    @torch.no_grad()
    def _set_statistics(self) -> None:
        """Means and deviations of what the motion judge answers, from the pool itself."""
        params = self.pool.params[: len(self.pool)][:8192]
        squares = jittered_squares(len(params), self.settings, self.pool.spots.device)
        vectors = motion_vector(params, squares)
        least = torch.full_like(vectors[0], 1e-4)
        least[: self.head.n_expression] = LEAST_DEVIATION
        self.motion.mean.copy_(vectors.mean(0))
        self.motion.deviation.copy_(torch.maximum(vectors.std(0), least))
        points = points_in(squares, self.pool.points[: len(params)])
        self.points_mean, self.points_deviation = points.mean(0), points.std(0).clamp(min=1e-4)

    def draw(self, fraction: float) -> tuple[Tensors, Tensors]:
        self.pool.tick()
        self.progress = fraction
        with torch.no_grad():
            index = draw_families(self.pool, self.settings.families)
            params, squares = (
                self.pool.params[index],
                jittered_squares(len(index), self.settings, index.device),
            )
            images = self.pool.images[index].float().div(255)
            pictures = disturb(crop_resize_square(images, squares, self.settings.side), self.settings)
            points = points_in(squares, self.pool.points[index])
        return (pictures,), (params.shape, motion_vector(params, squares), points)

    def losses(self, outputs: Any, targets: Tensors) -> dict[str, Tensor]:
        embedding, found_shape, answer, *found_points = (output.float() for output in outputs)
        shape, vector, points = targets
        s = self.settings
        unit = F.normalize(embedding, dim=1)
        everyone = contrast(unit[None], s.temperature)
        family = contrast(unit.unflatten(0, (-1, FAMILY * VIEWS)), s.temperature)
        # Huber: rare, large values must not rule the batch.
        shape_error = F.smooth_l1_loss(found_shape, shape, reduction="none", beta=0.5)
        shape_loss = (shape_error * self.shape_weights).mean()
        wanted = (vector - self.motion.mean) / self.motion.deviation
        error = F.smooth_l1_loss(answer, wanted, reduction="none", beta=0.5)
        motion = (error * self.motion_weights).sum(1).mean()
        wanted = (points - self.points_mean) / self.points_deviation
        places = torch.stack([F.smooth_l1_loss(found, wanted, beta=0.5) for found in found_points]).sum()
        rising = min(1.0, 0.05 + self.progress / max(s.begin, 1e-6))
        loss = rising * (s.everyone_weight * everyone + s.family_weight * family)
        loss = loss + s.shape_weight * shape_loss + s.motion_weight * motion + s.points_weight * places
        parts = {"everyone": everyone, "family": family, "shape": shape_loss, "motion": motion}
        return {"loss": loss, **parts, "points": places}

    def weights(self) -> dict[str, Tensor]:
        return judging.judge_weights(self.identity, self.motion)

    def state_dict(self) -> dict[str, Any]:
        return self.pool.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pool.load_state_dict(state)

    def validate(self, path: Path, fraction: float) -> dict[str, float]:
        judges = Judges(self.identity, self.motion, self.settings.side)
        pool = self.held_out
        predictions = [judges.predict(part.float().div(255)) for part in pool.images.split(256)]
        unit = torch.cat([part.face for part in predictions])
        parts = [(o.motion.expression, o.motion.neck, o.motion.camera) for o in predictions]
        found = judging.Motion(*(torch.cat(values) for values in zip(*parts)))
        self.measures = verification(unit, pool.plan.frames) | accuracy(self.head, found, pool.params)
        columns = pool.images[: 4 * FAMILY * pool.plan.frames : pool.plan.frames].float().div(255)
        write_image(path, contact_sheet(list(columns.split(FAMILY))))
        return self.measures


# ---- the phase


def train_judges(phase: Phase) -> None:
    """Train on pools of their own and leave a file that is complete, to be used as it is."""
    settings = build(JudgesSettings, phase.settings.get("settings"), "judges.settings")
    seed = TRAINING_SEED + int(phase.experiment["seed"]) * 1000 + phase.accelerator.process_index
    plan = phase.plan()
    began = phase.logger.elapsed()
    pool = FamilyPool(phase.studio, phase.head, plan, seed)
    pool.fill()
    rate = len(pool) / max(phase.logger.elapsed() - began, 1e-6)
    phase.logger(phase.name, "pool", frames=len(pool), frames_per_second=rate)
    few = replace(plan, identities=min(HELD_OUT_AVATARS, plan.identities))
    held_out = FamilyPool(phase.studio, phase.head, few, HELD_OUT_SEED)
    held_out.fill()
    task = JudgesTask(phase.head, pool, held_out, settings)
    run(task, phase.loop, phase.accelerator, phase.folder, phase.logger)
    if phase.accelerator.is_main_process:
        path = phase.folder / f"{task.name}.safetensors"
        judging.save_judges(path, load_weights(path), provenance(task, phase.experiment))


def provenance(task: JudgesTask, experiment: dict[str, Any]) -> dict[str, Any]:
    """What the file's header tells: settings, what it ran on, how good the judges are on unseen avatars."""
    device = task.head.template.device
    return {
        "experiment": experiment,
        "head": task.head.name,
        "avatars": task.pool.made * task.pool.group,
        "frames": task.pool.made * task.pool.group * task.pool.plan.frames,
        "held_out": task.measures,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }


# ---- how good they are


def verification(unit: Tensor, frames: int) -> dict[str, float]:
    """How well the identity judge tells faces apart, on whole families (families * 4 * frames, 128).

    Returns:
        areas under the ROC curve, for pairs of one face against pairs of any other face, of another shape
        under the same look, and of another look on the same shape; mean cosines of the same four kinds.
    """
    likeness = unit @ unit.T
    index = torch.arange(len(unit), device=unit.device)
    family, member = index // (FAMILY * frames), index // frames % FAMILY
    look, shape = member // 2, member % 2

    def alike(values: Tensor) -> Tensor:
        return values[:, None] == values

    other = index[:, None] < index
    kin = alike(family) & other
    pairs = {
        "same": kin & alike(look) & alike(shape),
        "anyone": ~alike(family) & other,
        "shape": kin & alike(look) & ~alike(shape),
        "look": kin & ~alike(look) & alike(shape),
    }
    cosines = {name: likeness[mask] for name, mask in pairs.items()}
    found = {f"auc_{name}": auc(cosines["same"], cosines[name]) for name in ("anyone", "shape", "look")}
    return found | {f"cosine_{name}": float(values.mean()) for name, values in cosines.items()}


def accuracy(head: HeadModel, found: judging.Motion, params: FaceParameters) -> dict[str, float]:
    """How well the motion judge reads: its distances to the truth, and the correlation of the actions, all
    that are used and those of them that move the picture by a pixel.
    """
    truth = judging.true_motion(params)
    used = truth.expression.std(0) > 0.02
    visible = visible_actions(head, params.to("cpu")).to(used.device)
    found_r = correlation(found.expression, truth.expression)
    return {
        "expression_r": float(found_r[used].nanmean()),
        "visible_r": float(found_r[visible].nanmean()),
        "aed": float(judging.expression_distance(found, truth).mean()),
        "apd": float(judging.pose_distance(found, truth).mean()),
        "rotation": float(judging.rotation_angle(found, truth).mean()),
        "camera": float(judging.camera_distance(found, truth).mean()),
    }
