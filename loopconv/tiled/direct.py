"""Forward and adjoint over flattened buffers: one kernel for every stride, dilation, rank and phase."""

from functools import cache

from loopconv.loops.compile import named
from loopconv.tiled.linked import ARRAY, TABLE, linked
from loopconv.tiled.simd import (
    pointer,
    prefetch,
    prefetch_tile,
    tile_add,
    tile_load,
    tile_outer,
    tile_store,
    tile_store_every,
    tile_zeros,
)

# How far ahead weights are asked for: 512->512 3x3, 7x7, whose weights are in no second-level cache, 3.0 -> 2.8 ms.
AHEAD = 2048


@cache
def make_write_runs(lanes):
    @linked(scratch=ARRAY, out=ARRAY, bias=ARRAY, plan=TABLE)
    @named(lanes)
    def write_runs(scratch, sums, pitch, out, to, channel, bias, k0, k1, plan, run, begin, end, step, size):
        """Write the results of channels k0 .. k1-1 at the positions begin .. end-1, run by run, without the gaps.

        Those of channel k0 are at scratch[sums + position], each phase `size` behind the one before; a run has those of
        F phases that lie side by side in the output. The last vector of a run lies over the one before: rows of 24
        pixels took 2.6 cycles a number when left to the compiler.
        """
        while plan[run] < end:
            start, stop = max(plan[run], begin), min(plan[run] + plan[run + 1], end)
            from_, place = sums + plan[run + 3] * size + start, to + plan[run + 2] + (start - plan[run]) * step
            F, n = plan[run + 4], stop - start
            for k in range(k0, k1):
                if n >= lanes and step == 1:
                    for i in range(0, n, lanes):
                        j = min(i, n - lanes)
                        results = tile_load(scratch, from_ + j, 0, 0, lanes, 1, 1)
                        tile_store(tile_add(results, bias, k, 0), out, place + j, 0, 0)
                elif n >= lanes and F == 2:
                    for i in range(0, n, lanes):
                        j = min(i, n - lanes)
                        results = tile_load(scratch, from_ + j, 0, size, lanes, 1, 2)
                        tile_store_every(tile_add(results, bias, k, 0), out, place + 2 * j, 0, 1, 1, 2 * lanes)
                elif n >= lanes and F == 3:
                    for i in range(0, n, lanes):
                        j = min(i, n - lanes)
                        results = tile_load(scratch, from_ + j, 0, size, lanes, 1, 3)
                        tile_store_every(tile_add(results, bias, k, 0), out, place + 3 * j, 0, 1, 1, 3 * lanes)
                else:
                    for f in range(F):
                        numbers, target, add = pointer(scratch, from_ + f * size), pointer(out, place + f), bias[k]
                        for i in range(n):
                            target[i * step] = numbers[i] + add
                from_ += pitch
                place += channel
            run += 5
        return 0

    return write_runs


def make_direct(lanes, few_lanes, rows, cols, paneled):
    """The direct kernel with a tile of `rows` result channels x `cols` vectors of pixels.

    With `paneled`, what a part of the pixels reads is first copied into a panel, where it lies side by side. Runs are
    written by vectors of `few_lanes`, as rows may be short.
    """
    width = cols * lanes
    # where a tile leaves time to load more, each block of rows asks for a vector of the next tile's pixels: 128->128 on
    # 16000 pixels, which come from memory, 17.2 -> 14.8 ms
    asks = not paneled and rows + 2 * cols < rows * cols
    write_runs = make_write_runs(few_lanes)

    # over 100 lines in all: each loop needs what those around it have worked out
    def direct(arrays, scratch, plan, first, last):
        """Compute the units of work first .. last-1; a unit is (image, group, share of the blocks of result channels,
        part of the tiles of pixels, fan of F result phases).

        In that order a thread has some of the channels, and mostly packed their weights itself: with shares last, all
        threads read all weights, and 512->1024 1x1, stride 2, 28x28, took 1.30 instead of 1.14 ms on two.

        `arrays` are the buffer, the packed weights, the result and the bias; panels.py has the tables in `plan`.
        """
        buffer, w, out, bias = arrays
        pixels = scratch if paneled else buffer
        G, M, C, taps, channel, chunk, depth = plan[0], plan[1], plan[2], plan[3], plan[4], plan[5], plan[6]
        out_image, out_channel, out_step = plan[7], plan[8], plan[9]
        phases, parts, shares = plan[10], plan[11], plan[12]
        part_tiles, part_step, copies_step, panel = plan[13], plan[14], plan[15], plan[16]
        F, merged, phase_table, part_table, copy_table, run_table, offset_table = (
            plan[17], plan[18], plan[19], plan[20], plan[21], plan[22], plan[23],
        )  # fmt: skip
        # each channel of each merged phase is a row of the tiles, one phase after the other
        row_blocks, fans, is_merged = (merged * M + rows - 1) // rows, phases // F, merged > 1
        for unit in range(first, last):
            fan, part, share = unit % fans, unit // fans % parts, unit // (fans * parts) % shares
            g, n = unit // (shares * fans * parts) % G, unit // (shares * fans * parts * G)
            at = phase_table + fan * F * 8
            tiles, positions = plan[at + 2], plan[at + 3]
            tile0, tile1 = part * part_tiles, min((part + 1) * part_tiles, tiles)
            if tile0 >= tile1:
                continue
            r0, r1 = row_blocks * share // shares, row_blocks * (share + 1) // shares
            begin, end = tile0 * width, min(tile1 * width, positions)
            pitch = (tile1 - tile0) * width
            size = (r1 - r0) * rows * pitch
            first_run = run_table + plan[part_table + fan * F * parts + part] * 5
            # results that are one run of the output need not go through the scratch; others are not far from where
            # they would be as one
            whole = out_step == 1 and not is_merged and plan[first_run] <= begin
            whole = whole and begin + pitch <= plan[first_run] + plan[first_run + 1]
            dense = plan[first_run + 2] + (begin - plan[first_run]) * out_step
            for f in range(F):
                at = phase_table + (fan * F + f) * 8
                t0, t1, last_base, first_copy, copies, w_channel = (
                    plan[at], plan[at + 1], plan[at + 4], plan[at + 5], plan[at + 6], plan[at + 7],
                )  # fmt: skip
                # for each channel and tap, where in the panel, or from the first channel on, its pixels are, and where
                # in the block its weights
                offsets = pointer(plan, offset_table + 2 * t0 * chunk)
                for c0 in range(0, C, chunk):
                    c1 = min(c0 + chunk, C)
                    base = ((n * G + g) * C + c0) * channel + min(part * part_step, last_base)
                    if paneled:
                        from_, to = base, panel
                        for _ in range(c0, c1):
                            copy = copy_table + 2 * (first_copy + part * copies_step)
                            for _ in range(copies):
                                vector = tile_load(buffer, from_ + plan[copy], 0, 0, lanes, 1, 1)
                                tile_store(vector, scratch, to + plan[copy + 1], 0, 0)
                                prefetch(buffer, from_ + plan[copy] + part_step, 2)
                                copy += 2
                            from_ += channel
                            to += depth
                    for tile in range(tile0, tile1):
                        for r in range(r0, r1):
                            # the sum over channels and taps, in the order that w has them
                            sums = f * size + (r - r0) * rows * pitch + tile * width - begin
                            if c0 == 0:
                                acc = tile_zeros(buffer, lanes, rows, cols)
                            else:
                                acc = tile_load(scratch, sums, pitch, lanes, lanes, rows, cols)
                            i = (g * row_blocks + r) * taps * C * rows + c0 * w_channel
                            steps = (c1 - c0) * (t1 - t0)
                            b = (panel if paneled else base) + tile * width - begin
                            m = g * M + r * rows
                            to = n * out_image + m * out_channel + dense + (tile * width - begin) * out_step
                            if c1 == C:
                                prefetch_tile(out, to + f * lanes, out_channel, F * lanes, rows, cols)
                            ahead = b + width + (r - r0) % cols * lanes
                            for step in range(0, 2 * steps, 2):
                                offset, weight = offsets[step], i + offsets[step + 1]
                                acc = tile_outer(acc, w, weight, 1, pixels, b + offset)
                                prefetch(w, weight + AHEAD, 2)
                                if asks:
                                    prefetch(pixels, ahead + offset, 2)
                            if whole and c1 == C and (r + 1) * rows <= M:
                                tile_store(tile_add(acc, bias, m, 1), out, to, out_channel, lanes)
                            else:
                                tile_store(acc, scratch, sums, pitch, lanes)
            for r in range(r0, min(r1, (M + rows - 1) // rows)):
                if not (whole and (r + 1) * rows <= M):
                    sums, m = (r - r0) * rows * pitch - begin, g * M + r * rows
                    to, past = n * out_image + m * out_channel, g * M + min((r + 1) * rows, M)
                    write_runs(
                        scratch, sums, pitch, out, to, out_channel, bias, m, past, plan, first_run, begin, end,
                        out_step, M * pitch if is_merged else size,
                    )  # fmt: skip
        return 0

    return direct
