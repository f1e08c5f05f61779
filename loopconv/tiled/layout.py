"""Where pixels lie in the flattened buffers of the tiled kernels, and where each tap finds them.

One idea serves every geometry: copy the source of a contraction once into a buffer whose rows have a
`pitch`, with zeros in the gaps. Then a tap is a constant offset into the flattened buffer, and a run of
neighbouring result pixels is a run of neighbouring buffer elements, across the ends of rows as well.
The zeros after a row serve as the padding before the next.

* forward, stride 1: the buffer is padded x.
* forward, stride s: the buffer is x split into its phases, x[phase::s]; a tap reads one of them.
* adjoint: the buffer is padded y; each phase of x is a stride-1 sum over the taps that reach it, so the
  zeros that a stride would insert between the pixels of y are never multiplied.
"""

from functools import lru_cache, partial
from itertools import combinations, pairwise, product
from math import prod
from typing import NamedTuple

import numpy as np

# Images of fewer pixels than this are computed as the slices of one, as long as that one stays small: 4x4 images
# fill a tile of 48 pixels only together (DCGAN's first layer at batch 16).
SMALL_IMAGE, SMALL_BATCH = 128, 8192


class Problem(NamedTuple):
    """A geometry with three spatial axes; the steps are in elements of the user's arrays."""

    N: int
    G: int
    C: int
    K: int
    x: tuple
    k: tuple
    y: tuple
    stride: tuple
    dilation: tuple
    pad: tuple
    x_step: tuple  # between channels, slices, rows, columns
    y_step: tuple


def is_folded(g):
    """Whether the images of a batch become the slices of one image."""
    pixels = prod(g.output)
    return g.rank < 3 and g.batch > 1 and pixels < SMALL_IMAGE and g.batch * pixels <= SMALL_BATCH


@lru_cache(maxsize=512)
def problem(g):
    """The geometry `g` as the tiled kernels see it: unit axes first, small images folded, channels per group."""

    def three(values, unit):
        return (unit,) * (3 - len(values)) + tuple(values)

    x, k, y = three(g.input, 1), three(g.kernel, 1), three(g.output, 1)
    stride, dilation, pad = three(g.stride, 1), three(g.dilation, 1), three(g.pad, 0)
    N, x_step, y_step = g.batch, (prod(x), x[1] * x[2], x[2], 1), (prod(y), y[1] * y[2], y[2], 1)
    if is_folded(g):
        N, image = 1, (g.c * x_step[0], g.k * y_step[0])
        x, y = (g.batch, *x[1:]), (g.batch, *y[1:])
        x_step, y_step = (x_step[0], image[0], *x_step[2:]), (y_step[0], image[1], *y_step[2:])
    return Problem(
        N, g.groups, g.c // g.groups, g.k // g.groups, x, k, y, stride, dilation, pad, x_step, y_step
    )  # fmt: skip


def stencil_taps(g):
    """The most taps (R, S) on the last two axes that meet one phase of the source, and of the result; None if unknown.

    Phases of a strided call have up to a stride-th of the taps. A dilated call has phases of the result, as many as of
    the source, and all taps meet one of each.
    """
    k, stride, dilation = (((1, *values)[-2:]) for values in (g.kernel, g.stride, g.dilation))
    return None if max(g.stride) > 1 and max(dilation) > 1 else tuple(-(-n // s) for n, s in zip(k, stride))


def reaches_most_pixels(p):
    """Whether each tap sees half of the results and 32, so that Winograd rounds no more than is allowed.

    Its error is relative to a stencil's taps together, which may be too large for a tap that meets little but padding.
    """
    least = [
        min(sum(0 <= o * s + r * d - lo < n for o in range(y)) for r in range(k))
        for n, k, y, s, d, lo in zip(p.x, p.k, p.y, p.stride, p.dilation, p.pad)
    ]
    return p.N * prod(least) >= max(32, p.N * prod(p.y) / 2)


class Axis(NamedTuple):
    """One axis of a buffer: `length` source pixels with `before` and `after` zeros around, `pitch` apart."""

    length: int
    before: int
    after: int
    pitch: int


class Layout(NamedTuple):
    """What the kernels need to know of one contraction's buffer.

    Attributes
    ----------
    source : int64 array (phases of the source, 6)
        First source pixel and source step of each phase plane, on three axes.
    lengths, pitches : three ints
        Source pixels of a plane, and buffer pixels between the starts of neighbours, on each axis.
    origin, plane, channel : int
        Where the first source pixel is in a plane; elements of a plane; of a channel with all its planes.
    results : int64 array (phases of the result, 7)
        First tap, past the last tap, pixels on three axes, first result element, flat length in the buffer.
    tap_offset, tap_weight : int64 arrays
        For every tap of every result phase: its offset in the buffer, and its number in the kernel.
    step, source_step : three ints
        Elements of the result, and of the buffer, between neighbouring pixels of one phase on each axis.
    merged : int64 array (phases of the result, 5)
        Where `results` is one phase for all of these: how far the positions of each are behind its own, their pixels on
        three axes, first result element. The weights of all taps are then in `tap_weight`, phase after phase.
    """

    source: np.ndarray
    lengths: tuple
    pitches: tuple
    origin: int
    plane: int
    channel: int
    results: np.ndarray
    tap_offset: np.ndarray
    tap_weight: np.ndarray
    step: tuple
    source_step: tuple
    merged: np.ndarray


@lru_cache(maxsize=512)
def forward_layout(p, every=(1, 1, 1), align=1, cut=(False, False, False), whole=False):
    """Layout of x for y = C x, and for the weight gradient: phases of x, and of y those of pixels `every` apart.

    On axes that are `cut`, results with the same taps outside of x are a phase of their own, without these taps. A
    `whole` x is one plane, whatever the stride.
    """
    results = [
        [
            zone  # with taps (shift, number, phase of x)
            for i in range(min(m, o))
            for zone in _zones(
                i, m, -(-(o - i) // m),
                [(shift, r, phase) for r in range(k) for shift, phase in [divmod(i * s + r * d - lo, s * m)]],
                [-(-(n - (i * s + r * d - lo) % (s * m)) // (s * m)) for r in range(k)] if is_cut else None,
            )
        ]
        for n, o, k, s, d, lo, m, is_cut in zip(p.x, p.y, p.k, p.stride, p.dilation, p.pad, every, cut)
    ]  # fmt: skip
    stride = [s * m for s, m in zip(p.stride, every)]
    walk = (1, 1, 1)
    if whole:
        walk, stride = stride, walk
        results = [[_whole(*zone, s) for zone in axis] for axis, s in zip(results, walk)]
    axes = [_axis(-(-n // s), axis) for n, s, axis in zip(p.x, stride, results)]
    phases = sorted(product(*({phase for *_, taps in axis for *_, phase in taps} for axis in results)))
    plane, pitches, steps, origin = _plane(axes, align)
    if len(phases) > 1 and plane % 512 == 0:  # of planes that are pages, few fit into the first-level cache
        plane += 16
    rows, offsets, weights = [], [], []
    for result in product(*results):
        first = len(offsets)
        for tap in product(*(taps for *_, taps in result)):
            plane_start = phases.index(tuple(phase for *_, phase in tap)) * plane + origin
            offsets.append(plane_start + sum(shift * step for (shift, *_), step in zip(tap, steps)))
            weights.append(tap_number(p, [r for _, r, _ in tap]))
        reach = [pixels for _, pixels, _ in result]
        start = sum(i * step for (i, *_), step in zip(result, p.y_step[1:]))
        pixels = [-(-n // s) for n, s in zip(reach, walk)]
        rows.append([first, len(offsets), *pixels, start, _flat(reach, steps)])
    source = np.array([[*phase, *stride] for phase in phases], np.int64).reshape(-1, 6)
    lengths = tuple(axis.length for axis in axes)
    step = tuple(step * m for step, m in zip(p.y_step[1:], every))
    source_step = tuple(step * s for step, s in zip(steps, walk))
    return _layout(source, lengths, pitches, origin, plane, rows, offsets, weights, step, source_step)


@lru_cache(maxsize=512)
def adjoint_layout(p, align=1, cut=(False, False, False)):
    """Layout of y for x = C.T y: y as it is, all phases of x; see `forward_layout`."""
    phases = [
        [
            zone
            for phase in sorted(adjoint_phase(*axis, phase) for phase in range(axis[2]))  # in the order of their pixels
            for zone in _zones(phase[0], axis[2], *phase[1:], [o] * len(phase[2]) if is_cut else None)
        ]
        for o, is_cut, axis in zip(p.y, cut, zip(p.x, p.k, p.stride, p.dilation, p.pad))
    ]
    axes = list(map(_axis, p.y, phases))
    plane, pitches, steps, origin = _plane(axes, align)
    results, offsets, weights = [], [], []
    for phase in product(*phases):
        first = len(offsets)
        for tap in product(*(taps for _, _, taps in phase)):
            offsets.append(origin + sum(shift * step for (shift, _), step in zip(tap, steps)))
            weights.append(tap_number(p, [r for _, r in tap]))
        pixels = [pixels for _, pixels, _ in phase]
        start = sum(i * step for (i, _, _), step in zip(phase, p.x_step[1:]))
        results.append([first, len(offsets), *pixels, start, _flat(pixels, steps)])
    source = np.array([[0, 0, 0, 1, 1, 1]], np.int64)
    lengths = tuple(axis.length for axis in axes)
    step = tuple(step * s for step, s in zip(p.x_step[1:], p.stride))
    return _layout(source, lengths, pitches, origin, plane, results, offsets, weights, step, steps)


def merged_layout(layout):
    """The layout where all phases of the result are one, as if they were channels of it; None if they cannot be.

    They can where all have as many taps, that lie alike: a stride that divides a kernel's size without dilation.
    """
    results, counts = layout.results, np.diff(layout.results[:, :2])
    if len(results) < 2 or counts.min() < max(1, counts.max()):
        return None
    taps = np.stack([layout.tap_offset[t0:t1] for t0, t1 in results[:, :2]])
    first = taps[:, :1].argmin()
    shifts = taps[:, :1] - taps[first, :1]
    if (taps != taps[first] + shifts).any():
        return None
    flat, step = (results[:, 6:] + shifts).max(), layout.step[2]
    # those of one row in the order of what they write of the same position
    order = np.lexsort([results[:, 5] - shifts[:, 0] * step, np.arange(len(results)) // step])
    weights = [layout.tap_weight[t0:t1] for t0, t1 in results[order, :2]]
    return layout._replace(
        results=np.array([[0, counts[0, 0], 0, 0, 0, 0, flat]], np.int64), tap_offset=taps[first],
        tap_weight=np.concatenate(weights), merged=np.hstack([shifts, results[:, 2:6]])[order],
    )  # fmt: skip


# More phases of the result than this are not worth their tables.
MOST_PHASES = 64


@lru_cache(maxsize=256)
def cut_layouts(p, is_adjoint, whole=False):
    """The layouts that leave out some taps that are outside of the source: on one axis, or on several."""
    make = adjoint_layout if is_adjoint else partial(forward_layout, whole=whole)
    cuts = [tuple(axis == one for axis in range(3)) for one in range(3)]
    cuts = [cut for cut in cuts if _sums(make(p, cut=cut)) < _sums(make(p))]
    several = [some for n in range(1, len(cuts) + 1) for some in combinations(cuts, n)]
    layouts = [make(p, cut=tuple(map(any, zip(*some)))) for some in several]
    return [one for one in layouts if len(one.results) <= MOST_PHASES and len(one.source)]


def _sums(layout):
    """Products of all pixels with one channel."""
    return int((np.diff(layout.results[:, :2])[:, 0] * layout.results[:, 2:5].prod(axis=1)).sum())


class Stencil(NamedTuple):
    """Taps side by side in the source: the first one's offset and number, steps between their numbers, how many."""

    offset: int
    tap: int
    step_r: int
    step_s: int
    rows: int
    cols: int


class StencilLayout(NamedTuple):
    """A layout whose taps are stencils, as Winograd's transforms take them.

    Attributes
    ----------
    layout : Layout
        Of the source; its taps are those of phases with weights of their own.
    stencils : list of lists of Stencil
        For each such set of weights.
    phases : list of lists of (offset, first result element, pixels on three axes)
        Those of the result that have these weights; the offset is that of the first stencil.
    """

    layout: Layout
    stencils: list
    phases: list


@lru_cache(maxsize=512)
def stencil_layout(p, is_adjoint):
    """The stencils of a call."""
    if max(p.stride) > 1:
        layout = adjoint_layout(p) if is_adjoint else forward_layout(p)
    else:
        layout = forward_layout(_mirrored(p) if is_adjoint else p, (1, *p.dilation[1:]))
        if is_adjoint:  # taps in the order of the weights
            layout = layout._replace(tap_offset=layout.tap_offset.reshape(-1, prod(p.k))[:, ::-1].reshape(-1))
    results = layout.results.tolist()
    stencils = [_stencils(p, layout, is_adjoint, t0, t1) for t0, t1, *_ in results]
    phases = [[(some[0].offset if some else 0, row[5], *row[2:5])] for some, row in zip(stencils, results)]
    if max(p.stride) > 1:
        return StencilLayout(layout, stencils, phases)
    taps = prod(p.k)  # all phases have the same
    layout = layout._replace(
        results=layout.results[:1], tap_offset=layout.tap_offset[:taps], tap_weight=layout.tap_weight[:taps]
    )
    return StencilLayout(layout, stencils[:1], [[phase for (phase,) in phases]])


def _stencils(p, layout, is_adjoint, t0, t1):
    """Those of the taps t0 .. t1-1: first those of most rows, then of most rows and columns, of most columns."""
    (_, R, S), groups = p.k, {}
    for tap in range(t0, t1)[:: -1 if is_adjoint else 1]:  # as the source's pixels run
        number = int(layout.tap_weight[tap])
        phase = number // (R * S), number // S % R % p.stride[1], number % S % p.stride[2]
        groups.setdefault(phase, []).append((int(layout.tap_offset[tap]), tap, number // S))
    found = []
    for taps in groups.values():
        rows = len({row for *_, row in taps})
        cols = len(taps) // rows
        step_r, step_s = (taps[n][1] - taps[0][1] if n < len(taps) else 0 for n in (cols, 1))
        found.append(Stencil(*taps[0][:2], step_r, step_s if cols > 1 else 0, rows, cols))
    most = [-(-n // s) for n, s in zip(p.k[1:], p.stride[1:])]
    order = [(True, False), (True, True), (False, True), (False, False)]
    return sorted(found, key=lambda one: order.index((one.rows == most[0], one.cols == most[1])))


def _mirrored(p):
    """The forward problem of stride 1 that is the adjoint of `p`, its taps in reverse."""
    pad = tuple((k - 1) * d - lo for k, d, lo in zip(p.k, p.dilation, p.pad))
    return p._replace(x=p.y, y=p.x, pad=pad, x_step=p.y_step, y_step=p.x_step)


@lru_cache(maxsize=512)
def dense_layout(sizes, every=(1, 1, 1)):
    """Layout without gaps of the phases of an array of three `sizes`, `every` pixels apart: y for weight gradients."""
    source = np.array([[*phase, *every] for phase in product(*map(range, every))], np.int64)
    pixels = tuple(-(-n // m) for n, m in zip(sizes, every))
    return _layout(source, pixels, pixels, 0, prod(pixels), [], [0], [0], (0, 0, 0), (0, 0, 0))


def adjoint_phase(n, k, s, d, lo, phase):
    """(first pixel of x, pixels, [(shift, tap)]) of the pixels i of x with (i + lo) % s == phase.

    With i + lo = s*u + phase, tap r of that phase brings y[u - (r*d - phase) / s].
    """
    u = -((phase - lo) // s)  # the first u with i >= 0
    first = s * u + phase - lo
    pixels = max(-(-(n - first) // s), 0)
    return first, pixels, [(u - (r * d - phase) // s, r) for r in range(k) if (r * d - phase) % s == 0]


def _zones(first, step, pixels, taps, lengths):
    """[(first result, pixels, taps)] of a phase on one axis, cut where taps begin or end to be outside of the source.

    `taps` begin with their shifts, and each sees so many pixels of the source; without `lengths` nothing is cut.
    """
    if lengths is None:
        return [(first, pixels, taps)]
    ends = [end for (shift, *_), length in zip(taps, lengths) for end in (-shift, length - shift)]
    cuts = sorted({0, pixels, *(end for end in ends if 0 < end < pixels)})
    return [
        (
            first + begin * step,
            end - begin,
            [
                (shift + begin, *rest)
                for (shift, *rest), length in zip(taps, lengths)
                if -shift <= begin and end <= length - shift
            ],
        )
        for begin, end in pairwise(cuts)
    ]


def _whole(first, pixels, taps, stride):
    """A zone whose taps read phases of the source as one whose taps read the source, `stride` apart."""
    return first, max((pixels - 1) * stride + 1, 0), [(shift * stride + phase, r, 0) for shift, r, phase in taps]


def zones_of_taps(p):
    """For each tap the results on three axes that see a source pixel by it, (first, past the last) of each axis."""
    axes = [
        [(min(max(0, -((r * d - lo) // s)), o), min(o, max(0, (n - 1 + lo - r * d) // s + 1))) for r in range(k)]
        for n, o, k, s, d, lo in zip(p.x, p.y, p.k, p.stride, p.dilation, p.pad)
    ]
    return [tuple(end for zone in tap for end in zone) for tap in product(*axes)]


def tap_number(p, at):
    """The number in the kernel of the tap at three coordinates."""
    return (at[0] * p.k[1] + at[1]) * p.k[2] + at[2]


def _axis(length, phases):
    """The axis of `length` source pixels that the taps of phases (first, pixels, taps) of the result read."""
    reads = [(shift, pixels) for _, pixels, taps in phases for shift, *_ in taps]
    before = max([0, *(-shift for shift, n in reads if n)])
    after = max([0, *(shift + n - length for shift, n in reads if n)])
    return Axis(length, before, after, max(length + max(before, after), 1, *(pixels for _, pixels, _ in phases)))


def fan(layout):
    """How many phases of the result lie side by side, each pixel of one beside a pixel of the others."""
    step, phases = layout.step[2], layout.results
    if step == 1 or len(phases) % step:
        return 1
    fans = phases.reshape(-1, step, phases.shape[1])
    are_equal = (fans[:, :, 2:5] == fans[:, :1, 2:5]).all() and (fans[:, :, 6] == fans[:, :1, 6]).all()
    side_by_side = (fans[:, :, 5] == fans[:, :1, 5] + np.arange(step)).all()
    return step if are_equal and side_by_side else 1


def is_paired(layout):
    """Whether the phases of the result are pairs whose pixels alternate along the rows."""
    pairs = layout.results[: len(layout.results) // 2 * 2].reshape(-1, 2, 7)
    even, odd = pairs[:, 0], pairs[:, 1]
    return bool(
        layout.step[2] == 2 and len(layout.results) % 2 == 0 and (even[:, 2:4] == odd[:, 2:4]).all()
        and (even[:, 5] + 1 == odd[:, 5]).all() and (even[:, 4] - odd[:, 4] <= 1).all()
    )  # fmt: skip


def is_in_place(layout, sizes, steps):
    """Whether the source array can be read as it is: one plane without gaps, so that no tap meets padding."""
    is_dense = layout.pitches == layout.lengths == sizes and steps[1:3] == (sizes[1] * sizes[2], sizes[2])
    is_whole = len(layout.source) == 1 and not layout.source[0, :3].any()  # a phase may begin past a single pixel
    return is_dense and is_whole and layout.plane == prod(sizes)


def _plane(axes, align):
    """(elements of a plane, pitches, flat steps of the three axes, flat position of the first source pixel).

    Rows of source pixels begin at multiples of `align`.
    """
    pitches = (axes[0].pitch, axes[1].pitch, -(-axes[2].pitch // align) * align)
    steps = (pitches[1] * pitches[2], pitches[2], 1)
    origin = -(-sum(axis.before * step for axis, step in zip(axes, steps)) // align) * align
    plane = origin + sum((axis.length + axis.after - 1) * step for axis, step in zip(axes, steps)) + 1
    return -(-plane // align) * align, pitches, steps, origin


def _flat(pixels, steps):
    """Flat positions from the first pixel to past the last."""
    return sum((n - 1) * step for n, step in zip(pixels, steps)) + 1 if prod(pixels) else 0


def _layout(source, lengths, pitches, origin, plane, results, offsets, weights, step, source_step):
    return Layout(
        source, lengths, pitches, origin, plane, plane * len(source),
        np.array([row for row in results if row[-1]], np.int64).reshape(-1, 7),
        np.array(offsets, np.int64), np.array(weights, np.int64), step, source_step, np.zeros((0, 5), np.int64),
    )  # fmt: skip
