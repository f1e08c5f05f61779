"""The public functions on arrays of a GPU, which have to fit together; the result is of the same library."""

from importlib import import_module

from loopconv import geometry, registry
from loopconv.cuda.foreign import DeviceArray, recognised


def contract(form, g, shape, given, bias, out, backend, algorithm, precision):
    """What `ops._contract` does, for arrays of a GPU: the result, as the user sees it."""
    everything = dict(zip((*form.names, "bias"), given if bias is None else (*given, bias)))
    like = together(everything)
    if backend not in (None, "cuda"):
        raise ValueError(
            f"backend must be None or 'cuda' for arrays of a GPU, got {backend!r}; copy them to the host for others"
        )
    run = registry.on_gpu(form.contraction, g, like.dtype, algorithm, precision)
    result = like.library.make(like, shape) if out is None else writable(out, shape, everything)
    run(g, **{form.result: result}, **dict(zip((*form.roles, "bias"), everything.values())))
    return like.library.give(result) if out is None else out


def bias_grad(grad, axis):
    """The sum over all axes but one."""
    registry.select("weight", "cuda", geometry.conv((1, 1, 1), (1, 1, 1)), grad.dtype)  # or the reason why not
    result = grad.library.make(grad, (grad.shape[axis],))
    import_module("loopconv.cuda.driver").sums(grad, axis, result)
    return grad.library.give(result)


def together(given):
    """The first of the arrays, if all are on its GPU and of its dtype; or the error that says which is not."""
    for first in given:
        if type(like := given[first]) is DeviceArray:
            break
    for name, array in given.items():
        if array is not like:
            check_beside(name, array, first, like)
    return like


def check_beside(name, array, first, like):
    """Refuse an array that is not on the GPU of `like`, which is called `first`, or of another dtype."""
    if type(array) is not DeviceArray:
        raise TypeError(
            f"{name} must be on the GPU like {first}, got an array of the host; copy it to the GPU, or {first} "
            "to the host"
        )
    if array.device != like.device:
        raise ValueError(f"{name} must be on GPU {like.device} like {first}, got an array on GPU {array.device}")
    if array.dtype != like.dtype:
        raise TypeError(f"{name} must be of dtype {like.dtype} like {first} on a GPU, got dtype {array.dtype}")


def writable(out, shape, given):
    """`out` as an array of the GPU of those that are read, which are all on it, and apart from them."""
    result = recognised("out", out)
    if result is None:
        raise TypeError(f"out must be an array of the GPU like the others, got {type(out).__name__}")
    if tuple(result.shape) != shape:
        raise ValueError(f"out must have the result's shape {shape}, got shape {tuple(result.shape)}")
    first = next(iter(given))
    check_beside("out", result, first, given[first])
    begin, end = result.pointer, result.pointer + result.nbytes
    for name, array in given.items():
        if array.pointer < end and begin < array.pointer + array.nbytes and array.nbytes and begin < end:
            raise ValueError(f"out must not overlap {name}: the result would overwrite it while it is read")
    return result
