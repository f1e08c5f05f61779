"""Copies into the flattened, zero-padded buffers of layout.py, and of weights into the order they are read in."""

from functools import cache

from numba import types
from numba.extending import overload

from loopconv.loops.compile import named
from loopconv.tiled.linked import ARRAY, POINTER, TABLE, linked
from loopconv.tiled.simd import (
    pointer,
    tile_axpy,
    tile_clip,
    tile_gather,
    tile_load,
    tile_load_every,
    tile_push,
    tile_spill,
    tile_store,
    tile_store_every,
    tile_transpose,
    tile_zeros,
)


def copy_row(row, every, planes, n, readable, place, plane, room, lanes):
    """place[f*plane + i] = row[i*every + f] for all i < n and f < planes, by vectors of the `readable` elements of row.

    The last vector lies over the one before; that of a short row runs over its end, into the `room` of each plane. So
    may the last number of a second plane.
    """
    whole = min(n, readable // every)
    if whole >= lanes:
        for i in range(0, whole, lanes):
            j = min(i, whole - lanes)
            tile_store(tile_load_every(row, j * every, 0, every, lanes, 1, planes), place, j, 0, plane)
    elif lanes <= room and lanes * every <= readable:
        tile_store(tile_load_every(row, 0, 0, every, lanes, 1, planes), place, 0, 0, plane)
        whole = n
    else:
        whole = 0
    while whole < n:
        place[whole] = row[whole * every]
        if planes == 2 and whole * every + 1 < readable:
            place[plane + whole] = row[whole * every + 1]
        whole += 1


def copy_numbers(row, every, planes, n, readable, place, plane, room, lanes):
    """`copy_row` for any step, by numbers."""
    for i in range(n):
        place[i] = row[i * every]


def copy_rows(row, every, planes, rows, n, odd, line, place, pitch, plane, lanes):
    """`copy_row` of `rows` rows, each with zeros up to the next; enough rows follow for vectors to run over them.

    So a row's last vector brings the zeros after it, and nothing is stored twice: stores across two lines of the cache,
    of two cycles each, are what takes the time (144 channels, 5x5, stride 2, 56x56: 0.148 -> 0.132 ms).
    """
    for p in range(rows):
        source, to = pointer(row, p * line), pointer(place, p * pitch)
        for i in range(0, pitch, lanes):
            if i < n:
                pixels = tile_load_every(source, i * every, 0, every, lanes, 1, planes)
                tile_store(tile_clip(pixels, n - i, n - odd), to, i, 0, plane)
            else:
                tile_store(tile_zeros(row, lanes, 1, planes), to, i, 0, plane)


def copy_rows_of_numbers(row, every, planes, rows, n, odd, line, place, pitch, plane, lanes):
    """`copy_rows` for any step, by numbers."""
    for p in range(rows):
        source, to = pointer(row, p * line), pointer(place, p * pitch)
        for i in range(n):
            to[i] = source[i * every]
        for i in range(n, pitch):
            to[i] = 0


def clear(place, begin, end, past, lanes):
    """place[begin:end] = 0 by vectors, which may run over the end, but not over `past`."""
    while begin < end:
        if begin + lanes <= past:
            tile_store(tile_zeros(place, lanes, 1, 1), place, begin, 0, 0)
            begin += lanes
        else:
            place[begin] = 0
            begin += 1


def pack_plane(x, first, every, planes, Z, P, n, odd, slice_, line, place, origin, slice_pitch, pitch, plane, lanes):
    """Write the plane of Z x P x n pixels of x from `first` on, `every` apart in a row, with zeros around.

    Of two planes the other has the `odd` pixels of a row that follow one of those. Both are written from beginning to
    end, so that vectors may run over into what is written next.
    """
    done, done_odd, z, p = 0, 0, 0, 0
    # vectors end in the rows that follow; of few pixels `every` apart these may be too short
    followed, slices = P - (lanes + n - 1) // n if n > max(2, every) else 0, Z if P else 0
    while z <= slices:
        start = origin + z * slice_pitch + p * pitch if z < slices else plane
        clear(place, done, start, plane, lanes)
        if planes == 2:
            clear(pointer(place, plane), done_odd, start, plane, lanes)
        begin, to = first + z * slice_ + p * line, pointer(place, start)
        if z == slices:
            p = P
        elif p < followed:
            copy_rows(pointer(x, begin), every, planes, followed, n, odd, line, to, pitch, plane, lanes)
            p, done, done_odd = followed, start + followed * pitch, start + followed * pitch
        else:
            copy_row(pointer(x, begin), every, planes, n, x.size - begin, to, plane, plane - start, lanes)
            p, done, done_odd = p + 1, start + n, start + odd
        if p == P:
            z, p = z + 1, 0


@overload(copy_row, strict=False, prefer_literal=True, jit_options={"forceinline": True})
def _copy_row(row, every, *others):
    """Itself, where `every`, `planes` and `lanes` are numbers known to the compiler.

    Called as a function, with all its arguments, it took longer than what it does.
    """
    return copy_row if isinstance(every, types.IntegerLiteral) else copy_numbers


@overload(copy_rows, strict=False, prefer_literal=True)
def _copy_rows(row, every, *others):
    """Itself, where `every`, `planes` and `lanes` are numbers known to the compiler."""
    return copy_rows if isinstance(every, types.IntegerLiteral) else copy_rows_of_numbers


@overload(clear, strict=False, prefer_literal=True, jit_options={"forceinline": True})
def _clear(*arguments):
    """Itself, where `lanes` is a number known to the compiler."""
    return clear


@overload(pack_plane, strict=False, prefer_literal=True)
def _pack_plane(*arguments):
    """Itself, where `planes` and `lanes`, and mostly `every`, are numbers known to the compiler."""
    return pack_plane


@cache
def make_pack_channel(lanes, every, planes):
    """Of sources whose rows are read every pixel or every second, or, with 0, any number of them apart.

    One function for all of these took 3.3 s to compile, these take 1.1 to 1.6.
    """
    is_any = every == 0

    @linked(x=ARRAY, buffer=ARRAY, plan=TABLE)
    @named(lanes, every, planes)
    def pack_channel(x, buffer, plan, table, channel, target):
        """Write all phase planes of one channel of `x` to buffer[target:], with zeros around.

        plan[table:] are (elements of a channel of x, pitch of a slice, of a row, origin, plane, number of entries), and
        then for each plane, or for two that are read together, (first element, step in a row, slices, rows, pixels of a
        row, of the other plane's, elements between slices, between rows).
        """
        step, slice_pitch, pitch, origin, plane, entries = (
            plan[table], plan[table + 1], plan[table + 2], plan[table + 3], plan[table + 4], plan[table + 5],
        )  # fmt: skip
        for entry in range(entries):
            at = table + 6 + entry * 8
            first, apart, Z, P, n, odd, slice_, line = (
                channel * step + plan[at], plan[at + 1], plan[at + 2], plan[at + 3], plan[at + 4], plan[at + 5],
                plan[at + 6], plan[at + 7],
            )  # fmt: skip
            place = pointer(buffer, target)
            target += planes * plane
            if is_any:
                pack_plane(
                    x, first, apart, planes, Z, P, n, odd, slice_, line, place, origin, slice_pitch, pitch, plane, lanes
                )
            else:
                pack_plane(
                    x, first, every, planes, Z, P, n, odd, slice_, line, place, origin, slice_pitch, pitch, plane, lanes
                )
        return 0

    return pack_channel


@cache
def make_refill(lanes):
    @linked(x=ARRAY, buffer=ARRAY, plan=TABLE)
    @named(lanes)
    def refill_channel(x, buffer, plan, table, channel, target):
        """`make_pack_channel` of rows that are read pixel by pixel, to where the padding is zeros already."""
        step, slice_pitch, pitch, origin, plane, entries = (
            plan[table], plan[table + 1], plan[table + 2], plan[table + 3], plan[table + 4], plan[table + 5],
        )  # fmt: skip
        for entry in range(entries):
            at = table + 6 + entry * 8
            first, Z, P, n, slice_, line = (
                channel * step + plan[at], plan[at + 2], plan[at + 3], plan[at + 4], plan[at + 6], plan[at + 7],
            )  # fmt: skip
            for z in range(Z):
                for p in range(P):
                    source = pointer(x, first + z * slice_ + p * line)
                    place = pointer(buffer, target + entry * plane + origin + z * slice_pitch + p * pitch)
                    for i in range(0, n, lanes):
                        pixels = tile_push(tile_zeros(x, lanes, 1, 1), source, i, n - i)
                        tile_store_every(pixels, place, i, 0, 1, 1, n - i)
        return 0

    return refill_channel


def make_pack(lanes, every, planes):
    """The packer of whole channels."""
    pack_channel = make_pack_channel(lanes, every, planes)

    def pack(arrays, scratch, plan, first, last):
        """Write all phase planes of the channels first .. last-1 of `x`, and after the last of all plan[0] zeros."""
        x, buffer = arrays
        size = plan[1]
        for channel in range(first, last):
            pack_channel(x, buffer, plan, 2, channel, channel * size)
        if last * size + plan[0] == buffer.size:
            for i in range(last * size, buffer.size):
                buffer[i] = 0
        return 0

    return pack


def put(tile, target, width, rows, lanes):
    """target[i*width + m] = tile[m, 0, i], by numbers from the stack."""
    numbers = tile_spill(tile)
    for i in range(lanes):
        for m in range(rows):
            target[i * width + m] = numbers[m * lanes + i]


def put_vectors(tile, target, width, rows, lanes):
    """`put` for rows that are one or two vectors: exchanged in registers, 16 channels took 0.6 of the time."""
    tile_store(tile_transpose(tile), target, 0, width, lanes)


@overload(put, strict=False, prefer_literal=True, jit_options={"forceinline": True})
def _put(tile, target, width, rows, lanes):
    """One of both, where `rows` and `lanes` are numbers known to the compiler."""
    return put_vectors if rows.literal_value in (lanes.literal_value, 2 * lanes.literal_value) else put


def interleave_some(source, step, every, n, whole, target, width, rows, lanes):
    """`make_interleave` for a number of rows known to the compiler."""
    if whole < lanes:
        whole = 0
    begin = 0
    while begin < whole:
        i = min(begin, whole - lanes)  # the last lie over those before
        tile = tile_load_every(source, i * every, step, every, lanes, rows, 1)
        put(tile, pointer(target, i * width), width, rows, lanes)
        begin += lanes
    for i in range(whole, n):
        for m in range(rows):
            target[i * width + m] = source[m * step + i * every]


@overload(interleave_some, strict=False, prefer_literal=True)
def _interleave_some(*arguments):
    """Itself, where `every`, `rows` and `lanes` are numbers known to the compiler."""
    return interleave_some


@cache
def make_interleave(every, lanes):
    @linked(source=POINTER, target=POINTER)
    @named(every, lanes)
    def interleave(source, step, n, whole, target, width, rows):
        """target[i*width + m] = source[m*step + i*every] for all i < n and m < rows; `every` elements follow i < whole.

        Vectors of up to 16 rows are read whole, then written together: going from row to row for each number, rows
        that are a multiple of 4 KiB apart drive each other out of the first-level cache (24 rows: 1.5 ns an element,
        0.4 so).
        """
        m = 0
        while m < rows:
            row, to, left = pointer(source, m * step), pointer(target, m), rows - m
            if left >= 16:
                interleave_some(row, step, every, n, whole, to, width, 16, lanes)
                m += 16
            elif left >= 8:
                interleave_some(row, step, every, n, whole, to, width, 8, lanes)
                m += 8
            elif left >= 4:
                interleave_some(row, step, every, n, whole, to, width, 4, lanes)
                m += 4
            else:
                interleave_some(row, step, every, n, whole, to, width, 1, lanes)
                m += 1
        return 0

    return interleave


def make_pack_channels_last(lanes):
    """The packer for blocks of channels."""
    interleave, interleave_every_second = make_interleave(1, lanes), make_interleave(2, lanes)

    def pack_channels_last(arrays, scratch, plan, first, last):
        """Write bands of rows of blocks of `buffer`, each (position, channel of the block), from `x` as in `pack`.

        C, first of `plan`, is the number of channels of a group; the last block of each group is filled up with zeros.
        The next is how many bands a block has: unit i is band i % bands of block i // bands.
        """
        x, buffer = arrays
        C, bands, channels, image, step, step1, step2 = plan[0], plan[1], plan[2], plan[3], plan[4], plan[5], plan[6]
        D, H, W, lz, lp, rows, pitch = plan[7], plan[8], plan[9], plan[10], plan[11], plan[12], plan[13]
        origin, plane, width, phases = plan[14], plan[15], plan[16], plan[17]
        blocks = (C + width - 1) // width
        for unit in range(first, last):
            number, band = unit // bands, unit % bands
            channel = number // blocks * C + number % blocks * width
            begin = channel // channels * image + channel % channels * step
            here = min(width, C - number % blocks * width)
            row0, row1 = lz * lp * band // bands, lz * lp * (band + 1) // bands
            for phase in range(phases):
                at = 18 + phase * 6
                z0, p0, q0, sz, sp, sq = plan[at], plan[at + 1], plan[at + 2], plan[at + 3], plan[at + 4], plan[at + 5]
                target = pointer(buffer, (number * phases + phase) * plane * width)
                n = (W - q0 + sq - 1) // sq
                done = origin + (row0 // lp * rows + row0 % lp) * pitch if band > 0 else 0
                for line in range(row0, row1):
                    z, p = line // lp, line % lp
                    d, h = z0 + z * sz, p0 + p * sp
                    if d < D and h < H:
                        start = origin + (z * rows + p) * pitch
                        for i in range(done * width, start * width):
                            target[i] = 0
                        source, to = pointer(x, begin + d * step1 + h * step2 + q0), pointer(target, start * width)
                        if sq == 1:
                            interleave(source, step, n, n, to, width, here)
                        elif sq == 2:
                            interleave_every_second(source, step, n, (W - q0) // 2, to, width, here)
                        else:
                            for q in range(n):
                                for c in range(here):
                                    to[q * width + c] = source[c * step + q * sq]
                        for q in range(n if here < width else 0):
                            for c in range(here, width):
                                to[q * width + c] = 0
                        done = start + n
                past = origin + (row1 // lp * rows + row1 % lp) * pitch if band < bands - 1 else plane
                for i in range(done * width, past * width):
                    target[i] = 0
        return 0

    return pack_channels_last


# Source channels that are packed side by side, where those of a row do not follow each other: 1.5 ns an element one
# after the other.
CHANNELS_TOGETHER = 8

# Taps of the adjoint that are interleaved at a time. In ns an element, with 1, 4 and 8: 0.27, 0.15 and 0.16 (256->256
# 3x3, 8 rows), 0.25, 0.18 and 0.53 (512->240 4x4 in four phases, 24 rows).
TAPS_TOGETHER = 4


def make_pack_weights(rows, lanes):
    """The packer of weights for tiles of `rows` rows."""
    taps_together, interleave = TAPS_TOGETHER, make_interleave(1, lanes)

    def pack_weights(arrays, scratch, plan, first, last):
        """Write the row blocks first .. last-1 of `w` as (group, block, result phase, channel, tap, row).

        In that order the kernels read them one after the other; of phases that share taps there is one for all. Rows
        past the last are as the last. Tap t of channel c goes to tap_first[t] + c * tap_step[t] in a block, and blocks
        begin `size` apart.
        """
        w, packed = arrays
        M, C, T, w_group, w_row, w_channel, in_order = plan[0], plan[1], plan[2], plan[3], plan[4], plan[5], plan[6]
        size, tap_first, tap_step = plan[7], pointer(plan, 8), pointer(plan, 8 + T)
        blocks, whole = (M + rows - 1) // rows, T - T % taps_together
        if in_order:  # forward: the channels and taps of a row follow each other, and stay as they are
            for block in range(first, last):
                m0, to = block % blocks * rows, block * size
                here, at = min(rows, M - m0), block // blocks * w_group + m0 * w_row
                if here == rows:
                    interleave(pointer(w, at), w_row, C * T, C * T, pointer(packed, to), rows, rows)
                else:
                    for i in range(C * T):
                        tile_store(tile_gather(w, at + i, 0, 0, w_row, here, rows, 1, 1), packed, to + i * rows, 0, 0)
            return 0
        for c0 in range(0, C, CHANNELS_TOGETHER):
            c1 = min(c0 + CHANNELS_TOGETHER, C)
            g, m0 = first // blocks, first % blocks * rows
            for block in range(first, last):
                here, at, to = min(rows, M - m0), g * w_group + m0 * w_row, block * size
                m0 += rows
                if m0 >= M:
                    g, m0 = g + 1, 0
                # a loop for each kind: in one, those of 3 taps took 0.66 instead of 0.45 ns an element
                if here < rows:
                    for c in range(c0, c1):
                        for t in range(T):
                            tile = tile_gather(w, at + c * w_channel + t, 0, 0, w_row, here, rows, 1, 1)
                            tile_store(tile, packed, to + tap_first[t] + c * tap_step[t], 0, 0)
                elif T == 1:  # 1x1: the rows of a channel follow each other
                    for c in range(c0, c1):
                        tile_store(tile_load(w, at + c * w_channel, 0, 0, rows, 1, 1), packed, to + c * rows, 0, 0)
                else:
                    for c in range(c0, c1):
                        for t in range(0, whole, taps_together):
                            numbers = tile_spill(tile_load(w, at + c * w_channel + t, w_row, 0, taps_together, rows, 1))
                            for j in range(taps_together):
                                target = pointer(packed, to + tap_first[t + j] + c * tap_step[t + j])
                                for m in range(rows):
                                    target[m] = numbers[m * taps_together + j]
                        for t in range(whole, T):
                            tile = tile_gather(w, at + c * w_channel + t, 0, 0, w_row, rows, rows, 1, 1)
                            tile_store(tile, packed, to + tap_first[t] + c * tap_step[t], 0, 0)
        return 0

    return pack_weights


def make_pack_merged_weights(rows):
    """The packer of weights for tiles of `rows` rows, which are result channels of phases."""

    def pack_merged_weights(arrays, scratch, plan, first, last):
        """Write the row blocks first .. last-1 of `w` as (group, block, channel, tap, row).

        Row v*M + m is channel m of phase v; rows past the last are as the last.
        """
        w, packed = arrays
        M, C, T, w_group, w_row, w_channel, phases = plan[0], plan[1], plan[2], plan[3], plan[4], plan[5], plan[6]
        blocks = (M * phases + rows - 1) // rows
        for block in range(first, last):
            for m in range(rows):
                row = min(block % blocks * rows + m, M * phases - 1)
                taps, target = pointer(plan, 7 + row // M * T), pointer(packed, block * C * T * rows + m)
                source = pointer(w, block // blocks * w_group + row % M * w_row)
                for c in range(C):
                    for t in range(T):
                        target[(c * T + t) * rows] = source[c * w_channel + taps[t]]
        return 0

    return pack_merged_weights


def make_test_finite(lanes):
    def test_finite(arrays, scratch, plan, first, last):
        """Whether some of the elements of parts first .. last-1 of the array, which has plan[0], is not finite."""
        w, _ = arrays  # of all kernels' operands there are two or more
        scratch[0] = 0
        begin, end = plan[0] * first // plan[1], plan[0] * last // plan[1]
        acc = tile_zeros(w, lanes, 1, 4)
        while begin + 4 * lanes <= end:
            acc = tile_axpy(acc, scratch, 0, w, begin, 0, lanes)
            begin += 4 * lanes
        numbers = tile_spill(acc)
        spread = numbers[0]
        for i in range(1, 4 * lanes):
            spread += numbers[i]
        for i in range(begin, end):
            spread += w[i] * 0
        return 1 if spread != 0 else 0

    return test_finite
