"""Stage 4: blend the splats of each tile front to back.

A tile is a raster of blocks, a block one vector of pixels. State of a block in the worker's scratch: transmittance,
then the channels. The sign of a transmittance says that its pixel has ended; pixels outside the image start ended.
"""

from functools import cache

import numpy as np
from numba import prange

from da3gs.rendering.cpu.compiling import device, kernel
from da3gs.rendering.cpu.exponentials import exp2
from da3gs.rendering.cpu.lanes import (
    WIDTH,
    absolute,
    any_of,
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
)
from da3gs.rendering.cpu.layout import (
    BLOCK_HEIGHT,
    BLOCK_WIDTH,
    BLOCKS,
    BLOCKS_X,
    CHANNEL,
    EXTENT_X,
    EXTENT_Y,
    MEAN_X,
    MEAN_Y,
    MIN_ALPHA,
    MIN_TRANSMITTANCE,
    OPACITY,
    QUADRATIC_X,
    QUADRATIC_Y,
    RECORD,
    SHEAR,
    TILE,
)

ZERO, HALF, ONE = f32(0.0), f32(0.5), f32(1.0)
CHECK_EVERY = 32  # splats between two looks at whether all pixels of the tile have ended


@device
def block_range(center, extent, block_size, tile_size):
    """First and last block (along one axis) that the box center +- extent touches, both in tile pixels."""
    first = max(ZERO, np.ceil(center - extent))
    last = min(f32(tile_size - 1), np.floor(center + extent))
    return np.int64(first) // block_size, np.int64(last) // block_size


@device
def start_tile(state, planes, width, height, across, down):
    """Transmittance 1 inside the image, ended outside; all other planes 0."""
    for block in range(BLOCKS):
        x = f32((block % BLOCKS_X) * BLOCK_WIDTH) + across
        y = f32((block // BLOCKS_X) * BLOCK_HEIGHT) + down
        inside = (x < f32(width)) & (y < f32(height))
        base = block * planes * WIDTH
        store(state, base, select(inside, ONE, -ONE))
        for plane in range(1, planes):
            store(state, base + plane * WIDTH, splat(ZERO))


@device
def is_alive(state, planes):
    """True while some pixel of the tile has not ended."""
    for block in range(BLOCKS):  # noqa: SIM110 (numba compiles no generator expressions)
        if any_of(load(state, block * planes * WIDTH) > ZERO):
            return True
    return False


@device
def falloff(offset_x, offset_y, quadratic_x, shear, quadratic_y):
    """exp(-sigma) at mean - pixel = (offset_x, offset_y)."""
    sheared = offset_x + shear * offset_y
    return exp2(quadratic_x * (sheared * sheared) + quadratic_y * (offset_y * offset_y))


@device
def visible_alpha(alpha, max_alpha):
    """Alpha as it blends: capped, and 0 where it is below 1/255."""
    capped = minimum(alpha, splat(max_alpha))
    return select(capped >= MIN_ALPHA, capped, ZERO)


@device
def write_tile(state, channels, left, top, tile_width, tile_height, width, image, alphas, transmittances):
    """Scatter the blocks of a finished tile to the image rows."""
    for y in range(tile_height):
        for x in range(tile_width):
            lane = (y % BLOCK_HEIGHT) * BLOCK_WIDTH + x % BLOCK_WIDTH
            base = (y // BLOCK_HEIGHT * BLOCKS_X + x // BLOCK_WIDTH) * ((1 + channels) * WIDTH) + lane
            pixel = (top + y) * width + left + x
            transmittance = abs(load_scalar(state, base))
            transmittances[pixel] = transmittance
            alphas[pixel] = ONE - transmittance
            for channel in range(channels):
                image[pixel * channels + channel] = load_scalar(state, base + (1 + channel) * WIDTH)


@cache
def compositor(channels: int):
    """The kernel for 1 to 4 channels."""
    planes = 1 + channels
    plane_1, plane_2, plane_3, plane_4 = WIDTH, 2 * WIDTH, 3 * WIDTH, 4 * WIDTH

    @kernel
    def composite(records, members, offsets, width, height, max_alpha, workers, image, alphas, transmittances, stops):
        """Write image [H, W, K], alphas and transmittances [H, W], and how far each tile's list was needed."""
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
                start_tile(state, planes, tile_width, tile_height, across, down)
                position, end = offsets[tile], offsets[tile + 1]
                while position < end and is_alive(state, planes):
                    pause = min(end, position + CHECK_EVERY)
                    for k in range(position, pause):
                        prefetch(records, np.int64(members[min(k + 12, members.size - 1)]) * RECORD)
                        r = np.int64(members[k]) * RECORD
                        center_x = load_scalar(records, r + MEAN_X) - f32(left) - HALF
                        center_y = load_scalar(records, r + MEAN_Y) - f32(top) - HALF
                        quadratic_x, shear = load_scalar(records, r + QUADRATIC_X), load_scalar(records, r + SHEAR)
                        quadratic_y, opacity = load_scalar(records, r + QUADRATIC_Y), load_scalar(records, r + OPACITY)
                        color_1, color_2 = load_scalar(records, r + CHANNEL), load_scalar(records, r + CHANNEL + 1)
                        color_3, color_4 = load_scalar(records, r + CHANNEL + 2), load_scalar(records, r + CHANNEL + 3)
                        first_x, last_x = block_range(
                            center_x, load_scalar(records, r + EXTENT_X), BLOCK_WIDTH, tile_width
                        )
                        first_y, last_y = block_range(
                            center_y, load_scalar(records, r + EXTENT_Y), BLOCK_HEIGHT, tile_height
                        )
                        for block_y in range(first_y, last_y + 1):
                            offset_y = center_y - f32(block_y * BLOCK_HEIGHT) - down
                            for block_x in range(first_x, last_x + 1):
                                offset_x = center_x - f32(block_x * BLOCK_WIDTH) - across
                                base = (block_y * BLOCKS_X + block_x) * (planes * WIDTH)
                                before = load(state, base)
                                alpha = visible_alpha(
                                    opacity * falloff(offset_x, offset_y, quadratic_x, shear, quadratic_y), max_alpha
                                )
                                after = before - before * alpha
                                live = after > MIN_TRANSMITTANCE
                                weight = select(live, alpha * before, ZERO)
                                store(state, base, select(live, after, -absolute(before)))
                                store(state, base + plane_1, load(state, base + plane_1) + weight * color_1)
                                if channels > 1:
                                    store(state, base + plane_2, load(state, base + plane_2) + weight * color_2)
                                if channels > 2:
                                    store(state, base + plane_3, load(state, base + plane_3) + weight * color_3)
                                if channels > 3:
                                    store(state, base + plane_4, load(state, base + plane_4) + weight * color_4)
                    position = pause
                stops[tile] = position
                write_tile(state, channels, left, top, tile_width, tile_height, width, image, alphas, transmittances)

    return composite
