"""Stage 1: project every Gaussian into one camera, cull, and write its record. One Gaussian per lane."""

import numpy as np
from numba import prange

from da3gs.rendering.cpu import harmonics
from da3gs.rendering.cpu.compiling import device, kernel
from da3gs.rendering.cpu.exponentials import log2
from da3gs.rendering.cpu.geometry import footprint, gather_3, gather_4, to_camera
from da3gs.rendering.cpu.lanes import (
    WIDTH,
    any_of,
    ceil,
    f32,
    first_lanes,
    floor,
    gather,
    load_scalar,
    maximum,
    minimum,
    scatter,
    select,
    splat,
    sqrt,
    store,
)
from da3gs.rendering.cpu.layout import (
    CENTER_X,
    CENTER_Y,
    CHANNEL,
    EXTENT_X,
    EXTENT_Y,
    FAR,
    FIRST_TILE_X,
    FIRST_TILE_Y,
    FOCAL_X,
    FOCAL_Y,
    HALF_LOG2_E,
    MEAN_X,
    MEAN_Y,
    MIN_ALPHA,
    NEAR,
    OPACITY,
    QUADRATIC_X,
    QUADRATIC_Y,
    RECORD,
    SHEAR,
    TILE,
    TILES_ACROSS,
)
from da3gs.rendering.cpu.listing import box_of, share

ZERO, HALF, ONE = f32(0.0), f32(0.5), f32(1.0)
# sigma where opacity exp(-sigma) = 1/255 is ln 2 (log2 opacity + log2 255)
TWO_LN2, LOG2_255 = f32(1.3862943611198906), f32(7.994353436858858)
FLOAT32_MAX = f32(3.4e38)
MAX_EXTENT = f32(3.33)  # standard deviations; reached only by opacities above 1
EXTENT_MARGIN = f32(1e-3)  # against rounding: a box may be too large, never too small


@device
def extents(opacity, a, c):
    """Half sizes in px of the box that holds every pixel with alpha >= 1/255."""
    sigmas = minimum(sqrt(maximum(TWO_LN2 * (log2(maximum(opacity, MIN_ALPHA)) + LOG2_255), ZERO)), MAX_EXTENT)
    return sigmas * sqrt(a) * (ONE + EXTENT_MARGIN) + EXTENT_MARGIN, sigmas * sqrt(c) * (
        ONE + EXTENT_MARGIN
    ) + EXTENT_MARGIN


@device
def pixel_range(center, extent, size):
    """First and last pixel whose centre lies in center +- extent, cut to the image; empty if last < first."""
    first = maximum(ceil(center - extent - HALF), ZERO)
    last = minimum(floor(center + extent - HALF), f32(size - 1))
    return first, last


@kernel
def project(
    means, quats, scales, opacities, colors, sh_count, with_depth, antialiased, camera, width, height, workers,
    records, depths, tile_boxes, tile_counts,
):  # fmt: skip
    """Write records [N, RECORD], z-depths [N] and tile boxes [N, 4] (first x, y, last x, y; culled: last x < first x).

    Count the Gaussians of each tile in tile_counts [workers, tiles], which the caller zeroed. `colors` holds SH
    [N, sh_count, 3], or if sh_count is 0 plain channels [N, C].
    """
    tiles_x = (width + TILE - 1) // TILE
    tiles = tiles_x * ((height + TILE - 1) // TILE)
    for worker in prange(workers):
        _project_share(
            means, quats, scales, opacities, colors, sh_count, with_depth, antialiased, camera, width, height,
            worker, workers, records, depths, tile_boxes, tile_counts, worker * tiles, tiles_x,
        )  # fmt: skip


@device
def _project_share(
    means, quats, scales, opacities, colors, sh_count, with_depth, antialiased, camera, width, height,
    worker, workers, records, depths, tile_boxes, tile_counts, counts_from, tiles_x,
):  # fmt: skip
    """One worker's part of the Gaussians, a vector of them at a time."""
    basis = np.empty(harmonics.MAX_COEFFICIENTS * WIDTH, np.float32)
    fields = np.zeros(RECORD * WIDTH, np.float32)
    first, end = share(opacities.size, worker, workers)
    for i in range(first, end, WIDTH):
        lanes = min(end - i, WIDTH)
        there = first_lanes(lanes)
        for corner in range(4):
            scatter(tile_boxes, 4 * i + corner, 4, splat(-f32(corner == 2)), there)  # culled, until seen

        world = gather_3(means, i, lanes)
        x, y, z = to_camera(camera, world[0], world[1], world[2])
        opacity = gather(opacities, i, 1, lanes)
        seen = there & (z >= camera[NEAR]) & (z <= camera[FAR]) & (opacity >= MIN_ALPHA)
        if not any_of(seen):
            continue
        inverse_z = ONE / select(seen, z, ONE)
        shape = footprint(camera, x, y, inverse_z, gather_4(quats, i, lanes), gather_3(scales, i, lanes))
        seen = seen & (shape.determinant < FLOAT32_MAX)
        if antialiased:
            opacity = opacity * sqrt(shape.sharp / shape.determinant)
            seen = seen & (opacity >= MIN_ALPHA)

        center_x = camera[FOCAL_X] * x * inverse_z + camera[CENTER_X]
        center_y = camera[FOCAL_Y] * y * inverse_z + camera[CENTER_Y]
        extent_x, extent_y = extents(opacity, shape.a, shape.c)
        first_x, last_x = pixel_range(center_x, extent_x, width)
        first_y, last_y = pixel_range(center_y, extent_y, height)
        seen = seen & (first_x <= last_x) & (first_y <= last_y)
        if not any_of(seen):
            continue
        tile = f32(TILE)
        box = floor(first_x / tile), floor(first_y / tile), floor(last_x / tile), floor(last_y / tile)
        _write_box(tile_boxes, i, box, seen)
        scatter(depths, i, 1, z, seen)

        _fill_ellipse(fields, center_x, center_y, shape, opacity, extent_x, extent_y, box)
        _fill_channels(fields, i, lanes, colors, sh_count, opacities.size, camera, world, z, with_depth, basis)
        for lane in range(lanes):
            x0, y0, x1, y1 = box_of(tile_boxes, i + lane)
            if x0 <= x1:
                for field in range(RECORD):
                    records[RECORD * (i + lane) + field] = load_scalar(fields, field * WIDTH + lane)
                for tile_y in range(y0, y1 + 1):
                    for tile_x in range(x0, x1 + 1):
                        tile_counts[counts_from + tile_y * tiles_x + tile_x] += 1


@device
def _write_box(tile_boxes, i, box, seen):
    scatter(tile_boxes, 4 * i, 4, box[0], seen)
    scatter(tile_boxes, 4 * i + 1, 4, box[1], seen)
    scatter(tile_boxes, 4 * i + 2, 4, box[2], seen)
    scatter(tile_boxes, 4 * i + 3, 4, box[3], seen)


@device
def _fill_ellipse(fields, center_x, center_y, shape, opacity, extent_x, extent_y, box):
    """Fields of the record, a vector each."""
    store(fields, MEAN_X * WIDTH, center_x)
    store(fields, MEAN_Y * WIDTH, center_y)
    store(fields, QUADRATIC_X * WIDTH, -HALF_LOG2_E * (shape.c / shape.determinant))
    store(fields, SHEAR * WIDTH, -shape.b / shape.c)
    store(fields, QUADRATIC_Y * WIDTH, -HALF_LOG2_E / shape.c)
    store(fields, OPACITY * WIDTH, opacity)
    store(fields, EXTENT_X * WIDTH, extent_x)
    store(fields, EXTENT_Y * WIDTH, extent_y)
    store(fields, FIRST_TILE_X * WIDTH, box[0])
    store(fields, FIRST_TILE_Y * WIDTH, box[1])
    store(fields, TILES_ACROSS * WIDTH, box[2] - box[0] + ONE)


@device
def _fill_channels(fields, i, lanes, colors, sh_count, count, camera, world, z, with_depth, basis):
    """Colours max(0, SH + 1/2) at the viewing direction, or the plain channels; then z-depth."""
    stride = colors.size // count
    channels = 3 if sh_count > 0 else stride
    if sh_count > 0:
        x, y, z_unit, _ = harmonics.view_direction(camera, world)
        harmonics.write_basis(basis, sh_count, x, y, z_unit)
    for channel in range(channels):
        if sh_count > 0:
            color = harmonics.evaluate(colors, stride * i, stride, lanes, basis, sh_count, channel)
            color = maximum(color + HALF, ZERO)
        else:
            color = gather(colors, stride * i + channel, stride, lanes)
        store(fields, (CHANNEL + channel) * WIDTH, color)
    if with_depth:
        store(fields, (CHANNEL + channels) * WIDTH, z)
