"""The four documents that the package grew from, with the numbers they publish.

Two questions about section 4 of Dumoulin and Visin's "A guide to convolution arithmetic" (the matrix C and
what it has to do with gradients), a notebook that finds the gradient of a transposed convolution by hand,
and a notebook that builds the transposed convolution up from scatter-add.
"""

import numpy as np

from loopconv import (
    conv,
    conv_grads,
    conv_input_grad,
    conv_matrix,
    conv_transpose,
    conv_transpose_grads,
    conv_transpose_input_grad,
    conv_weight_grad,
)

# ------------------------------------------------- the questions: "math not working out", documents 0 and 1

# Integers, so that every comparison is exact; the documents draw w at random.
GUIDE_X = np.arange(1, 17).reshape(1, 1, 4, 4)
GUIDE_W = np.array([[3, -1, 4], [1, -5, 9], [2, 6, -5]])[None, None]


def guide_matrix():
    """C as the question fills it in, row by row of the kernel."""
    w = GUIDE_W[0, 0]
    C = np.zeros((4, 16), int)
    C[0, :3], C[0, 4:7], C[0, 8:11] = w
    C[1, 1:4], C[1, 5:8], C[1, 9:12] = w
    C[2, 4:7], C[2, 8:11], C[2, 12:15] = w
    C[3, 5:8], C[3, 9:12], C[3, 13:] = w
    return C


def test_conv_matrix_is_the_C_of_the_question():
    assert np.array_equal(conv_matrix(GUIDE_W, (1, 4, 4)), guide_matrix())


def test_C_times_x_is_the_convolution(integer_backend):
    y = conv(GUIDE_X, GUIDE_W, backend=integer_backend)
    assert np.array_equal(guide_matrix() @ GUIDE_X.ravel(), y.ravel())


def test_C_transposed_times_the_gradient_is_the_input_gradient(integer_backend):
    # y1.backward(torch.ones_like(y1)): the gradient of the sum.
    ones = np.ones((1, 1, 2, 2), int)
    dx = conv_input_grad(ones, GUIDE_W, GUIDE_X.shape, backend=integer_backend)
    assert np.array_equal(guide_matrix().T @ ones.ravel(), dx.ravel())
    assert np.array_equal(conv_grads(ones, GUIDE_X, GUIDE_W, backend=integer_backend).input, dx)


def test_C_transposed_times_the_output_is_not(integer_backend):
    # What the question multiplied; it is the transposed convolution of the output.
    y = conv(GUIDE_X, GUIDE_W)
    product = (guide_matrix().T @ y.ravel()).reshape(GUIDE_X.shape)
    assert not np.array_equal(product, conv_input_grad(np.ones_like(y), GUIDE_W, GUIDE_X.shape))
    assert np.array_equal(product, conv_transpose(y, GUIDE_W, backend=integer_backend))


def test_section_4_3_needs_the_kernel_flipped(integer_backend):
    y = conv(GUIDE_X, GUIDE_W)
    transposed = conv_transpose(y, GUIDE_W, backend=integer_backend)
    as_asked = conv(y, GUIDE_W, padding=2, backend=integer_backend)
    assert as_asked.shape == transposed.shape
    assert not np.array_equal(as_asked, transposed)
    assert np.array_equal(conv(y, GUIDE_W[..., ::-1, ::-1], padding=2, backend=integer_backend), transposed)


def test_section_4_3_swaps_the_channel_axes_too(integer_backend):
    rng = np.random.default_rng(0)
    y, w = rng.integers(-9, 10, (2, 3, 4, 5)), rng.integers(-9, 10, (3, 2, 3, 2))
    flipped = w[..., ::-1, ::-1].swapaxes(0, 1)
    transposed = conv_transpose(y, w, backend=integer_backend)
    assert np.array_equal(conv(y, flipped, padding=((2, 2), (1, 1)), backend=integer_backend), transposed)
    assert np.array_equal(conv(y, flipped, padding="full", backend=integer_backend), transposed)


def test_a_gradient_swaps_grad_for_one_factor_of_the_einsum(integer_backend):
    # The answer: "you swap in grad.out for one of the arguments".
    rng = np.random.default_rng(0)
    x, w = rng.integers(-9, 10, (2, 3, 5, 6)), rng.integers(-9, 10, (4, 3, 3, 2))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 2), axis=(2, 3))
    y = np.einsum("ncpqrs,kcrs->nkpq", windows, w)
    assert np.array_equal(conv(x, w, backend=integer_backend), y)
    grad = rng.integers(-9, 10, y.shape)
    swapped = np.einsum("ncpqrs,nkpq->kcrs", windows, grad)
    assert np.array_equal(conv_weight_grad(grad, x, w.shape, backend=integer_backend), swapped)


# ------------------------------------- the notebook on the gradient of a transposed convolution, document 2


def code_to_image(dtype):
    """(input, weight, target): 4 channels of code, a 9x9 kernel, an image of 25x25."""
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((1, 4, 17, 17)), rng.standard_normal((1, 1, 25, 25))
    w = rng.uniform(-1, 1, (4, 1, 9, 9)) / 9
    return x.astype(dtype), w.astype(dtype), target.astype(dtype)


def test_the_input_gradient_of_conv_transpose_is_a_conv(backend):
    x, w, target = code_to_image(np.float32)
    output = conv_transpose(x, w, backend=backend)
    assert output.shape == target.shape
    grad = 2 * (output - target)  # of the squared error, summed
    by_library = conv_transpose_input_grad(grad, w, x.shape, backend=backend)
    by_hand = conv(grad, w, backend=backend)
    assert by_library.shape == by_hand.shape == (1, 4, 17, 17)
    assert np.isfinite(by_hand).all()
    assert abs(by_library - by_hand).max() < 1e-4


def test_that_gradient_is_the_slope_of_the_cost(backend):
    x, w, target = code_to_image(np.float64)

    def cost(x, w):
        return ((conv_transpose(x, w) - target) ** 2).sum()

    grads = conv_transpose_grads(2 * (conv_transpose(x, w) - target), x, w, backend=backend)
    # The cost is quadratic in each array, so central differences err by rounding alone: that of two costs
    # (sums of 625 squares, of sums of 324 products), divided by the step.
    step = 1e-3
    tolerance = cost(x, w) * np.finfo(float).eps * (2 + 625**0.5 + 2 * 324**0.5) / step
    for array, grad in ((x, grads.input), (w, grads.weight)):
        assert grad.shape == array.shape
        for index in np.random.default_rng(1).choice(array.size, 5, replace=False):
            here = array.flat[index]
            array.flat[index] = here + step
            above = cost(x, w)
            array.flat[index] = here - step
            below = cost(x, w)
            array.flat[index] = here
            slope = (above - below) / (2 * step)
            assert abs(grad.flat[index] - slope) <= tolerance
    assert tolerance < 1e-6


def test_the_bias_does_not_change_that_gradient_formula():
    x, w, target = code_to_image(np.float64)
    grad = 2 * (conv_transpose(x, w, [0.5]) - target)
    assert np.array_equal(conv_transpose_grads(grad, x, w).input, conv(grad, w))


# ----------------------------------------------------- the notebook from scatter-add to W.T, document 3

CORNER = np.array([[0.0, 1.0], [2.0, 3.0]])


def transpose_conv(X, K):
    """The notebook's own loop."""
    (kh, kw), (xh, xw) = K.shape, X.shape
    Y = np.zeros((xh + kh - 1, xw + kw - 1))
    for i in range(xh):
        for j in range(xw):
            Y[i : i + kh, j : j + kw] += X[i, j] * K
    return Y


def test_scatter_add(backend):
    y = conv_transpose(CORNER[None], CORNER[None, None], backend=backend)
    assert y.tolist() == [[[0, 0, 1], [0, 4, 6], [4, 12, 9]]]
    assert np.array_equal(y[0], transpose_conv(CORNER, CORNER))


def test_the_four_scaled_copies_sum_to_it():
    copies = []
    for pixel in np.ndindex(2, 2):
        single = np.zeros((1, 2, 2))
        single[(0, *pixel)] = CORNER[pixel]
        copies.append(conv_transpose(single, CORNER[None, None])[0])
    assert [copy.tolist() for copy in copies] == [
        [[0, 0, 0], [0, 0, 0], [0, 0, 0]],
        [[0, 0, 1], [0, 2, 3], [0, 0, 0]],
        [[0, 0, 0], [0, 2, 0], [4, 6, 0]],
        [[0, 0, 0], [0, 0, 3], [0, 6, 9]],
    ]
    assert np.array_equal(sum(copies), transpose_conv(CORNER, CORNER))


def test_stride_2(backend):
    y = conv_transpose(CORNER[None, None], CORNER[None, None], stride=2, backend=backend)
    assert y.tolist() == [[[[0, 0, 0, 1], [0, 0, 2, 3], [0, 2, 0, 3], [4, 6, 6, 9]]]]


def test_two_channels(backend):
    x = np.stack([CORNER, 2 * CORNER])[None]
    w = np.stack([np.full((2, 2), 1.0), np.full((2, 2), 0.5)])[:, None]
    assert w.shape == (2, 1, 2, 2)
    y = conv_transpose(x, w, stride=2, backend=backend)
    assert y.tolist() == [[[[0, 0, 2, 2], [0, 0, 2, 2], [4, 4, 6, 6], [4, 4, 6, 6]]]]


NINE = np.arange(9.0).reshape(1, 3, 3)
KERNEL = np.array([[[[1.0, 2.0], [3.0, 4.0]]]])


def test_the_matrix_W():
    assert conv_matrix(KERNEL, NINE.shape).tolist() == [
        [1, 2, 0, 3, 4, 0, 0, 0, 0],
        [0, 1, 2, 0, 3, 4, 0, 0, 0],
        [0, 0, 0, 1, 2, 0, 3, 4, 0],
        [0, 0, 0, 0, 1, 2, 0, 3, 4],
    ]


def test_W_and_its_transpose(backend):
    W = conv_matrix(KERNEL, NINE.shape)
    y = (W @ NINE.ravel()).reshape(1, 2, 2)
    assert y.tolist() == [[[27, 37], [57, 67]]]
    assert np.array_equal(conv(NINE, KERNEL, backend=backend), y)
    back = (W.T @ y.ravel()).reshape(1, 3, 3)
    assert back.tolist() == [[[27, 91, 74], [138, 400, 282], [171, 429, 268]]]
    assert np.array_equal(conv_transpose(y, KERNEL, backend=backend), back)


def test_as_strided_windows(backend):
    x = np.arange(1.0, 10).reshape(3, 3)
    step = x.itemsize
    windows = {
        (0, 0): [[1, 2], [4, 5]],
        (0, 1): [[2, 3], [5, 6]],
        (1, 0): [[4, 5], [7, 8]],
        (1, 1): [[5, 6], [8, 9]],
    }
    y = conv(x[None], KERNEL, backend=backend)[0]
    for (i, j), expected in windows.items():
        window = np.lib.stride_tricks.as_strided(x.ravel()[3 * i + j :], (2, 2), (3 * step, step))
        assert window.tolist() == expected
        assert y[i, j] == (window * KERNEL[0, 0]).sum()
    for (r, s), unit in zip(np.ndindex(2, 2), np.eye(4).reshape(4, 1, 1, 2, 2)):
        # A kernel of a single one picks the same tap out of every window.
        picked = [window[r][s] for window in windows.values()]
        assert conv(x[None], unit, backend=backend).ravel().tolist() == picked
