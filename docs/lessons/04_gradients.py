# %% [markdown]
# # 4. Gradients by swapping a factor
#
# A convolution is a sum of products of two arrays, and so is its transpose. The gradient of such a sum needs no new
# theory: put the gradient of the output in the place of the factor that you differentiate by. In this lesson that rule
# gives all six gradients, reproduces a published notebook to its last digits, and you learn how to find out that a
# gradient of your own is wrong.

# %%
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from pictures import agreement, contractions, show

import loopconv
from loopconv.loops.weight import weight

rng = np.random.default_rng(0)

# %% [markdown]
# ## The rule, on any einsum
#
# Take a sum of products, written as an `einsum`. Say that a loss `L` depends on its result, and call `dL/d(result)`
# `grad`. Each product is linear in each of its factors, so by the product rule the gradient with respect to a factor
# is the same sum with `grad` in the place of this factor; in the subscripts, its letters and those of the result
# change places.

# %%


def swapped(subscripts, operands, grad, number):
    """The gradient of an einsum with respect to its operand `number`."""
    inputs, output = subscripts.split("->")
    letters, arrays = inputs.split(","), list(operands)
    wanted = letters[number]
    letters[number], arrays[number] = output, grad
    print(f"  d/d operand {number}:  {','.join(letters)}->{wanted}")
    return np.einsum(f"{','.join(letters)}->{wanted}", *arrays)


# %% [markdown]
# A bilinear layer has three factors: two batches of vectors, and an array that couples them.

# %%
bilinear = "bi,kij,bj->bk"
factors = rng.standard_normal((2, 3)), rng.standard_normal((4, 3, 5)), rng.standard_normal((2, 5))
print(bilinear)
worst = loopconv.gradcheck(
    lambda *factors: np.einsum(bilinear, *factors),
    factors,
    lambda grad, *factors: [swapped(bilinear, factors, grad, number) for number in range(3)],
)
print(f"largest error against finite differences: {worst.error:.1e}, allowed: {worst.tolerance:.1e}")

# %% [markdown]
# `gradcheck` has compared every entry of the three gradients with differences of the function itself, for a random
# `grad`. The rule holds where every letter of the wanted factor also occurs in the result or in another factor, and no
# factor has a letter twice.
#
# ## A convolution is such a sum
#
# With the windows of [lesson 1](01_loops_and_windows.md), here for one image of several channels:

# %%
x, w = rng.standard_normal((3, 6, 5)), rng.standard_normal((2, 3, 3, 2))
windows = sliding_window_view(x, (3, 2), axis=(1, 2))  # [c, p, q, r, s] = x[c, p + r, q + s]
convolution = "cpqrs,kcrs->kpq"
y = np.einsum(convolution, windows, w)
assert np.allclose(y, loopconv.conv(x, w))

grad = rng.standard_normal(y.shape)  # whatever comes back from the loss
grad_w = swapped(convolution, (windows, w), grad, 1)
assert np.allclose(grad_w, loopconv.conv_weight_grad(grad, x, w.shape))

# %% [markdown]
# That was the gradient with respect to the weights. The other factor is not `x` but its windows, and a pixel is in
# several of them: it changes the loss through each, so its gradient is the sum over all of its places. Tap by tap,
# they go back to where they came from. That is the scatter-add of [lesson 3](03_scatter_add.md).

# %%
grad_windows = swapped(convolution, (windows, w), grad, 0)
grad_x = np.zeros(x.shape)
P, Q = y.shape[1:]
for r, s in np.ndindex(3, 2):
    grad_x[:, r : r + P, s : s + Q] += grad_windows[..., r, s]
assert np.allclose(grad_x, loopconv.conv_input_grad(grad, w, x.shape))
assert np.allclose(grad_x, loopconv.conv_transpose(grad, w))

# %% [markdown]
# ## One form, six gradients
#
# A convolution has three arrays: the large side `x`, the weights `w`, the small side `y`. Multiply all three along
# every connection and add everything up, and there is one number,
#
#     T(x, w, y)  =  sum over n, k, c, p, r of  y[n, k, p] * w[k, c, r] * x[n, c, p*stride + r*dilation - padding]
#
# Leave one array out, and add up the products of the two others in its place: that is a convolution if it is `y`, a
# transposed convolution if it is `x`. To differentiate, put `grad` where the output was, and leave out what you
# differentiate by. There are only three arrays to leave out, so there are only three sums.

# %%
show(
    contractions(),
    "04-form",
    "Six lines, one for each function: which of its arguments stands for x, w and y, and which of them it computes",
)

# %% [markdown]
# `einsum_spec` writes each as an einsum of two factors. Here are the three of a transposed convolution: its own, and
# the swaps for its input and for its weights.

# %%
code, kernel = rng.standard_normal((2, 3, 4, 4)), rng.standard_normal((3, 2, 3, 3))
settings = {"stride": 2, "padding": 1, "output_padding": 1}
image = loopconv.conv_transpose(code, kernel, **settings)
back = rng.standard_normal(image.shape)
print(loopconv.einsum_spec("conv_transpose", None, code, kernel, **settings), end="\n\n")
print(loopconv.einsum_spec("conv_transpose", "input", code, kernel, back, **settings), end="\n\n")
print(loopconv.einsum_spec("conv_transpose", "weight", code, kernel, back, **settings))

# %% [markdown]
# Now all six, each against its einsum: two functions, each differentiated by its input, its weights and its bias. The
# bias is added to every pixel, so it is a factor of ones, and its gradient is `grad` summed over images and pixels.

# %%
calls = {
    "conv": (rng.standard_normal((2, 2, 8, 8)), {"stride": 2, "padding": 1}),
    "conv_transpose": (code, settings),
}
for op, (source, options) in calls.items():
    result = getattr(loopconv, op)(source, kernel, **options)
    back = rng.standard_normal(result.shape)
    grads = getattr(loopconv, f"{op}_grads")(back, source, kernel, **options)
    for wrt in ("input", "weight"):
        spec = loopconv.einsum_spec(op, wrt, source, kernel, back, **options)
        assert np.allclose(np.einsum(spec.subscripts, *spec.operands), getattr(grads, wrt))
        print(f"{op:<15} {wrt:<7} {spec.subscripts}")
    assert np.allclose(np.einsum("nkpq->k", back), grads.bias)
    print(f"{op:<15} bias    nkpq->k")

# %% [markdown]
# ## A published notebook, reproduced
#
# Somebody has published a notebook on the gradient of a transposed convolution with respect to its input. It has a
# *code* of 4 channels of 17 by 17 numbers, a 9 by 9 kernel for each, an image of 25 by 25 that they make, and the
# squared error of that image, summed. It was made with an early PyTorch and `manual_seed(0)`, and it prints a cost of
# 656.59412 and, of the gradient, a mean of -0.0020146435 and a standard deviation of 0.62366945.
#
# NumPy still has the random numbers of that time: the Mersenne Twister of `RandomState`, from which PyTorch made normal
# numbers in pairs, by the method of Box and Muller.

# %%
twister = np.random.RandomState(0)


def draws(*shape):
    return twister.randint(0, 2**32, shape, np.uint32).astype(np.uint64)


def normal(*shape):
    pairs = -(-int(np.prod(shape)) // 2)
    high, low = draws(2 * pairs, 2).T
    angle, length = ((high * 2**32 + low) % 2**53 / 2**53).reshape(pairs, 2).T  # 53 random bits each
    length = np.sqrt(-2 * np.log(1 - length))
    both = np.stack([length * np.cos(2 * np.pi * angle), length * np.sin(2 * np.pi * angle)], axis=1)
    return both.ravel()[: np.prod(shape)].reshape(shape).astype(np.float32)


code = normal(1, 4, 17, 17)
target = normal(1, 1, 25, 25)
kernel = ((draws(4, 1, 9, 9) % 2**24 / 2**24 * 2 - 1) / 18).astype(np.float32)  # 18 is the root of 4 * 9 * 9

image = loopconv.conv_transpose(code, kernel)
assert image.shape == target.shape
cost = np.sum((image - target) ** 2, dtype=np.float64)

# %% [markdown]
# The cost is a sum of squares, so its gradient with respect to the image is `2*(image - target)`. From there to the
# code it is one convolution with the same weights, not flipped and not transposed.

# %%
grad = 2 * (image - target)
by_hand = loopconv.conv(grad, kernel)
by_library = loopconv.conv_transpose_input_grad(grad, kernel, code.shape)
assert by_hand.shape == (1, 4, 17, 17)
assert abs(by_hand - by_library).max() < 1e-4

print(f"cost {cost:.5f}, gradient: mean {by_hand.mean():.10f}, standard deviation {by_hand.std():.8f}")
assert abs(cost - 656.59412) < 2e-4
assert abs(by_hand.mean() + 0.0020146435) < 2e-8
assert abs(by_hand.std() - 0.62366945) < 2e-7

# %% [markdown]
# The same numbers, up to the rounding of single precision.
#
# ## Find your own mistakes
#
# A wrong gradient often has the right shape, and training with it may even go down for a while. So measure. The slope
# of the cost along one entry is the difference of two costs, divided by the step; here for all 1156 entries of the
# code.

# %%
code, kernel, target = (array.astype(float) for array in (code, kernel, target))


def cost_of(code):
    return np.sum((loopconv.conv_transpose(code, kernel) - target) ** 2)


measured = np.zeros(code.shape)
for entry in np.ndindex(code.shape):
    step = np.zeros(code.shape)
    step[entry] = 1e-3
    measured[entry] = (cost_of(code + step) - cost_of(code - step)) / 2e-3

image = loopconv.conv_transpose(code, kernel)
grad = 2 * (image - target)
claims = {
    "conv(grad, w)": loopconv.conv(grad, kernel),
    "the kernel flipped": loopconv.conv(grad, kernel[..., ::-1, ::-1]),
    "the output for its gradient": loopconv.conv(image, kernel),
}
for name, claimed in claims.items():
    print(f"{name:<28} largest difference {abs(claimed - measured).max():.1e}")
right, *wrong = claims.values()
assert abs(right - measured).max() < 1e-7
assert all(abs(claimed - measured).max() > 0.1 for claimed in wrong)
show(
    agreement(
        "Three claims about a gradient, against its measured slope",
        "one point for each of the 1156 entries of the code; a right gradient lies on the line",
        [(name, claimed, measured) for name, claimed in claims.items()],
    ),
    "04-agreement",
    "Three scatter plots; the points of the first lie on the diagonal, those of the two wrong ones are clouds",
)

# %% [markdown]
# `gradcheck` does this for any function, yours too, in double precision and with tolerances that follow from rounding;
# it stops at the first entry that is wrong. Below are three versions that somebody has written. Find the mistake of
# each before you read the message.

# %%
x, w = rng.standard_normal((1, 1, 9)), rng.standard_normal((1, 1, 2))


def strided(x):
    return loopconv.conv(x, w, stride=3)


def first(grad, x):
    return loopconv.conv_transpose(strided(x), w, stride=3, output_padding=1)


def second(grad, x):
    return loopconv.conv_transpose(grad, w[..., ::-1], stride=3, output_padding=1)


def third(grad, x):
    return loopconv.conv_transpose(grad, w, stride=3)


for version in (first, second, third):
    try:
        loopconv.gradcheck(strided, [x], version)
    except (AssertionError, ValueError) as error:
        print(f"{version.__name__}: {error}")
    else:
        raise AssertionError("a wrong gradient has passed")

# %% [markdown]
# The first takes the output for its gradient, the second flips the kernel. The third forgets a pixel: of 9 pixels, 3
# windows of 2 at stride 3 reach 8, and the ninth has a gradient too, which is 0. The output's gradient cannot say how
# many pixels there were, which is why `conv_input_grad` asks for the shape:

# %%
worst = loopconv.gradcheck(strided, [x], lambda grad, x: loopconv.conv_input_grad(grad, w, x.shape, stride=3))
print(f"right: largest error {worst.error:.1e}, allowed {worst.tolerance:.1e}")
assert loopconv.conv_input_grad(np.ones((1, 1, 3)), w, x.shape, stride=3)[0, 0, 8] == 0

# %% [markdown]
# ## Run the library's loops
#
# [weight.py](../../loopconv/loops/weight.py) is the third and last set of loops: the one that leaves `w` out. With the
# arrays of the notebook, it gives the gradient of the kernel.

# %%
result = np.zeros((1, 4, 1, 1, 9, 9))
weight(
    grad.reshape(1, 1, 1, 1, 25, 25),  # N G C D H W, the large side: of a transpose, the gradient of its output
    result,  # G K C T R S, the output
    code.reshape(1, 1, 4, 1, 17, 17),  # N G K Z P Q, the small side: the input
    (1, 1, 4, 1, 1, 17, 17, 1, 9, 9),  # N G K C Z P Q T R S
    (1, 1, 1),  # stride
    (1, 1, 1),  # dilation
)
assert np.allclose(result.reshape(kernel.shape), loopconv.conv_transpose_weight_grad(grad, code, kernel.shape))
print("gradient of the first taps:", result[0, 0, 0, 0, 0, :3])

# %% [markdown]
# ## Try it
#
# - Write the gradient of `np.einsum("ij,jk->ik", a, b)` with respect to both, by the rule. Do you know the result as
#   matrices?
# - Break `conv_grads` in a way of your own and see whether `gradcheck` finds it.
# - Add a bias to the notebook's layer. Which of its gradients change?
#
# Next: [from loops to the hardware](05_to_the_hardware.md).
