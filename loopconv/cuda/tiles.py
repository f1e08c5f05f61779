"""Every block size of the tuned kernels, one table per compute capability."""

from typing import NamedTuple


class Chip(NamedTuple):
    """What of a device decides block sizes."""

    processors: int  # streaming multiprocessors
    shared: int  # bytes of shared memory that a block may have; a multiprocessor has 1 KiB more


class Tile(NamedTuple):
    """One way to cut a product into blocks.

    `share` is the part of the multiprocessor's peak that full blocks are expected to reach: the share of multiply-adds
    among the instructions of the inner loop, as the assembler made it (README.md), less what two blocks cannot hide.
    """

    rows: int
    columns: int
    quads: tuple  # of rows, of columns, in each thread; for tensor cores, sixteenths of those of a warp
    depth: int  # steps of a slab
    stages: int  # slabs in shared memory
    resident: int  # blocks on one multiprocessor
    share: float


# A100, RTX 3090, H100, RTX 5090. Other devices take the entry of the nearest lower capability.
CHIPS = {
    (8, 0): Chip(108, 163 << 10),
    (8, 6): Chip(82, 99 << 10),
    (9, 0): Chip(132, 227 << 10),
    (12, 0): Chip(170, 99 << 10),
}

# 128 x 128 needs 128 registers of 256 threads: two blocks fill the register file. The smaller ones are for results
# that would leave multiprocessors without a block, and for few channels.
_FLOAT32 = (
    Tile(128, 128, (2, 2), 16, 3, 2, 0.84),
    Tile(64, 128, (2, 2), 16, 3, 3, 0.78),
    Tile(64, 64, (2, 1), 16, 3, 4, 0.68),
    Tile(32, 128, (2, 1), 16, 3, 4, 0.64),
    Tile(16, 128, (1, 1), 16, 3, 4, 0.48),
)
_FLOAT64 = (
    Tile(128, 64, (4, 2), 8, 3, 2, 0.80),
    Tile(64, 64, (2, 2), 8, 3, 4, 0.70),
    Tile(16, 128, (1, 2), 8, 3, 3, 0.50),
)
# Of tensor cores; a slab has 64 bytes of each row and column. In a warp's tile of 64 x 64, 64 `mma` read 16 KiB.
_TF32 = (
    Tile(128, 128, (4, 4), 16, 4, 2, 0.5),
    Tile(64, 128, (2, 4), 16, 4, 3, 0.45),
    Tile(64, 64, (2, 2), 16, 4, 4, 0.35),
)
_HALF = tuple(tile._replace(depth=32) for tile in _TF32)
_WEIGHT_TF32 = tuple(tile._replace(stages=3) for tile in _TF32)  # as many blocks have room for three slabs each
# The weight gradient finds where its pixels lie once for a slab, so its slabs are deeper.
_WEIGHT32 = tuple(tile._replace(stages=2, resident=min(tile.resident, 3), share=tile.share * 0.93) for tile in _FLOAT32)


def _tables(chip, **tables):
    """The tables of a chip: with less shared memory, as many blocks have two slabs each."""
    if chip.shared > 100 << 10:
        return tables
    return {name: tuple(tile._replace(stages=2) for tile in tiles) for name, tiles in tables.items()}


TILES = {
    capability: _tables(chip, float32=_FLOAT32, float64=_FLOAT64, half=_HALF, tf32=_TF32)
    for capability, chip in CHIPS.items()
}
WEIGHT_TILES = {
    capability: _tables(chip, float32=_WEIGHT32, float64=_FLOAT64, half=_HALF, tf32=_WEIGHT_TF32)
    for capability, chip in CHIPS.items()
}

# Winograd's: result channels by tiles of 2 x 2 pixels, and in the weight gradient channels of y by those of x, in all
# 16 numbers of a tile at once: 128 registers of 256 threads. The shares are 0.83 and 0.79 of the instructions, less
# what eight warps do not hide. Before and after the loop over slabs takes about as long as two: 1.5 thousand
# instructions, and three times the way to memory and back.
WINOGRAD = Tile(64, 32, (2, 2), 8, 2, 1, 0.70)
WINOGRAD_WEIGHT = WINOGRAD._replace(share=0.66)
EDGE_SLABS = 2

# Of small groups: pixels, or columns, of each thread, and threads.
GROUPED, GROUPED_WEIGHT = (4, 128), (8, 128)


class Depthwise(NamedTuple):
    """Blocks of depthwise layers, and what bounds a thread's tile."""

    threads: int
    rows: int  # of a tile, at most
    results: int  # of a tile, at most, but for those of all phases of the adjoint
    registers: int  # for what a thread holds at once: sums, taps, source pixels
    carried: int  # of these, for what loops carry besides
    others: int  # registers for all else
    products: int  # that are unrolled
    resident: int  # blocks on one multiprocessor, at most
    turns: int  # tiles of each thread of the weight gradient, at least
    enough: int  # tiles that keep a chip busy: a warp on each quarter of 132 multiprocessors


DEPTHWISE = Depthwise(
    threads=128,
    rows=8,
    results=16,
    registers=136,
    carried=20,
    others=40,
    products=1024,
    resident=8,
    turns=2,
    enough=132 * 4 * 32,
)

# A split has at least so many slabs: fewer do not pay for the second pass, which reads each part once.
SPLIT_SLABS = 8
# Parts of one result: more cost more to add up than they bring.
MOST_SPLITS = 256


def nearest(capability):
    """The capability of the tables that serves `capability`."""
    return max((known for known in TILES if known <= tuple(capability)), default=min(TILES))


def splits_of(blocks, slabs, tile, chip):
    """Into how many sums to cut each result so that the chip is full, by the geometry and the chip alone."""
    places = chip.processors * tile.resident
    return max(1, min(places // max(blocks, 1), slabs // SPLIT_SLABS, MOST_SPLITS))


def time_of(tile, groups, rows, columns, slabs, chip):
    """Expected time, in multiply-adds of one multiprocessor at its peak."""
    blocks = groups * -(-rows // tile.rows) * -(-columns // tile.columns)
    splits = splits_of(blocks, slabs, tile, chip)
    each = -(-blocks * splits // chip.processors)
    # a block that has its multiprocessor to itself waits for what it fetched: taken for 0.6 of its speed
    share = tile.share * (0.6 + 0.4 * min(each / tile.resident, 1))
    return each * tile.rows * tile.columns * tile.depth * slabs / splits / share


def best_tile(tiles, capability, name, groups, rows, columns, steps):
    """The tile that is expected to be the fastest for a product of so many rows, columns and steps."""
    known = nearest(capability)
    return min(
        tiles[known][name], key=lambda tile: time_of(tile, groups, rows, columns, -(-steps // tile.depth), CHIPS[known])
    )
