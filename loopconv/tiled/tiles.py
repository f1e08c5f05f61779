"""Every tile and block size, per instruction set and dtype; nothing else decides one."""

from functools import cache

import llvmlite.binding as llvm
import numpy as np

# (rows, cols) of tiles that fit into 32 or 16 vector registers with their operands: rows*cols
# accumulators, cols vectors and one broadcast. Direct kernel on 64->64 3x3, 56x56, AVX-512 with a peak of 115 GFLOP/s,
# padded work not counted: 49, 88, 100, 102, 98, 98, 95, 90 and 71 GFLOP/s in this order. (1, 8) is bound by its loads.
TILES = {
    32: ((1, 8), (2, 8), (3, 6), (4, 5), (6, 4), (8, 3), (12, 2), (14, 2), (24, 1)),
    16: ((1, 6), (2, 4), (3, 3), (4, 3), (6, 2), (12, 1)),
}

# Pixels that the weight kernel sums before it changes to the next tap: its rows of A and B for that
# many pixels, 224 KiB in float32, stay in the second-level cache.
WEIGHT_CHUNK = 1024


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


def direct_tile(M, flats, dtype):
    """(rows, cols) for M result channels and result phases of `flats` buffer positions: the least padded work."""

    def cost(tile):
        rows, cols = tile
        width = cols * lanes(dtype)
        return -(-M // rows) * sum(-(-flat // width) for flat in flats) * _step(rows, cols)

    return min(TILES[registers()], key=cost)


# What one part of Winograd's transformed inputs may take of the second-level cache.
WINOGRAD_BYTES = 512 << 10

# Cycles of Winograd's transforms: of the inputs and of the results of a vector of tiles, and of one kernel's
# weights, and of packing one weight. The first two are counts of instructions, the others estimates that put the choice
# right where it was wrong: 512->512 at 7x7, where transforming 9 MB of weights takes 2.3 ms, all of F(2x2, 3x3) 5.7 ms,
# and the direct kernel 3.6 ms.
WINOGRAD_INPUT, WINOGRAD_RESULT, WINOGRAD_WEIGHT, PACKED_WEIGHT = 60, 50, 40, 1.0


def winograd_tile(M, C, tiles, dtype):
    """(cycles, rows, cols) of F(2x2, 3x3) on one slice of `tiles` tiles of 2x2 pixels."""
    n = lanes(dtype)

    def cost(tile):
        rows, cols = tile
        products = 16 * -(-M // rows) * -(-tiles // (cols * n)) * C * _step(rows, cols)
        return products + -(-tiles // n) * (C * WINOGRAD_INPUT + M * WINOGRAD_RESULT)

    best = min(TILES[registers()], key=cost)
    return cost(best), *best


def direct_cost(M, C, taps, flats, dtype):
    """Cycles of the direct kernel with its best tile."""
    rows, cols = direct_tile(M, flats, dtype)
    tiles = sum(-(-flat // (cols * lanes(dtype))) for flat in flats)
    return -(-M // rows) * tiles * C * taps * _step(rows, cols)


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


def _step(rows, cols):
    """Relative time of one step of a tile: its FMAs or its loads, but no less than hides an FMA's latency."""
    return max(rows * cols, 2 * cols + rows / 2, 12) + 1
