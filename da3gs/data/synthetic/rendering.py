"""Pictures and exact geometry of a scene seen by cameras.

    cameras ─► rays in tiles ─► first surface ─► shadows, contact shade ─► texture and light ─► haze ─► linear picture
                                      │
                                      └─► depth, normals, sky, object ids: one ray through each pixel centre

Letters: V views, H W pixels, T tiles (groups of S x S neighbouring pixels of one view), R rays of a tile, N points.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from da3gs.data.synthetic import shading_cpu, solids
from da3gs.data.synthetic.builder import BLOTCH_WAVES, SyntheticScene
from da3gs.data.synthetic.lighting import haze, shade, sky_radiance, visibility
from da3gs.errors import InputError
from da3gs.geometry.cameras import Cameras

SKY_ID = -1
_TILE_PX = 16
_EDGE_GROUP = 64
_EDGE_OFFSETS_PX = (
    (-0.32, 0.13),
    (0.3, 0.34),
    (0.12, -0.36),
    (-0.1, 0.4),
    (0.4, -0.1),
    (-0.4, -0.3),
    (0.2, 0.1),
    (-0.2, -0.15),
)


@dataclass(frozen=True, eq=False)
class Geometry:
    """What the rays through the pixel centres meet.

    Attributes:
        depth: [V, H, W] z-depth in metres, 0 at the sky.
        normals: [V, H, W, 3] unit, world frame, towards the camera; 0 at the sky.
        sky: [V, H, W] where nothing is met.
        object_ids: [V, H, W] -1 sky, 0 ground or floor, 1 walls, 2 ceiling, then one number per object.
    """

    depth: Float[Tensor, "V H W"]
    normals: Float[Tensor, "V H W 3"]
    sky: Bool[Tensor, "V H W"]
    object_ids: Int64[Tensor, "V H W"]


@dataclass(frozen=True, eq=False)
class Rays:
    """Rays o + t d in groups with a common origin; t is the z-depth. `pixel_angle`: radians from pixel to pixel."""

    origins: Float[Tensor, "T 3 1"]
    directions: Float[Tensor, "T 3 R"]
    pixel_angle: Float[Tensor, " T"]


@dataclass(frozen=True, eq=False)
class Hits:
    """First surfaces along grouped rays; values are arbitrary but finite where `sky`.

    `frames` rows: directions of growing u and v, and the normal. `uv` in metres.
    """

    t: Float[Tensor, "T R"]
    sky: Bool[Tensor, "T R"]
    points: Float[Tensor, "T R 3"]
    frames: Float[Tensor, "T R 3 3"]
    uv: Float[Tensor, "T R 2"]
    material: Int64[Tensor, "T R"]
    object_ids: Int64[Tensor, "T R"]


@torch.no_grad()
def render_radiance(
    scene: SyntheticScene, cameras: Cameras, *, edge_samples: int = 2
) -> tuple[Float[Tensor, "V 3 H W"], Geometry]:
    """Linear pictures and geometry.

    Args:
        cameras: Of one image size, outside of all solids.
        edge_samples: Further rays for each pixel at an outline, against jagged edges: 0 (fastest) to 8.

    """
    if not 0 <= edge_samples <= len(_EDGE_OFFSETS_PX):
        raise InputError(f"edge_samples must lie in 0 to {len(_EDGE_OFFSETS_PX)}; got {edge_samples}")
    cameras = on_device(cameras, scene.device)
    width, height = cameras.size
    shape = (len(cameras), height, width)

    # 1. The first surface along the ray through every pixel centre.
    rays = pixel_rays(cameras)
    hits = trace(scene, rays)

    # 2. Shadow rays from there. Each 3 x 3 block of pixels aims at nine places of a light and shares the answers.
    openness = _openness(scene, hits, _tile(_spot_pattern(shape, scene.device)).squeeze(-1))
    openness = _tile(_soften(_untile(openness, shape), _untile(hits.object_ids, shape), _untile(hits.t, shape)))

    # 3. Texture, light and haze; the sky where there is no surface.
    radiance = _untile(radiance_of(scene, rays, hits, openness), shape)
    geometry = _geometry(hits, shape)

    # 4. More rays where an outline passes through a pixel.
    if edge_samples > 0:
        _refine_edges(scene, cameras, radiance, geometry, edge_samples)
    return radiance.permute(0, 3, 1, 2).contiguous(), geometry


@torch.no_grad()
def probe_views(scene: SyntheticScene, cameras: Cameras) -> tuple[Float[Tensor, "V H W"], Int64[Tensor, " V"]]:
    """z-depth alone, 0 at the sky, and how many solids each view shows."""
    width, height = cameras.size
    shape = (len(cameras), height, width)
    t, index = _first_surface(scene, pixel_rays(on_device(cameras, scene.device)))
    shown = torch.zeros(len(cameras), len(scene.solids) + 1, device=t.device, dtype=torch.bool)
    shown.scatter_(1, _untile(index, shape).flatten(1) + 1, True)
    return _untile(t.masked_fill(t.isinf(), 0.0), shape), shown[:, 1:].sum(1)


def trace(scene: SyntheticScene, rays: Rays) -> Hits:
    """First surfaces, with all that shading needs."""
    t, index = _first_surface(scene, rays)
    sky = t.isinf()
    t = t.masked_fill(sky, 1.0)
    points = (rays.origins + t[:, None] * rays.directions).transpose(1, 2)
    flat = points.reshape(-1, 3)
    frames, uv, material, objects = scene.backdrop.surface(flat)
    solid = (index.flatten() >= 0).nonzero().squeeze(-1)
    if len(solid):
        at = index.flatten()[solid]
        frames[solid], solid_uv = scene.solids.surface(at, flat[solid])
        material[solid], objects[solid] = scene.solids.material[at], scene.solids.object_id[at]
        uv[solid] = solid_uv + scene.solids.uv_offset[at] * scene.materials.tile[material[solid]]
    objects = objects.view(t.shape).masked_fill(sky, SKY_ID)
    return Hits(t, sky, points, frames.view(*t.shape, 3, 3), uv.view(*t.shape, 2), material.view(t.shape), objects)


def radiance_of(
    scene: SyntheticScene, rays: Rays, hits: Hits, openness: Float[Tensor, "T R C"]
) -> Float[Tensor, "T R 3"]:
    """Linear colour along rays: texture, light and haze on surfaces, and the sky between them."""
    directions = rays.directions.transpose(1, 2).reshape(-1, 3)
    open_sky = hits.sky.flatten()
    surface = _surface_loop if solids.use_loops(directions) else _surface_tensors
    result = surface(scene, directions, rays.pixel_angle, hits, openness)
    if open_sky.any():
        result[open_sky] = sky_radiance(scene, directions[open_sky])
    return result.view(*hits.t.shape, 3)


def _surface_loop(scene: SyntheticScene, directions, pixel_angle, hits: Hits, openness) -> Float[Tensor, "N 3"]:
    result = torch.empty_like(directions)
    angle = pixel_angle[:, None].expand(hits.t.shape)
    values = (hits.t, directions, angle, hits.points, hits.frames, hits.uv, hits.material, hits.sky, openness)
    trailing = (0, 1, 0, 1, 2, 1, 0, 0, 1)  # dimensions after the points'
    flat = [x.reshape(-1, *x.shape[x.ndim - d :]).contiguous().numpy() for x, d in zip(values, trailing, strict=True)]
    shading_cpu.radiance(*flat, *scene.shading_arrays, result.numpy())
    return result


def _surface_tensors(scene: SyntheticScene, directions, pixel_angle, hits: Hits, openness) -> Float[Tensor, "N 3"]:
    t, frames, material = hits.t.flatten(), hits.frames.flatten(0, 1), hits.material.flatten()
    length = directions.norm(dim=-1)
    toward_eye = -directions / length[:, None]
    angle = pixel_angle[:, None].expand(hits.t.shape).flatten()
    footprint_m = t * angle / (frames[:, 2] * toward_eye).sum(-1).clamp(0.05, 1).sqrt()
    albedo, normals = _surface_look(scene, material, hits.uv.flatten(0, 1), frames, footprint_m)
    points = hits.points.reshape(-1, 3)
    light = shade(scene, points, normals, toward_eye, albedo, material, openness.flatten(0, 1))
    return haze(scene, light, t * length)


def _surface_look(scene: SyntheticScene, material, uv, frames, footprint_m) -> tuple[Tensor, Tensor]:
    """Albedo, and the normal bent by the texture's relief."""
    look = scene.materials
    tile = look.tile[material]
    turned = look.turned[material][:, None] > 0.5
    layer = look.layer[material]
    color, slope = scene.bank.sample(layer, torch.where(turned, uv.flip(-1), uv) / tile, footprint_m / tile[:, 0])
    gray = color.mean(-1, keepdim=True)
    color = gray + look.saturation[material][:, None] * (color - gray)
    waves = torch.sin(uv @ uv.new_tensor(BLOTCH_WAVES).T + material[:, None]).mean(-1)
    tone = 1 + 1.5 * look.blotch[material] * waves
    albedo = (color * look.tint[material] * tone[:, None]).clamp(0.0, 0.95)

    slope = slope * (look.relief[material][:, None] / tile)
    slope = torch.where(turned, slope.flip(-1), slope).clamp(-1.0, 1.0)
    bent = frames[:, 2] - slope[:, :1] * frames[:, 0] - slope[:, 1:] * frames[:, 1]
    return albedo, torch.nn.functional.normalize(bent, dim=-1)


def _first_surface(scene: SyntheticScene, rays: Rays) -> tuple[Tensor, Tensor]:
    """z-depth (infinite at the sky) and index of the solid, -1 for the backdrop."""
    t, index = scene.solids.nearest(rays.origins, rays.directions)
    directions = rays.directions.transpose(1, 2)
    origins = rays.origins.transpose(1, 2).expand_as(directions)
    behind = scene.backdrop.trace(origins.reshape(-1, 3), directions.reshape(-1, 3), t.flatten()).view(t.shape)
    return torch.minimum(t, behind), index.masked_fill(behind < t, -1)


def _openness(scene: SyntheticScene, hits: Hits, spots: Tensor) -> Float[Tensor, "T R C"]:
    return visibility(scene, hits.points.transpose(1, 2), hits.frames[..., 2, :].transpose(1, 2), spots).transpose(1, 2)


# ---------------------------------------------------------------------------------------------------- pixels and tiles


def on_device(cameras: Cameras, device: torch.device) -> Cameras:
    return cameras if cameras.K.device == device else cameras.to(device)


def pixel_rays(cameras: Cameras) -> Rays:
    """Rays through the pixel centres, tile by tile. Tiles at the right and lower border reach beyond the picture."""
    width, height = cameras.size
    columns, rows = -(-width // _TILE_PX), -(-height // _TILE_PX)
    device = cameras.K.device
    v, u = torch.meshgrid(
        torch.arange(rows * _TILE_PX, device=device) + 0.5,
        torch.arange(columns * _TILE_PX, device=device) + 0.5,
        indexing="ij",
    )
    pixels = _tile(torch.stack([u, v, torch.ones_like(u)], -1)[None]).transpose(1, 2)
    world_from_cam = cameras.world_from_cam
    to_world = world_from_cam[:, :3, :3] @ torch.linalg.inv(cameras.K)
    directions = (to_world[:, None] @ pixels[None]).flatten(0, 1)
    tiles = rows * columns
    return Rays(
        world_from_cam[:, :3, 3].repeat_interleave(tiles, 0)[..., None],
        directions,
        (1 / cameras.K[:, 0, 0]).repeat_interleave(tiles),
    )


def _tile(image: Tensor) -> Tensor:
    """[V, H, W, C] to [V * tiles, S * S, C]; the border is repeated to fill the last tiles."""
    views, height, width, channels = image.shape
    below, right = -height % _TILE_PX, -width % _TILE_PX
    if below:
        image = torch.cat([image, image[:, -1:].expand(-1, below, -1, -1)], 1)
    if right:
        image = torch.cat([image, image[:, :, -1:].expand(-1, -1, right, -1)], 2)
    rows, columns = (height + below) // _TILE_PX, (width + right) // _TILE_PX
    split = image.reshape(views, rows, _TILE_PX, columns, _TILE_PX, channels)
    return split.permute(0, 1, 3, 2, 4, 5).reshape(views * rows * columns, _TILE_PX**2, channels)


def _untile(values: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The inverse of `_tile`; [V * tiles, S * S] or [V * tiles, S * S, ...] to [V, H, W] or [V, H, W, ...]."""
    views, height, width = shape
    rows, columns = -(-height // _TILE_PX), -(-width // _TILE_PX)
    split = values.reshape(views, rows, columns, _TILE_PX, _TILE_PX, *values.shape[2:])
    image = split.transpose(2, 3).reshape(views, rows * _TILE_PX, columns * _TILE_PX, *values.shape[2:])
    return image[:, :height, :width]


def _spot_pattern(shape: tuple[int, int, int], device) -> Int64[Tensor, "V H W 1"]:
    views, height, width = shape
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    pattern = 3 * (rows % 3)[:, None] + columns % 3
    return pattern.expand(views, -1, -1)[..., None]


def _soften(openness: Tensor, object_ids: Tensor, t: Tensor) -> Float[Tensor, "V H W C"]:
    """Mean over the 3 x 3 neighbours on the same object at about the same depth."""
    total, weight = openness.clone(), torch.ones_like(t)
    _, height, width, _ = openness.shape
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            if down == right == 0:
                continue
            here = (
                slice(None),
                slice(max(0, -down), height - max(0, down)),
                slice(max(0, -right), width - max(0, right)),
            )
            there = (
                slice(None),
                slice(max(0, down), height + min(0, down)),
                slice(max(0, right), width + min(0, right)),
            )
            same = (object_ids[here] == object_ids[there]) & ((t[here] - t[there]).abs() < 0.04 * t[here])
            share = same.to(t)
            weight[here] += share
            total[here] += share[..., None] * openness[there]
    return total / weight[..., None]


def _geometry(hits: Hits, shape: tuple[int, int, int]) -> Geometry:
    sky = _untile(hits.sky, shape)
    normals = _untile(hits.frames[..., 2, :], shape)
    return Geometry(
        _untile(hits.t, shape).masked_fill(sky, 0.0),
        normals.masked_fill(sky[..., None], 0.0),
        sky.contiguous(),
        _untile(hits.object_ids, shape).contiguous(),
    )


# ---------------------------------------------------------------------------------------------------- outlines


def _refine_edges(scene: SyntheticScene, cameras: Cameras, radiance: Tensor, geometry: Geometry, samples: int) -> None:
    """Replace pixels at outlines by the mean of their centre ray and `samples` others, in place."""
    pixels = _pixels_in_groups(_outlines(geometry), _EDGE_GROUP)
    if len(pixels) == 0:
        return
    first = radiance[tuple(pixels.unbind(-1))]
    pixels, group = pixels.repeat(samples, 1, 1), len(pixels)
    view, row, column = pixels.unbind(-1)
    shift = torch.tensor(_EDGE_OFFSETS_PX, device=row.device)[:samples].repeat_interleave(group, 0)[..., None] + 0.5
    place = torch.stack([column + shift[:, 0], row + shift[:, 1], torch.ones_like(shift[:, 0]).expand(row.shape)], 1)
    of_group = view[:, 0]
    world_from_cam = cameras.world_from_cam
    to_world = (world_from_cam[:, :3, :3] @ torch.linalg.inv(cameras.K))[of_group]
    rays = Rays(world_from_cam[of_group, :3, 3:], to_world @ place, 1 / cameras.K[of_group, 0, 0])
    hits = trace(scene, rays)
    more = radiance_of(scene, rays, hits, _openness(scene, hits, (3 * (row % 3) + column) % 9))
    mean = (first + more.view(samples, group, -1, 3).sum(0)) / (1 + samples)
    radiance[view[:group], row[:group], column[:group]] = mean


def _outlines(geometry: Geometry) -> Bool[Tensor, "V H W"]:
    """Pixels next to one of another object, or of another side of the same."""
    ids, normals = geometry.object_ids, geometry.normals
    edge = torch.zeros_like(geometry.sky)
    every, later, earlier = slice(None), slice(1, None), slice(None, -1)
    for first, second in (((every, later), (every, earlier)), ((every, every, later), (every, every, earlier))):
        step = (ids[first] != ids[second]) | ((normals[first] * normals[second]).sum(-1) < 0.5) & ~geometry.sky[first]
        edge[first] |= step
        edge[second] |= step
    return edge


def _pixels_in_groups(mask: Bool[Tensor, "V H W"], size: int) -> Int64[Tensor, "E S 3"]:
    """(view, row, column) of the marked pixels in groups of one view; each view's last is filled by repetition."""
    groups = []
    for view, one in enumerate(mask):
        place = one.nonzero()
        if len(place):
            place = torch.cat([place, place[-1:].expand(-len(place) % size, -1)])
            groups.append(torch.cat([torch.full_like(place[:, :1], view), place], -1).view(-1, size, 3))
    return torch.cat(groups) if groups else torch.zeros(0, size, 3, dtype=torch.long, device=mask.device)
