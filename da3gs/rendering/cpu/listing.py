"""Stages 2 and 3: list the visible Gaussians of every tile, and order each list front to back.

Both orders are stable (ties by Gaussian index) and do not depend on the number of workers.
"""

import numpy as np
from numba import prange

from da3gs.rendering.cpu.compiling import device, kernel, serial_kernel
from da3gs.rendering.cpu.lanes import WIDTH, take_ticket

DIGIT_BITS = 8
DIGITS = 1 << DIGIT_BITS


@device
def share(count, worker, workers):
    """The contiguous part of the Gaussians a worker owns, in whole vectors: (first, end)."""
    groups = (count + WIDTH - 1) // WIDTH
    return groups * worker // workers * WIDTH, min(count, groups * (worker + 1) // workers * WIDTH)


@device
def box_of(tile_boxes, i):
    """First and last tile (x, y) that Gaussian i touches; last x < first x if it was culled."""
    return (
        np.int64(tile_boxes[4 * i]),
        np.int64(tile_boxes[4 * i + 1]),
        np.int64(tile_boxes[4 * i + 2]),
        np.int64(tile_boxes[4 * i + 3]),
    )


@serial_kernel
def counts_to_starts(counts, tiles, workers, offsets):
    """counts[worker, tile] becomes where that worker's part of the list starts, offsets[tile] where the list does."""
    position = 0
    for tile in range(tiles):
        offsets[tile] = position
        for worker in range(workers):
            slot = worker * tiles + tile
            size = counts[slot]
            counts[slot] = position
            position += size
    offsets[tiles] = position


@kernel
def fill_tiles(tile_boxes, depth_bits, count, tiles_x, tiles, workers, starts, entries):
    """Write (depth bits << 32 | Gaussian) into the list of each tile, in Gaussian order. `starts` is used up."""
    for worker in prange(workers):
        first, end = share(count, worker, workers)
        for i in range(first, end):
            x0, y0, x1, y1 = box_of(tile_boxes, i)
            if x1 < x0:
                continue
            entry = (np.int64(depth_bits[i]) << 32) | i
            for y in range(y0, y1 + 1):
                for x in range(x0, x1 + 1):
                    slot = worker * tiles + y * tiles_x + x
                    target = starts[slot]
                    starts[slot] = target + 1
                    entries[target] = entry


@kernel
def sort_tiles(entries, offsets, tiles, workers, members):
    """members = the Gaussians of each list, by depth. The bits of positive floats sort like the floats."""
    longest = 1
    for tile in range(tiles):
        longest = max(longest, offsets[tile + 1] - offsets[tile])
    tickets = np.zeros(1, np.int64)
    for _ in prange(workers):
        source, target = np.empty(longest, np.int64), np.empty(longest, np.int64)
        starts = np.empty(DIGITS, np.int64)
        while True:
            tile = take_ticket(tickets)
            if tile >= tiles:
                break
            first, size = offsets[tile], offsets[tile + 1] - offsets[tile]
            if size == 0:
                continue
            nearest, farthest = entries[first], entries[first]
            for k in range(size):
                entry = entries[first + k]
                source[k] = entry
                nearest, farthest = min(nearest, entry), max(farthest, entry)
            # stable radix sort of the depth bits, as many digits as this list's depths differ in
            nearest_bits = nearest >> 32
            span = (farthest >> 32) - nearest_bits
            shift = 0
            while span >> shift > 0:
                sort_by_digit(source, target, size, nearest_bits, shift, starts)
                source, target = target, source
                shift += DIGIT_BITS
            for k in range(size):
                members[first + k] = source[k] & 0x7FFFFFFF


@device
def sort_by_digit(source, target, size, nearest_bits, shift, starts):
    """One stable counting sort by (depth bits - nearest bits) >> shift, lowest digit."""
    starts[:] = 0
    for k in range(size):
        starts[(((source[k] >> 32) - nearest_bits) >> shift) & (DIGITS - 1)] += 1
    position = 0
    for digit in range(DIGITS):
        occurrences = starts[digit]
        starts[digit] = position
        position += occurrences
    for k in range(size):
        digit = (((source[k] >> 32) - nearest_bits) >> shift) & (DIGITS - 1)
        target[starts[digit]] = source[k]
        starts[digit] += 1


@serial_kernel
def number_rows(tile_boxes, count, first_row):
    """Number the intersections by Gaussian: those of i are first_row[i] to first_row[i + 1], row by row of its box."""
    row = 0
    for i in range(count):
        first_row[i] = row
        x0, y0, x1, y1 = box_of(tile_boxes, i)
        if x1 >= x0:
            row += (x1 - x0 + 1) * (y1 - y0 + 1)
    first_row[count] = row
