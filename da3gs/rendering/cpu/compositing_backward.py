"""Derivative of stage 4: walk each tile front to back again, one row of gradient sums per intersection.

With g_c = dL/dimage_c, g_a = dL/dalpha at a pixel, splat i has  dL/dalpha_i = T_i <g, c_i> - R_i / (1 - alpha_i), where
R_i = sum over j > i of w_j <g, c_j> - T_end g_a  is what lies behind it. R starts at <g, image> - T_end g_a in front of
everything and loses w_i <g, c_i> at each splat, so nothing per pixel and splat is stored and nothing is divided by T.
"""

from functools import cache

import numpy as np
from numba import prange

from da3gs.rendering.cpu.compiling import device, kernel
from da3gs.rendering.cpu.compositing import block_range, falloff
from da3gs.rendering.cpu.lanes import (
    WIDTH,
    absolute,
    f32,
    lane_pattern,
    load,
    load_scalar,
    minimum,
    prefetch,
    select,
    splat,
    store,
    take_ticket,
    total,
)
from da3gs.rendering.cpu.layout import (
    BLOCK_HEIGHT,
    BLOCK_WIDTH,
    BLOCKS,
    BLOCKS_X,
    CHANNEL,
    EXTENT_X,
    EXTENT_Y,
    FIRST_TILE_X,
    FIRST_TILE_Y,
    MEAN_X,
    MEAN_Y,
    MIN_ALPHA,
    MIN_TRANSMITTANCE,
    OPACITY,
    QUADRATIC_X,
    QUADRATIC_Y,
    RECORD,
    SHEAR,
    SUM,
    SUM_CHANNEL,
    SUM_T,
    SUM_TT,
    SUM_TY,
    SUM_Y,
    SUM_YY,
    TILE,
    TILES_ACROSS,
)

ZERO, HALF, ONE = f32(0.0), f32(0.5), f32(1.0)


@device
def start_tile(
    state, channels, left, top, tile_width, tile_height, width, image, transmittances, image_gradient, alpha_gradient
):
    """Block planes: transmittance T, what lies behind R, then the image gradient; pixels outside the image have
    ended.
    """
    planes = 2 + channels
    for k in range(BLOCKS * planes * WIDTH):
        state[k] = ZERO
    for block in range(BLOCKS):
        store(state, block * planes * WIDTH, splat(-ONE))
    for y in range(tile_height):
        for x in range(tile_width):
            lane = (y % BLOCK_HEIGHT) * BLOCK_WIDTH + x % BLOCK_WIDTH
            base = (y // BLOCK_HEIGHT * BLOCKS_X + x // BLOCK_WIDTH) * (planes * WIDTH) + lane
            pixel = (top + y) * width + left + x
            state[base] = ONE
            behind = -transmittances[pixel] * alpha_gradient[pixel]
            for channel in range(channels):
                gradient = image_gradient[pixel * channels + channel]
                state[base + (2 + channel) * WIDTH] = gradient
                behind += gradient * image[pixel * channels + channel]
            state[base + WIDTH] = behind


@device
def row_of(records, first_row, member, tile_x, tile_y):
    """Number of the intersection of a Gaussian and a tile."""
    r = np.int64(member) * RECORD
    across = tile_x - np.int64(load_scalar(records, r + FIRST_TILE_X))
    down = tile_y - np.int64(load_scalar(records, r + FIRST_TILE_Y))
    return np.int64(first_row[member]) + down * np.int64(load_scalar(records, r + TILES_ACROSS)) + across


@cache
def backward_compositor(channels: int):
    """The kernel for 1 to 4 channels."""
    planes = 2 + channels
    sums = SUM_CHANNEL + channels
    plane_r, plane_1, plane_2, plane_3, plane_4 = WIDTH, 2 * WIDTH, 3 * WIDTH, 4 * WIDTH, 5 * WIDTH

    @kernel
    def composite_backward(
        records, members, first_row, offsets, stops, width, height, max_alpha, workers,
        image, transmittances, image_gradient, alpha_gradient, gradient_sums,
    ):  # fmt: skip
        """Write gradient_sums [I, 6 + K] (see layout), one row per intersection."""
        tiles_x, tiles_y = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
        across, down = lane_pattern(BLOCK_WIDTH)
        tickets = np.zeros(1, np.int64)
        for _ in prange(workers):
            state = np.empty(BLOCKS * planes * WIDTH, np.float32)
            while True:
                tile = take_ticket(tickets)
                if tile >= tiles_x * tiles_y:
                    break
                left, top = tile % tiles_x * TILE, tile // tiles_x * TILE
                tile_width, tile_height = min(TILE, width - left), min(TILE, height - top)
                start_tile(
                    state, channels, left, top, tile_width, tile_height, width,
                    image, transmittances, image_gradient, alpha_gradient,
                )  # fmt: skip
                for k in range(offsets[tile], stops[tile]):
                    prefetch(records, np.int64(members[min(k + 12, members.size - 1)]) * RECORD)
                    r = np.int64(members[k]) * RECORD
                    center_x = load_scalar(records, r + MEAN_X) - f32(left) - HALF
                    center_y = load_scalar(records, r + MEAN_Y) - f32(top) - HALF
                    quadratic_x, shear = load_scalar(records, r + QUADRATIC_X), load_scalar(records, r + SHEAR)
                    quadratic_y, opacity = load_scalar(records, r + QUADRATIC_Y), load_scalar(records, r + OPACITY)
                    color_1, color_2 = load_scalar(records, r + CHANNEL), load_scalar(records, r + CHANNEL + 1)
                    color_3, color_4 = load_scalar(records, r + CHANNEL + 2), load_scalar(records, r + CHANNEL + 3)
                    first_x, last_x = block_range(center_x, load_scalar(records, r + EXTENT_X), BLOCK_WIDTH, tile_width)
                    first_y, last_y = block_range(
                        center_y, load_scalar(records, r + EXTENT_Y), BLOCK_HEIGHT, tile_height
                    )
                    nothing = splat(ZERO)
                    sum_1, sum_t, sum_y, sum_tt, sum_ty, sum_yy = nothing, nothing, nothing, nothing, nothing, nothing
                    sum_c1, sum_c2, sum_c3, sum_c4 = nothing, nothing, nothing, nothing
                    for block_y in range(first_y, last_y + 1):
                        offset_y = center_y - f32(block_y * BLOCK_HEIGHT) - down
                        for block_x in range(first_x, last_x + 1):
                            offset_x = center_x - f32(block_x * BLOCK_WIDTH) - across
                            base = (block_y * BLOCKS_X + block_x) * (planes * WIDTH)
                            before = load(state, base)
                            uncapped = opacity * falloff(offset_x, offset_y, quadratic_x, shear, quadratic_y)
                            capped = minimum(uncapped, splat(max_alpha))
                            alpha = select(capped >= MIN_ALPHA, capped, ZERO)
                            after = before - before * alpha
                            live = after > MIN_TRANSMITTANCE
                            weight = select(live, alpha * before, ZERO)
                            store(state, base, select(live, after, -absolute(before)))

                            # <g, c>, and dL/dchannel = sum of w g
                            gradient_1 = load(state, base + plane_1)
                            along = color_1 * gradient_1
                            sum_c1 += weight * gradient_1
                            if channels > 1:
                                gradient_2 = load(state, base + plane_2)
                                along += color_2 * gradient_2
                                sum_c2 += weight * gradient_2
                            if channels > 2:
                                gradient_3 = load(state, base + plane_3)
                                along += color_3 * gradient_3
                                sum_c3 += weight * gradient_3
                            if channels > 3:
                                gradient_4 = load(state, base + plane_4)
                                along += color_4 * gradient_4
                                sum_c4 += weight * gradient_4
                            behind = load(state, base + plane_r) - weight * along
                            store(state, base + plane_r, behind)

                            # dL/dsigma = -alpha dL/dalpha; a capped alpha no longer depends on sigma
                            toward_alpha = before * along - behind / (ONE - alpha)
                            v = select(live & (uncapped <= max_alpha), -alpha * toward_alpha, ZERO)
                            sheared = offset_x + shear * offset_y
                            v_t, v_y = v * sheared, v * offset_y
                            sum_1 += v
                            sum_t += v_t
                            sum_y += v_y
                            sum_tt += v_t * sheared
                            sum_ty += v_t * offset_y
                            sum_yy += v_y * offset_y
                    g = row_of(records, first_row, members[k], tile % tiles_x, tile // tiles_x) * sums
                    gradient_sums[g + SUM] = total(sum_1)
                    gradient_sums[g + SUM_T] = total(sum_t)
                    gradient_sums[g + SUM_Y] = total(sum_y)
                    gradient_sums[g + SUM_TT] = total(sum_tt)
                    gradient_sums[g + SUM_TY] = total(sum_ty)
                    gradient_sums[g + SUM_YY] = total(sum_yy)
                    gradient_sums[g + SUM_CHANNEL] = total(sum_c1)
                    if channels > 1:
                        gradient_sums[g + SUM_CHANNEL + 1] = total(sum_c2)
                    if channels > 2:
                        gradient_sums[g + SUM_CHANNEL + 2] = total(sum_c3)
                    if channels > 3:
                        gradient_sums[g + SUM_CHANNEL + 3] = total(sum_c4)
                for k in range(stops[tile], offsets[tile + 1]):  # behind the end of every pixel
                    g = row_of(records, first_row, members[k], tile % tiles_x, tile // tiles_x) * sums
                    for column in range(sums):
                        gradient_sums[g + column] = ZERO

    return composite_backward
