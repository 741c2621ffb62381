"""The studio: assembles an avatar around the head and takes its picture.

The camera is the head's (:mod:`..head.camera`), so ``render_normals(head, params, size)`` with
``params.shape == identity.shape`` is the exact normal map of the picture's head.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anifacediff_core.errors import InputError
from anifacediff_core.head.camera import project, to_pixels
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.head.rasterize import rasterize
from anifacediff_core.head.render import vertex_normals

from . import accessories as wear
from . import body as bodies
from . import eyes as eyeballs
from . import hair as hairs
from . import light as lighting
from . import paint, strands, texture
from .identity import Identity
from .mesh import smoothstep
from .paint import Surface

SKIN, TONGUE, EYE, TEETH, HAIR, HAT, FRAME, CLOTHES = range(8)
ROOT, NECK, JAW, LEFT_EYE, RIGHT_EYE = range(5)
BEARD_LIFT = 0.0045  # meters that a full beard stands off
OUTLINE_WIDTH = 1.3  # pixels of the final picture at 256
HALF_CLOSED, CLOSED = 0.72, 0.95  # eyeBlink between which lashes fill the eye
INK = 0.10  # how dark an outline is


@dataclass
class Scene:
    """Posed geometry of a batch.

    Attributes:
        points: (batch, vertices, 3) meters.
        coordinates: (batch, vertices, 4): paint coordinates in the form of each vertex's material.
        strands: (batch, strands, controls, 3) meters; None where nobody has any.
    """

    points: Tensor
    coordinates: Tensor
    strands: Tensor | None


class Studio(nn.Module):
    """Takes pictures of avatars.

    Args:
        head: the head model that the avatars wear; the studio keeps its own geometry on the head's device.
    """

    faces: Tensor
    materials: Tensor
    chart: Tensor
    nose: Tensor
    beard: Tensor

    def __init__(self, head: HeadModel) -> None:
        super().__init__()
        self.head = head
        chart = paint.chart_decimeters(head.chart)
        self.skull = hairs.Skull(head)
        self.eyeballs = eyeballs.Eyeballs().to(head.template.device)
        self.teeth = eyeballs.Teeth(head, chart)
        self.torso = bodies.Torso(head, chart)
        faces, materials = _assemble(head)
        self.register_buffer("faces", faces, persistent=False)
        self.register_buffer("materials", materials, persistent=False)
        self.register_buffer("chart", chart, persistent=False)
        self.register_buffer("nose", head.landmarks[27:28], persistent=False)
        self.register_buffer("beard", torch.stack(paint.beard_mask(chart)), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.faces.device

    @torch.no_grad()
    def render(
        self,
        identity: Identity,
        params: FaceParameters,
        size: int = 256,
        supersample: int = 2,
        batch: int | None = None,
    ) -> Tensor:
        """Take pictures.

        Args:
            identity: avatars, one per frame of ``params`` (or a single one for all).
            params: pose, expression and camera. Its shape is what is drawn: give it ``identity.shape``.
            size: side of the square picture.
            supersample: samples per pixel and axis.
            batch: pictures drawn at once; default what suits the device.

        Returns:
            (frames, 3, size, size) float32 in [0, 1], RGB, on the studio's device.
        """
        self.head.require(params)
        if len(identity) == 1 and len(params) > 1:
            identity = identity.repeat_interleave(len(params))
        if len(identity) != len(params):
            raise InputError(
                f"The studio got {len(identity)} avatars for {len(params)} frames: give one avatar per frame."
            )
        batch = batch or (128 if self.device.type == "cuda" else 4)
        pictures = []
        for start in range(0, len(params), batch):
            part = slice(start, start + batch)
            frames = params[part].to(self.device, torch.float32)
            pictures.append(self._picture(identity[part].to(self.device), frames, size, supersample))
        return torch.cat(pictures) if pictures else torch.empty(0, 3, size, size, device=self.device)

    def _picture(self, identity: Identity, params: FaceParameters, size: int, supersample: int) -> Tensor:
        rested = identity.rest + params.expression * (1 - identity.rest)
        scene = self._build(identity, replace(params, expression=rested))
        side = size * supersample
        fragments = rasterize(to_pixels(project(scene.points, params.camera), side), self.faces, side, side)
        frame, row, column = torch.nonzero(fragments.covered, as_tuple=True)
        triangle = fragments.triangle[frame, row, column]
        corners = self.faces[triangle]
        weights = fragments.barycentric[frame, row, column][..., None]
        normals = vertex_normals(scene.points, self.faces)
        attributes = torch.cat([normals, scene.coordinates], dim=-1)
        values = (attributes[frame[:, None], corners] * weights).sum(dim=1)
        normal = F.normalize(values[:, :3], dim=-1)
        material = self.materials[triangle]
        turned = normal[:, 2] < 0
        normal = torch.where(turned[:, None], -normal, normal)
        turned = turned & ((material == HAIR) | (material == CLOTHES) | (material == HAT))
        creases = texture.crease_amounts(rested, self.head.expression_names)
        color = self._shade(identity, frame, material, normal, values[:, 3:], turned, creases)

        pixels_per_meter = params.camera[:, 0] * side / 2
        depth = fragments.depth / pixels_per_meter[:, None, None]
        shadow = lighting.contact_shadow(depth, pixels_per_meter, supersample)
        edges = lighting.outline(depth, max(1, round(OUTLINE_WIDTH * side / 256)))
        color = color * shadow[frame, row, column][:, None]
        ink = edges[frame, row, column] * identity.light.outline[frame]
        color = torch.lerp(color, color * INK, ink[:, None])

        layer = torch.zeros(len(params), side, side, 4, device=self.device)
        layer[frame, row, column] = torch.cat([color, torch.ones_like(color[:, :1])], dim=1)
        if scene.strands is not None:
            drawn = strands.draw(scene.strands, identity, params.camera, fragments.depth)
            color = lighting.shade(drawn.surface, drawn.normal, identity.light[drawn.frame])
            layer[drawn.frame, drawn.row, drawn.column] = F.pad(color, (0, 1), value=1.0)
        layer = F.avg_pool2d(layer.permute(0, 3, 1, 2), supersample)
        backdrop = lighting.add_clutter(lighting.draw_backdrop(identity.backdrop, size), identity.clutter)
        picture = layer[:, :3] + (1 - layer[:, 3:]) * backdrop
        return lighting.to_display(lighting.add_clutter(picture, identity.foreground))

    def _build(self, identity: Identity, params: FaceParameters) -> Scene:
        """All parts in the order of :func:`_assemble`."""
        head, pose = self.head, params.pose
        joints = head.joints(params.shape)
        still = head.rest(params.shape, torch.zeros_like(params.expression))
        skin = head.forward(params)
        surface = self.skull(params.shape)
        batch = len(params)

        balls, radius = self.eyeballs(head, still, joints)
        teeth = self.teeth(params.shape, params.expression)
        hair, strand, follows = hairs.build_hair(self.skull, surface, identity.hair, identity.accessories)
        buns, bun_strand = hairs.build_buns(self.skull, surface, identity.hair)
        hat, hat_coordinates = wear.build_hat(self.skull, surface, identity.accessories)
        brim = wear.build_brim(self.skull, surface, identity.accessories)
        glasses = wear.build_glasses(joints[:, 3:5], radius, still[:, self.nose[0]], identity.accessories)
        torso, cloth = self.torso(still, identity.body)

        def bound(points: Tensor, *joint: int) -> Tensor:
            """Points that follow joints, in equal shares of the list."""
            weights = torch.eye(5, device=self.device)[list(joint)].repeat_interleave(
                points.shape[1] // len(joint), dim=0
            )
            return head.skin(points, pose, joints, weights)

        upper = int((self.teeth.is_lower == 0).sum())
        hair = torch.lerp(bound(hair, ROOT), bound(hair, NECK), follows[..., None])
        parts = [
            skin + self._beard_offset(skin, identity),
            bound(balls, LEFT_EYE, RIGHT_EYE),
            bound(teeth[:, :upper], NECK),
            bound(teeth[:, upper:], JAW),
            hair,
            bound(torch.cat([buns, hat, brim, glasses], dim=1), NECK),
            bound(torso, ROOT),
        ]
        openness = head.occlusion[:, None]
        brim_coordinates = torch.tensor([1.5, 0.0, 1.0, 1.0], device=self.device).expand(
            batch, brim.shape[1], 4
        )
        coordinates = [
            _expand(torch.cat([self.chart, openness], dim=1), batch),
            self._eye_coordinates(params.expression),
            _expand(F.pad(self.teeth.coordinates, (0, 1), value=1.0), batch),
            strand,
            bun_strand,
            hat_coordinates,
            brim_coordinates,
            torch.ones(batch, glasses.shape[1], 4, device=self.device),
            cloth,
        ]
        loose = None
        if bool((identity.strands.length > 0).any()):
            curves = strands.build(self.skull, surface, identity.strands, 0.8 * identity.hair.thickness)
            loose = bound(curves.flatten(1, 2), NECK).view_as(curves)
        return Scene(torch.cat(parts, dim=1), torch.cat(coordinates, dim=1), loose)

    def _eye_coordinates(self, expression: Tensor) -> Tensor:
        """(batch, 2 * points, 4): position on the eyeball, and 0 where the lids are closed, else 1."""
        names = self.head.expression_names
        blink = expression[:, [names.index("eyeBlinkLeft"), names.index("eyeBlinkRight")]]
        openness = smoothstep(blink, CLOSED, HALF_CLOSED)[:, :, None, None]
        ball = self.eyeballs.ball.expand(*blink.shape, -1, -1)
        return torch.cat([ball, openness.expand(-1, -1, ball.shape[2], 1)], dim=-1).flatten(1, 2)

    def _beard_offset(self, skin: Tensor, identity: Identity) -> Tensor:
        """(batch, vertices, 3): facial hair stands off the skin."""
        beard, mustache, goatee = self.beard
        hair = identity.face_hair
        height = torch.maximum(beard * hair.beard[:, None], goatee * hair.goatee[:, None])
        height = torch.maximum(height, 0.6 * mustache * hair.mustache[:, None]) * (
            1 - 0.95 * hair.stubble[:, None]
        )
        return vertex_normals(skin, self.head.faces) * (BEARD_LIFT * height)[..., None]

    def _shade(
        self,
        identity: Identity,
        frame: Tensor,
        material: Tensor,
        normal: Tensor,
        coordinates: Tensor,
        turned: Tensor,
        creases: Tensor,
    ) -> Tensor:
        """Linear color (pixels, 3)."""
        color = torch.empty_like(normal)
        for kind in range(CLOTHES + 1):
            chosen = torch.nonzero(material == kind).squeeze(1)
            owner, facing = frame[chosen], normal[chosen]
            surface = _paint(kind, coordinates[chosen], facing, identity, owner, creases)
            # The inner side of hair and cloth lies in the dark.
            surface.ambient = surface.ambient * (1 - 0.55 * turned[chosen])
            light = identity.light[owner]
            lit = lighting.shade(surface, facing, light)
            color[chosen] = (
                lighting.catch_lights(lit, facing, coordinates[chosen, 3], light) if kind == EYE else lit
            )
        return color


def _paint(
    kind: int, coordinates: Tensor, normal: Tensor, identity: Identity, owner: Tensor, creases: Tensor
) -> Surface:
    """Surface of the pixels of one material; ``owner`` is their row of the batch."""
    position, openness = coordinates[:, :3], coordinates[:, 3]
    rough = None if identity.texture.smooth else identity.texture
    if kind == SKIN:
        face_hair, hair = identity.face_hair[owner], identity.hair[owner]
        skin = paint.paint_skin(position, openness, identity.skin[owner], face_hair, hair)
        if rough is None:
            return skin
        skin = texture.weathered(skin, position, rough, owner)
        depth = rough.wrinkles[:, None] * (texture.RESTING_CREASE + creases).clamp(max=1)
        return texture.creased(skin, position, depth[owner])
    if kind == TONGUE:
        return paint.paint_tongue(position)
    if kind == EYE:
        return paint.paint_eye(position, openness, normal, identity.eyes[owner], identity.skin[owner])
    if kind == TEETH:
        return paint.paint_teeth(position, identity.mouth[owner])
    if kind == HAIR:
        strands = paint.paint_hair(coordinates, identity.hair[owner])
        return texture.stranded(strands, coordinates, rough, owner) if rough else strands
    if kind == HAT:
        return paint.paint_hat(coordinates, identity.accessories[owner])
    if kind == FRAME:
        return paint.paint_frame(identity.accessories[owner])
    cloth = paint.paint_clothes(coordinates, identity.body[owner], identity.skin[owner])
    return texture.woven(cloth, coordinates, rough, owner) if rough else cloth


def _assemble(head: HeadModel) -> tuple[Tensor, Tensor]:
    """Triangles of all parts (n, 3) and their materials (n,)."""
    device = head.template.device
    eyes = torch.zeros(len(head.template), dtype=torch.bool, device=device)
    eyes[head.regions["left_eye"]] = True
    eyes[head.regions["right_eye"]] = True
    head_faces = head.faces[~eyes[head.faces].any(dim=1)]
    tongue = torch.zeros_like(eyes)
    tongue[head.regions["tongue"]] = True
    faces = [head_faces]
    materials = [torch.where(tongue[head_faces[:, 0]], TONGUE, SKIN)]
    offset = len(head.template)
    ball = eyeballs.ball_faces()
    for part, kind in (
        (ball, EYE),
        (ball, EYE),
        (eyeballs.teeth_faces(), TEETH),
        (hairs.hair_faces(), HAIR),
        (hairs.bun_faces(), HAIR),
        (wear.hat_faces(), HAT),
        (wear.brim_faces(), HAT),
        (wear.glasses_faces(), FRAME),
        (bodies.torso_faces(), CLOTHES),
        (bodies.collar_faces(), CLOTHES),
    ):
        faces.append(part.to(device) + offset)
        materials.append(torch.full((len(part),), kind, device=device))
        offset += int(part.max()) + 1
    return torch.cat(faces), torch.cat(materials)


def _expand(values: Tensor, batch: int) -> Tensor:
    return values.expand(batch, *values.shape)
