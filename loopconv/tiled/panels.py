"""Where the direct kernel's tiles read and write: tables of copies, taps and runs.

A tile is `width` positions, and some tiles side by side are a part. Either all positions are neighbours in the
buffer, and those that fall into gaps are computed for nothing; or each part begins with a row of pixels; or they are
pixels only, gathered from wherever they are. What a part reads is copied into a panel, channel by channel, by vectors
in ascending order: a vector may run over into the place of the next.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from loopconv.tiled.layout import fan

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
    depth, chunk : int
        Elements of a channel in a part's panel; channels of a panel.
    runs : list of int64 arrays (runs, 5)
        For each phase, runs of results: (position, length, element of the result, first phase, phases), the last two of
        those that are merged or of a fan, and lie side by side in the result.
    """

    phases: list
    step: int
    copies: np.ndarray
    copies_step: int
    offsets: np.ndarray
    depth: int
    chunk: int
    runs: list


def flattened(layout, width, part, lanes, in_place, paneled, room, C):
    """Tiles of `width` positions over the flattened buffer, gaps included, in parts of `part` tiles.

    `room` is how many elements a tile may read before it goes on to the next channels.
    """
    phases, runs, copies = [], [], []
    taps, depth, reach = layout.tap_offset.copy(), 0, 0
    for phase in layout.results:
        t0, t1, flat = phase[0], phase[1], int(phase[6])
        tiles, last = -(-flat // width), NEVER
        places, panel_taps, size = _stretches(layout.tap_offset[t0:t1], part * width, lanes)
        depth, reach = max(depth, size), max(reach, _stretches(layout.tap_offset[t0:t1], width, lanes)[2])
        if paneled:
            taps[t0:t1] = panel_taps
        rows = _merged_rows(layout) if len(layout.merged) else _rows(layout, 0, *phase[2:6], 0, fan(layout))
        own = _tiles_of_last_part(flat, width, part, paneled)
        if in_place and _may_end(layout, phase, own * width):  # where the phase ends, over the part before
            tiles = (-(-tiles // part) - 1) * part + own
            last = flat - own * width
            moved = _clipped(rows, last, flat, layout.step[2])
            moved[:, 0] += tiles * width - flat
            rows = np.concatenate([_clipped(rows, 0, (tiles - own) * width, layout.step[2]), moved])
            flat = tiles * width
        phases.append((int(t0), int(t1), tiles, flat, last))
        runs.append(rows)
        copies.append(places)
    chunk = _chunk(C, room, reach)
    if not paneled:
        return _tiling(phases, part * width, [[]], 1, tap_offsets(phases, taps, layout.channel, chunk), 0, chunk, runs)
    depth = _apart(depth, lanes)
    return _tiling(phases, part * width, copies, 1, tap_offsets(phases, taps, depth, chunk), depth, chunk, runs)


def is_inside(layout, width, part, paneled):
    """Whether no part reads outside of its channel; the last one of a phase may begin earlier."""
    sizes = [width * _tiles_of_last_part(phase[-1], width, part, paneled) for phase in layout.results.tolist()]
    return bool(sizes) and all(
        _may_end(layout, phase, size) or _taps(layout, phase).max(initial=0) + size <= layout.channel
        for phase, size in zip(layout.results, sizes)
    )


def _may_end(layout, phase, size):
    """Whether `size` positions that end where the phase does begin after the beginning of the channel."""
    return size <= phase[-1] + _taps(layout, phase).min(initial=layout.channel)


def _taps(layout, phase):
    return layout.tap_offset[phase[0] : phase[1]]


def _tiles_of_last_part(flat, width, part, paneled):
    """Tiles of the last part of `flat` positions; a panel's copies are always those of a whole part."""
    return part if paneled else (-(-flat // width) - 1) % part + 1


def gathered(layout, width, part, lanes, room, C):
    """Tiles of `width` pixels, in parts of `part` tiles, for images whose gaps would take much of a tile."""
    phases, runs, columns, size = [], [], [], part * width
    taps, depth, reach = layout.tap_offset.copy(), 0, 0
    parts = -(-max([1, *(layout.results[:, 2:5].prod(axis=1))]) // size)
    for row in layout.results:
        t0, t1, _, _, Q, start, _ = row.tolist()
        element = _pixels(row, start, layout.step)
        columns.append(_columns(layout, row, size))
        to = 0
        for _, lags in columns[-1]:
            for tap, lag in lags.items():
                taps[t0 + tap] = to + lag * Q
            to += -(-(size + max(lags.values()) * Q) // lanes) * lanes
        depth = max(depth, to)
        reach = max(reach, sum(min(len(lags) * width, width + max(lags.values()) * Q) for _, lags in columns[-1]))
        phases.append((t0, t1, -(-len(element) // width), len(element), NEVER))
        position, length = np.array(_stretched(element, layout.step[2])).T
        runs.append(_runs(position, length, element[position], 0, fan(layout)))
    copies = [
        _gather(layout, row, some, first * size, size, lanes)
        for row, some in zip(layout.results, columns)
        for first in range(parts)
    ]
    chunk, depth = _chunk(C, room, reach), _apart(depth, lanes)
    return _tiling(phases, 0, copies, parts, tap_offsets(phases, taps, depth, chunk), depth, chunk, runs)


def by_rows(layout, width, part, lanes, room, C):
    """Tiles of `width` pixels of a row, in parts of one row: of each row between the first and the last."""
    phases, runs, reach = [], [], 0
    for t0, t1, Z, P, Q, start, _ in layout.results.tolist():
        z, p = (axis.reshape(-1) for axis in np.indices((Z, P)))
        tiles = rows_of_phase(layout, Z, P) * part
        phases.append((t0, t1, tiles, tiles * width, NEVER))
        position, element = z * layout.pitches[1] + p, start + z * layout.step[0] + p * layout.step[1]
        runs.append(_runs(position * part * width, Q, element, 0, fan(layout)))
        reach = max(reach, _stretches(layout.tap_offset[t0:t1], width, lanes)[2])
    chunk = _chunk(C, room, reach)
    offsets = tap_offsets(phases, layout.tap_offset, layout.channel, chunk)
    return _tiling(phases, layout.pitches[2], [[]], 1, offsets, 0, chunk, runs)


class Listing(NamedTuple):
    """The pixels of a result, in the order of its elements, in parts, and their tiles of pixels with the same taps.

    Attributes
    ----------
    parts : int64 array (parts + 1, 2)
        First tile and first run of each part.
    tiles : int64 array
        The phase of each tile.
    positions : int64 array
        For each pixel of each tile, where it is read in the buffer.
    places : int64 array
        For each pixel of the result, which one it is of the part's tiles.
    runs : int64 array (runs, 3)
        Pixels whose elements follow each other: (first pixel, pixels, first element).
    most : int
        Tiles of a part.
    """

    parts: np.ndarray
    tiles: np.ndarray
    positions: np.ndarray
    places: np.ndarray
    runs: np.ndarray
    most: int


def listed(layout, rows, size):
    """Tiles of `rows` pixels, each read where it is, in parts of `size` pixels of the result."""
    F, (phase, position, element) = len(layout.results), ordered(layout)
    # pixels with the same key are a part's of one phase
    pixels = np.arange(len(element))
    key = pixels // size * F + phase
    parts = -(-len(element) // size)
    by_key = np.argsort(key, kind="stable")
    counts = np.bincount(key, minlength=parts * F)
    begin, tiles = np.cumsum(counts) - counts, -(-counts // rows)
    first = np.cumsum([0, *tiles])
    place = np.empty_like(key)
    place[by_key] = (first[:-1] * rows)[key[by_key]] + pixels - begin[key[by_key]]
    # the last tile of a phase reads one of its pixels more than once
    of_tile = np.repeat(np.arange(parts * F), tiles)
    positions = np.repeat(position[by_key[begin[of_tile]]], rows)
    positions[place] = position
    first_tile = first[::F]
    runs = np.array([(at, n, element[at]) for at, n in _stretched(element, 1)] + [(NEVER, 0, 0)], np.int64)
    first_run = np.searchsorted(runs[:, 0] + runs[:, 1], np.arange(parts) * size, side="right")
    return Listing(
        np.stack([first_tile, np.append(first_run, 0)], axis=1), of_tile % F, positions,
        place - first_tile[pixels // size] * rows, runs, int(np.diff(first_tile).max()),
    )  # fmt: skip


def ordered(layout):
    """(phase, position in the buffer, element of the result) of all pixels, in the order of the elements."""
    results = layout.results
    phase = np.repeat(np.arange(len(results)), results[:, 2:5].prod(axis=1))
    position = np.concatenate([_pixels(row, 0, layout.source_step) for row in results])
    element = np.concatenate([_pixels(row, row[5], layout.step) for row in results])
    in_order = np.argsort(element)
    return phase[in_order], position[in_order], element[in_order]


def tiles_of_parts(phases, rows, size):
    """How many tiles of `rows` pixels of one phase each part of `size` pixels and each phase has."""
    F = phases.max() + 1
    return -(-np.bincount(np.arange(len(phases)) // size * F + phases) // rows)


def _pixels(phase, first, step):
    """Where the pixels of a phase of the result are, from the first on."""
    z, p, q = (axis.reshape(-1) for axis in np.indices(phase[2:5]))
    return first + z * step[0] + p * step[1] + q * step[2]


def rows_of_phase(layout, Z, P):
    """Rows of the buffer from the first to the last of Z slices of P rows."""
    return (Z - 1) * layout.pitches[1] + P


def _columns(layout, phase, size):
    """[(offset of the first tap, {tap: rows below it})] of the taps of a phase that are read together.

    In one slice they are those that are whole rows apart, as long as `size` pixels reach from one to the next.
    """
    offsets = layout.tap_offset[phase[0] : phase[1]].tolist()
    pitch, Z, Q = layout.pitches[2], phase[2], phase[4]
    columns = []
    for tap in sorted(range(len(offsets)), key=lambda tap: (offsets[tap] % pitch, offsets[tap])):
        lag, rest = divmod(offsets[tap] - columns[-1][0], pitch) if columns else (0, 1)
        if rest or Z > 1 or (lag - max(columns[-1][1].values())) * Q > size:
            columns.append((offsets[tap], {tap: 0}))
        else:
            columns[-1][1][tap] = lag
    return columns


def _apart(depth, lanes):
    """A depth of at least `depth`, for which channels do not drive each other out of the first-level cache."""
    return depth + lanes * (depth % (8 * lanes) == 0)


def _chunk(C, room, depth):
    """Channels to sum before the next ones' panels are made: as many as fit into `room`, about equally many."""
    most = room // depth if depth else C
    return -(-C // -(-C // max(1, min(C, most))))


def tap_offsets(phases, taps, channel, chunk):
    """Where each channel of a chunk and tap is, phase by phase, if channels are `channel` apart."""
    first = np.arange(chunk)[:, None] * channel
    offsets = np.zeros(chunk * len(taps), np.int64)  # also for taps of phases that have no pixels
    for t0, t1, *_ in phases:
        offsets[t0 * chunk : t1 * chunk] = (first + taps[t0:t1]).reshape(-1)
    return offsets


def _tiling(phases, step, copies, parts, offsets, depth, chunk, runs):
    """The tiling, where each phase has `parts` lists of copies."""
    count = max(map(len, copies), default=0)
    # to do the last again is no harm; where there is none, no tile asks for them
    padded = [places + (places[-1:] or [(0, 0)]) * (count - len(places)) for places in copies]
    phases = [
        Phase(*phase, number * parts * count, count if copies[number * parts : number * parts + 1] != [[]] else 0)
        for number, phase in enumerate(phases)
    ]
    table = np.array([pair for places in padded for pair in places], np.int64).reshape(-1, 2)
    return Tiling(phases, step, table, count if step == 0 else 0, offsets, depth, chunk, runs)


def copies_of_a_part(layout, size, lanes, is_gathered):
    """About how many vectors `flattened` or `gathered` copies for `size` positions of each phase, as a list."""
    counts = []
    for phase in layout.results:
        t0, t1, Q = phase[0], phase[1], int(phase[4])
        if is_gathered:
            lengths = [size + max(lags.values()) * Q for _, lags in _columns(layout, phase, size)]
            counts.append(sum(length // lanes + (length // Q if Q % lanes else 0) for length in lengths))
        else:
            counts.append(len(_stretches(layout.tap_offset[t0:t1], size, lanes)[0]))
    return counts


def _merged_rows(layout):
    """The runs of all phases that are merged: where all of a row have pixels side by side, and what is at its ends."""
    merged, step = layout.merged, layout.step[2]
    F, runs = 1, []
    if len(merged) % step == 0:
        fans = merged.reshape(-1, step, 5)
        are_equal = (np.diff(fans[:, :, 1:3], axis=1) == 0).all()
        F = step if are_equal and (np.diff(fans[:, :, 4] - fans[:, :, 0] * step) == 1).all() else 1
    for first in range(0, len(merged), F):
        begin, end = merged[first : first + F, 0], merged[first : first + F, [0, 3]].sum(axis=1)
        for a, b in pairwise(sorted({*begin.tolist(), *end.tolist()})):
            inside = np.flatnonzero((begin <= a) & (b <= end)) + first
            for v in inside[:1] if len(inside) == F else inside:
                shift, Z, P, _, start = merged[v]
                start += (a - shift) * step
                runs.append(_rows(layout, a, Z, P, b - a, start, v, F if len(inside) == F else 1))
    runs = np.concatenate(runs)
    return runs[np.argsort(runs[:, 0], kind="stable")]


def _rows(layout, shift, Z, P, Q, start, phase, phases):
    """The runs of one phase over the flattened buffer, `shift` positions behind: its rows."""
    z, p = (axis.reshape(-1) for axis in np.indices((Z, P)))
    position = shift + z * layout.pitches[1] * layout.pitches[2] + p * layout.pitches[2]
    element = start + z * layout.step[0] + p * layout.step[1]
    # rows that follow each other in both are one run
    apart = (np.diff(position) != Q) | (np.diff(element) != Q * layout.step[2])
    first = np.flatnonzero(np.concatenate([[True], apart]))
    length = np.diff(np.append(first, len(position))) * Q
    return _runs(position[first], length, element[first], phase, phases)


def _runs(position, length, element, phase, phases):
    """One table of them."""
    return np.stack(np.broadcast_arrays(position, length, element, phase, phases), axis=1).astype(np.int64)


def _clipped(runs, first, last, step):
    """What of the runs lies in the positions first .. last-1."""
    begin, end = np.maximum(runs[:, 0], first), np.minimum(runs[:, 0] + runs[:, 1], last)
    table = _runs(begin, end - begin, runs[:, 2] + (begin - runs[:, 0]) * step, *runs[:, 3:].T)
    return table[table[:, 1] > 0]


def _stretches(offsets, size, lanes):
    """([(from, to)] of the vectors that bring all taps of `size` positions, [where each tap is then], elements).

    Taps are brought together where the positions of one reach those of the next.
    """
    ordered = sorted(set(offsets.tolist()))
    copies, places, to = [], {}, 0
    while ordered:
        near = [ordered[0]]
        while len(near) < len(ordered) and ordered[len(near)] - near[-1] <= size:
            near.append(ordered[len(near)])
        begin, length = near[0], near[-1] - near[0] + size
        # the last vector ends with the stretch: nothing is read that no tap reads
        starts = [*range(0, length - lanes, lanes), length - lanes]
        copies += [(begin + start, to + start) for start in starts]
        places |= {tap: to + tap - begin for tap in near}
        to += -(-length // lanes) * lanes
        ordered = ordered[len(near) :]
    return copies, [places[tap] for tap in offsets.tolist()], to


def _gather(layout, phase, columns, first, size, lanes):
    """[(from, to)] of the vectors that bring `size` pixels from `first` on for every tap."""
    (Z, P, Q), pitches = phase[2:5].tolist(), layout.pitches
    copies, to = [], 0
    for offset, lags in columns:
        below = max(lags.values()) * Q
        pixel = np.arange(first, min(first + size, Z * P * Q) + below) if first < Z * P * Q else np.zeros(0, np.int64)
        row = pixel // Q  # where there are several slices, nothing is below
        slices = row // P if Z > 1 else 0
        position = slices * pitches[1] * pitches[2] + (row - slices * P) * pitches[2] + pixel % Q + offset
        runs = _stretched(position, 1) if len(position) else []
        copies += [(int(position[at]) + begin, to + at + begin) for at, n in runs for begin in range(0, n, lanes)]
        to += -(-(size + below) // lanes) * lanes
    return copies


def _stretched(numbers, step):
    """[(first index, length)] of the runs in which numbers grow by `step`."""
    ends = [*(np.flatnonzero(np.diff(numbers) != step) + 1).tolist(), len(numbers)]
    return [(begin, end - begin) for begin, end in zip([0, *ends], ends)]
