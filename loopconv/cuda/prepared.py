"""Plans of calls whose weights are on a GPU: what depends on the weights alone is done once."""

from __future__ import annotations

from importlib import import_module
from math import prod

from loopconv import registry
from loopconv.cuda import gpu
from loopconv.cuda.door import together, writable
from loopconv.cuda.foreign import recognised
from loopconv.cuda.launch import unwritten
from loopconv.cuda.stages import DTYPES


class GpuPlan:
    """A `conv` or `conv_transpose` with fixed weights on a GPU, made by `plan_conv` and `plan_conv_transpose`.

    Attributes
    ----------
    input_shape, output_shape : tuple of int
        Of the arrays that a call takes and gives.
    dtype : str
        Of those arrays.
    algorithm : str
        See `conv`.
    nbytes : int
        Bytes that the plan keeps on the GPU, besides the weights and the bias, which it does not copy.

    Notes
    -----
    With `out`, a call only launches kernels: it can be captured in a CUDA graph. One call follows the other on the GPU,
    whichever streams they are on, as they share buffers.
    """
