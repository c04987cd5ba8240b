"""Stage 1: project every Gaussian into one camera, cull, and write its record."""

import numpy as np
from numba import prange

from da3gs.rendering.cpu import harmonics
from da3gs.rendering.cpu.compiling import device, kernel
from da3gs.rendering.cpu.geometry import (
    blurred_determinant,
    clamped_slopes,
    dot,
    rotation_matrix,
    row_times,
    scaled,
    screen_from_world,
    squared_cross,
    to_camera,
    unit_quaternion,
)
from da3gs.rendering.cpu.lanes import (
    WIDTH,
    any_of,
    ceil,
    f32,
    first_lanes,
    floor,
    gather,
    log2,
    maximum,
    minimum,
    scatter,
    select,
    splat,
    sqrt,
)
from da3gs.rendering.cpu.layout import (
    BLUR_PX2,
    CENTER_X,
    CENTER_Y,
    CHANNEL,
    EXTENT_X,
    EXTENT_Y,
    EYE_X,
    EYE_Y,
    EYE_Z,
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

BLUR = f32(BLUR_PX2)
ZERO, HALF, ONE = f32(0.0), f32(0.5), f32(1.0)
# sigma where opacity exp(-sigma) = 1/255 is ln 2 (log2 opacity + log2 255)
TWO_LN2, LOG2_255 = f32(1.3862943611198906), f32(7.994353436858858)
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

    Count the Gaussians of each tile in tile_counts [workers, tiles], which the caller zeroed.
    `colors` holds SH [N, sh_count, 3], or if sh_count is 0 plain channels [N, C].
    """
    count = opacities.size
    channels = colors.size // count if sh_count == 0 else 3
    color_stride = colors.size // count
    tiles_x = (width + TILE - 1) // TILE
    tiles = tiles_x * ((height + TILE - 1) // TILE)
    for worker in prange(workers):
        basis = np.empty(harmonics.MAX_COEFFICIENTS * WIDTH, np.float32)
        first, end = share(count, worker, workers)
        for i in range(first, end, WIDTH):
            lanes = min(count - i, WIDTH)
            world_x, world_y, world_z = (
                gather(means, 3 * i, 3, lanes),
                gather(means, 3 * i + 1, 3, lanes),
                gather(means, 3 * i + 2, 3, lanes),
            )
            x, y, z = to_camera(camera, world_x, world_y, world_z)
            opacity = gather(opacities, i, 1, lanes)
            seen = first_lanes(lanes) & (z >= camera[NEAR]) & (z <= camera[FAR]) & (opacity >= MIN_ALPHA)
            scatter(tile_boxes, 4 * i + 2, 4, splat(f32(-1.0)), first_lanes(lanes))
            scatter(tile_boxes, 4 * i, 4, splat(ZERO), first_lanes(lanes))
            if not any_of(seen):
                continue

            # 2D covariance [[a, b], [b, c]]
            w, qx, qy, qz, _ = unit_quaternion(
                gather(quats, 4 * i, 4, lanes), gather(quats, 4 * i + 1, 4, lanes),
                gather(quats, 4 * i + 2, 4, lanes), gather(quats, 4 * i + 3, 4, lanes),
            )  # fmt: skip
            sizes = (
                gather(scales, 3 * i, 3, lanes),
                gather(scales, 3 * i + 1, 3, lanes),
                gather(scales, 3 * i + 2, 3, lanes),
            )
            inverse_z = ONE / select(seen, z, ONE)
            slope_x, slope_y = clamped_slopes(camera, x, y, inverse_z)
            screen_x, screen_y = screen_from_world(camera, slope_x, slope_y, inverse_z)
            rotation = rotation_matrix(w, qx, qy, qz)
            axis_x, axis_y = scaled(row_times(screen_x, rotation), sizes), scaled(row_times(screen_y, rotation), sizes)
            a, b, c = dot(axis_x, axis_x) + BLUR, dot(axis_x, axis_y), dot(axis_y, axis_y) + BLUR
            sharp = squared_cross(axis_x, axis_y)
            determinant = blurred_determinant(sharp, a, c, BLUR)
            if antialiased:
                opacity = opacity * sqrt(sharp / determinant)
                seen = seen & (opacity >= MIN_ALPHA)

            # pixel box
            center_x = camera[FOCAL_X] * x * inverse_z + camera[CENTER_X]
            center_y = camera[FOCAL_Y] * y * inverse_z + camera[CENTER_Y]
            extent_x, extent_y = extents(opacity, a, c)
            first_x, last_x = pixel_range(center_x, extent_x, width)
            first_y, last_y = pixel_range(center_y, extent_y, height)
            seen = seen & (first_x <= last_x) & (first_y <= last_y)
            if not any_of(seen):
                continue
            scatter(depths, i, 1, z, seen)
            tile_size = f32(TILE)
            first_x, first_y = floor(first_x / tile_size), floor(first_y / tile_size)
            last_x, last_y = floor(last_x / tile_size), floor(last_y / tile_size)
            scatter(tile_boxes, 4 * i, 4, first_x, seen)
            scatter(tile_boxes, 4 * i + 1, 4, first_y, seen)
            scatter(tile_boxes, 4 * i + 2, 4, last_x, seen)
            scatter(tile_boxes, 4 * i + 3, 4, last_y, seen)
            for lane in range(lanes):
                x0, y0, x1, y1 = box_of(tile_boxes, i + lane)
                if x0 <= x1:
                    for tile_y in range(y0, y1 + 1):
                        for tile_x in range(x0, x1 + 1):
                            tile_counts[worker * tiles + tile_y * tiles_x + tile_x] += 1

            r = RECORD * i
            scatter(records, r + MEAN_X, RECORD, center_x, seen)
            scatter(records, r + MEAN_Y, RECORD, center_y, seen)
            scatter(records, r + QUADRATIC_X, RECORD, -HALF_LOG2_E * (c / determinant), seen)
            scatter(records, r + SHEAR, RECORD, -b / c, seen)
            scatter(records, r + QUADRATIC_Y, RECORD, -HALF_LOG2_E / c, seen)
            scatter(records, r + OPACITY, RECORD, opacity, seen)
            scatter(records, r + EXTENT_X, RECORD, extent_x, seen)
            scatter(records, r + EXTENT_Y, RECORD, extent_y, seen)

            scatter(records, r + FIRST_TILE_X, RECORD, first_x, seen)
            scatter(records, r + FIRST_TILE_Y, RECORD, first_y, seen)
            scatter(records, r + TILES_ACROSS, RECORD, last_x - first_x + ONE, seen)

            # channels
            if sh_count > 1:
                ray_x, ray_y, ray_z = world_x - camera[EYE_X], world_y - camera[EYE_Y], world_z - camera[EYE_Z]
                shorten = ONE / sqrt(maximum(ray_x * ray_x + ray_y * ray_y + ray_z * ray_z, f32(1e-30)))
                harmonics.write_basis(basis, sh_count, ray_x * shorten, ray_y * shorten, ray_z * shorten)
            elif sh_count == 1:
                harmonics.write_basis(basis, 1, x, y, z)
            for channel in range(channels):
                if sh_count > 0:
                    color = harmonics.evaluate(colors, color_stride * i, color_stride, lanes, basis, sh_count, channel)
                    color = maximum(color + HALF, ZERO)
                else:
                    color = gather(colors, color_stride * i + channel, color_stride, lanes)
                scatter(records, r + CHANNEL + channel, RECORD, color, seen)
            if with_depth:
                scatter(records, r + CHANNEL + channels, RECORD, z, seen)
