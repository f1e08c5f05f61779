"""Every tile and block size, per instruction set and dtype; nothing else decides one."""

from functools import cache, partial
from math import ceil, prod

import llvmlite.binding as llvm
import numpy as np

from loopconv.tiled.layout import (
    adjoint_layout,
    cut_layouts,
    fan,
    forward_layout,
    is_in_place,
    merged_layout,
    zones_of_taps,
)
from loopconv.tiled.panels import copies_of_a_part, ordered, rows_of_phase, tiles_of_parts
from loopconv.tiled.simd import sides

# (rows, cols) of tiles that fit into 32 or 16 vector registers with their operands: rows*cols
# accumulators, cols vectors and one broadcast. On 64->64 3x3, 56x56, AVX-512 with a peak of 118 GFLOP/s, without
# panels: 59, 99, 101, 103, 105, 104, 105, 105, 104 and 105 GFLOP/s in this order, padded work counted; (1, 8) is bound
# by its loads. On 64->48, 9 taps, AVX2 with a peak of 89: 52, 74, 79, 82, 79, 85 and 71; (12, 1), at 39, does not fit.
TILES = {
    32: ((1, 8), (2, 8), (3, 6), (4, 5), (6, 4), (8, 3), (12, 2), (14, 2), (16, 1), (24, 1)),
    16: ((1, 6), (2, 4), (3, 3), (4, 2), (4, 3), (6, 2), (8, 1)),
}

# (rows, cols) of the indirect kernel's tiles, whose rows are pixels and whose columns are vectors of channels. On
# 256->256 3x3, 14x14, with a peak of 118 GFLOP/s, (6, 4), (20, 1) and (28, 1) make 115, 114 and 116. Tiles of more rows
# and several columns need more registers for addresses than there are: (8, 3) and (12, 2) make 50 to 90.
INDIRECT_TILES = {
    32: ((1, 8), (4, 4), (7, 2), (6, 4), (12, 1), (16, 1), (20, 1), (28, 1)),
    16: ((1, 6), (2, 4), (3, 3), (4, 2), (6, 2), (8, 1), (12, 1)),
}

# What a tile's panel may take: about the first-level cache, which has 32 KiB or more. Half and twice as much make no
# difference that could be told from noise.
PANEL_BYTES = 20 << 10

# What the results of a unit of the direct kernel, Winograd's transformed inputs and its products may each take of
# the second-level cache, which has 512 KiB or more.
SUMS_BYTES, INPUTS_BYTES, PRODUCTS_BYTES = 96 << 10, 256 << 10, 128 << 10

# What the sums of a unit of the indirect kernel may take of it, and the weights of a chunk.
INDIRECT_SUMS_BYTES, CHUNK_BYTES = 192 << 10, 512 << 10

# What the buffers of some images of a batch may take, about the second-level cache of one processor; how many images
# these are at least, and their work.
IMAGES_BYTES, LEAST_IMAGES, IMAGES_WORK = 1200 << 10, 4, 5_000_000

# Tiles in one part of the pixels: they have one panel, and their results are written together.
PART = 4

# A gathered tiling has a table of its copies; beyond so many entries it would not stay in the caches.
GATHERED_COPIES = 1 << 16

# A call is cut into about this many units of work, so that threads can share them evenly; if into fewer, then into so
# many that threads take at most so many times as long as with even shares.
UNITS, UNEVEN = 16, 1.05

# Bytes of B that the weight kernel goes through before it adds to its sums, and of sums that it keeps. In ms, with 24
# and 96 KiB of B: 2.47 and 2.36 on 3->64 7x7, stride 2, 224x224, 0.50 and 0.48 on 16->96 1x1, 112x112.
PIXELS_BYTES, TOTALS_BYTES = 96 << 10, 64 << 10

# Cycles of the weight kernel for each number of B that it interleaves, and more where less than four channels are left,
# which go one by one (1->6 5x5, 32 images of 28x28: 0.15 ms, by dot products 0.10); for each number of a result, where
# they lie apart, and where those of a vector follow each other; and those that a call takes longer than one of the
# kernel of dot products.
INTERLEAVE, SINGLE, RESULT_APART, RESULT, OUTER_CALL = 0.3, 3, 1, 0.3, 2000

# Padded channels that the depthwise kernel copies before it goes through them: what was just written cannot be read yet
# (0.150 against 0.158 ms on 144 channels, 5x5, stride 2, 56x56, and 0.111 against 0.120 on 672 of 14x14).
TOGETHER_BYTES = 8 << 10


# Copies and packed weights of up to so many bytes for all threads together are made by each thread for itself: to write
# what others have in their caches takes longer, see README.md. But only where a call's multiply-adds are so many times
# the elements that are written more than once: the weights of 128->256 16 taps, stride 8, 200 pixels, with 133 for
# each, take one thread 0.44 ms, and all else two threads 0.9.
OWN_BYTES, OWN_WORK = 6 << 20, 150


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


def even(size, most):
    """The largest chunk of at most `most`, such that all chunks of `size` are about as large."""
    return -(-size // -(-size // max(1, min(size, most))))


def unevenness(units):
    """How many times as long as even shares of the work whole units of it take, on average of 1, 1, 2 and 4 threads."""
    return sum(threads * -(-units // threads) for threads in (1, 1, 2, 4)) / (4 * units)


def shared_parts(units, parts, most):
    """Into how many parts to cut each of the units, of at least `parts` and at most `most`, for threads to share."""
    counts = range(parts, most + 1) if units * parts < UNITS else ()
    return next((n for n in counts if unevenness(units * n) <= UNEVEN), parts)


def few_lanes(dtype):
    """Elements of `dtype` that are interleaved at a time: in ns an element, 0.08 with 8 and 0.32 with 16, of 8 rows."""
    return min(vector_bytes(), 32) // np.dtype(dtype).itemsize


def row_lanes(pixels, dtype):
    """Elements of `dtype` that are copied at a time, of rows of so many pixels."""
    return lanes(dtype) if pixels >= lanes(dtype) else few_lanes(dtype)


# ---------------------------------------------------------------------------- costs, in multiply-adds of vectors

# Copying one vector into a panel, and where it is gathered (with 3 for both, 128->128 1x7, 17x17, was gathered, 1.1 to
# 1.2 times as slow as flat); what a tile costs besides its sums; and what each of its vectors does where results are
# not written at once but row by row, without the gaps (0.28 against 0.33 ms on 1->16 5x5, 28x28).
COPY, GATHER, TILE, WRITE = 3, 5, 40, 10

# What each number does of results whose rows are single pixels (100->512 4x4 on 16 single pixels, forward, took 0.8 ms
# by the direct kernel, and 0.3 by the indirect one, which writes all phases together).
WRITE_NUMBER = 8

# Copying one vector of the source into a buffer: in the caches, and of sources larger than FAR_BYTES.
PACK, FAR_PACK = 8, 30

# How many times what is expected of them phases cost that are cut at the padding, and a test of the weights. Where 3 to
# 7 % were expected to be saved, -2 to 11 were, but with 32x32 taps, which all phases read again, 20 lost.
CUT, CUT_CALL = 1.06, 5000

# The same for the indirect kernel: of 28 cuts 25 took 0.98 to 1.03 times as long as expected, and three of the last
# axis, 27x27 and 28x28, 1.06. Where it reads more than so many bytes of the source, it asks for pixels ahead (the
# adjoint of 64->144 3x1x1, 8x28x28: 4.0 -> 3.3 ms), and takes no longer than expected, but with tiles of one vector so
# many times as long.
INDIRECT_CUT, INDIRECT_FAR, REACH_BYTES = 1.02, 1.15, 1 << 20

# What a step of a tile costs more than in the best case. AVX2, with 512 KiB of second-level cache: where it reads the
# buffer itself instead of a panel, and channels are in pages of their own (67 against 75 GFLOP/s on 256->256 3x3,
# dilation 2, 28x28; but 72 against 67 on 14x14, where they are not), or where the panel has the pixels of every tap (42
# against 54 on 512->512 3x3, 7x7). AVX-512, with 1 MiB: panels gain nothing (97, 92 and 105 GFLOP/s with panels, with
# the pixels of every tap, and without, on 128->128 3x3, stride 2).
PAGE_BYTES = 4096


# What phases of the result that are merged cost more than their sums: positions where only some have pixels, and writes
# (split over merged, predicted and measured: 1 channel by 9x9, stride 3, 1.8 and 1.7, 2 by 4x4, stride 2, 1.03 and
# 1.03, 3 of them 0.87 and 0.91, 20 of them 0.93 and 0.92).
MERGED = 1.1


# How a tile gets to its pixels (`panels`): flat over the buffer, gaps included, or row by row; or from a panel, which
# has the gaps or not. By rows, where these are whole tiles, results are written at once: 3->64 7x7, stride 2, flat 2.63
# and by rows 2.51 ms, on two threads 1.61 and 1.43; 3->64 3x3, 224x224, 3.5 and 3.2, but gathered 2.9 to 3.1.
WAYS = ("flat", "paneled", "gathered", "rows")
PANELED = ("paneled", "gathered")


def _hindrance(way, is_far):
    if vector_bytes() == 64:
        return {"gathered": 1.12, "paneled": 1.06}.get(way, 1)
    return 1.25 if way == "gathered" else 1.12 if is_far and way != "paneled" else 1


def direct_tile(M, C, layout, dtype):
    """(cost, rows, cols, way) of the cheapest way to sum M result channels over C."""
    return min(
        (_direct_cost(M, C, layout, dtype, tile, way), *tile, way)
        for tile in TILES[registers()]
        for way in WAYS[: 2 if len(layout.merged) else None]
    )


def direct_layout(t):
    """(cost, layout) of the layout of a `plans.Task`, or with its phases as one, or cut at the padding.

    What is expected to be faster, of one image and group, with the copy of the source where it is not read in place.
    """
    merged = merged_layout(t.layout)
    layouts = [t.layout, *([] if merged is None else [merged])]

    def cost(layout):
        sums = direct_tile(t.M, t.C, layout, t.dtype)[0]
        return sums + (0 if is_read_in_place(t, layout) else _copy_cost(t, layout))

    return _cheapest(cost, layouts, cut_layouts(t.p, t.adjoint), CUT)


def indirect_layout(t):
    """(cost, layout) as `direct_layout`, for the indirect kernel: x is one plane, cut at the padding or not."""

    def cost(layout):
        sums = indirect_tile(t, layout)[0]
        return sums + (0 if is_in_place(layout, t.source.sizes, t.source.steps) else _copy_cost(t, layout))

    layouts = [t.layout if t.adjoint else forward_layout(t.p, whole=True)]
    return _cheapest(cost, layouts, cut_layouts(t.p, t.adjoint, True), INDIRECT_CUT)


def _cheapest(cost, layouts, cut, factor):
    """The least (cost, layout); those that are cut cost more than is expected of them."""
    costs = [*map(cost, layouts), *(factor * cost(layout) + CUT_CALL for layout in cut)]
    least = costs.index(min(costs))
    return costs[least], [*layouts, *cut][least]


def _copy_cost(t, layout):
    return t.C * layout.channel / lanes(t.dtype) * (FAR_PACK if _is_far(t, layout) else PACK)


def indirect_tile(t, layout):
    """(cost, rows, cols) of the cheapest way to do a `plans.Task` in this layout with pixels found by a table.

    Only whole tiles of channels: the packed weights end with the last vector.
    """
    vectors, taps = -(-t.M // lanes(t.dtype)), np.diff(layout.results[:, :2])[:, 0]
    pixels, far = layout.results[:, 2:5].prod(axis=1), INDIRECT_FAR if reads_far(t, layout) else 1

    def cost(tile):
        rows, cols = tile
        step = _step(rows, cols) + (cols == 1) + (vector_bytes() < 64)  # of 103 calls, measured with AVX-512
        step *= far if cols == 1 else 1
        each = t.C * taps * step + TILE + WRITE * rows * cols
        return int((-(-pixels // rows) * each).sum()) * vectors // cols

    best = min((tile for tile in INDIRECT_TILES[registers()] if vectors % tile[1] == 0), key=cost)
    return cost(best), *best


def indirect_parts(t, layout, rows, cols):
    """(pixels of a part, shares of the channels, channels of the source in a chunk) for the indirect kernel.

    Each share reads the source again, and each part the weights, which cost little while the second-level cache has
    them. A chunk's weights stay there for all tiles of a part.
    """
    n, itemsize, images, pixels = lanes(t.dtype), t.dtype.itemsize, t.p.N * t.p.G, prod(t.result.sizes)
    blocks, channel = -(-t.M // (cols * n)), cols * n * prod(t.p.k) * itemsize
    source, weights = (size if size > CHUNK_BYTES else size / 4 for size in (reach(t, layout), blocks * t.C * channel))

    def part(shares):
        most = INDIRECT_SUMS_BYTES // (-(-blocks // shares) * cols * n * itemsize)
        return min(pixels, -(-even(pixels, max(most, PART * rows)) // rows) * rows)

    shares = min(range(1, blocks + 1), key=lambda n: n * source + -(-pixels // part(n)) * weights)
    size = part(shares)
    parts = -(-pixels // size)
    shares = min(blocks, max(shares, -(-UNITS // (images * parts))))
    if images * shares * parts < UNITS:
        size = _shared_size(layout, rows, images * shares, parts)
    return size, shares, even(t.C, CHUNK_BYTES // (-(-blocks // shares) * channel))


def _shared_size(layout, rows, units, parts):
    """Pixels of a part of each of so few units, which are cut into at least `parts`.

    Smaller parts have more tiles, as each tile is of one phase: 192->192 1x7, 17x17, cut at the padding, in 3 units of
    all pixels and in 9 and 18 of a third and a sixth 1.29, 1.29 and 1.63 ms, on two threads 0.93, 0.80 and 0.91; the
    adjoint of 64->192 5x5, 27x27, in 1 and 16 4.03 and 4.07, on two 4.19 and 2.32.
    """
    phases, pixels = ordered(layout)[0], int(layout.results[:, 2:5].prod(axis=1).sum())
    sizes = {-(-pixels // (parts * rows)) * rows for parts in range(parts, max(parts, -(-UNITS // units)) + 1)}
    return min(sizes, key=lambda n: tiles_of_parts(phases, rows, n).sum() * unevenness(units * -(-pixels // n)))


def reads_far(t, layout):
    """Whether the indirect kernel's pixels do not stay in the caches that are near."""
    return reach(t, layout) > REACH_BYTES


def reach(t, layout):
    """Bytes of the source that the taps reach: of rows, a stride may leave some out."""
    read = 1 if t.adjoint else prod(min(1, k / s) for k, s in zip(t.p.k[:2], t.p.stride))
    return t.C * layout.channel * t.dtype.itemsize * read


def is_read_in_place(t, layout):
    """Whether the direct kernel may do without a copy of the source.

    Of one that is not in the caches it reads several rows apart: 144->64 3x1x1 of 8x56x56 18.7 ms, copied 14.4.
    """
    is_one_row = prod(t.p.k[:2]) == 1
    return is_in_place(layout, t.source.sizes, t.source.steps) and (is_one_row or not _is_far(t, layout))


def _is_far(t, layout):
    return t.p.N * t.p.G * t.C * layout.channel * t.dtype.itemsize > FAR_BYTES


def _direct_cost(M, C, layout, dtype, tile, way):
    (rows, cols), n = tile, lanes(dtype)
    width, blocks = cols * n, -(-M * max(1, len(layout.merged)) // rows)
    part, tiles = direct_part(layout, width, way), direct_tiles(layout, width, way)
    copies = [0] * len(tiles) if way not in PANELED else copies_of_a_part(layout, part * width, n, way == "gathered")
    if way == "gathered" and sum(copies) * sum(tiles) / part > GATHERED_COPIES:
        return float("inf")
    shares = -(-blocks // blocks_of_a_share(layout, rows, part * width, dtype))  # each makes the panel anew
    if len(layout.merged) and shares > 1:
        return float("inf")
    is_far = layout.channel * np.dtype(dtype).itemsize >= PAGE_BYTES
    step = _step(rows, cols) * _hindrance(way, is_far) * (MERGED if len(layout.merged) else 1)
    cost, copy = 0, GATHER if way == "gathered" else COPY
    for phase, count, number in zip(layout.results.tolist(), copies, tiles):
        is_whole = {"gathered": True, "rows": phase[4] % width == 0}.get(way, phase[6] == prod(phase[2:5]))
        if is_whole and layout.step[2] == 1 and (way == "rows" or _is_one_run(layout, *phase[2:5])):
            tile = TILE
        else:
            tile = TILE + (WRITE if phase[4] > 1 else WRITE_NUMBER * n) * rows * cols
        cost += number * (C * ((phase[1] - phase[0]) * blocks * step + count * copy * shares / part) + blocks * tile)
    return cost


def _is_one_run(layout, Z, P, Q):
    """Whether the pixels of a phase are neighbours in the result."""
    return (P == 1 or layout.step[1] == Q) and (Z == 1 or layout.step[0] == P * Q)


def direct_tiles(layout, width, way):
    """Tiles of each result phase."""
    if way == "rows":
        part = direct_part(layout, width, way)
        return [rows_of_phase(layout, Z, P) * part for _, _, Z, P, *_ in layout.results.tolist()]
    return [-(-(prod(row[2:5]) if way == "gathered" else row[6]) // width) for row in layout.results.tolist()]


def direct_part(layout, width, way):
    """Tiles in a part."""
    if way == "rows":
        return -(-max([1, *layout.results[:, 4].tolist()]) // width)
    tiles = max([1, *direct_tiles(layout, width, way)])
    return -(-tiles // -(-tiles // PART))


def blocks_of_a_share(layout, rows, positions, dtype):
    """How many blocks of result channels have room for the sums of a unit of the direct kernel."""
    return max(1, SUMS_BYTES // (fan(layout) * rows * positions * np.dtype(dtype).itemsize))


# Cycles of Winograd's transforms of a vector of tiles: for each one of the inputs, for each of its numbers, and of the
# results'; for each pixel of results that lie two or more apart; and, in plain calls, for each number of a kernel and
# lane left empty beside it, beyond what weights of the direct kernel take, with one stencil and with several. The
# others were fitted to 43 geometries of 8 to 512 channels, strides 1 and 2, dilations 1 to 6, one to three axes: the
# times of 'direct' over those of planned 'winograd2', 0.6 to 2.1, with a standard deviation of 7 %.
WINOGRAD_INPUT, WINOGRAD_INPUT_NUMBER, WINOGRAD_RESULT_NUMBER = 26, 5, 7
WINOGRAD_PAIRED, WINOGRAD_APART = 7, 25
WINOGRAD_WEIGHT, WINOGRAD_MANY_WEIGHTS = 0.6, 1.5
# The same of pixels apart where the results take more bytes than this, and each of their lines is fetched for each
# phase (128->128, 3 taps, dilation 8: 0.86 of the time of 'direct' on 4000 pixels, 1.11 on 16000).
FAR_BYTES, WINOGRAD_FAR = 4 << 20, 135
# How many times as long as all that calls take with one stencil, with several whose sums are added, and with several
# sets of them, on one thread and on two: of 74 calls the times of the best other over those of 'winograd2', 0.75 to
# 1.7, are then predicted with standard deviations of 10 and 13 %.
WINOGRAD_ONE, WINOGRAD_SUMS, WINOGRAD_SETS = 0.93, 1.07, 0.9
# And their products, where the inputs of one vector of each column do not fit into the second-level cache: plans of the
# adjoint of 256->512 4x4, stride 2, 16 images of 4x4, took 6.9 ms on one thread and 3.7 to 9.5 on two, of the indirect
# kernel 7.9, and 4.1 to 4.3.
NEAR_BYTES, WINOGRAD_SPILLED = 1 << 20, 1.25
# Channels whose weights are transformed before those of the next, where more than so many stencils are of the same
# lines: 128->256 16 taps, stride 8, 0.51 -> 0.40 ms. Put into vectors of rows first they took 0.20, but other weights
# longer (128->128 3x3 0.06 -> 0.09, the adjoint of 256->128 16 taps, stride 8, 0.29 -> 0.52).
TRANSFORMED_TOGETHER, MANY_STENCILS = 16, 4
# Cycles of the weights' gradient for each number of a vector of inputs, of results, and of kernels. Times of 'outer'
# over those of 'winograd2', predicted and measured: 3x3 64->64 at 56x56 1.8 and 1.7, 256->256 at 14x14 1.4 and 1.4,
# 512->512 at 7x7 0.7 and 0.9, 8->8 at 128x128 0.9 and 1.0, dilation 2 256->256 at 28x28 1.7 and 1.6, stride 2 128->128
# at 56x56 1.1 and 1.1; 4x4 stride 2 256->512 at 8x8, 16 images, 1.2 and 1.0; 1-D 3 taps 128->128 1.3 and 1.1.
WINOGRAD_X, WINOGRAD_GRAD, WINOGRAD_WEIGHT_GRAD = 4.5, 3, 16
# The same for each number of both arrays that is copied, in up to two phases of a row or in more.
WINOGRAD_COPY, WINOGRAD_DEAL = 1, 5


def winograd_tile(t, m, taps, tiles):
    """(cost, rows, cols) of F(m x m, R x S) on the `tiles` of one image and group (`plans.Lines`) of a `plans.Task`."""
    high, wide, down, across = sides(m, *taps)
    M, C, n, size, (F, T), lines = t.M, t.C, lanes(t.dtype), down * across, tiles.offsets.shape, tiles.lines.shape[1]
    is_far = M * F * lines * tiles.tiles * high * wide * t.dtype.itemsize > FAR_BYTES
    apart = {1: 0, 2: WINOGRAD_PAIRED}.get(tiles.stencils.layout.step[2], WINOGRAD_FAR if is_far else WINOGRAD_APART)
    result = WINOGRAD_RESULT_NUMBER * size + high * wide * apart
    transforms = T * C * (WINOGRAD_INPUT + WINOGRAD_INPUT_NUMBER * size) + M * result
    transforms *= F * lines * -(-tiles.tiles // n) * per_cycle()
    sums = C * int(np.diff(tiles.ranges).sum())
    each = WINOGRAD_WEIGHT if F * T == 1 else WINOGRAD_MANY_WEIGHTS
    factor = WINOGRAD_SETS if F > 1 else WINOGRAD_SUMS if T > 1 else WINOGRAD_ONE

    def cost(tile):
        rows, cols = tile
        blocks = -(-M // rows)
        products = blocks * -(-lines * tiles.tiles // (cols * n)) * sums * _step(rows, cols)
        if size * T * C * cols * n * t.dtype.itemsize > NEAR_BYTES:
            products *= WINOGRAD_SPILLED
        weights = 0 if t.is_planned else size * F * T * C * blocks * -(-rows // n) * n * each / t.p.N
        return factor * (products + transforms + weights * per_cycle())

    best = min(TILES[registers()], key=cost)
    return cost(best), *best


# Channels of A that are transformed together, at most, and the fewest tiles of pixels in a part. Of the 784 tiles of
# 64->64 3x3, 56x56, parts of at least 256, 192 and 128 take 1.21, 1.25 and 1.33 ms, on two threads 0.83, 0.64 and 0.70.
GROUP_CHANNELS, PART_TILES = 96, 192


def winograd_weight_tile(p, taps, tiles, dtype):
    """(cost, rows, cols, channels, swapped, chunk, parts) of the whole weight gradient by F(2x2, RxS).

    `tiles` is `plans.ProductLines`.
    """
    n, size, T = lanes(dtype), prod(sides(2, *taps)[2:]), len(tiles.stencils)
    straight, crossed = product_tile(p.K, p.C, dtype), product_tile(p.C, p.K, dtype)
    swapped = crossed[0] < 0.8 * straight[0]
    (_, rows, cols), (A, B) = (crossed, (p.C, p.K)) if swapped else (straight, (p.K, p.C))
    # each block of A transforms B anew: worth about 8 channels
    channels = min(range(n, GROUP_CHANNELS + 1, n), key=lambda m: -(-A // m) * (-(-m // rows) * rows + 8))
    count = p.N * len(tiles.lines) * tiles.tiles
    units = p.G * T * -(-B // (cols * n)) * -(-A // channels)
    parts = max(1, min(UNITS // units, count // PART_TILES))
    parts = shared_parts(units, parts, min(2 * parts, count))
    chunk = even(-(-count // parts), INPUTS_BYTES // (size * np.dtype(dtype).itemsize * (channels + cols * n)))
    x_vectors, y_vectors = (channels // n, cols) if swapped else (cols, channels // n)
    transforms = size * T * (x_vectors * WINOGRAD_X + y_vectors * WINOGRAD_GRAD) * per_cycle()
    sums = tiles.sums * -(-channels // rows) * (_step(rows, cols) + 3 * rows * cols / chunk)
    results = size * T * parts * A * -(-B // n) * WINOGRAD_WEIGHT_GRAD * per_cycle()
    copies = p.N * (p.C * prod(p.x) + p.K * prod(p.y)) * per_cycle()
    copies *= WINOGRAD_COPY if max(p.stride[2], p.dilation[2]) <= 2 else WINOGRAD_DEAL
    cost = p.G * (-(-A // channels) * -(-B // (cols * n)) * count * (sums + transforms) + results + copies)
    return cost, rows, cols, channels, swapped, chunk, parts


def per_cycle():
    """Multiply-adds of the widest vectors that a processor starts in one cycle."""
    return 1 if vector_bytes() == 64 else 2


# Multiply-adds of vectors in the time of one step of the weight kernel's tiles (rows, cols), where measured. It finds
# rows by a table, and reads columns from the second-level cache, so that single ones are the fastest: of a peak of 118
# GFLOP/s, 128->192 1x1, 28x28, makes 107 with (16, 1), 95 with (4, 4) and 84 with (6, 4).
OUTER_TILES = {
    32: {
        (3, 4): 14.4,
        (4, 4): 18.5,
        (6, 2): 14.5,
        (10, 2): 25.5,
        (12, 1): 13.1,
        (14, 1): 16,
        (16, 1): 17.4,
        (20, 1): 21.7,
    },
    16: dict.fromkeys(TILES[16]),
}

# Where channels are pages apart, as those of 32x32 or 64x64 pixels that are read in place, rows of more of them than
# the first-level cache has ways drive each other out: 256->256 1x1, 64x64, makes 44 GFLOP/s with (16, 1), and 101 with
# (6, 2).
CACHE_WAYS = 8

# The tiles of Winograd's weight gradient, whose rows and columns both come from the second-level cache: (4, 4) is up to
# 1.18 times as fast as larger ones (256->512 4x4, stride 2, 16 times 8x8).
PRODUCT_TILES = {32: ((4, 3), (4, 4), (8, 2), (16, 1)), 16: TILES[16]}


def channel_lanes(channels, dtype):
    """Elements of the weight kernel's vectors of so many channels.

    256->256 3x3 in 32 groups, 28x28, by dot products 0.58 ms, and by vectors of half the length 0.39.
    """
    return few_lanes(dtype) if channels <= few_lanes(dtype) else lanes(dtype)


def product_tile(MA, MB, dtype):
    """(cost, rows, cols) of Winograd's products with MA channels broadcast and MB in vectors."""
    best = min(PRODUCT_TILES[registers()], key=partial(_product_cost, MA, MB, lanes(dtype), _step))
    return _product_cost(MA, MB, lanes(dtype), _step, best), *best


def _product_cost(MA, MB, n, step, tile):
    rows, cols = tile
    return -(-MA // rows) * -(-MB // (cols * n)) * step(rows, cols)


def outer_tile(p, dtype):
    """(cost of the whole weight gradient, rows, cols, contraction, is_cut) for the kernel of outer products.

    Its A and B are those of the forward sum, or of an adjoint of stride 1: then channels of x are in vectors. Where a
    forward sum is cut, the rows of a tile are of one tap, and summed over the results that see x by it.
    """
    taps = prod(p.k)

    def best(A, B, layout, sizes, contraction):
        def cost(tile):
            rows, cols = tile
            groups = -(-A * taps * cols * n * np.dtype(dtype).itemsize // TOTALS_BYTES)
            is_turned = cols == 1 and rows % n == 0
            if contraction == "forward":
                result = RESULT if is_turned else RESULT_APART
            else:
                result = RESULT if taps == 1 else 2 * RESULT_APART
            others = groups * (B * INTERLEAVE + B % 4 * SINGLE) * pixels + p.G * A * taps * B * result + OUTER_CALL
            return _product_cost(A * taps, B, n, step, tile) * pixels + others * per_cycle()

        pixels, n = p.N * p.G * prod(sizes), channel_lanes(B, dtype)
        step = partial(_outer_step, n == lanes(dtype))
        tile = min(outer_tiles(layout, dtype), key=cost)
        return cost(tile), *tile, contraction, False

    straight = min(best(p.C, p.K, forward_layout(p), p.y, "forward"), cut_outer_tile(p, dtype))
    if max(p.stride) > 1 or 0 in p.x:
        return straight
    return min(straight, best(p.K, p.C, adjoint_layout(p), p.x, "adjoint"))


def cut_outer_tile(p, dtype):
    """`outer_tile` for a forward sum that is cut at the padding; it costs too much where that saves nothing.

    Each result has to see x by some tap: then a gradient of y that is not finite is noticed in what is summed.
    """
    zones = np.array(zones_of_taps(p)).reshape(-1, 3, 2)
    seen, whole = (zones[..., 1] - zones[..., 0]).prod(axis=1), prod(p.y)
    if seen.min() == whole or not all(map(_covers, p.y, zones.transpose(1, 0, 2))):
        return (float("inf"),)

    def cost(tile):
        rows, cols = tile
        groups = -(-p.C // rows) * rows * len(seen) * cols * n * np.dtype(dtype).itemsize / TOTALS_BYTES
        sums = _product_cost(p.C, p.K, n, step, tile) * p.N * p.G * int(seen.sum())
        others = (
            ceil(groups) * (p.K * INTERLEAVE + p.K % 4 * SINGLE) * p.N * p.G * whole
            + p.G * p.C * len(seen) * p.K * RESULT_APART
        )
        return CUT * (sums + (others + OUTER_CALL) * per_cycle())

    n = channel_lanes(p.K, dtype)
    step = partial(_outer_step, n == lanes(dtype))
    tile = min(outer_tiles(forward_layout(p), dtype), key=cost)
    return cost(tile), *tile, "forward", True


def _covers(length, zones):
    """Whether all of an axis is in some of the zones (first, past the last)."""
    reached = 0
    for first, past in sorted(zones.tolist()):
        if first <= reached:
            reached = max(reached, past)
    return reached >= length


def outer_tiles(layout, dtype):
    """The tiles of the weight kernel for a source of this layout."""
    is_paged = layout.channel * np.dtype(dtype).itemsize % PAGE_BYTES == 0
    return [tile for tile in OUTER_TILES[registers()] if not is_paged or tile[0] <= CACHE_WAYS]


# The time of a step of half as long vectors, as a part of that of whole ones.
HALF = 0.6


def _outer_step(are_whole, rows, cols):
    step = OUTER_TILES[registers()][rows, cols] or _step(rows, cols)
    return step if are_whole else HALF * step


# What a line of pixels costs a tile of dot products besides its sums, in cycles. Times predicted for 25 geometries were
# 0.6 to 1.05 of those measured, and for outer products 0.6 to 1.0.
DOTS_LINE = 25


# (rows, cols) of the tiles of dot products; there may be fewer taps than columns, which then repeat one. With all tiles
# that fit into the registers, for 15 numbers of channels and 23 of taps, 1.05 times fewer cycles are expected.
DOTS_TILES = {
    32: ((1, 9), (2, 4), (2, 9), (3, 3), (3, 7), (4, 3), (4, 5), (4, 6), (5, 3), (5, 4)),
    16: ((1, 9), (2, 5), (3, 3), (4, 2)),
}


def dots_tile(K, C, taps, sizes, dtype):
    """(cost for each pixel, rows, cols) for the kernel of dot products along rows."""
    n, Q, loads = lanes(dtype), sizes[-1], 1 if vector_bytes() == 64 else 1.6

    def cost(tile):
        rows, cols = tile
        step = max(rows * cols, loads * (rows + cols), 8) + 2
        return -(-K // rows) * C * -(-taps // cols) * (step * -(-Q // n) + DOTS_LINE * per_cycle()) / Q

    best = min((tile for tile in DOTS_TILES[registers()] if tile[0] <= K), key=cost)
    return cost(best), *best


# (rows, cols) of the depthwise kernel's tiles: rows are neighbours, that read most of their factors together. With 16
# registers or two phases at once, those of more than 8 vectors do not fit. Where their rows take more bytes than this,
# 14 rows are 1.15 times slower than 7 on images that come from memory (16 of 56x56), as they write to many places at
# once; else they take 0.9 of the time (28x28, 7x7 taps).
DEPTHWISE_TILES = ((1, 1), (1, 4), (2, 1), (2, 4), (4, 1), (7, 1), (14, 1))
TALL_BYTES = 2048


def depthwise_tile(sizes, columns, F, dtype):
    """(lanes, rows, cols) for phases of `sizes` (P, Q) under `columns` of taps, F phases at a time."""
    room, least = (14 if registers() == 32 else 8) // F, min(P for P, _ in sizes)
    tiles = [
        (n, *tile)
        for n in sorted({few_lanes(dtype), lanes(dtype)})
        for tile in DEPTHWISE_TILES
        if tile[0] <= least
        and prod(tile) <= room
        and (tile[1] == 1 or F == 1)
        and (tile[0] <= 7 or tile[0] * sizes[0][1] * np.dtype(dtype).itemsize <= TALL_BYTES)
    ]

    def cost(tile):
        return sum(_depthwise_cost(*size, some, *tile, dtype) for size, some in zip(sizes, columns))

    return min(tiles, key=cost)


def _depthwise_cost(P, Q, columns, n, rows, cols, dtype):
    """Cycles for a phase; a vector that is as long as a line of the cache mostly lies across two."""
    macs, loads = (1, 2) if n * np.dtype(dtype).itemsize == 64 else (0.5, 0.75)
    steps = sum(max(rows * taps * macs, (rows + taps - 1) * loads) * cols + taps + 2 for taps, *_ in columns)
    return -(-P // rows) * -(-Q // (cols * n)) * (steps + 2 * rows * cols + 20)


# How many columns of so many taps the depthwise kernel of the weight gradient takes at once.
DEPTHWISE_COLUMNS = {
    32: {1: (9,), 2: (6,), 3: (3, 5), 4: (5,), 5: (5,)},
    16: {1: (9,), 2: (4,), 3: (3,), 4: (2,), 5: (1,)},
}


def depthwise_weight_tile(Q, counts, dtype):
    """(lanes, taps, columns) for rows of Q pixels under columns of so many taps."""
    taps, most = max(counts), lanes(dtype)
    n = min((few_lanes(dtype), most), key=lambda n: (-(-Q // n) * n, -n))
    cols = min(DEPTHWISE_COLUMNS[registers()][taps], key=lambda cols: -(-len(counts) // cols) * cols)
    return n, taps, cols


def _step(rows, cols):
    """One step of a tile: its multiply-adds or its loads, but no less than hides a multiply-add's latency."""
    if vector_bytes() == 64:
        return max(rows * cols, 2 * cols + rows / 2, 12) + 1
    # measured on AVX2: 8.7 for (4, 2), 9.7 (2, 4), 10.1 (8, 1), 10.2 (3, 3), 10.4 (1, 6), 12.7 (6, 2), 13.6 (4, 3)
    return max(rows * cols, rows + 1.6 * cols) + 0.8
