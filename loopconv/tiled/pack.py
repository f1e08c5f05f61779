"""Copies into the flattened, zero-padded buffers of layout.py, and of weights into the order they are read in."""

from numba.extending import overload

from loopconv.tiled.simd import pointer, tile_axpy, tile_load_every, tile_spill, tile_store, tile_zeros


def copy_row(row, every, n, whole, place, lanes):
    """place[i] = row[i*every] for all i < n, by vectors of which the last lies over the one before.

    `every` elements follow each i < whole.
    """
    if whole < lanes:
        whole = 0
    for i in range(0, whole, lanes):
        j = min(i, whole - lanes)
        tile_store(tile_load_every(row, j * every, 0, every, lanes, 1, 1), place, j, 0, 0)
    for i in range(whole, n):
        place[i] = row[i * every]


@overload(copy_row, strict=False, prefer_literal=True)
def _copy_row(*arguments):
    """Itself, where `every` and `lanes` are numbers known to the compiler."""
    return copy_row


def pack_channel(x, buffer, plan, table, channel, target, lanes):
    """Write all phase planes of one channel of `x` to buffer[target:], with zeros around.

    x has elements at channel*steps[0] + d*steps[1] + h*steps[2] + w, within sizes (D, H, W) and counted from the
    channel's image on. plan[table:] are (channels per image, image step, three steps, three sizes, lengths of two
    axes, rows of a slice, pitch, origin, plane, phases), and then first pixel and step of each phase on three axes.
    """
    channels, image = plan[table], plan[table + 1]
    step, step1, step2 = plan[table + 2], plan[table + 3], plan[table + 4]
    D, H, W, lz, lp = plan[table + 5], plan[table + 6], plan[table + 7], plan[table + 8], plan[table + 9]
    rows, pitch, origin, plane, phases = (
        plan[table + 10], plan[table + 11], plan[table + 12], plan[table + 13], plan[table + 14],
    )  # fmt: skip
    begin = channel // channels * image + channel % channels * step
    for phase in range(phases):
        at = table + 15 + phase * 6
        z0, p0, q0, sz, sp, sq = plan[at], plan[at + 1], plan[at + 2], plan[at + 3], plan[at + 4], plan[at + 5]
        place = pointer(buffer, target + phase * plane)
        n = (W - q0 + sq - 1) // sq
        done = 0
        for z in range(lz):
            for p in range(lp):
                d, h = z0 + z * sz, p0 + p * sp
                if d < D and h < H:
                    start = origin + (z * rows + p) * pitch
                    for i in range(done, start):
                        place[i] = 0
                    row, to = pointer(x, begin + d * step1 + h * step2 + q0), pointer(place, start)
                    if sq == 1:
                        copy_row(row, 1, n, n, to, lanes)
                    elif sq == 2:
                        copy_row(row, 2, n, (W - q0) // 2, to, lanes)
                    else:
                        for i in range(n):
                            to[i] = row[i * sq]
                    done = start + n
        for i in range(done, plane):
            place[i] = 0


@overload(pack_channel, strict=False, prefer_literal=True)
def _pack_channel(*arguments):
    """Itself, where `lanes` is a number known to the compiler."""
    return pack_channel


def make_pack(lanes):
    """The packer of whole channels."""

    def pack(arrays, scratch, plan, first, last):
        """Write all phase planes of the channels first .. last-1 of `x`, and after the last of all plan[0] zeros."""
        x, buffer = arrays
        size = plan[14] * plan[15]
        for channel in range(first, last):
            pack_channel(x, buffer, plan, 1, channel, channel * size, lanes)
        if last * size + plan[0] == buffer.size:
            for i in range(last * size, buffer.size):
                buffer[i] = 0
        return 0

    return pack


def interleave(source, step, every, n, whole, target, width, rows, lanes):
    """target[i*width + m] = source[m*step + i*every] for all i < n and m < rows; `every` elements follow i < whole.

    Vectors of each row are read whole, then written from the stack: going from row to row for each number, rows that
    are a multiple of 4 KiB apart drive each other out of the first-level cache (24 rows: 1.5 ns an element, 0.4 so).
    """
    if whole < lanes:
        whole = 0
    begin = 0
    while begin < whole:
        i = min(begin, whole - lanes)  # the last lie over those before
        numbers = tile_spill(tile_load_every(source, i * every, step, every, lanes, rows, 1))
        for j in range(lanes):
            for m in range(rows):
                target[(i + j) * width + m] = numbers[m * lanes + j]
        begin += lanes
    for i in range(whole, n):
        for m in range(rows):
            target[i * width + m] = source[m * step + i * every]


@overload(interleave, strict=False, prefer_literal=True)
def _interleave(*arguments):
    """Itself, where `every`, `rows` and `lanes` are numbers known to the compiler."""
    return interleave


def make_pack_channels_last(width, together, lanes):
    """The packer for blocks of `width` channels, `together` of which are interleaved at a time."""

    def pack_channels_last(arrays, scratch, plan, first, last):
        """Write the blocks first .. last-1 of `buffer`, each (position, channel of the block), from `x` as in `pack`.

        C, first of `plan`, is the number of channels of a group; the last block of each group is filled up with zeros.
        """
        x, buffer = arrays
        C, channels, image, step, step1, step2 = plan[0], plan[1], plan[2], plan[3], plan[4], plan[5]
        D, H, W, lz, lp, rows, pitch = plan[6], plan[7], plan[8], plan[9], plan[10], plan[11], plan[12]
        origin, plane, phases = plan[13], plan[14], plan[15]
        blocks = (C + width - 1) // width
        for number in range(first, last):
            channel = number // blocks * C + number % blocks * width
            begin = channel // channels * image + channel % channels * step
            here = min(width, C - number % blocks * width)
            for phase in range(phases):
                at = 16 + phase * 6
                z0, p0, q0, sz, sp, sq = plan[at], plan[at + 1], plan[at + 2], plan[at + 3], plan[at + 4], plan[at + 5]
                target = pointer(buffer, (number * phases + phase) * plane * width)
                n = (W - q0 + sq - 1) // sq
                done = 0
                for z in range(lz):
                    for p in range(lp):
                        d, h = z0 + z * sz, p0 + p * sp
                        if d < D and h < H:
                            start = origin + (z * rows + p) * pitch
                            for i in range(done * width, start * width):
                                target[i] = 0
                            row = begin + d * step1 + h * step2 + q0
                            for c0 in range(0, width, together):
                                source, to = pointer(x, row + c0 * step), pointer(target, start * width + c0)
                                if sq == 1 and c0 + together <= here:
                                    interleave(source, step, 1, n, n, to, width, together, lanes)
                                elif sq == 2 and c0 + together <= here:
                                    interleave(source, step, 2, n, (W - q0) // 2, to, width, together, lanes)
                                else:
                                    for q in range(n):
                                        for c in range(together):
                                            to[q * width + c] = source[c * step + q * sq] if c0 + c < here else 0
                            done = start + n
                for i in range(done * width, plane * width):
                    target[i] = 0
        return 0

    return pack_channels_last


# Source channels that are packed side by side, where those of a row do not follow each other: 1.5 ns an element one
# after the other.
CHANNELS_TOGETHER = 8


def make_pack_weights(rows, lanes):
    """The packer of weights for tiles of `rows` rows."""

    def pack_weights(arrays, scratch, plan, first, last):
        """Write the row blocks first .. last-1 of `w` as (group, block, result phase, channel, tap, row).

        In that order the kernels read them one after the other. Rows past the last are zeros. Tap t of
        channel c goes to tap_first[t] + c * tap_step[t] in a block, unless tap_first[t] is negative.
        """
        w, packed = arrays
        M, C, T, w_group, w_row, w_channel, in_order = plan[0], plan[1], plan[2], plan[3], plan[4], plan[5], plan[6]
        tap_first, tap_step = pointer(plan, 7), pointer(plan, 7 + T)
        blocks = (M + rows - 1) // rows
        if in_order:  # forward: the channels and taps of a row follow each other, and stay as they are
            for block in range(first, last):
                m0 = block % blocks * rows
                here = min(rows, M - m0)
                source = pointer(w, block // blocks * w_group + m0 * w_row)
                target = pointer(packed, block * C * T * rows)
                if here == rows:
                    interleave(source, w_row, 1, C * T, C * T, target, rows, rows, lanes)
                else:
                    for i in range(C * T):
                        for m in range(rows):
                            target[i * rows + m] = source[m * w_row + i] if m < here else 0
            return 0
        for c0 in range(0, C, CHANNELS_TOGETHER):
            c1 = min(c0 + CHANNELS_TOGETHER, C)
            for block in range(first, last):
                m0 = block % blocks * rows
                here = min(rows, M - m0)
                if T == 1 and here == rows:  # 1x1: the rows of a channel follow each other
                    source = pointer(w, block // blocks * w_group + m0)
                    target = pointer(packed, block * C * rows)
                    for c in range(c0, c1):
                        for m in range(rows):
                            target[c * rows + m] = source[c * w_channel + m]
                    continue
                for c in range(c0, c1):
                    source = pointer(w, block // blocks * w_group + m0 * w_row + c * w_channel)
                    for t in range(T):
                        if tap_first[t] >= 0:
                            target = pointer(packed, block * C * T * rows + tap_first[t] + c * tap_step[t])
                            if here == rows:
                                for m in range(rows):
                                    target[m] = source[m * w_row + t]
                            else:
                                for m in range(rows):
                                    target[m] = source[m * w_row + t] if m < here else 0
        return 0

    return pack_weights


def make_test_finite(lanes):
    def test_finite(arrays, scratch, plan, first, last):
        """Whether some of the elements of parts first .. last-1 of the array, which has plan[0], is not finite."""
        (w,) = arrays
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
