"""Winograd's F(2x2, 3x3): transforms around products of tiles, fused. README.md has the contract.

Lavin and Gray, "Fast algorithms for convolutional neural networks", arXiv:1509.09308. A tile is 2 x 2 result pixels; it
reads a patch of 4 x 4 source pixels. Both the patch and the 3 x 3 taps are transformed to 16 numbers,

    out[m, tile] = A.T (sum over channels c of (G w[m, c] G.T) * (B.T patch[c, tile] B)) A

so that 16 products of matrices, one for each of the numbers, take the place of 36 multiply-adds for a tile. Only the
transformed weights are ever in the memory of the device.
"""

import math
from math import prod

import numpy as np
from numba import cuda
from numba.cuda import types

from loopconv.cuda import plans
from loopconv.cuda.elements import device, load, store
from loopconv.cuda.intrinsics import (
    NUMBERS,
    QUAD,
    SIDE,
    SPILL_PITCH,
    WIDE,
    inside,
    make_arrived,
    make_fetch_all,
    make_numbers,
    make_products,
    patch,
    pixel,
    sent,
    warp_tile,
)
from loopconv.cuda.stages import Launch, Plan
from loopconv.cuda.tiles import CHIPS, TILES, nearest, time_of

# ------------------------------------------------------------------------------------------ transforms


@device
def along_input(a, b, c, d):
    """B.T of four numbers."""
    return a - c, b + c, c - b, b - d


@device
def transformed(d):
    """B.T d B of a patch."""
    a, b = along_input(d[0], d[4], d[8], d[12]), along_input(d[1], d[5], d[9], d[13])
    c, e = along_input(d[2], d[6], d[10], d[14]), along_input(d[3], d[7], d[11], d[15])
    return (
        along_input(a[0], b[0], c[0], e[0]) + along_input(a[1], b[1], c[1], e[1])
        + along_input(a[2], b[2], c[2], e[2]) + along_input(a[3], b[3], c[3], e[3])
    )  # fmt: skip


@device
def along_output(a, b, c, d):
    """A.T of four numbers."""
    return a + b + c, b - c - d


@device
def results(m):
    """A.T m A: the 2 x 2 results of a tile."""
    a, b = along_output(m[0], m[4], m[8], m[12]), along_output(m[1], m[5], m[9], m[13])
    c, d = along_output(m[2], m[6], m[10], m[14]), along_output(m[3], m[7], m[11], m[15])
    return along_output(a[0], b[0], c[0], d[0]) + along_output(a[1], b[1], c[1], d[1])


@device
def along_taps(a, b, c):
    """G of three taps."""
    half = np.float32(0.5)
    return a, (a + c + b) * half, (a + c - b) * half, c


@device
def taps_down(w, at, step, exists):
    """G of a column of taps, `step` apart; zeros where it does not exist."""
    a = b = c = np.float32(0)
    if exists:
        a, b, c = load(w, at), load(w, at + 3 * step), load(w, at + 6 * step)
    return along_taps(a, b, c)


@device
def transformed_taps(w, at, step, exists):
    """G w G.T of 3 x 3 taps."""
    a, b = taps_down(w, at, step, exists), taps_down(w, at + step, step, exists)
    c = taps_down(w, at + 2 * step, step, exists)
    return (
        along_taps(a[0], b[0], c[0]) + along_taps(a[1], b[1], c[1])
        + along_taps(a[2], b[2], c[2]) + along_taps(a[3], b[3], c[3])
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ numbers

# The plan array of both kernels. Taps are in the order of the source's pixels: their numbers in the kernel are W_FIRST,
# and from there on W_TAP apart.
(
    ROW_BLOCKS, TILE_BLOCKS, ROWS, CHANNELS, DEPTHS, SLABS, TILE_COUNT, HAS_BIAS, SOURCE_IMAGE, SOURCE_GROUP,
    SOURCE_CHANNEL, SOURCE_Z, SOURCE_P, OUT_IMAGE, OUT_GROUP, OUT_ROW, OUT_Z, OUT_P, SIZE_Z, SIZE_P, SIZE_Q,
    OUT_SIZE_P, OUT_SIZE_Q, FIRST_Z, STEP_Z, FIRST_P, FIRST_Q, MEETS_ZEROS, W_GROUP, W_ROW, W_CHANNEL, W_FIRST, W_TAP,
    TILE_PIXELS,
) = range(34)  # fmt: skip
HEADER = TILE_PIXELS + 9  # the tiles of an image, of a slice and of a row, each as (number, multiplier, shift)
TAPS = 9  # of a slice


def sizes_of(quads, numbers):
    """(tiles, rows, channels of a slab, threads) of a block each of whose warps has `numbers` of the 16 numbers.

    There are as many patches in a slab as threads.
    """
    tiles, rows = warp_tile("fma", *quads)
    threads = 32 * NUMBERS // numbers
    return tiles, rows, threads // tiles, threads


def shared_bytes(dtype, quads, numbers):
    """Bytes of shared memory: two slabs, or the numbers of 32 rows in their place, and where the tiles lie."""
    return 8 * (_places_at(dtype, quads, numbers) + 2 * sizes_of(quads, numbers)[0])


def _places_at(dtype, quads, numbers):
    tiles, rows, depth, _ = sizes_of(quads, numbers)
    most = NUMBERS * max(2 * depth * (tiles + rows), tiles * SPILL_PITCH)
    return most * np.dtype(dtype).itemsize // 8


# ------------------------------------------------------------------------------------------ kernels


def make_weights(dtype, quads, numbers):
    """packed[group, row block, slab, number, channel of the slab, row of the block], zeros where there is none."""
    _, rows, depth, _ = sizes_of(quads, numbers)
    size = rows * depth
    put, _ = make_numbers(size)

    def weights_kernel(w, packed, plan):
        i = np.int64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x
        slab, rest = i // size, i % size
        to = slab * (NUMBERS * size) + rest
        block, slab = slab // plan[SLABS], slab % plan[SLABS]
        across = plan[SLABS] // plan[DEPTHS]
        row = block % plan[ROW_BLOCKS] * rows + rest % rows
        channel = slab % across * depth + rest // rows
        at = block // plan[ROW_BLOCKS] * plan[W_GROUP] + row * plan[W_ROW] + channel * plan[W_CHANNEL]
        at += plan[W_FIRST] + slab // across * (TAPS * plan[W_TAP])
        exists = row < plan[ROWS] and channel < plan[CHANNELS]
        put(transformed_taps(w, at, plan[W_TAP], exists), packed, to)

    return weights_kernel


@device
def direct(source, w, plan, group, row, n, z, p, q):
    """One result, as the sum that it is."""
    total = np.float32(0)
    for channel in range(plan[CHANNELS]):
        at = n * plan[SOURCE_IMAGE] + group * plan[SOURCE_GROUP] + channel * plan[SOURCE_CHANNEL]
        tap = group * plan[W_GROUP] + row * plan[W_ROW] + channel * plan[W_CHANNEL] + plan[W_FIRST]
        for i in range(plan[DEPTHS] * TAPS):
            d, h, v = z + i // TAPS * plan[STEP_Z], p + i % TAPS // 3, q + i % 3
            if 0 <= d < plan[SIZE_Z] and 0 <= h < plan[SIZE_P] and 0 <= v < plan[SIZE_Q]:
                total += load(w, tap + i * plan[W_TAP]) * load(source, at + d * plan[SOURCE_Z] + h * plan[SOURCE_P] + v)
            elif plan[MEETS_ZEROS]:
                total += load(w, tap + i * plan[W_TAP]) * np.float32(0)
    return total


@device
def again(source, w, out, plan, group, row, tile, there, to, plus):
    """The results of a tile by `direct`: the transform mixes them, and what is not finite belongs to some alone."""
    first_image = tile // plan[TILE_PIXELS]
    n, z, p, q = pixel(tile - first_image * plan[TILE_PIXELS], plan, TILE_PIXELS)
    z, p, q = z + plan[FIRST_Z], 2 * p + plan[FIRST_P], 2 * q + plan[FIRST_Q]
    for i in range(4):
        if there >> i & 1:
            total = direct(source, w, plan, group, row, n + first_image, z, p + i // 2, q + i % 2)
            store(out, to + i // 2 * plan[OUT_P] + i % 2, total + plus)


def make_winograd(dtype, quads, numbers):
    """The kernel of forward and adjoint.

    dtype : "float32", in which is summed
    quads : quads of tiles, and of rows (result channels), of a thread
    numbers : of the 16 numbers of a tile, how many each warp has
    """
    tiles, rows, depth, threads = sizes_of(quads, numbers)
    size = NUMBERS * depth * rows  # of the weights in a slab, after which are the patches
    stage = size + NUMBERS * threads
    vector = WIDE // np.dtype(dtype).itemsize
    fetch_all = make_fetch_all(size // (threads * vector), threads * vector)
    places_at = _places_at(dtype, quads, numbers)
    begin, multiply, spill = make_products(dtype, numbers, *quads, depth)
    put, _ = make_numbers(threads)
    _, take = make_numbers(tiles * SPILL_PITCH)
    arrived = make_arrived(0)
    element = getattr(types, dtype)

    # Over 100 lines with the constants above: from the first fetch to the last, all of it shares one set of registers
    # and these constants, and parts of it would pass a dozen numbers to each other.
    def winograd_kernel(packed, source, w, bias, out, plan):
        shared = cuda.shared.array(0, element)
        places = cuda.shared.array(0, types.int64)
        t = np.int32(cuda.threadIdx.x)
        block = np.int64(cuda.blockIdx.x)
        row_block = block % plan[ROW_BLOCKS]
        block //= plan[ROW_BLOCKS]
        first_tile = block % plan[TILE_BLOCKS] * tiles
        group = block // plan[TILE_BLOCKS]

        # where the tile of this thread's patch lies, and which of its pixels exist
        first_image = first_tile // plan[TILE_PIXELS]
        j = first_tile - first_image * plan[TILE_PIXELS] + t % tiles
        n, z, p, q = pixel(j, plan, TILE_PIXELS)
        n, p, q = n + first_image, 2 * p, 2 * q
        exists = first_tile + t % tiles < plan[TILE_COUNT]
        if t < tiles:
            right, below = q + 1 < plan[OUT_SIZE_Q], p + 1 < plan[OUT_SIZE_P]
            places[places_at + 2 * t] = n * plan[OUT_IMAGE] + z * plan[OUT_Z] + p * plan[OUT_P] + q
            places[places_at + 2 * t + 1] = (1 + 2 * right) * (1 + 4 * below) if exists else 0

        # its patch, of the channel that is this thread's in each slab: a bit for each pixel inside the source
        z, p, q = z + plan[FIRST_Z], p + plan[FIRST_P], q + plan[FIRST_Q]
        across = down = np.int32(0)
        for i in range(SIDE):
            across |= np.int32(inside(np.int32(q + i), np.int32(plan[SIZE_Q]))) << i
            down |= np.int32(inside(np.int32(p + i), np.int32(plan[SIZE_P]))) << SIDE * i
        window = np.int32(across * down) if exists else np.int32(0)
        own = np.int32(t // tiles)
        at = n * plan[SOURCE_IMAGE] + group * plan[SOURCE_GROUP] + own * plan[SOURCE_CHANNEL]
        at += z * plan[SOURCE_Z] + p * plan[SOURCE_P] + q
        channel, channels, depth_now = own, np.int32(plan[CHANNELS]), np.int32(z)
        pitch, next_slab = plan[SOURCE_P], depth * plan[SOURCE_CHANNEL]
        in_slice = window if inside(depth_now, np.int32(plan[SIZE_Z])) else np.int32(0)
        given = patch(source, at, pitch, in_slice if channel < channels else np.int32(0))

        slabs = np.int32(plan[SLABS])
        packed_at = (group * plan[ROW_BLOCKS] + row_block) * slabs * size + vector * t
        lane, first = t % 32, np.int32(t // 32 * numbers)
        a_at = np.int32(size + first * depth * tiles + lane // 8 * QUAD)
        b_at = np.int32(first * depth * rows + lane % 8 * QUAD)
        total = begin()
        for step in range(np.int32(slabs + 1)):
            # the last slab's weights have arrived, and all are done with the one before, whose place is taken next
            arrived()
            cuda.syncthreads()
            here = np.int32((step & 1) * stage)
            if step < slabs:
                fetch_all(shared, np.int32(here + vector * t), packed, packed_at)
                packed_at += size
                put(transformed(given), shared, np.int32(here + size + t))
                channel, at = np.int32(channel + depth), at + next_slab
                if np.int32(channel - own) >= channels:  # on to the next slice
                    at += plan[STEP_Z] * plan[SOURCE_Z] - np.int32(channel - own) * plan[SOURCE_CHANNEL]
                    channel, depth_now = own, np.int32(depth_now + plan[STEP_Z])
                    in_slice = window if inside(depth_now, np.int32(plan[SIZE_Z])) else np.int32(0)
                given = patch(source, at, pitch, in_slice if channel < channels else np.int32(0))
            sent()
            if step > 0:
                total = multiply(total, shared, np.int32(stage - here + a_at), np.int32(stage - here + b_at))

        # 32 rows at a time through shared memory, so that a thread has all numbers of a tile
        for quad in range(quads[1]):
            cuda.syncthreads()
            to = (first * tiles + lane // 8 * QUAD) * SPILL_PITCH + lane % 8 * QUAD
            spill(total, shared, np.int32(to), np.int32(quad))
            cuda.syncthreads()
            for i in range(t, 32 * tiles, threads):
                row = i % 4 + i // 32 % 8 * 4
                tile = i // 4 % 8 + i // 256 * 8
                there = places[places_at + 2 * tile + 1]
                m = row_block * rows + 32 * quad + row
                if there and m < plan[ROWS]:
                    a, b, c, d = results(take(shared, np.int32(tile * SPILL_PITCH + row)))
                    to_out = places[places_at + 2 * tile] + group * plan[OUT_GROUP] + m * plan[OUT_ROW]
                    plus = load(bias, group * plan[ROWS] + m) if plan[HAS_BIAS] else np.float32(0)
                    if math.isfinite(a + b + c + d):
                        store(out, to_out, a + plus)
                        if there & 2:
                            store(out, to_out + 1, b + plus)
                        if there & 4:
                            store(out, to_out + plan[OUT_P], c + plus)
                        if there & 8:
                            store(out, to_out + plan[OUT_P] + 1, d + plus)
                    else:
                        again(source, w, out, plan, group, m, first_tile + tile, there, to_out, plus)

    return winograd_kernel


# ------------------------------------------------------------------------------------------ predicates

# Quads of tiles and of rows, and numbers of a warp: 64 rows of 32 tiles, 128 registers of 256 threads for their sums.
BLOCK = (2, 2), 2
STORED = ("float32", "float16", "bfloat16")
# The share of the peak, as in `tiles.Tile`: 0.81 of the instructions of the inner loop, less what eight warps do not
# hide. What is before and after that loop takes about as long as two slabs: 0.9 thousand instructions and three times
# the way to memory and back.
SHARE, EDGE_SLABS = 0.70, 2


def is_winograd(geometry):
    """Whether F(2x2, 3x3) takes the call."""
    g = geometry
    return g.rank > 1 and tuple(g.kernel[-2:]) == (3, 3) and set(g.stride) == {1} and set(g.dilation[-2:]) == {1}


def is_exact(geometry, contraction):
    """Whether it rounds no more than is allowed, as `loopconv.tiled.driver.is_winograd_exact`.

    The largest error of 64 channels of 8 images of 15 x 15, six times, as a share of `registry.tolerance`: 2.7 over 4
    channels and 0.8 over 8 with a padding of 2, whose corners one tap reaches; 0.3 and 0.2 with 1.
    """
    return plans.sum_of(geometry, contraction).C >= 8


def is_faster(geometry, contraction, capability):
    """Whether it is expected to be faster than implicit GEMM in float32, by the multiply-adds of whole blocks."""
    if plans.is_grouped(geometry, contraction):
        return False
    t, known = plans.sum_of(geometry, contraction), nearest(capability)
    tiles, rows, depth, _ = sizes_of(*BLOCK)
    (phase,) = t.phases
    blocks = prod(_blocks(t, tiles, rows))
    slabs = t.p.k[0] * -(-t.C // depth) + EDGE_SLABS
    time = -(-blocks // CHIPS[known].processors) * NUMBERS * rows * tiles * depth * slabs / SHARE
    columns, steps = t.p.N * prod(phase.sizes), t.C * len(phase.taps)
    return time < min(
        time_of(tile, t.p.G, t.M, columns, -(-steps // tile.depth), CHIPS[known]) for tile in TILES[known]["float32"]
    )


# ------------------------------------------------------------------------------------------ plans

WEIGHTS_THREADS = 256


def _per_slice(sizes):
    """Tiles on the three axes of so many results."""
    return sizes[0], -(-sizes[1] // 2), -(-sizes[2] // 2)


def _blocks(t, tiles, rows):
    """Groups, blocks of rows, and blocks of tiles."""
    return t.p.G, -(-t.M // rows), -(-t.p.N * prod(_per_slice(t.phases[0].sizes)) // tiles)


def sum_plan(geometry, contraction, numbers, has_bias=False, block=BLOCK):
    """Forward or adjoint: transform the weights, then all the rest at once."""
    t = plans.sum_of(geometry, contraction)
    tiles, rows, depth, threads = sizes_of(*block)
    groups, row_blocks, tile_blocks = _blocks(t, tiles, rows)
    slabs = t.p.k[0] * -(-t.C // depth)
    source, out = ("x", "y") if contraction == "forward" else ("y", "x")
    constants = numbers.compute, *block
    header = _header(t, contraction, row_blocks, tile_blocks, slabs, has_bias)
    weights = groups * row_blocks * slabs * rows * depth
    at_once = min(WEIGHTS_THREADS, rows * depth)
    transform = Launch(make_weights, constants, ("w", "packed"), header, weights // at_once, at_once)
    multiply = Launch(
        make_winograd, constants, ("packed", source, "w", "bias" if has_bias else "w", out), header,
        groups * row_blocks * tile_blocks, threads, shared_bytes(*constants),
    )  # fmt: skip
    return Plan((transform, multiply), {"packed": (NUMBERS * weights, None)})


def _header(t, contraction, row_blocks, tile_blocks, slabs, has_bias):
    (phase,) = t.phases
    per_slice = _per_slice(phase.sizes)
    taps = sorted((moves, number) for number, moves in phase.taps)
    (first, number), step_z = taps[0], taps[-1][0][0] - taps[0][0][0]
    numbers = [
        row_blocks, tile_blocks, t.M, t.C, t.p.k[0], slabs, t.p.N * prod(per_slice), int(has_bias),
        t.source_image, t.C * t.source_steps[0], *t.source_steps[:3], t.out_image, t.M * t.out_steps[0],
        *t.out_steps[:3], *t.source, *phase.sizes[1:], first[0], step_z // max(t.p.k[0] - 1, 1), *first[1:],
        int(contraction == "forward"), *t.w_steps, number, taps[1][1] - number, *plans._divisors(per_slice),
    ]  # fmt: skip
    assert len(numbers) == HEADER
    return np.array(numbers, np.int64)
