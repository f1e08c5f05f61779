"""Where the direct kernel's tiles read and write: tables of copies, taps and runs.

A tile is `width` positions, and some tiles side by side are a part. Either all positions are neighbours in the
buffer, and those that fall into gaps are computed for nothing; or, for small images, they are pixels only, gathered
from wherever they are. What a part reads is copied into a panel, channel by channel, by vectors in ascending
order: a vector may run over into the place of the next.
"""

from typing import NamedTuple

import numpy as np

NEVER = 1 << 60


class Phase(NamedTuple):
    """One phase of the result: its taps, its tiles, and the copies that fill a part's panel."""

    first_tap: int
    past_tap: int
    tiles: int
    positions: int
    last: int  # where in the buffer the last part begins at most
    first_copy: int
    copies: int


class Tiling(NamedTuple):
    """How the result phases of a layout are cut into tiles.

    Attributes
    ----------
    phases : list of Phase
    step : int
        Buffer positions from part to part.
    copies : int64 array (entries, 2)
        (from, to): position in the buffer, after the part's and the channel's, and in the panels of the part.
    copies_step : int
        Entries from one part's copies to the next's: 0 where all have the same.
    offsets : int64 array
        For each phase, channel of a chunk and tap: where in the panel it begins; without panels, where in the buffer.
    depth, chunk, panel : int
        Elements of a channel in a panel; channels of a panel; elements from one tile's panel to the next's.
    runs : list of int64 arrays (runs, 3)
        For each phase, runs of results: (position, length, element of the result).
    """

    phases: list
    step: int
    copies: np.ndarray
    copies_step: int
    offsets: np.ndarray
    depth: int
    chunk: int
    panel: int
    runs: list


def flattened(layout, width, part, lanes, in_place, paneled, room, C):
    """Tiles of `width` positions over the flattened buffer, gaps included, in parts of `part` tiles.

    `room` is how many elements a tile may read before it goes on to the next channels.
    """
    phases, runs, each = [], [], []
    taps, depth = layout.tap_offset.copy(), 0
    for phase in layout.results:
        t0, t1, flat = phase[0], phase[1], int(phase[6])
        tiles, last = -(-flat // width), NEVER
        places, panel_taps = _stretches(layout.tap_offset[t0:t1], width, lanes)
        depth = max([depth, *(to + lanes for _, to in places)])
        if paneled:
            taps[t0:t1] = panel_taps
        rows = _rows(layout, phase)
        if in_place:  # the last part ends with the array, over the one before
            own = _tiles_of_last_part(flat, width, part, paneled)
            tiles = (-(-tiles // part) - 1) * part + own
            last = flat - own * width
            moved = _clipped(rows, last, flat, layout.step[2])
            moved[:, 0] += tiles * width - flat
            rows = np.concatenate([_clipped(rows, 0, (tiles - own) * width, layout.step[2]), moved])
            flat = tiles * width
        phases.append((int(t0), int(t1), tiles, flat, last))
        runs.append(rows)
        each.append(places)
    chunk = _chunk(C, room, depth)
    if not paneled:
        return _tiling(phases, part * width, [[]], 1, _offsets(phases, taps, layout.channel, chunk), 0, chunk, 0, runs)
    panel = chunk * depth + lanes
    copies = [
        sorted((begin + tile * width, to + tile * panel) for tile in range(part) for begin, to in places)
        for places in each
    ]
    offsets = _offsets(phases, taps, depth, chunk)
    return _tiling(phases, part * width, copies, 1, offsets, depth, chunk, panel, runs)


def has_last_part(layout, width, part, paneled):
    """Whether each result phase has as many positions as its last part, which may then end where the phase does."""
    flats = layout.results[:, -1].tolist()
    return bool(flats) and all(flat >= width * _tiles_of_last_part(flat, width, part, paneled) for flat in flats)


def _tiles_of_last_part(flat, width, part, paneled):
    """Tiles of the last part of `flat` positions; a panel's copies are always those of a whole part."""
    return part if paneled else (-(-flat // width) - 1) % part + 1


def gathered(layout, width, part, lanes, room, C):
    """Tiles of `width` pixels, in parts of `part` tiles, for images of few pixels."""
    phases, runs, copies = [], [], []
    taps, depth = layout.tap_offset.copy(), int(np.diff(layout.results[:, :2]).max(initial=0)) * width
    chunk = _chunk(C, room, depth)
    panel = chunk * depth + lanes
    parts = -(-max([1, *(layout.results[:, 2:5].prod(axis=1))]) // (part * width))
    for t0, t1, Z, P, Q, start, _ in layout.results.tolist():
        z, p, q = (axis.reshape(-1) for axis in np.indices((Z, P, Q)))
        position = z * layout.pitches[1] * layout.pitches[2] + p * layout.pitches[2] + q
        element = start + z * layout.step[0] + p * layout.step[1] + q * layout.step[2]
        taps[t0:t1] = np.arange(t1 - t0) * width
        phases.append((t0, t1, -(-len(position) // width), len(position), NEVER))
        runs.append(np.array([(at, n, element[at]) for at, n in _stretched(element, layout.step[2])], np.int64))
        tiles = [
            _gather(position[begin : begin + width], layout.tap_offset[t0:t1], width, lanes)
            for begin in range(0, parts * part * width, width)
        ]
        copies += [
            [(begin, to + tile * panel) for tile in range(part) for begin, to in tiles[first + tile]]
            for first in range(0, parts * part, part)
        ]
    offsets = _offsets(phases, taps, depth, chunk)
    return _tiling(phases, 0, copies, parts, offsets, depth, chunk, panel, runs)


def _chunk(C, room, depth):
    """Channels to sum before the next ones' panels are made: as many as fit into `room`, about equally many."""
    most = room // depth if depth else C
    return -(-C // -(-C // max(1, min(C, most))))


def _offsets(phases, taps, channel, chunk):
    """Where each channel of a chunk and tap is, phase by phase, if channels are `channel` apart."""
    first = np.arange(chunk)[:, None] * channel
    offsets = np.zeros(chunk * len(taps), np.int64)  # also for taps of phases that have no pixels
    for t0, t1, *_ in phases:
        offsets[t0 * chunk : t1 * chunk] = (first + taps[t0:t1]).reshape(-1)
    return offsets


def _tiling(phases, step, copies, parts, offsets, depth, chunk, panel, runs):
    """The tiling, where each phase has `parts` lists of copies."""
    count = max(map(len, copies), default=0)
    # to do the last again is no harm; where there is none, no tile asks for them
    padded = [places + (places[-1:] or [(0, 0)]) * (count - len(places)) for places in copies]
    phases = [
        Phase(*phase, number * parts * count, count if copies[number * parts : number * parts + 1] != [[]] else 0)
        for number, phase in enumerate(phases)
    ]
    table = np.array([pair for places in padded for pair in places], np.int64).reshape(-1, 2)
    return Tiling(phases, step, table, count if step == 0 else 0, offsets, depth, chunk, panel, runs)


def copies_of_a_part(layout, width, lanes, is_gathered):
    """About how many vectors `flattened` or `gathered` copies for `width` positions of each phase, as a list."""
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


def _gather(positions, offsets, size, lanes):
    """[(from, to)] of the vectors that bring these positions for every tap, each to `size` places of its own."""
    runs = _stretched(positions, 1)
    return [
        (int(positions[at] + offset) + part, tap * size + at + part)
        for tap, offset in enumerate(offsets.tolist())
        for at, n in runs
        for part in range(0, n, lanes)
    ]


def _stretched(numbers, step):
    """[(first index, length)] of the runs in which numbers grow by `step`."""
    ends = [*(np.flatnonzero(np.diff(numbers) != step) + 1).tolist(), len(numbers)]
    return [(begin, end - begin) for begin, end in zip([0, *ends], ends)]
