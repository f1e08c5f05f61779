# %% [markdown]
# # 2. Convolution as the matrix C, and what its transpose means
#
# A convolution is linear in its input, so it is a matrix: `y = C x`, with images written as columns of numbers. The
# guide of Dumoulin and Visin ([arXiv:1603.07285](https://arxiv.org/abs/1603.07285), section 4) explains transposed
# convolutions with it, and two of its sentences have puzzled many readers who tried them out:
#
# 1. The backward pass multiplies with `C.T`. Then why is `C.T @ y` not the gradient?
# 2. A transposed convolution is also a convolution, over a padded input. Then why do the two give different numbers?
#
# Both have short answers, and every number below can be checked by hand. The setting is the guide's first one: an
# input of 4 by 4 pixels and a kernel of 3 by 3 taps.

# %%
import numpy as np
from pictures import numbers, show

import loopconv
from loopconv import figures, geometry
from loopconv.loops.adjoint import adjoint

x = np.arange(1, 17).reshape(1, 4, 4)  # one channel, 4 by 4 pixels
w = np.arange(1, 10).reshape(1, 1, 3, 3)  # from one channel to one channel, 3 by 3 taps
y = loopconv.conv(x, w)
print(y)
assert y.tolist() == [[[348, 393], [528, 573]]]

# %% [markdown]
# ## A row for every output, a column for every input
#
# Entry `C[i, j]` is what output `i` multiplies input `j` with: a tap, or nothing. Lesson 1 gives the rule. Output
# `(p, q)` meets pixel `(p + r, q + s)` with tap `(r, s)`. Written as an array with two axes for outputs and two for
# inputs, that is one assignment; the matrix is the same array with its axes taken together.

# %%
C = np.zeros((2, 2, 4, 4), int)
for p, q in np.ndindex(2, 2):
    for r, s in np.ndindex(3, 3):
        C[p, q, p + r, q + s] = w[0, 0, r, s]
C = C.reshape(4, 16)
print(C)
assert np.array_equal(C @ x.ravel(), y.ravel())
assert np.array_equal(C, loopconv.conv_matrix(w, x.shape))

# %%
met = np.count_nonzero(C, axis=0).reshape(4, 4)  # the taps that each pixel meets
assert met.tolist() == [[1, 2, 2, 1], [2, 4, 4, 2], [2, 4, 4, 2], [1, 2, 2, 1]]
g = geometry.conv(x.shape, w.shape)
show(figures.matrix(g), "02-matrix", "The 4 by 16 matrix C; the nine taps stand in every row, shifted from row to row")

# %% [markdown]
# Every row holds all nine taps, at the places of its window. Every column holds the taps that one pixel meets: a
# corner pixel meets one, the four pixels in the middle meet four each.
#
# ## Question 1: why is `C.T @ y` not the gradient?
#
# A gradient belongs to a *number*: say how much a loss `L` changes when one pixel changes. So first there has to be a
# loss. Take the simplest, the sum of all outputs. It is linear, so its gradient can be measured exactly: add 1 to a
# pixel and see by how much `L` grows.

# %%


def slope(loss):
    """The gradient of `loss` at x, pixel by pixel; exact for losses that are linear or quadratic in x."""
    gradient = np.zeros(x.shape)
    for pixel in np.ndindex(x.shape):
        step = np.zeros(x.shape, int)
        step[pixel] = 1
        gradient[pixel] = (loss(x + step) - loss(x - step)) / 2
    return gradient


measured = slope(lambda x: loopconv.conv(x, w).sum())
with_ones = (C.T @ np.ones(4)).reshape(x.shape)
with_y = (C.T @ y.ravel()).reshape(x.shape)
assert np.array_equal(measured, with_ones)
assert not np.array_equal(measured, with_y)
show(
    numbers(
        "The gradient of sum(y) is C.T @ ones, and not C.T @ y",
        "x is 1 to 16, w is 1 to 9",
        [("measured", measured[0]), ("C.T @ ones", with_ones[0]), ("C.T @ y", with_y[0])],
        "=\u2260",
    ),
    "02-gradient",
    "Three 4 by 4 arrays of numbers; the measured gradient equals C.T times ones and differs from C.T times y",
)

# %% [markdown]
# `C.T` is right; what it was given is not. The chain rule says
#
#     dL/dx[j]  =  sum over i of  dL/dy[i] * dy[i]/dx[j]  =  sum over i of  dL/dy[i] * C[i, j]
#
# which is `C.T` times *the gradient of the loss with respect to the output*. For the sum, `dL/dy` is 1 everywhere,
# whatever `y` is. The output itself does not occur.
#
# Is `C.T @ y` then a gradient of anything? Yes: of a loss whose derivative with respect to `y` is `y`. That is half
# the sum of squares.

# %%
of_half_squares = slope(lambda x: (loopconv.conv(x, w) ** 2).sum() / 2)
assert np.array_equal(of_half_squares, with_y)

# %% [markdown]
# And for any loss: find `dL/dy` first, then multiply. Here is the squared distance to a target.

# %%
target = np.array([[[300, 400], [500, 600]]])
grad = 2 * (y - target)
of_distance = slope(lambda x: ((loopconv.conv(x, w) - target) ** 2).sum())
assert np.array_equal(of_distance, (C.T @ grad.ravel()).reshape(x.shape))
assert np.array_equal(of_distance, loopconv.conv_input_grad(grad, w, x.shape))
print("dL/dy:", grad.ravel())
print("dL/dx:", of_distance, sep="\n")

# %% [markdown]
# So `C.T` has two uses, which are the same computation on different inputs:
#
# | `C.T` times | is | in loopconv |
# | --- | --- | --- |
# | `dL/dy` | the gradient of the loss with respect to `x` | `conv_input_grad(grad, w, x.shape)` |
# | any array of the output's shape, also `y` | the transposed convolution of it with `w` | `conv_transpose(y, w)` |

# %%
assert np.array_equal(loopconv.conv_transpose(y, w), with_y)
assert np.array_equal(loopconv.conv_transpose(grad, w), loopconv.conv_input_grad(grad, w, x.shape))

# %% [markdown]
# ## The same connections, walked backwards
#
# `C.T` has its entries where `C` has them, with rows and columns exchanged: if output `i` reads pixel `j` through a
# tap, then in the transpose pixel `j` receives from `i` through the same tap. `loopconv.trace` lists the connections
# of both, and they are the same set.

# %%
forth = loopconv.trace("conv", (1, 4, 4), w.shape)
back = loopconv.trace("conv_transpose", (1, 2, 2), w.shape)
connections = {(*row["output"], *row["input"], *row["weight"]) for row in forth}
assert connections == {(*row["input"], *row["output"], *row["weight"]) for row in back}
print(len(connections), "connections; entries of C that are not 0:", np.count_nonzero(C))

# %% [markdown]
# That is also what makes `C.T` the *adjoint* of `C`: for all `x` and `y`, `<C x, y> = <x, C.T y>`, since both are the
# sum over all connections of a pixel, a tap and an output. It is the cheapest test of a transposed convolution that
# there is, and it needs no reference.

# %%
deviation = loopconv.adjoint_test(
    lambda x: loopconv.conv(x, w, stride=2, padding=1),
    lambda y: loopconv.conv_transpose(y, w, stride=2, padding=1, output_padding=1),
    (1, 6, 6),
)
print(f"the two products differ by {deviation.error:.1e}")

# %% [markdown]
# ## A transpose is not an inverse
#
# The shapes suggest that a transposed convolution gets the input back. It does not. Here is a case of 3 by 3 pixels
# and 2 by 2 taps: from 9 numbers to 4, and from these to 9.

# %%
nine, kernel = np.arange(9).reshape(1, 3, 3), np.array([[[[1, 2], [3, 4]]]])
W = loopconv.conv_matrix(kernel, nine.shape)
small = W @ nine.ravel()
again = W.T @ small
print(W, small, again.reshape(3, 3), sep="\n\n")
assert small.tolist() == [27, 37, 57, 67]
assert again.tolist() == [27, 91, 74, 138, 400, 282, 171, 429, 268]

# %% [markdown]
# It would take `W.T @ W` to be the identity, and no matrix with 4 rows has that: its products have rank 4 at most,
# the identity of 9 numbers has rank 9. Five dimensions are lost. What one can have is *an* input with the same
# output: the pseudo-inverse finds the smallest one.

# %%
assert np.linalg.matrix_rank(W.T @ W) == 4
smallest = np.linalg.pinv(W) @ small
assert np.allclose(W @ smallest, small)
assert np.linalg.norm(smallest) < np.linalg.norm(nine)
show(
    numbers(
        "The transpose does not undo a convolution, and nothing can",
        "the last array is the smallest input whose output is W @ x",
        [("x", nine[0]), ("W.T @ W @ x", again.reshape(3, 3)), ("pinv(W) @ W @ x", smallest.reshape(3, 3).round(2))],
        "\u2260\u2260",
    ),
    "02-inverse",
    "Three 3 by 3 arrays: the input, what the transpose makes of its output, and what the pseudo-inverse makes of it",
)

# %% [markdown]
# ## Question 2: the transpose as a padded convolution
#
# Section 4.3 of the guide computes the transpose of our 3 by 3 case as a convolution of the 2 by 2 array, padded with
# two zeros on each side. Try it with the kernel as it is: the shape is right, the numbers are not.

# %%
transposed = loopconv.conv_transpose(y, w)
as_it_is = loopconv.conv(y, w, padding=2)
flipped = loopconv.conv(y, w[..., ::-1, ::-1], padding=2)
assert as_it_is.shape == transposed.shape == (1, 4, 4)
assert not np.array_equal(as_it_is, transposed)
assert np.array_equal(flipped, transposed)
show(
    numbers(
        "The padded convolution needs the kernel flipped",
        "y is 2 \u00d7 2, w is 1 to 9; conv is with padding 2",
        [
            ("conv_transpose(y, w)", transposed[0]),
            ("conv(y, w[..., ::-1, ::-1])", flipped[0]),
            ("conv(y, w)", as_it_is[0]),
        ],
        "=\u2260",
    ),
    "02-flip",
    "Three 4 by 4 arrays: the first two are equal; the last one, with the kernel as it is, differs",
)

# %% [markdown]
# The reason is in the index. The convolution reads pixel `p + r` with tap `r`. Solved for the other side, pixel `i`
# receives from output `i - r`: the tap is *subtracted*. To read `y[i - r]` with a convolution, whose taps are added,
# its taps have to be numbered backwards. In the matrix: down a column of `C`, from row to row, the taps run backwards.

# %%
column = C[:, 5]  # of pixel (1, 1), which all four outputs meet
print(column)
assert column.tolist() == [w[0, 0, 1, 1], w[0, 0, 1, 0], w[0, 0, 0, 1], w[0, 0, 0, 0]]

# %% [markdown]
# With several channels, the two channel axes change places too, since `w[k, c]` now leads from `k` to `c`. And a
# kernel that looks the same after a turn by 180 degrees, such as a Gaussian, needs no flip, which is why the sentence
# can seem to work.

# %%
rng = np.random.default_rng(0)
many, weights = rng.integers(-9, 10, (3, 5, 4)), rng.integers(-9, 10, (3, 2, 3, 3))
turned = weights[..., ::-1, ::-1].swapaxes(0, 1)
assert np.array_equal(loopconv.conv_transpose(many, weights), loopconv.conv(many, turned, padding="full"))

even = np.outer([1, 2, 1], [1, 2, 1])[None, None]
assert np.array_equal(loopconv.conv_transpose(y, even), loopconv.conv(y, even, padding=2))

# %% [markdown]
# ## Stride and padding are in the matrix too
#
# With a stride, the rows of `C` move by more than one column at a time; with padding, rows at the border lose the
# taps that meet zeros. Its transpose is still the transposed convolution, so no rule has to be remembered.

# %%
settings = {"stride": 2, "padding": 1}
M = loopconv.conv_matrix(w, (1, 5, 5), **settings)
values = rng.integers(-9, 10, (1, 3, 3))
assert np.array_equal((M.T @ values.ravel()).reshape(1, 5, 5), loopconv.conv_transpose(values, w, **settings))
show(
    figures.matrix(geometry.conv((1, 5, 5), w.shape, **settings)),
    "02-stride",
    "The 9 by 25 matrix of a 3 by 3 kernel at stride 2 with padding 1 on 5 by 5 pixels",
)

# %% [markdown]
# ## Run the library's loops
#
# Nobody multiplies with `C`, most of which is zeros. [adjoint.py](../../loopconv/loops/adjoint.py) walks over its
# entries alone, and adds each product to the pixel that its tap leads to. Call it as it is:

# %%
result = np.zeros((1, 1, 1, 1, 4, 4), int)
adjoint(
    result,  # N G C D H W, the output
    w.reshape(1, 1, 1, 1, 3, 3),  # G K C T R S
    y.reshape(1, 1, 1, 1, 2, 2),  # N G K Z P Q, the input
    (1, 1, 1, 1, 1, 2, 2, 1, 3, 3),  # N G K C Z P Q T R S
    (1, 1, 1),  # stride
    (1, 1, 1),  # dilation
)
print(result.reshape(4, 4))
assert np.array_equal(result.ravel(), C.T @ y.ravel())

# %% [markdown]
# ## Try it
#
# - Which columns of `C` have the most entries, and what do they sum to? You have seen these sums above.
# - For which `L` is `C.T @ C @ x` the gradient? (It is among the losses above.)
# - Make `w` symmetric in one direction only. Does the padded convolution need a flip?
#
# Next: [transposed convolution as scatter-add](03_scatter_add.md).
