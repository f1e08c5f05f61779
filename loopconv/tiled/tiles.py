"""Every tile and block size, per instruction set and dtype; nothing else decides one."""

from functools import cache
from math import prod

import llvmlite.binding as llvm
import numpy as np

from loopconv.tiled.panels import copies_of_a_tile

# (rows, cols) of tiles that fit into 32 or 16 vector registers with their operands: rows*cols
# accumulators, cols vectors and one broadcast. AVX-512, direct kernel on 64->64 3x3, 56x56, without panels, with a peak
# of 115 GFLOP/s, padded work not counted: 49, 88, 100, 102, 98, 98, 95, 90 and 71 GFLOP/s in this order; (1, 8) is
# bound by its loads. AVX2, 32->24 3x3, 56x56, while the peak was at about 55: (2, 4), (3, 3), (4, 3), (6, 2) and (12, 1)
# at 35, 42, 48, 48 and 41 GFLOP/s.
TILES = {
    32: ((1, 8), (2, 8), (3, 6), (4, 5), (6, 4), (8, 3), (12, 2), (14, 2), (24, 1)),
    16: ((1, 6), (2, 4), (3, 3), (4, 3), (6, 2), (12, 1)),
}

# What a panel may take of the first-level cache, which has 32 KiB on most processors; the rest is for weights.
PANEL_BYTES = 24 << 10

# What the results of a unit of the direct kernel, Winograd's transformed inputs and its products may each take of
# the second-level cache, which has 512 KiB or more.
SUMS_BYTES, INPUTS_BYTES, PRODUCTS_BYTES = 96 << 10, 256 << 10, 128 << 10

# Tiles in one part of the pixels: their panels are made one after the other, and their results written together.
PART = 4

# A gathered tiling has a table of its copies; beyond so many entries it would not stay in the caches.
GATHERED_COPIES = 1 << 16

# A call is cut into about this many units of work, so that threads can share them evenly.
UNITS = 16

# Bytes of A and B that the weight kernel goes through before it changes to the next tap, and of sums that it keeps.
PIXELS_BYTES, TOTALS_BYTES = 24 << 10, 64 << 10


@cache
def vector_bytes():
    """Bytes of the widest vectors of this processor."""
    features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return 64
    return 32 if features.get("avx2") and features.get("fma") else 16


@cache
def registers():
    """Vector registers of this processor."""
    return 32 if vector_bytes() == 64 or llvm.get_process_triple().startswith(("aarch64", "arm64")) else 16


def lanes(dtype):
    """Elements of `dtype` in one vector."""
    return vector_bytes() // np.dtype(dtype).itemsize


# ---------------------------------------------------------------------------- costs, in multiply-adds of vectors

# Copying one vector into a panel, and what a tile costs besides its sums.
COPY, TILE = 3, 40

# Reading the buffer itself instead of a panel: 53 against 68 GFLOP/s on 64->64 3x3, 56x56, AVX2.
UNPANELED = 1.25


def direct_tile(M, C, layout, dtype, *, can_gather=True):
    """(cost, rows, cols, paneled, gathered) of the cheapest way to sum M result channels over C."""
    return min(
        (_direct_cost(M, C, layout, dtype, tile, *way), *tile, *way)
        for tile in TILES[registers()]
        for way in ((False, False), (True, False), (True, True))[: 3 if can_gather else 2]
    )


def _direct_cost(M, C, layout, dtype, tile, paneled, gathered):
    (rows, cols), n = tile, lanes(dtype)
    width, blocks = cols * n, -(-M // rows)
    copies = copies_of_a_tile(layout, width, n, gathered) if paneled else [0] * len(layout.results)
    if gathered and sum(copies) * _tiles(layout, width, True) > GATHERED_COPIES:
        return float("inf")
    step = _step(rows, cols) * (1 if paneled else UNPANELED)
    return sum(
        -(-(prod(phase[2:5]) if gathered else phase[6]) // width)
        * (C * ((phase[1] - phase[0]) * blocks * step + count * COPY) + blocks * TILE)
        for phase, count in zip(layout.results.tolist(), copies)
    )


def _tiles(layout, width, gathered):
    """Tiles of all phases."""
    return sum(-(-(prod(row[2:5]) if gathered else row[6]) // width) for row in layout.results.tolist())


# Cycles of Winograd's transforms of the inputs and of the results of a vector of tiles, by m, and of one kernel's
# weights. The first were counted in instructions, the last puts the choice right where it was wrong: 512->512 at
# 7x7, where transforming 9 MB of weights takes 2.3 ms.
WINOGRAD_INPUT, WINOGRAD_RESULT = {2: 60, 4: 180}, {2: 50, 4: 150}
WINOGRAD_WEIGHT = 40


def winograd_tile(m, M, C, sizes, dtype):
    """(cost, rows, cols) of F(m x m, 3x3) on one slice of `sizes` (P, Q) pixels."""
    n, (P, Q) = lanes(dtype), sizes
    down, across = -(-P // m), -(-Q // m)
    transforms = down * -(-across // n) * (C * WINOGRAD_INPUT[m] + M * WINOGRAD_RESULT[m])

    def cost(tile):
        rows, cols = tile
        products = -(-M // rows) * -(-down * across // (cols * n)) * C * _step(rows, cols)
        return (m + 2) ** 2 * products + transforms * per_cycle()

    best = min(TILES[registers()], key=cost)
    return cost(best), *best


def per_cycle():
    """Multiply-adds of the widest vectors that a processor starts in one cycle."""
    return 1 if vector_bytes() == 64 else 2


def weight_tile(MA, MB, dtype):
    """(cost, rows, cols) for the weight kernel with MA channels broadcast and MB in vectors."""

    def cost(tile):
        rows, cols = tile
        return -(-MA // rows) * -(-MB // (cols * lanes(dtype))) * _step(rows, cols)

    narrow = {(rows, n) for rows, cols in TILES[registers()] for n in range(1, cols + 1)}
    best = min(sorted(narrow), key=cost)
    return cost(best), *best


def dots_tile(K, C, taps, Q, dtype):
    """(cost, rows, cols) for the kernel of dot products along rows of Q pixels; cost as of `weight_tile` x taps."""
    n, room = lanes(dtype), registers() - 2

    def cost(tile):
        rows, cols = tile
        step = max(rows * cols, rows + cols, 8) + 2
        return -(-K // rows) * C * -(-taps // cols) * step * -(-Q // n) / Q

    fitting = [
        (rows, cols)
        for rows in range(1, min(K, 5) + 1)
        for cols in range(1, min(taps, 9) + 1)
        if rows * cols + min(rows, cols) < room
    ]
    best = min(fitting, key=cost)
    return cost(best), *best


def depthwise_tile(sizes, dtype):
    """(rows, cols) for images of `sizes` (P, Q): the least padded work, without a row of less than a vector."""
    P, Q = sizes
    n, most = lanes(dtype), 8 if registers() == 16 else 16
    fitting = [(rows, cols) for cols in (1, 2, 3, 4) for rows in (1, 2, 4, 8) if rows * cols <= most]
    return min(
        fitting, key=lambda tile: (-(-P // tile[0]) * -(-Q // (tile[1] * n)) * (tile[0] * tile[1] + 2), -tile[1])
    )


def _step(rows, cols):
    """One step of a tile: its multiply-adds or its loads, but no less than hides a multiply-add's latency."""
    loads = 2 * cols + rows / 2 if vector_bytes() == 64 else 1.5 * cols + rows
    return max(rows * cols, loads, 11) + 1
