"""Depthwise convolutions and small groups: too few channels to fill a tile, so each thread sums pixels of its own.

What bounds them is memory: a 3x3 depthwise convolution does 9 multiply-adds for each 8 bytes. Neighbouring threads own
neighbouring pixels, and find each other's in the first-level cache.
"""

import numpy as np
from numba import cuda
from numba.cuda import types

from loopconv.cuda.elements import load, store
from loopconv.cuda.intrinsics import entry, inside, pixel
from loopconv.cuda.tiled import (
    BATCH,
    COLUMN_BLOCKS,
    HAS_BIAS,
    OUT_GROUP,
    OUT_IMAGE,
    OUT_P,
    OUT_Q,
    OUT_ROW,
    OUT_Z,
    PHASE,
    PHASE_PIXELS,
    PHASE_SLAB,
    PHASE_SLABS,
    PHASE_START,
    PHASES,
    ROW_BLOCKS,
    ROWS,
    SIZE_P,
    SIZE_Q,
    SIZE_Z,
    SOURCE_GROUP,
    SOURCE_IMAGE,
    SOURCE_P,
    SOURCE_Q,
    SOURCE_Z,
    STEPS,
    STRIDE_P,
    STRIDE_Q,
    STRIDE_Z,
    SUM_HEADER,
    TABLE,
    W_COLUMNS,
    W_PIXELS,
    W_ROWS,
    W_SIZE,
    W_SIZE_P,
    W_SIZE_Q,
    W_SIZE_Z,
    W_SPLITS,
    W_STEPS,
    W_STRIDE_P,
    W_STRIDE_Q,
    W_STRIDE_Z,
    WEIGHT_HEADER,
    X_GROUP,
    X_IMAGE,
    X_P,
    X_Q,
    X_Z,
    Y_GROUP,
    Y_IMAGE,
    Y_P,
    Y_Q,
    Y_ROW,
    Y_Z,
)

# After the entries of the sum's plan array: steps between groups and rows of the weights, and each step's offset.
W_GROUP, W_ROW, W_OFFSETS = range(3)


def make_grouped_sum(dtype, rows, run, axes, threads):
    """Forward and adjoint: each thread has `rows` result channels of `run` pixels, which lie `threads` apart.

    The plan array is that of the sum kernel, with slabs of one step.
    """
    element = getattr(types, dtype)
    coordinates, totals = 3 * run, rows * run

    def grouped_sum_kernel(source, w, bias, out, plan):
        weights = cuda.shared.array(0, element)
        t = np.int64(cuda.threadIdx.x)
        block = np.int64(cuda.blockIdx.x)
        first_row = block % plan[ROW_BLOCKS] * rows
        block //= plan[ROW_BLOCKS]
        first_column = block % plan[COLUMN_BLOCKS] * (threads * run)
        block //= plan[COLUMN_BLOCKS]
        phase = SUM_HEADER + block % plan[PHASES] * PHASE
        group = block // plan[PHASES]

        first, steps = plan[phase + PHASE_SLAB], plan[phase + PHASE_SLABS]
        offsets = plan[TABLE] + 2 * plan[STEPS]
        for i in range(t, steps * rows, threads):
            row, value = first_row + i % rows, 0.0
            if row < plan[ROWS]:
                at = group * plan[offsets + W_GROUP] + row * plan[offsets + W_ROW]
                value = load(w, at + plan[offsets + W_OFFSETS + first + i // rows])
            weights[i] = value
        cuda.syncthreads()

        image_pixels = plan[phase + PHASE_PIXELS]
        first_image = first_column // image_pixels
        j = first_column - first_image * image_pixels + t
        last = (plan[BATCH] - first_image) * image_pixels
        here = cuda.local.array(run, types.int64)
        place = cuda.local.array(coordinates, types.int32)
        total = cuda.local.array(totals, element)
        for r in range(run):
            n, z, p, q = pixel(j + r * threads, plan, phase + PHASE_PIXELS)
            z, p, q = z * plan[STRIDE_Z], p * plan[STRIDE_P], q * plan[STRIDE_Q]
            here[r] = (n + first_image) * plan[SOURCE_IMAGE] + group * plan[SOURCE_GROUP]
            here[r] += z * plan[SOURCE_Z] + p * plan[SOURCE_P] + q * plan[SOURCE_Q]
            place[3 * r], place[3 * r + 1], place[3 * r + 2] = z, p, q
            for m in range(rows):
                total[r * rows + m] = 0.0

        d_size, h_size, w_size = np.int32(plan[SIZE_Z]), np.int32(plan[SIZE_P]), np.int32(plan[SIZE_Q])
        table = plan[TABLE] + 2 * first
        for step in range(steps):
            offset, dz, dp, dq = entry(plan, table + 2 * step)
            for r in range(run):
                ok = j + r * threads < last
                if axes > 2:
                    ok &= inside(place[3 * r] + dz, d_size)
                if axes > 1:
                    ok &= inside(place[3 * r + 1] + dp, h_size)
                if axes > 0:
                    ok &= inside(place[3 * r + 2] + dq, w_size)
                if ok:
                    value = load(source, here[r] + offset)
                    for m in range(rows):
                        total[r * rows + m] += weights[step * rows + m] * value

        for r in range(run):
            if j + r * threads < last:
                n, z, p, q = pixel(j + r * threads, plan, phase + PHASE_PIXELS)
                to = (n + first_image) * plan[OUT_IMAGE] + z * plan[OUT_Z] + p * plan[OUT_P] + q * plan[OUT_Q]
                to += plan[phase + PHASE_START] + group * plan[OUT_GROUP] + first_row * plan[OUT_ROW]
                for m in range(rows):
                    if first_row + m < plan[ROWS]:
                        value = total[r * rows + m]
                        if plan[HAS_BIAS]:
                            value += load(bias, group * plan[ROWS] + first_row + m)
                        store(out, to + m * plan[OUT_ROW], value)

    return grouped_sum_kernel


def make_grouped_weight(dtype, run, axes, threads):
    """The weight gradient: each block has `run` columns (channel of x, tap) of one channel of y, and sums its pixels.

    The plan array is that of the weight kernel; its tile is one row by `run` columns. Each thread sums every
    `threads`-th pixel, and then halves of the threads add up the other halves' sums, always in the same order.
    """
    element = getattr(types, dtype)

    def grouped_weight_kernel(x, y, out, plan):
        sums = cuda.shared.array(0, element)
        t = np.int64(cuda.threadIdx.x)
        block = np.int64(cuda.blockIdx.x)
        column_blocks = -(-plan[W_COLUMNS] // run)
        first_column = block % column_blocks * run
        block //= column_blocks
        row = block % plan[W_ROWS]
        block //= plan[W_ROWS]
        split = block % plan[W_SPLITS]
        group = block // plan[W_SPLITS]
        first = plan[W_STEPS] * split // plan[W_SPLITS]
        last = plan[W_STEPS] * (split + 1) // plan[W_SPLITS]
        first_image = first // plan[W_PIXELS]
        before = first_image * plan[W_PIXELS]
        y_from = first_image * plan[Y_IMAGE] + group * plan[Y_GROUP] + row * plan[Y_ROW]
        x_from = first_image * plan[X_IMAGE] + group * plan[X_GROUP]
        d_size, h_size, w_size = np.int32(plan[W_SIZE_Z]), np.int32(plan[W_SIZE_P]), np.int32(plan[W_SIZE_Q])

        total = cuda.local.array(run, element)
        for r in range(run):
            total[r] = 0.0
        for i in range(first - before + t, last - before, threads):
            n, z, p, q = pixel(i, plan, W_PIXELS)
            value = load(y, y_from + n * plan[Y_IMAGE] + z * plan[Y_Z] + p * plan[Y_P] + q * plan[Y_Q])
            z, p, q = z * plan[W_STRIDE_Z], p * plan[W_STRIDE_P], q * plan[W_STRIDE_Q]
            at = x_from + n * plan[X_IMAGE] + z * plan[X_Z] + p * plan[X_P] + q * plan[X_Q]
            for r in range(run):
                ok = first_column + r < plan[W_COLUMNS]
                offset, dz, dp, dq = entry(plan, WEIGHT_HEADER + 2 * (first_column + r))
                if axes > 2:
                    ok &= inside(np.int32(z) + dz, d_size)
                if axes > 1:
                    ok &= inside(np.int32(p) + dp, h_size)
                if axes > 0:
                    ok &= inside(np.int32(q) + dq, w_size)
                if ok:
                    total[r] += value * load(x, at + offset)

        for r in range(run):
            sums[r * threads + t] = total[r]
        half = threads // 2
        while half:
            cuda.syncthreads()
            if t < half:
                for r in range(run):
                    sums[r * threads + t] += sums[r * threads + t + half]
            half //= 2
        cuda.syncthreads()
        if t < run and first_column + t < plan[W_COLUMNS]:
            to = split * plan[W_SIZE] + (group * plan[W_ROWS] + row) * plan[W_COLUMNS] + first_column + t
            store(out, to, sums[t * threads])

    return grouped_weight_kernel
