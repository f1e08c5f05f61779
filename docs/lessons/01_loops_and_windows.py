# %% [markdown]
# # 1. Convolution as loops, and as windows
#
# A convolution lays a small array, the *kernel*, over a larger one, multiplies what lies on top of each other, adds
# the products up, and moves on by one step. In this lesson you write it as loops, then as one line of NumPy over a
# strided view, and at the end you run the loops that the library is made of.
#
# You need Python and the indexing of NumPy arrays. The letters are the same everywhere: an input of `H` by `W`
# pixels, a kernel of `R` by `S` *taps*, an output of `P` by `Q` pixels.

# %%
import inspect

import numpy as np
from numpy.lib.stride_tricks import as_strided, sliding_window_view
from pictures import memory, show

import loopconv
from loopconv import figures, geometry
from loopconv.loops.forward import forward

# %% [markdown]
# ## One sum for every output pixel
#
# Output pixel `(p, q)` is the sum over all taps `(r, s)` of `w[r, s] * x[p + r, q + s]`. That is four loops: two
# choose an output pixel, two go over the kernel.

# %%
x = np.arange(9.0).reshape(3, 3)
w = np.array([[1.0, 2.0], [3.0, 4.0]])


def convolve(x, w):
    (H, W), (R, S) = x.shape, w.shape
    P, Q = H - R + 1, W - S + 1  # places where the kernel fits
    y = np.zeros((P, Q))
    for p in range(P):
        for q in range(Q):
            for r in range(R):
                for s in range(S):
                    y[p, q] += w[r, s] * x[p + r, q + s]
    return y


y = convolve(x, w)
print(x, w, y, sep="\n\n")
assert y[0, 0] == 1 * 0 + 2 * 1 + 3 * 3 + 4 * 4 == 27
assert y.tolist() == [[27, 37], [57, 67]]

# %% [markdown]
# Each panel below is one turn of the two outer loops. A blue cell is a pixel that is read; the pair on it is the tap
# that it is multiplied with.

# %%
g = geometry.conv((1, *x.shape), (1, 1, *w.shape))
show(
    figures.arithmetic(g),
    "01-steps",
    "Four panels: a 2 by 2 window at each of its four places on a 3 by 3 input, and the output pixel that it gives",
)

# %% [markdown]
# The kernel is *not flipped*: tap 0 meets the first pixel of the window. Deep learning calls this a convolution;
# signal processing calls it a correlation and keeps the word convolution for the flipped kernel. NumPy has both.

# %%
signal, kernel = np.array([1.0, 2.0, 3.0, 5.0]), np.array([1.0, 10.0])
ours = loopconv.conv(signal[None], kernel[None, None])[0]  # (channels, pixels) and (channels, channels, taps)
print("loopconv    ", ours)
print("np.correlate", np.correlate(signal, kernel, "valid"))
print("np.convolve ", np.convolve(signal, kernel, "valid"))
assert np.array_equal(ours, np.correlate(signal, kernel, "valid"))
assert np.array_equal(ours, np.convolve(signal, kernel[::-1], "valid"))

# %% [markdown]
# ## Stride, padding, dilation: one index formula
#
# Three settings change which pixel meets which tap, and nothing else:
#
# - `stride`: the window moves by so many pixels at a time;
# - `padding`: so many zeros are put around the input;
# - `dilation`: neighbouring taps are so many pixels apart.
#
# Tap `r` of output pixel `p` reads pixel `p*stride + r*dilation - padding`. With that, a kernel of `R` taps covers
# `dilation*(R - 1) + 1` pixels, and fits into the padded input
# `(H + 2*padding - dilation*(R - 1) - 1) // stride + 1` times.

# %%


def convolve_with(x, w, stride=1, padding=0, dilation=1):
    (H, W), (R, S) = x.shape, w.shape
    P = (H + 2 * padding - dilation * (R - 1) - 1) // stride + 1
    Q = (W + 2 * padding - dilation * (S - 1) - 1) // stride + 1
    y = np.zeros((P, Q))
    for p, q in np.ndindex(P, Q):
        for r, s in np.ndindex(R, S):
            i = p * stride + r * dilation - padding
            j = q * stride + s * dilation - padding
            if 0 <= i < H and 0 <= j < W:  # elsewhere is padding, which adds nothing
                y[p, q] += w[r, s] * x[i, j]
    return y


rng = np.random.default_rng(0)
image, taps = rng.integers(-9, 10, (8, 7)).astype(float), rng.integers(-9, 10, (3, 2)).astype(float)
for stride in (1, 2, 3):
    for padding in (0, 1, 4):
        for dilation in (1, 2):
            settings = {"stride": stride, "padding": padding, "dilation": dilation}
            right = loopconv.conv(image[None], taps[None, None], **settings)[0]
            assert np.array_equal(convolve_with(image, taps, **settings), right)
print("18 settings agree with loopconv.conv")

# %% [markdown]
# A window at stride 2, partly on padding:

# %%
g = geometry.conv((1, 5, 5), (1, 1, 3, 3), stride=2, padding=1)
show(
    figures.arithmetic(g, (1, 0)),
    "01-stride",
    "A 3 by 3 window on a 5 by 5 input with a border of zeros: three taps lie on zeros, six on pixels",
)

# %% [markdown]
# `loopconv.trace` lists the products themselves, without those that meet padding. Here are the six of this picture.

# %%
products = loopconv.trace("conv", (1, 5, 5), (1, 1, 3, 3), stride=2, padding=1)
six = [row for row in products if tuple(row["output"]) == (0, 1, 0)]
for row in six:
    print("y", row["output"], "+=  w", row["weight"], "*  x", row["input"])
assert len(six) == 6
assert len(products) == 49  # of 9 output pixels with 9 taps each, 32 products meet padding
assert g.macs == 81

# %% [markdown]
# ## The same, as windows
#
# In memory, an array is one row of numbers. Its `strides` say how many bytes lie between neighbours along each axis:
# here 8 bytes from column to column, and 24, three numbers, from row to row.

# %%
nine = np.arange(1.0, 10).reshape(3, 3)
print(nine, "strides", nine.strides)
assert nine.strides == (24, 8)

# %% [markdown]
# A window is a smaller array *with the same strides* that begins somewhere else. `as_strided` makes one without
# copying anything.

# %%
for p, q in np.ndindex(2, 2):
    window = as_strided(nine[p:, q:], shape=(2, 2), strides=(24, 8))
    print(f"window {p},{q}:", window.tolist())
    assert np.shares_memory(window, nine)
assert window.tolist() == [[5, 6], [8, 9]]

# %% [markdown]
# From window to window it is 24 bytes down and 8 across: the same strides again. So one view with *four* axes holds
# all windows, and its element `[p, q, r, s]` is pixel `[p + r, q + s]`.

# %%
windows = as_strided(nine, shape=(2, 2, 2, 2), strides=(24, 8, 24, 8), writeable=False)
assert windows[0, 1].tolist() == [[2, 3], [5, 6]]
assert windows[1, 0].tolist() == [[4, 5], [7, 8]]
assert np.shares_memory(windows, nine)
show(
    memory(
        "Four windows of one piece of memory",
        "a 3 \u00d7 3 array, windows of 2 \u00d7 2; the label of a blue cell is the tap r,s that meets it",
        (3, 3),
        (2, 2),
    ),
    "01-memory",
    "Nine cells of memory in a row, four times; in each, the four cells of one window are marked",
)

# %% [markdown]
# Nine numbers in memory look like sixteen. (Keep this picture in mind: in [lesson 2](02_the_matrix.md) it comes back
# as a matrix.) The four loops are now a single sum over two axes:

# %%
y = np.einsum("pqrs,rs->pq", windows, w)
assert np.array_equal(y, convolve(nine, w))
print(y)

# %% [markdown]
# Stride and dilation cost nothing here, because they are strides too: `stride` times as many bytes between windows,
# `dilation` times as many between taps.

# %%


def windows_of(x, kernel, stride=1, dilation=1):
    shape = [(n - dilation * (k - 1) - 1) // stride + 1 for n, k in zip(x.shape, kernel)]
    down, across = x.strides
    strides = (down * stride, across * stride, down * dilation, across * dilation)
    return as_strided(x, (*shape, *kernel), strides, writeable=False)


for stride in (1, 2, 3):
    for dilation in (1, 2):
        y = np.einsum("pqrs,rs->pq", windows_of(image, taps.shape, stride, dilation), taps)
        assert np.array_equal(y, convolve_with(image, taps, stride=stride, dilation=dilation))

# %% [markdown]
# `as_strided` believes every number that it is given. A shape that is too large by one reads memory that belongs to
# somebody else, without any error. `sliding_window_view` cannot do that; slicing gives it stride and dilation.

# %%
safe = sliding_window_view(image, (5, 3))[::2, ::2, ::2, ::2]  # 3 by 2 taps at dilation 2 cover 5 by 3 pixels
assert np.array_equal(safe, windows_of(image, (3, 2), stride=2, dilation=2))

# %% [markdown]
# ## Images and channels
#
# Real arrays have more axes: `x[n, c, h, w]` holds N images of C channels, and `w[k, c, r, s]` has a kernel for every
# pair of an output channel `k` and an input channel `c`. An output channel is the sum over all input channels.

# %%
batch, weights = rng.standard_normal((2, 3, 8, 7)), rng.standard_normal((4, 3, 3, 2))
windows = sliding_window_view(batch, (3, 2), axis=(2, 3))
y = np.einsum("ncpqrs,kcrs->nkpq", windows, weights)
assert y.shape == (2, 4, 6, 6)
assert np.allclose(y, loopconv.conv(batch, weights))
print(loopconv.einsum_spec("conv", None, batch, weights))

# %% [markdown]
# ## Run the library's loops
#
# What you wrote is what `loopconv.conv` runs. These are its loops, with three spatial axes, so that one text serves
# signals, images and volumes, and with groups `G` of channels that do not see each other:

# %%
print(inspect.getsource(forward))

# %% [markdown]
# They are an ordinary function: call it. Axes that you do not use have one entry.

# %%
result = np.zeros((1, 1, 1, 1, 2, 2))
forward(
    x.reshape(1, 1, 1, 1, 3, 3),  # N G C D H W
    w.reshape(1, 1, 1, 1, 2, 2),  # G K C T R S
    result,  # N G K Z P Q
    (1, 1, 1, 1, 1, 2, 2, 1, 2, 2),  # N G K C Z P Q T R S
    (1, 1, 1),  # stride
    (1, 1, 1),  # dilation
)
print(result.reshape(2, 2))
assert result.reshape(2, 2).tolist() == [[27, 37], [57, 67]]

# %% [markdown]
# `backend="python"` does that for you. The other backends are the same text in machine code, and agree with it:

# %%
slow = loopconv.conv(batch, weights, stride=2, padding=1, backend="python")
for backend, state in loopconv.backends().items():
    if state == "ready":
        assert np.allclose(loopconv.conv(batch, weights, stride=2, padding=1, backend=backend), slow)
        print(backend, "agrees")

# %% [markdown]
# ## Try it
#
# - Which sizes give an output of 3 pixels at stride 2 with 3 taps and a padding of 1? Think first, then ask
#   `loopconv.preimage_sizes(3, 3, stride=2, padding=1)`.
# - A stride may be 0. What is `as_strided(w, (2, 2, 2, 2), (0, 0, 16, 8))`, and how much memory does it take?
# - Put a `breakpoint()` into [forward.py](../../loopconv/loops/forward.py) and watch one output pixel grow.
#
# Next: [the matrix C, and what its transpose means](02_the_matrix.md).
