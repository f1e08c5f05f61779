"""The three contractions as a first CUDA course writes them: one thread for one number of the result.

They are the loops of loopconv/loops with the outer ones spread over threads. Arrays are flat, and `plan` has the sizes:

x (N, G*C, D, H, W)     w (G*K, C, T, R, S)     y (N, G*K, Z, P, Q)

Pixels outside x are read as zeros; those outside y are passed over. A grid of one axis reaches 2**38 numbers, more than
a GPU holds. Each thread adds in the order of its loops, so the bits are the same in each run; `scatter` says why its
are not.
"""

from functools import lru_cache
from math import prod

import numpy as np
from numba import cuda, float32, float64

from loopconv.cuda.elements import add_at_once, device, load, store, zero
from loopconv.cuda.stages import Launch, Plan

# Threads of a block: enough of them to hide how far memory is, few enough for any kernel's registers.
THREADS = 128

# Where each triple (slices, rows, columns) begins in `plan`, after N, G, K, C.
X, W, Y, STRIDE, DILATION, PAD = range(4, 22, 3)


@device
def met(plan, axis, p, r):
    """The pixel of x that output pixel `p` and tap `r` meet on an axis."""
    return p * plan[STRIDE + axis] + r * plan[DILATION + axis] - plan[PAD + axis]


@device
def meeting(plan, axis, i, r):
    """The output pixel whose tap `r` meets pixel `i` of x on an axis, or a negative number."""
    start = i + plan[PAD + axis] - r * plan[DILATION + axis]
    p = start // plan[STRIDE + axis]
    return p if p * plan[STRIDE + axis] == start and p < plan[Y + axis] else -1


@device
def place(sizes, plan, plane, d, h, v):
    """Where element (plane, d, h, v) of x, w or y is; `sizes` says of which."""
    return ((plane * plan[sizes] + d) * plan[sizes + 1] + h) * plan[sizes + 2] + v


@device
def is_inside(plan, d, h, v):
    """Whether x has that pixel."""
    return d >= 0 and d < plan[X] and h >= 0 and h < plan[X + 1] and v >= 0 and v < plan[X + 2]


@device
def split(sizes, plan, i):
    """(plane, d, h, v) of element `i` of x, w or y."""
    row = i // plan[sizes + 2]
    slab = row // plan[sizes + 1]
    plane = slab // plan[sizes]
    return plane, slab - plane * plan[sizes], row - slab * plan[sizes + 1], i - row * plan[sizes + 2]


def make_forward():
    def forward(x, w, bias, y, plan):
        """y = C x + bias: the thread of y[n, k, z, p, q] gathers its window."""
        N, G, K, C = plan[0], plan[1], plan[2], plan[3]
        i = cuda.grid(1)
        plane, z, p, q = split(Y, plan, i)
        n, k = plane // (G * K), plane % (G * K)
        if n < N:
            total = load(bias, k)
            for c in range(C):
                for t in range(plan[W]):
                    for r in range(plan[W + 1]):
                        for s in range(plan[W + 2]):
                            d, h, v = met(plan, 0, z, t), met(plan, 1, p, r), met(plan, 2, q, s)
                            pixel = zero(x)
                            if is_inside(plan, d, h, v):
                                pixel = load(x, place(X, plan, (n * G + k // K) * C + c, d, h, v))
                            total += load(w, place(W, plan, k * C + c, t, r, s)) * pixel
            store(y, i, total)

    return forward


def make_gather():
    def gather(y, w, bias, x, plan):
        """x = C.T y + bias: the thread of x[n, c, d, h, v] looks for the pixels of y whose windows meet it."""
        N, G, K, C = plan[0], plan[1], plan[2], plan[3]
        i = cuda.grid(1)
        plane, d, h, v = split(X, plan, i)
        n, c = plane // (G * C), plane % (G * C)
        if n < N:
            total = load(bias, c)
            for t in range(plan[W]):
                z = meeting(plan, 0, d, t)
                for r in range(plan[W + 1]):
                    p = meeting(plan, 1, h, r)
                    for s in range(plan[W + 2]):
                        q = meeting(plan, 2, v, s)
                        if z >= 0 and p >= 0 and q >= 0:
                            for k in range(c // C * K, c // C * K + K):
                                tap = load(w, place(W, plan, k * C + c % C, t, r, s))
                                total += tap * load(y, place(Y, plan, n * G * K + k, z, p, q))
            store(x, i, total)

    return gather


def make_fill():
    def fill(bias, x, plan):
        """x = bias: what `scatter` adds to."""
        i = cuda.grid(1)
        plane = split(X, plan, i)[0]
        channels = plan[1] * plan[3]
        if plane < plan[0] * channels:
            store(x, i, load(bias, plane % channels))

    return fill


def make_scatter():
    def scatter(y, w, x, plan):
        """x += C.T y: the thread of y[n, k, z, p, q] adds a scaled kernel, as loops/adjoint.py does.

        Threads add to one pixel in whichever order they come, so the last bits of the sum differ from run to run.
        """
        N, G, K, C = plan[0], plan[1], plan[2], plan[3]
        i = cuda.grid(1)
        plane, z, p, q = split(Y, plan, i)
        n, k = plane // (G * K), plane % (G * K)
        if n < N:
            for c in range(C):
                for t in range(plan[W]):
                    for r in range(plan[W + 1]):
                        for s in range(plan[W + 2]):
                            d, h, v = met(plan, 0, z, t), met(plan, 1, p, r), met(plan, 2, q, s)
                            if is_inside(plan, d, h, v):
                                product = load(w, place(W, plan, k * C + c, t, r, s)) * load(y, i)
                                add_at_once(x, place(X, plan, (n * G + k // K) * C + c, d, h, v), product)

    return scatter


def make_weight():
    def weight(x, y, w, plan):
        """w = dT/dw: the thread of w[k, c, t, r, s] correlates y with the pixels that this tap meets."""
        N, G, K, C = plan[0], plan[1], plan[2], plan[3]
        i = cuda.grid(1)
        plane, t, r, s = split(W, plan, i)
        k, c = plane // C, plane % C
        if k < G * K:
            total = zero(w)
            for n in range(N):
                for z in range(plan[Y]):
                    for p in range(plan[Y + 1]):
                        for q in range(plan[Y + 2]):
                            d, h, v = met(plan, 0, z, t), met(plan, 1, p, r), met(plan, 2, q, s)
                            pixel = zero(x)
                            if is_inside(plan, d, h, v):
                                pixel = load(x, place(X, plan, (n * G + k // K) * C + c, d, h, v))
                            total += load(y, place(Y, plan, n * G * K + k, z, p, q)) * pixel
            store(w, i, total)

    return weight


def make_sums(threads, dtype):
    element = {"float32": float32, "float64": float64}[dtype]

    def sums(y, bias, plan):
        """bias[k] = sum of y[n, k, p]: the threads of a block share a channel, then add up each other's sums."""
        numbers, channels, pixels = plan[0], plan[1], plan[2]
        shared = cuda.shared.array(threads, element)
        k, me = cuda.blockIdx.x, cuda.threadIdx.x
        total = zero(y)
        for i in range(me, numbers, threads):
            total += load(y, (i // pixels * channels + k) * pixels + i % pixels)
        shared[me] = total
        half = threads // 2
        while half > 0:
            cuda.syncthreads()
            if me < half:
                shared[me] += shared[me + half]
            half //= 2
        if me == 0:
            store(bias, k, shared[0])

    return sums


# ---------------------------------------------------------------------------------------------- plans


@lru_cache(maxsize=512)
def numbers(g):
    """The integers of `plan`; unit axes come first."""

    def three(values, unit):
        return (*(unit,) * (3 - g.rank), *values)

    sizes = *three(g.input, 1), *three(g.kernel, 1), *three(g.output, 1)
    steps = *three(g.stride, 1), *three(g.dilation, 1), *three(g.pad, 0)
    return np.array([g.batch, g.groups, g.k // g.groups, g.c // g.groups, *sizes, *steps], np.int64)


def _launch(g, make, arrays, threads):
    return Launch(make, (), arrays, numbers(g), -(-threads // THREADS), THREADS)


def forward_plan(g):
    return Plan((_launch(g, make_forward, ("x", "w", "bias", "y"), prod(g.y_shape)),), {})


def gather_plan(g):
    return Plan((_launch(g, make_gather, ("y", "w", "bias", "x"), prod(g.x_shape)),), {})


def scatter_plan(g):
    fill = _launch(g, make_fill, ("bias", "x"), prod(g.x_shape))
    return Plan((fill, _launch(g, make_scatter, ("y", "w", "x"), prod(g.y_shape))), {})


def weight_plan(g):
    return Plan((_launch(g, make_weight, ("x", "y", "w"), prod(g.w_shape)),), {})


def sums_plan(before, channels, after, dtype):
    """Of an array (before, channels, after) whose sums are of `dtype`."""
    sizes = np.array([before * after, channels, max(after, 1)], np.int64)
    return Plan((Launch(make_sums, (THREADS, dtype), ("y", "bias"), sizes, channels, THREADS),), {})
