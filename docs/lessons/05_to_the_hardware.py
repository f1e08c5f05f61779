# %% [markdown]
# # 5. From loops to the hardware
#
# The loops of the last lessons are the same on every rung of this ladder. What changes is who runs them: an
# interpreter, a C compiler, a just-in-time compiler, several threads; and on the last rung, the order in which numbers
# are taken into registers. Every rung is timed here, on the machine that you run this on, and compared with what its
# arithmetic could do at most.

# %%
import inspect
from time import perf_counter

import numba
import numpy as np
from llvmlite.binding import get_host_cpu_name
from pictures import ladder, show

import loopconv
from loopconv import bench, geometry
from loopconv.loops import driver
from loopconv.loops.forward import forward

# %% [markdown]
# ## The work, counted
#
# The layer has 32 channels of 64 by 64 pixels, 32 output channels and a kernel of 5 by 5, in single precision. Every
# output pixel takes a multiply and an add for every tap of every input channel: two floating-point operations (FLOP)
# each.

# %%
settings = {"padding": 2}
rng = np.random.default_rng(0)
x = rng.standard_normal((1, 32, 64, 64)).astype(np.float32)
w = rng.standard_normal((32, 32, 5, 5)).astype(np.float32)

g = geometry.conv(x.shape, w.shape, **settings)
multiply_adds = (32 * 64 * 64) * (32 * 5 * 5)
assert g.macs == multiply_adds == 104_857_600
megabytes = (x.nbytes + w.nbytes + 4 * np.prod(g.y_shape)) / 1e6
print(f"{2 * multiply_adds / 1e6:.0f} million FLOP on {megabytes:.2f} MB of numbers")

# %% [markdown]
# That is more than 180 FLOP for every byte. So memory is not what limits this layer, once numbers that were fetched are
# used again; arithmetic is. A core does its arithmetic best as *fused multiply-adds* (FMA) on vectors: several
# products are added to several sums by one instruction. How many FLOP per second that makes, `loopconv.bench.peak`
# measures: it does nothing but FMAs on registers.

# %%
assert 180 < 2 * multiply_adds / (megabytes * 1e6) < 190
peak = bench.peak() / 1e9
threads = loopconv.get_num_threads()
print(f"one core of this machine ({get_host_cpu_name()}): {peak:.0f} GFLOP/s; threads: {threads}")

# %% [markdown]
# ## A stopwatch
#
# The fastest of several calls is the least disturbed one. The first call does not count: it may have to compile. And
# no time without a check: every result is compared with the einsum reference, which computes in double precision.

# %%
exact = loopconv.conv(x.astype(np.float64), w.astype(np.float64), **settings, backend="reference")
rungs = []


def best(call, seconds=0.5):
    """The shortest time of calls that take so many seconds together, and at least three."""
    times = []
    while len(times) < 3 or sum(times) < seconds:
        start = perf_counter()
        call()
        times.append(perf_counter() - start)
    return min(times)


def climb(name, call, expected=exact, macs=multiply_adds):
    """Check one rung, time it, and write its rate down."""
    error = np.abs(call() - expected).max() / np.abs(expected).max()
    assert error < 1e-4, f"{name} is wrong by {error:.1e}"
    seconds = best(call)
    rungs.append((name, 2 * macs / seconds / 1e9))
    print(f"{name:<24} {rungs[-1][1]:10.4f} GFLOP/s, {100 * rungs[-1][1] / peak:7.3f} % of one core's peak")


# %% [markdown]
# ## Rung 1: interpreted
#
# Python reads the loops line by line. The whole layer would take a minute, so it gets a small part: one row of one
# output channel. What counts is the rate.

# %%
part = {"padding": ((0, 0), (2, 2))}
rows, one = x[:, :, 10:15], w[:1]
few = exact[:, :1, 12:13]  # output row 12 reads rows 10 to 14
climb(
    "Python",
    lambda: loopconv.conv(rows, one, **part, backend="python"),
    few,
    geometry.conv(rows.shape, one.shape, **part).macs,
)

# %% [markdown]
# ## Rungs 2 and 3: compiled
#
# Cython translated the same file to C when the package was installed, with the types of all variables beside it.
# Numba compiles it now, for the types that it is called with. Neither changes a line.


# %%
def textbook():
    """The loops, compiled as they are; `driver` adds the padding and calls them."""
    y = np.empty(g.y_shape, np.float32)
    driver.forward(compiled, g, x, w, y)
    return y


if loopconv.backends()["cython"] == "ready":
    climb("Cython", lambda: loopconv.conv(x, w, **settings, backend="cython"))
else:
    print("no Cython here:", loopconv.backends()["cython"])
compiled = numba.njit(forward)
climb("Numba, plain njit", textbook)

# %% [markdown]
# A compiler has to keep every promise of the language, and two promises of Python are expensive here. An index may be
# negative, so each one is tested; unsigned integers need no test. And a product is rounded before it is added, so the
# two cannot become one FMA unless that is allowed. With both, `backend="numba"`:

# %%
loopconv.set_num_threads(1)
climb("Numba", lambda: loopconv.conv(x, w, **settings, backend="numba"))

# %% [markdown]
# ## Rung 4: several threads
#
# The outermost loop goes over planes of the output, each of which is written by one thread. Every sum is added up in
# the same order, however many threads there are, so the result has the same bits.

# %%
by_one = loopconv.conv(x, w, **settings, backend="parallel")
loopconv.set_num_threads(threads)
assert np.array_equal(loopconv.conv(x, w, **settings, backend="parallel"), by_one)
if threads > 1:
    climb(f"Numba, {threads} threads", lambda: loopconv.conv(x, w, **settings, backend="parallel"))
else:
    print("one processor, so one thread: nothing to gain here")

# %% [markdown]
# ## Rung 5: tiles
#
# Why is one thread still so far from its peak? Look at the innermost line:

# %%
print("\n".join(inspect.getsource(forward).splitlines()[-5:]))

# %% [markdown]
# For every multiply-add, `x` and `y` are loaded and `y` is stored. A core can do more FMAs than loads and stores in
# the same time, so it waits. `backend="tiled"` computes a *tile* of the output at once, a few channels by a few
# vectors of pixels, and holds its sums in registers until they are complete. Then `m` weights and `n` vectors of
# pixels, `m + n` loads, serve `m * n` FMAs, and nothing is stored on the way.
# [tiled/README.md](../../loopconv/tiled/README.md) has the whole story.

# %%
loopconv.set_num_threads(1)
climb("tiled", lambda: loopconv.conv(x, w, **settings, backend="tiled"))
loopconv.set_num_threads(threads)
if threads > 1:
    climb(f"tiled, {threads} threads", lambda: loopconv.conv(x, w, **settings, backend="tiled"))

# %%
gpu = loopconv.backends().get("cuda")
if gpu == "ready":  # the arrays go to the graphics processor and back in each call
    climb("CUDA, with the copies", lambda: loopconv.conv(x, w, **settings, backend="cuda"))
elif gpu is not None:
    print("What follows is CUDA, on a graphics processor. Not on this machine:", gpu)

# %% [markdown]
# ## The ladder
#
# On a log scale every grid line is ten times the one before it.

# %%
peaks = [("FMA peak of one core", peak)]
if threads > 1:
    peaks.append((f"of {threads} cores", threads * peak))
show(
    ladder(
        "The same convolution on every rung",
        f"32 \u2192 32 channels, 5 \u00d7 5 taps, 64 \u00d7 64 pixels, single precision; {get_host_cpu_name()}",
        rungs,
        peaks,
    ),
    "05-ladder",
    "Bars on a log scale: GFLOP/s from interpreted Python to tiles, beside lines at the measured peak",
)
slowest, fastest = rungs[0], max(rungs, key=lambda rung: rung[1])
print(f"from {slowest[0]} to {fastest[0]}: {fastest[1] / slowest[1]:.0f} times as fast")

# %% [markdown]
# ## Run the library's loops
#
# You need not choose a rung. Without `backend=`, `conv` takes the first backend that can do a call and is worth it,
# and `loopconv.backends()` lists them in this order. All of them are the loops that you have read.

# %%
for backend, state in loopconv.backends().items():
    print(f"{backend:<10} {state}")
y = loopconv.conv(x, w, **settings)
assert np.abs(y - exact).max() / np.abs(exact).max() < 1e-4

# %% [markdown]
# ## Try it
#
# - Change the layer at the top to a kernel of 1 by 1, then to one of 3 by 3. Which rungs gain, which lose? (Of 3 by 3,
#   the tiles may pass the peak: there is a method of Winograd that needs fewer multiplications, and the FLOP are those
#   of the loops.)
# - Climb with `loopconv.conv_weight_grad(y, x, w.shape, **settings, backend=...)` in place of `conv`.
# - `python -m loopconv bench` compares with PyTorch on many layers.
#
# Next: [training with nothing but these functions](06_autoencoder.md).
