# %% [markdown]
# # 3. Transposed convolution as scatter-add
#
# A convolution *gathers*: every output pixel reads a window. Its transpose *scatters*: every input pixel writes a
# whole kernel, scaled by itself, and where kernels overlap they add up. Everything about transposed convolutions
# follows from that picture: what stride, padding and output_padding do, and where checkerboards come from.

# %%
import numpy as np
from pictures import images, show

import loopconv
from loopconv import figures, geometry
from loopconv.loops.adjoint import adjoint

# %% [markdown]
# ## One scaled kernel for every pixel
#
# Two loops over the input, and one addition of an array. `stride` is how far apart the kernels of neighbouring pixels
# are put down.

# %%


def scatter(x, w, stride=1):
    (H, W), (R, S) = x.shape, w.shape
    y = np.zeros(((H - 1) * stride + R, (W - 1) * stride + S))
    for i in range(H):
        for j in range(W):
            y[i * stride : i * stride + R, j * stride : j * stride + S] += x[i, j] * w
    return y


x = np.array([[0.0, 1.0], [2.0, 3.0]])
w = np.array([[0.0, 1.0], [2.0, 3.0]])
y = scatter(x, w)
print(y)
assert y.tolist() == [[0, 0, 1], [0, 4, 6], [4, 12, 9]]
assert np.array_equal(y, loopconv.conv_transpose(x[None], w[None, None])[0])

# %% [markdown]
# Here are the four kernels, and their sum. Framed cells are sums of several terms, which stand below.

# %%
show(
    figures.shifted_kernels(x[None], w[None, None]),
    "03-sum",
    "Four copies of the kernel, scaled by 0, 1, 2 and 3 and shifted, and their 3 by 3 sum",
)

# %% [markdown]
# With a stride of 2, kernels of 2 by 2 touch and do not overlap: nothing is added up.

# %%
y = scatter(x, w, stride=2)
assert y.tolist() == [[0, 0, 0, 1], [0, 0, 2, 3], [0, 2, 0, 3], [4, 6, 6, 9]]
assert np.array_equal(y, loopconv.conv_transpose(x[None], w[None, None], stride=2)[0])
assert np.array_equal(y, np.kron(x, w))  # which makes it a Kronecker product
show(
    figures.shifted_kernels(x[None], w[None, None], stride=2),
    "03-stride",
    "Four scaled kernels side by side, which fill a 4 by 4 output without overlap",
)

# %% [markdown]
# ## Padding crops
#
# In a convolution, padding makes the input larger. Its transpose leads back, from outputs to inputs: what would land
# on the padding is dropped. So here a *larger* padding gives a *smaller* output,
# `(n - 1)*stride + k - 2*padding` pixels for `n` pixels and `k` taps.

# %%
rng = np.random.default_rng(0)
image, taps = rng.integers(-9, 10, (3, 4)).astype(float), rng.integers(-9, 10, (3, 3)).astype(float)
whole = scatter(image, taps, stride=2)
cropped = loopconv.conv_transpose(image[None], taps[None, None], stride=2, padding=1)[0]
print("without padding", whole.shape, "and with a padding of 1", cropped.shape)
assert whole.shape == (7, 9)
assert np.array_equal(cropped, whole[1:-1, 1:-1])

# %% [markdown]
# ## output_padding: which size is meant?
#
# A strided convolution rounds down: with 3 taps, stride 2 and padding 1, both 5 and 6 pixels become 3. The way back
# from 3 is 5 pixels or 6, and `output_padding` says which.

# %%
assert loopconv.preimage_sizes(3, 3, stride=2, padding=1) == (range(5, 7),)
line, kernel = np.array([[1.0, 2.0, 3.0]]), np.array([[[1.0, 10.0, 100.0]]])
five = loopconv.conv_transpose(line, kernel, stride=2, padding=1)
six = loopconv.conv_transpose(line, kernel, stride=2, padding=1, output_padding=1)
print(five, six, sep="\n")
assert five.tolist() == [[10, 102, 20, 203, 30]]
assert six.tolist() == [[10, 102, 20, 203, 30, 300]]

# %% [markdown]
# The sixth pixel is not a zero that was appended. It is 300, which the last kernel wrote there, and which the padding
# would have cropped.

# %%
show(
    figures.shifted_kernels(line, kernel, stride=2, padding=1, output_padding=1),
    "03-output-padding",
    "Three scaled kernels of three taps, two pixels apart; the first tap is cropped and the last pixel is kept",
)

# %% [markdown]
# Where the stride is larger than the kernel, no kernel reaches some pixels. They hold the bias alone.

# %%
gaps = loopconv.conv_transpose([[1.0, 1.0]], [[[1.0]]], [7.0], stride=3, output_padding=2)
print(gaps)
assert gaps.tolist() == [[8, 7, 7, 8, 7, 7]]

# %% [markdown]
# When you know the sizes, ask for the padding. To double 14 pixels with 3 taps:

# %%
solution = loopconv.solve_padding(14, 28, 3, stride=2, transposed=True)
print(solution)
doubled = loopconv.conv_transpose(np.ones((1, 14)), np.ones((1, 1, 3)), stride=2, **solution._asdict())
assert doubled.shape == (1, 28)
try:
    loopconv.solve_padding(14, 60, 3, stride=2, transposed=True)
except ValueError as error:
    print(error)
else:
    raise AssertionError("60 pixels are out of reach")

# %% [markdown]
# ## Channels
#
# Every pair of an input channel `k` and an output channel `c` has a kernel of its own, `w[k, c]`, and an output
# channel is the sum of what all input channels scatter into it. The *input* channel comes first in `w`: it is the
# array of the convolution that this is the transpose of, which leads from `c` to `k`.

# %%
two = np.stack([x, 2 * x])  # 2 channels
weights = np.stack([np.full((2, 2), 1.0), np.full((2, 2), 0.5)])[:, None]  # from 2 channels to 1
y = sum(scatter(two[k], weights[k, 0], stride=2) for k in range(2))
print(y)
assert weights.shape == (2, 1, 2, 2)
assert y.tolist() == [[0, 0, 2, 2], [0, 0, 2, 2], [4, 4, 6, 6], [4, 4, 6, 6]]
assert np.array_equal(y, loopconv.conv_transpose(two, weights, stride=2)[0])
show(
    figures.shifted_kernels(two, weights, stride=2),
    "03-channels",
    "Eight scaled kernels, four of each channel, and their sum",
)

# %% [markdown]
# ## Why it is not a padded convolution with the same kernel
#
# Turn the picture round and ask one output pixel where its terms come from. Pixel `i` gets `w[r] * x[p]` from every
# `p` and `r` with `p*stride + r = i`: as `r` goes up, `p` goes *down*. So it is a convolution with three changes:
# `stride - 1` zeros between the pixels of `x`, zeros all around, and the kernel *reversed*. With the kernel as it is,
# it is another computation of the same shape, as in [lesson 2](02_the_matrix.md).

# %%
small, stride = rng.integers(-9, 10, (3, 3)).astype(float), 2
spread = np.zeros((5, 5))
spread[::stride, ::stride] = small
right = loopconv.conv_transpose(small[None], taps[None, None], stride=stride)
assert np.array_equal(loopconv.conv(spread[None], taps[None, None, ::-1, ::-1], padding="full"), right)
assert not np.array_equal(loopconv.conv(spread[None], taps[None, None], padding="full"), right)

g = geometry.conv_transpose((1, 3, 3), (1, 1, 3, 3), stride=stride)
show(
    figures.arithmetic(g, (2, 3), op="zero_inserted"),
    "03-zero-inserted",
    "A reversed 3 by 3 kernel on a 3 by 3 input with zeros between and around its pixels; only two taps meet pixels",
)

# %% [markdown]
# In the picture, two of nine taps meet a pixel. The scatter never touches the zeros: it makes one product for every
# pixel and tap, and no other.

# %%
products = loopconv.trace("conv_transpose", (1, 3, 3), (1, 1, 3, 3), stride=stride)
as_gather = 9 * right.size  # taps, times output pixels
print(len(products), "products as a scatter,", as_gather, "as a gather over inserted zeros")
assert len(products) == 9 * 9
assert as_gather == 9 * 49

# %% [markdown]
# ## Overlap, and checkerboards
#
# Count how many kernels reach each output pixel: that is the transposed convolution of ones with ones. A kernel of 3
# at stride 2 overlaps its neighbours by one pixel, so some pixels get one term, some two, and some four.

# %%
counts = loopconv.conv_transpose(np.ones((1, 5, 5), int), np.ones((1, 1, 3, 3), int), stride=2)[0]
assert set(counts.ravel().tolist()) == {1, 2, 4}
show(
    figures.contribution_map(geometry.conv_transpose((1, 5, 5), (1, 1, 3, 3), stride=2)),
    "03-uneven",
    "A map of 11 by 11 pixels with a checkerboard of ones, twos and fours",
)

# %% [markdown]
# A network that draws with such a layer draws this pattern into everything, unless its kernels learn to make up for
# it ([Odena, Dumoulin and Olah](https://doi.org/10.23915/distill.00003)). Where the stride divides the kernel size,
# every pixel away from the border gets the same number of terms.

# %%
for k in range(1, 9):
    for stride in range(1, k + 1):
        per_pixel = loopconv.conv_transpose(np.ones((1, 20)), np.ones((1, 1, k)), stride=stride)[0]
        inside = per_pixel[k:-k]
        assert (len(set(inside)) == 1) == (k % stride == 0)
show(
    figures.contribution_map(geometry.conv_transpose((1, 5, 5), (1, 1, 4, 4), stride=2)),
    "03-even",
    "A map of 12 by 12 pixels: fours everywhere but at the border",
)

# %% [markdown]
# The same on an image, a soft disc of 12 by 12 pixels, made twice as large by kernels that sum to 4, one for each of
# the four pixels that it becomes. At each size there is a flat kernel and a *bilinear* one, which falls off to its
# sides; of 3 taps, that is `1/2, 1, 1/2`, which evens out the overlap.

# %%
radius = np.hypot(*(np.indices((12, 12)) - 5.5))
disc = 1 / (1 + np.exp(1.5 * (radius - 4)))


def enlarged(profile):
    kernel = np.outer(profile, profile)
    return loopconv.conv_transpose(disc[None], 4 * kernel[None, None] / kernel.sum(), stride=2, padding=1)[0]


def unevenness(image):
    """The mean step between neighbours in the flat middle of the disc."""
    return np.abs(np.diff(image[8:-8, 8:-8], axis=1)).mean()


profiles = {
    "flat, 3 taps": [1, 1, 1],
    "bilinear, 3 taps": [1, 2, 1],
    "flat, 4 taps": [1, 1, 1, 1],
    "bilinear, 4 taps": [1, 3, 3, 1],
}
pictures = {name: enlarged(profile) for name, profile in profiles.items()}
for name, picture in pictures.items():
    print(f"{name:<18} mean step in the middle {unevenness(picture):.4f}")
assert all(unevenness(pictures["flat, 3 taps"]) > 20 * unevenness(pictures[name]) for name in list(profiles)[1:])
show(
    images(
        "A soft disc, made twice as large by four kernels",
        "stride 2, padding 1; only the flat kernel of 3 taps leaves a checkerboard",
        [("", list(pictures.values()))],
        list(profiles),
    ),
    "03-checkerboard",
    "Four grey discs; the first one is covered by a checkerboard, the others are smooth",
)

# %% [markdown]
# ## Run the library's loops
#
# [adjoint.py](../../loopconv/loops/adjoint.py) is `scatter` with all axes: the taps outside, the pixels of a row
# inside, so that a compiler can do several at once. Its line of arithmetic is that of the convolution read from right
# to left: what was read is added to, what was added to is read. Padding is cropped by the caller.

# %%
result = np.zeros((1, 1, 1, 1, 4, 4))
adjoint(
    result,  # N G C D H W, the output
    weights.reshape(1, 2, 1, 1, 2, 2),  # G K C T R S
    two.reshape(1, 1, 2, 1, 2, 2),  # N G K Z P Q, the input
    (1, 1, 2, 1, 1, 2, 2, 1, 2, 2),  # N G K C Z P Q T R S
    (1, 2, 2),  # stride
    (1, 1, 1),  # dilation
)
print(result.reshape(4, 4))
assert np.array_equal(result.reshape(4, 4), y)

# %% [markdown]
# The order of the loops does not matter for what is added where. It matters for threads: pixels that overlap must not
# be written by two threads at the same time, so each thread has whole channels of images to itself.
#
# ## Try it
#
# - Give `scatter` a `dilation`: a size and a slice have to change. Compare with `loopconv.conv_transpose`.
# - Which `output_padding` makes 7 pixels of 3, with 3 taps at stride 2 and no padding? Is there one for 8, and for 9?
# - Draw `figures.contribution_map` for a kernel of 5 at stride 3, then for one of 6.
# - From a shell: `python -m loopconv explain --transposed --input 3x3 --kernel 3x3 --stride 2 --padding 1`
#
# Next: [gradients by swapping a factor](04_gradients.md).
