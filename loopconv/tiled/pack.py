"""Copies into the flattened, zero-padded buffers of layout.py, and of weights into the order they are read in."""

from loopconv.tiled.simd import pointer, tile_load_columns, tile_spill


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


def make_pack_channels_last(lanes, width):
    """The packer for blocks of `width` channels; it turns pieces of them around in registers."""
    block = min(lanes, width)
    wide = 1 << (block - 1).bit_length()

    def pack_channels_last(x, buffer, steps, sizes, source, layout, C, first, last):
        """Write the blocks first .. last-1 of `buffer`, each (position, channel of the block), from `x` as in `pack`.

        C is the number of channels of a group; the last block of each group is filled up with zeros.
        """
        D, H, W = sizes
        channels, image, (lz, lp, _), (_, rows, pitch), origin, plane = layout
        blocks, phases = (C + width - 1) // width, source.shape[0]
        for number in range(first, last):
            channel = number // blocks * C + number % blocks * width
            begin = channel // channels * image + channel % channels * steps[0]
            here = min(width, C - number % blocks * width)
            target = pointer(buffer, number * phases * plane * width)
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
                            at = begin + d * steps[1] + h * steps[2] + q0
                            if sq == 1:
                                for c in range(0, here, block):
                                    for q in range(0, n, lanes):
                                        numbers = tile_spill(
                                            tile_load_columns(
                                                x, at + c * steps[0] + q, steps[0], here - c, n - q, lanes, block
                                            )
                                        )
                                        for e in range(min(lanes, n - q)):
                                            place = start + (q + e) * width + c
                                            for m in range(min(block, width - c)):
                                                target[place + m] = numbers[e * wide + m]
                            else:
                                for c in range(here):
                                    row = pointer(x, at + c * steps[0])
                                    for q in range(n):
                                        target[start + q * width + c] = row[q * sq]

    return pack_channels_last


def make_pack_weights(lanes, rows):
    """The packer of weights for tiles of `rows` rows; it turns blocks of rows x `lanes` taps around in registers."""
    wide = 1 << (rows - 1).bit_length()

    def pack_weights(w, packed, tap_first, tap_step, plan, first, last):
        """Write the row blocks first .. last-1 of `w` as (group, block, result phase, channel, tap, row).

        In that order the kernels read them one after the other. Rows past the last are zeros. Tap t of
        channel c goes to tap_first[t] + c * tap_step[t] in a block, unless tap_first[t] is negative.
        """
        M, C, T, w_group, w_row, w_channel, in_order = plan[0], plan[1], plan[2], plan[3], plan[4], plan[5], plan[6]
        blocks = (M + rows - 1) // rows
        for block in range(first, last):
            m0 = block % blocks * rows
            here = min(rows, M - m0)
            begin = block // blocks * w_group + m0 * w_row
            target = pointer(packed, block * C * T * rows)
            if in_order:  # forward: the channels and taps of a row follow each other, and stay as they are
                for i in range(0, C * T, lanes):
                    numbers = tile_spill(tile_load_columns(w, begin + i, w_row, here, C * T - i, lanes, rows))
                    for e in range(min(lanes, C * T - i)):
                        for m in range(rows):
                            target[(i + e) * rows + m] = numbers[e * wide + m]
            elif T == 1 and here == rows:  # adjoint of 1x1: the rows of a channel follow each other
                for c in range(C):
                    column = pointer(w, begin + c * w_channel)
                    for m in range(rows):
                        target[c * rows + m] = column[m]
            else:
                for c in range(C):
                    for t in range(0, T, lanes):
                        numbers = tile_spill(
                            tile_load_columns(w, begin + c * w_channel + t, w_row, here, T - t, lanes, rows)
                        )
                        for e in range(min(lanes, T - t)):
                            at = tap_first[t + e] + c * tap_step[t + e]
                            if tap_first[t + e] >= 0:
                                for m in range(rows):
                                    target[at + m] = numbers[e * wide + m]

    return pack_weights
