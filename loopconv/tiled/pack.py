"""Copies into the flattened, zero-padded buffers of layout.py, and of weights into the order they are read in."""

from loopconv.tiled.simd import pointer


def pack(x, buffer, steps, sizes, source, layout, first, last):
    """Write every element of the phase planes first .. last-1 of `buffer` from the channels of `x`.

    x has elements at channel*steps[0] + d*steps[1] + h*steps[2] + w, within `sizes` (D, H, W) and counted
    from the channel's image on; `layout` is (channels per image, image step, lengths, pitches, origin, plane).
    """
    D, H, W = sizes
    channels, image, (lz, lp, _), (_, rows, pitch), origin, plane = layout
    phases = source.shape[0]
    for number in range(first, last):
        channel, phase = number // phases, number % phases
        z0, p0, q0, sz, sp, sq = (
            source[phase, 0], source[phase, 1], source[phase, 2], source[phase, 3], source[phase, 4], source[phase, 5],
        )  # fmt: skip
        target = pointer(buffer, number * plane)
        begin = channel // channels * image + channel % channels * steps[0]
        n = (W - q0 + sq - 1) // sq
        at = 0
        for z in range(lz):
            for p in range(lp):
                d, h = z0 + z * sz, p0 + p * sp
                if d < D and h < H:
                    start = origin + (z * rows + p) * pitch
                    for i in range(at, start):
                        target[i] = 0
                    row = pointer(x, begin + d * steps[1] + h * steps[2] + q0)
                    if sq == 1:
                        for q in range(n):
                            target[start + q] = row[q]
                    else:
                        for q in range(n):
                            target[start + q] = row[q * sq]
                    at = start + n
        for i in range(at, plane):
            target[i] = 0


def make_pack_channels_last(width):
    """The packer for blocks of `width` channels."""

    def pack_channels_last(x, buffer, steps, sizes, source, layout, C, first, last):
        """Write the blocks first .. last-1 of `buffer`, each (position, channel of the block), from `x` as in `pack`.

        C is the number of channels of a group; the last block of each group is filled up with zeros.
        """
        D, H, W = sizes
        channels, image, (lz, lp, _), (_, rows, pitch), origin, plane = layout
        blocks, phases = (C + width - 1) // width, source.shape[0]
        for block in range(first, last):
            channel = block // blocks * C + block % blocks * width
            begin = channel // channels * image + channel % channels * steps[0]
            here = min(width, C - block % blocks * width)
            target = pointer(buffer, block * phases * plane * width)
            for i in range(phases * plane * width):
                target[i] = 0
            for phase in range(phases):
                z0, p0, q0, sz, sp, sq = (
                    source[phase, 0], source[phase, 1], source[phase, 2], source[phase, 3], source[phase, 4],
                    source[phase, 5],
                )  # fmt: skip
                n = (W - q0 + sq - 1) // sq
                for z in range(lz):
                    for p in range(lp):
                        d, h = z0 + z * sz, p0 + p * sp
                        if d < D and h < H:
                            start = (phase * plane + origin + (z * rows + p) * pitch) * width
                            for c in range(here):
                                row = pointer(x, begin + c * steps[0] + d * steps[1] + h * steps[2] + q0)
                                for q in range(n):
                                    target[start + q * width + c] = row[q * sq]

    return pack_channels_last


def make_pack_weights(rows):
    """The packer of weights for tiles of `rows` rows."""

    def pack_weights(w, packed, tap_weight, results, plan, first, last):
        """Write the row blocks first .. last-1 of `w` as (group, block, result phase, channel, tap, row).

        In that order the direct kernel reads them one after the other. Rows past the last are zeros.
        """
        M, C, w_group, w_row, w_channel = plan[0], plan[1], plan[2], plan[3], plan[4]
        blocks = (M + rows - 1) // rows
        size = C * len(tap_weight) * rows
        for block in range(first, last):
            m0 = block % blocks * rows
            here = min(rows, M - m0)
            begin = block // blocks * w_group + m0 * w_row
            target = pointer(packed, block * size)
            if here < rows:
                for i in range(size):
                    target[i] = 0
            for phase in range(results.shape[0]):
                at = results[phase, 0] * C * rows
                for c in range(C):
                    for t in range(results[phase, 0], results[phase, 1]):
                        column = pointer(w, begin + c * w_channel + tap_weight[t])
                        if here == rows:
                            for m in range(rows):  # a constant count, unrolled
                                target[at + m] = column[m * w_row]
                        else:
                            for m in range(here):
                                target[at + m] = column[m * w_row]
                        at += rows

    return pack_weights
