"""Convolution, transposed convolution and their gradients as explicit loops over NumPy arrays."""

from loopconv.einsum import einsum_spec
from loopconv.explain import preimage_sizes, solve_padding, trace
from loopconv.gradcheck import adjoint_test, gradcheck
from loopconv.matrix import conv_matrix
from loopconv.ops import (
    Gradients,
    conv,
    conv1d,
    conv2d,
    conv3d,
    conv_bias_grad,
    conv_grads,
    conv_input_grad,
    conv_transpose,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
    conv_transpose_bias_grad,
    conv_transpose_grads,
    conv_transpose_input_grad,
    conv_transpose_weight_grad,
    conv_weight_grad,
)
from loopconv.plan import Plan, plan_conv, plan_conv_transpose
from loopconv.registry import backends
from loopconv.threads import get_num_threads, set_num_threads

__version__ = "0.1.0"

__all__ = [
    "Gradients",
    "Plan",
    "__version__",
    "adjoint_test",
    "backends",
    "conv",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_bias_grad",
    "conv_grads",
    "conv_input_grad",
    "conv_matrix",
    "conv_transpose",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "conv_transpose_bias_grad",
    "conv_transpose_grads",
    "conv_transpose_input_grad",
    "conv_transpose_weight_grad",
    "conv_weight_grad",
    "einsum_spec",
    "get_num_threads",
    "gradcheck",
    "plan_conv",
    "plan_conv_transpose",
    "preimage_sizes",
    "set_num_threads",
    "solve_padding",
    "trace",
]
