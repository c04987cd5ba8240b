"""Stages 2 and 3: order the visible Gaussians by depth, then list them per tile.

Every pass is a stable counting sort in parallel: each worker owns a contiguous part of the input, counts it, and learns
from the counts of the workers before it where its own elements go. The result does not depend on the number of workers.
"""

import numpy as np
from numba import prange

from da3gs.rendering.cpu.compiling import device, kernel, serial_kernel

DIGIT_BITS = 11  # three passes cover the 32 bits of a depth
DIGITS = 1 << DIGIT_BITS


@device
def tiles_of(tile_boxes, i):
    """Number of tiles Gaussian i touches; 0 if it was culled."""
    width = np.int64(tile_boxes[4 * i + 2]) - np.int64(tile_boxes[4 * i]) + 1
    height = np.int64(tile_boxes[4 * i + 3]) - np.int64(tile_boxes[4 * i + 1]) + 1
    return width * height if width > 0 else 0


@kernel
def count_visible(tile_boxes, count, workers, visible, intersections):
    """Visible Gaussians and intersections in each worker's part."""
    for worker in prange(workers):
        seen, tiles = 0, 0
        for i in range(count * worker // workers, count * (worker + 1) // workers):
            touched = tiles_of(tile_boxes, i)
            tiles += touched
            seen += 1 if touched > 0 else 0
        visible[worker] = seen
        intersections[worker] = tiles


@kernel
def compact(tile_boxes, depth_bits, count, workers, visible, intersections, keys, indices, first_row):
    """List the visible Gaussians (depth bits, index); the intersections of i are numbered from first_row[i]."""
    for worker in prange(workers):
        position, row = 0, 0
        for before in range(worker):
            position += visible[before]
            row += intersections[before]
        for i in range(count * worker // workers, count * (worker + 1) // workers):
            first_row[i] = row
            touched = tiles_of(tile_boxes, i)
            if touched > 0:
                keys[position] = depth_bits[i]
                indices[position] = i
                position += 1
                row += touched
        if worker == workers - 1:
            first_row[count] = row


@kernel
def count_digits(keys, size, shift, workers, counts):
    """counts[worker, digit] in each worker's part."""
    for worker in prange(workers):
        base = worker * DIGITS
        for digit in range(DIGITS):
            counts[base + digit] = 0
        for k in range(size * worker // workers, size * (worker + 1) // workers):
            counts[base + ((keys[k] >> shift) & (DIGITS - 1))] += 1


@kernel
def move_by_digit(keys, indices, size, shift, workers, starts, sorted_keys, sorted_indices):
    """Place each element at its digit's next free position; `starts` is used up."""
    for worker in prange(workers):
        base = worker * DIGITS
        for k in range(size * worker // workers, size * (worker + 1) // workers):
            slot = base + ((keys[k] >> shift) & (DIGITS - 1))
            target = starts[slot]
            starts[slot] = target + 1
            sorted_keys[target] = keys[k]
            sorted_indices[target] = indices[k]


@serial_kernel
def counts_to_starts(counts, bins, workers, offsets):
    """counts[worker, bin] becomes the first position of each (bin, worker); offsets[bin] the first of each bin."""
    position = 0
    for bin_number in range(bins):
        offsets[bin_number] = position
        for worker in range(workers):
            slot = worker * bins + bin_number
            size = counts[slot]
            counts[slot] = position
            position += size
    offsets[bins] = position


@kernel
def count_tiles(order, size, tile_boxes, tiles_x, tiles, workers, counts):
    """counts[worker, tile] of the intersections in each worker's part of the depth order."""
    for worker in prange(workers):
        base = worker * tiles
        for tile in range(tiles):
            counts[base + tile] = 0
        for k in range(size * worker // workers, size * (worker + 1) // workers):
            box = 4 * np.int64(order[k])
            for y in range(tile_boxes[box + 1], tile_boxes[box + 3] + 1):
                for x in range(tile_boxes[box], tile_boxes[box + 2] + 1):
                    counts[base + y * tiles_x + x] += 1


@kernel
def fill_tiles(order, size, tile_boxes, tiles_x, tiles, workers, starts, first_row, members, rows):
    """Per tile, front to back: members (Gaussian) and rows (where its gradient sums go). `starts` is used up."""
    for worker in prange(workers):
        base = worker * tiles
        for k in range(size * worker // workers, size * (worker + 1) // workers):
            i = np.int64(order[k])
            row = first_row[i]
            for y in range(tile_boxes[4 * i + 1], tile_boxes[4 * i + 3] + 1):
                for x in range(tile_boxes[4 * i], tile_boxes[4 * i + 2] + 1):
                    slot = base + y * tiles_x + x
                    target = starts[slot]
                    starts[slot] = target + 1
                    members[target] = i
                    rows[target] = row
                    row += 1
