"""Where the direct kernel's tiles read and write: tables of copies, taps and runs.

A tile is `width` positions. Either they are neighbours in the buffer, from one tile to the next, and those that
fall into gaps are computed for nothing; or, for small images, they are pixels only, gathered from wherever they
are. What a tile reads is copied into a panel, channel by channel, by vectors in ascending order: a vector may
run over into the place of the next.
"""

from typing import NamedTuple

import numpy as np

NEVER = 1 << 60


class Phase(NamedTuple):
    """One phase of the result: its taps, its tiles, and the copies that fill a tile's panel."""

    first_tap: int
    past_tap: int
    tiles: int
    positions: int
    last: int  # where in the buffer the last tile begins at most
    first_copy: int
    copies: int


class Tiling(NamedTuple):
    """How the result phases of a layout are cut into tiles.

    Attributes
    ----------
    phases : list of Phase
    step : int
        Buffer positions from tile to tile.
    copies : int64 array (entries, 2)
        (from, to): position in the buffer, after the tile's, and in the panel of a channel.
    gathered : bool
        Whether each tile has copies of its own.
    taps : int64 array
        Where in the panel each tap begins; without panel, where in the buffer.
    depth : int
        Elements of a channel in the panel.
    runs : list of int64 arrays (runs, 3)
        For each phase, runs of results: (position, length, element of the result).
    """

    phases: list
    step: int
    copies: np.ndarray
    gathered: bool
    taps: np.ndarray
    depth: int
    runs: list


def flattened(layout, width, lanes, in_place, paneled):
    """Tiles over the flattened buffer, gaps included."""
    phases, runs, copies = [], [], []
    taps, depth = layout.tap_offset.copy(), 0
    for t0, t1, *_, flat in layout.results.tolist():
        tiles, last, first = -(-flat // width), NEVER, len(copies)
        phase = layout.results[len(phases)]
        if paneled:
            places, taps[t0:t1] = _stretches(layout.tap_offset[t0:t1], width, lanes)
            copies += places
            depth = max(depth, *(to + lanes for _, to in places), 0)
        rows = _rows(layout, phase)
        if in_place:  # the last tile ends with the array, over the one before
            last = flat - width
            moved = _clipped(rows, last, flat, layout.step[2])
            moved[:, 0] += tiles * width - flat
            rows = np.concatenate([_clipped(rows, 0, (tiles - 1) * width, layout.step[2]), moved])
            flat = tiles * width
        phases.append(Phase(t0, t1, tiles, flat, last, first, len(copies) - first))
        runs.append(rows)
    return Tiling(phases, width, _pairs(copies), False, taps, depth, runs)


def gathered(layout, width, lanes):
    """Tiles of pixels only, for images of few pixels."""
    phases, runs, copies = [], [], []
    taps, depth = layout.tap_offset.copy(), 0
    for t0, t1, Z, P, Q, start, _ in layout.results.tolist():
        z, p, q = (axis.reshape(-1) for axis in np.indices((Z, P, Q)))
        position = z * layout.pitches[1] * layout.pitches[2] + p * layout.pitches[2] + q
        element = start + z * layout.step[0] + p * layout.step[1] + q * layout.step[2]
        tiles, first = -(-len(position) // width), len(copies)
        taps[t0:t1] = np.arange(t1 - t0) * width
        depth = max(depth, (t1 - t0) * width)
        each = [_gather(position[i * width : (i + 1) * width], layout.tap_offset[t0:t1], width, lanes)
                for i in range(tiles)]  # fmt: skip
        most = max(map(len, each))
        copies += [pair for places in each for pair in places + places[-1:] * (most - len(places))]
        phases.append(Phase(t0, t1, tiles, len(position), NEVER, first, most))
        runs.append(np.array([(at, n, element[at]) for at, n in _stretched(element, layout.step[2])], np.int64))
    return Tiling(phases, 0, _pairs(copies), True, taps, depth, runs)


def copies_of_a_tile(layout, width, lanes, is_gathered):
    """About how many vectors `flattened` or `gathered` copies for a tile of each phase, as a list."""
    counts = []
    for t0, t1, _, _, Q, _, _ in layout.results.tolist():
        if is_gathered:
            counts.append((t1 - t0) * (width // lanes + (width // Q if Q % lanes else 0)))
        else:
            counts.append(len(_stretches(layout.tap_offset[t0:t1], width, lanes)[0]))
    return counts


def _rows(layout, phase):
    """The runs of one phase over the flattened buffer: its rows."""
    Z, P, Q, start = phase[2:6]
    z, p = (axis.reshape(-1) for axis in np.indices((Z, P)))
    position = z * layout.pitches[1] * layout.pitches[2] + p * layout.pitches[2]
    element = start + z * layout.step[0] + p * layout.step[1]
    # rows that follow each other in both are one run
    apart = (np.diff(position) != Q) | (np.diff(element) != Q * layout.step[2])
    first = np.flatnonzero(np.concatenate([[True], apart]))
    length = np.diff(np.append(first, len(position))) * Q
    return np.stack([position[first], length, element[first]], axis=1)


def _clipped(runs, first, last, step):
    """What of the runs lies in the positions first .. last-1."""
    begin, end = np.maximum(runs[:, 0], first), np.minimum(runs[:, 0] + runs[:, 1], last)
    table = np.stack([begin, end - begin, runs[:, 2] + (begin - runs[:, 0]) * step], axis=1)
    return table[table[:, 1] > 0]


def _stretches(offsets, width, lanes):
    """([(from, to)] of the vectors that bring all taps, [where each tap is then]).

    Taps at most a vector apart are brought together.
    """
    ordered = sorted(set(offsets.tolist()))
    copies, places, to = [], {}, 0
    while ordered:
        near = [ordered[0]]
        while len(near) < len(ordered) and ordered[len(near)] - near[-1] <= lanes:
            near.append(ordered[len(near)])
        begin, length = near[0], near[-1] - near[0] + width
        # the last vector ends with the stretch: nothing is read that no tap reads
        starts = [*range(0, length - lanes, lanes), length - lanes]
        copies += [(begin + start, to + start) for start in starts]
        places |= {tap: to + tap - begin for tap in near}
        to += -(-length // lanes) * lanes
        ordered = ordered[len(near) :]
    return copies, [places[tap] for tap in offsets.tolist()]


def _gather(positions, offsets, width, lanes):
    """[(from, to)] of the vectors that bring these positions for every tap, each to `width` places of its own."""
    runs = _stretched(positions, 1)
    return [
        (int(positions[at] + offset) + part, tap * width + at + part)
        for tap, offset in enumerate(offsets.tolist())
        for at, n in runs
        for part in range(0, n, lanes)
    ]


def _stretched(numbers, step):
    """[(first index, length)] of the runs in which numbers grow by `step`."""
    ends = [*(np.flatnonzero(np.diff(numbers) != step) + 1).tolist(), len(numbers)]
    return [(begin, end - begin) for begin, end in zip([0, *ends], ends)]


def _pairs(copies):
    return np.array(copies, np.int64).reshape(-1, 2)
