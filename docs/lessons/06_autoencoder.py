# %% [markdown]
# # 6. Training a convolutional autoencoder, in NumPy alone
#
# An autoencoder squeezes an image through a few numbers, its *code*, and draws it again from them. Convolutions make
# the code, transposed convolutions make the image, and the gradients of both train it. You have met every piece; here
# they are put together, on real handwritten digits, without a framework. It takes some seconds.

# %%
import numpy as np
from pictures import curve, images, show
from sklearn.datasets import load_digits

import loopconv

# %% [markdown]
# ## Digits
#
# scikit-learn carries 1797 digits of 8 by 8 pixels, which 13 people wrote. 297 of them are kept back: a network
# should draw digits that it was not trained on.

# %%
bunch = load_digits()
rng = np.random.default_rng(0)
order = rng.permutation(1797)
digits = bunch.images[order, None] / 16  # (N, C, H, W), from 0 for paper to 1 for ink
kept_back, training = digits[:297], digits[297:]
assert training.shape == (1500, 1, 8, 8)
assert (digits.min(), digits.max()) == (0, 1)

# %% [markdown]
# ## Four layers
#
# Each convolution halves the size, at stride 2, and each transposed convolution doubles it again. Between the layers,
# negative numbers become 0 (a *ReLU*), without which all four would be one linear function. The 64 pixels pass through
# a code of 4 channels of 2 by 2: 16 numbers.
#
# | layer | output | weights |
# | --- | --- | --- |
# | `conv` | 16 channels, 4 by 4 | (16, 1, 4, 4) |
# | `conv` | the code: 4 channels, 2 by 2 | (4, 16, 4, 4) |
# | `conv_transpose` | 16 channels, 4 by 4 | (4, 16, 4, 4) |
# | `conv_transpose` | the image: 1 channel, 8 by 8 | (16, 1, 4, 4) |
#
# The last two shapes are those of the second and the first layer: a transposed convolution takes the array that leads
# the other way.

# %%
SHAPES = [(16, 1, 4, 4), (4, 16, 4, 4), (4, 16, 4, 4), (16, 1, 4, 4)]
CHANNELS = [16, 4, 16, 1]  # of the outputs, for the biases
SETTINGS = {"stride": 2, "padding": "same"}


def fresh_parameters():
    """Weights and biases of all layers; random weights of a size that keeps the numbers of a layer near 1."""
    weights = [rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:])) for shape in SHAPES]
    return [array for pair in zip(weights, map(np.zeros, CHANNELS)) for array in pair]


def encode(x, parameters, **more):
    w1, b1, w2, b2, *_ = parameters
    hidden = np.maximum(loopconv.conv(x, w1, b1, **SETTINGS, **more), 0)
    return hidden, loopconv.conv(hidden, w2, b2, **SETTINGS, **more)


def decode(code, parameters, **more):
    *_, w3, b3, w4, b4 = parameters
    hidden = np.maximum(loopconv.conv_transpose(code, w3, b3, **SETTINGS, **more), 0)
    return hidden, loopconv.conv_transpose(hidden, w4, b4, **SETTINGS, **more)


parameters = fresh_parameters()
hidden, code = encode(training[:5], parameters)
_, drawn = decode(code, parameters)
print("image", training[:5].shape, "hidden", hidden.shape, "code", code.shape, "image", drawn.shape)
assert code.shape == (5, 4, 2, 2)
assert drawn.shape == (5, 1, 8, 8)
print(sum(array.size for array in parameters), "numbers to be learned")

# %% [markdown]
# ## The loss, and its gradient
#
# The loss is the mean squared difference between the digit and the drawing. Its gradient with respect to the drawing
# is `2*(drawing - digit)/size`, and then it goes back layer by layer: what `conv_transpose_grads` or `conv_grads`
# returns for the input of one layer is `grad` for the layer before it. Where a ReLU gave 0, nothing comes back.

# %%


def loss_of(x, parameters):
    return np.mean((decode(encode(x, parameters)[1], parameters)[1] - x) ** 2)


def loss_and_gradients(x, parameters, **more):
    w1, _, w2, _, w3, _, w4, _ = parameters
    hidden1, code = encode(x, parameters, **more)
    hidden2, drawn = decode(code, parameters, **more)
    loss = np.mean((drawn - x) ** 2)

    grad = 2 * (drawn - x) / x.size
    grad, dw4, db4 = loopconv.conv_transpose_grads(grad, hidden2, w4, **SETTINGS, **more)
    grad, dw3, db3 = loopconv.conv_transpose_grads(grad * (hidden2 > 0), code, w3, **SETTINGS, **more)
    grad, dw2, db2 = loopconv.conv_grads(grad, hidden1, w2, **SETTINGS, **more)
    _, dw1, db1 = loopconv.conv_grads(grad * (hidden1 > 0), x, w1, **SETTINGS, **more)
    return loss, [dw1, db1, dw2, db2, dw3, db3, dw4, db4]


# %% [markdown]
# Before a gradient is used, it is tested. `gradcheck` compares all of them, through the whole network, with
# differences of the loss. A ReLU has no slope at 0, and with biases of 0 it is exactly there wherever the paper is
# empty, so the test takes other parameters.

# %%
few = training[:2]
somewhere = [array + 0.1 * rng.standard_normal(array.shape) for array in parameters]
worst = loopconv.gradcheck(
    lambda *parameters: loss_of(few, parameters),
    somewhere,
    lambda grad, *parameters: [grad * array for array in loss_and_gradients(few, parameters)[1]],
)
print(f"all 8 gradients are right: largest error {worst.error:.1e}, allowed {worst.tolerance:.1e}")

# %% [markdown]
# ## Training
#
# Take 32 digits at random, go one step against the gradient, and again. The length of the steps is chosen by *Adam*
# ([arXiv:1412.6980](https://arxiv.org/abs/1412.6980)): each parameter has running means of its gradient and of the
# gradient's square, and goes by the first over the root of the second. Steps get shorter towards the end.

# %%
STEPS, RATE = 1500, 0.01


def adam(parameters, gradients, means, squares, step):
    """Change all parameters in place; `step` counts from 1."""
    rate = RATE * (1 + np.cos(np.pi * step / STEPS)) / 2
    for parameter, gradient, mean, square in zip(parameters, gradients, means, squares):
        mean += 0.1 * (gradient - mean)
        square += 0.001 * (gradient**2 - square)
        parameter -= rate * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)


means, squares = ([np.zeros_like(array) for array in parameters] for _ in range(2))
losses, checked = [], {0: loss_of(kept_back, parameters)}
for step in range(1, STEPS + 1):
    batch = training[rng.integers(len(training), size=32)]
    loss, gradients = loss_and_gradients(batch, parameters)
    losses.append(loss)
    adam(parameters, gradients, means, squares, step)
    if step % 20 == 0:
        checked[step] = loss_of(kept_back, parameters)
    if step % 250 == 0:
        print(
            f"step {step:>4}   batches {np.mean(losses[-100:]):.4f}   digits kept back {checked[step - step % 20]:.4f}"
        )

# %% [markdown]
# ## Is that good?
#
# The loss of the digits kept back has fallen to less than a fifteenth. Alone that says little, so here are two others
# to compare with. Drawing the average digit, whatever comes in, uses no code at all. And the best that any *linear*
# code of 16 numbers can do on the training digits is known: their principal components (PCA). Our code has as many
# numbers, and the digits drawn from it are nearer to the originals.

# %%
flat, flat_kept = training.reshape(1500, 64), kept_back.reshape(297, 64)
average = flat.mean(0)
components = np.linalg.svd(flat - average, full_matrices=False)[2][:16]
by_pca = average + (flat_kept - average) @ components.T @ components

loss_average = np.mean((flat_kept - average) ** 2)
loss_pca = np.mean((flat_kept - by_pca) ** 2)
print(f"kept back: average digit {loss_average:.4f}, PCA {loss_pca:.4f}, ours {checked[STEPS]:.4f}")
assert checked[0] > 15 * checked[STEPS]
assert loss_average > 5 * checked[STEPS]
assert checked[STEPS] < loss_pca

show(
    curve(
        "The loss falls, also on digits that were never trained on",
        "mean squared error; a step is 32 digits",
        [("batches", range(1, STEPS + 1), losses), ("digits kept back", list(checked), list(checked.values()))],
        [("average digit", loss_average), ("16 principal\ncomponents", loss_pca)],
        "loss",
    ),
    "06-loss",
    "The loss by steps on a log scale; it falls below that of the average digit and that of 16 principal components",
)

# %% [markdown]
# One digit of each kind, its code (four squares of 2 by 2), and what is drawn from it.

# %%
first = [int(np.argmax(bunch.target[order] == kind)) for kind in range(10)]
assert max(first) < 297  # all of them were kept back
code = encode(digits[first], parameters)[1]
drawn = decode(code, parameters)[1].clip(0, 1)
squares = code.reshape(10, 2, 2, 2, 2).transpose(0, 1, 3, 2, 4).reshape(10, 4, 4)
show(
    images(
        "Digits that were kept back, drawn again from 16 numbers each",
        "each row has its own scale, from white for the least to black for the most",
        [
            ("digit", digits[first, 0]),
            ("its code", squares),
            ("drawn by the\nnetwork", drawn[:, 0]),
            ("drawn by PCA", by_pca[first].reshape(10, 8, 8).clip(0, 1)),
        ],
    ),
    "06-digits",
    "Four rows: the digits 0 to 9, their codes, and two rows of drawings of them, which can be read",
)

# %% [markdown]
# ## Run the library's loops
#
# The tiles that trained this network compute what the textbook loops say. Here is one training step, interpreted:
# every product of it in Python, and the same eight gradients.

# %%
loss, gradients = loss_and_gradients(few, parameters)
loss_again, gradients_again = loss_and_gradients(few, parameters, backend="python")
assert np.isclose(loss, loss_again)
for array, again in zip(gradients, gradients_again):
    assert np.allclose(array, again)
print(f"loss {loss:.6f} by the default backend, {loss_again:.6f} interpreted")

# %% [markdown]
# ## Try it
#
# - Train with a kernel of 3 by 3. The overlap is uneven then ([lesson 3](03_scatter_add.md)): can you see it in the
#   drawings, and does the loss tell?
# - Add noise to the images that go in, and compare with the clean ones: the network learns to remove it.
# - Give the code 2 channels, or 8. Where does PCA win?
#
# This was the last lesson. [The list of all](README.md).
