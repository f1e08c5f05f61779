"""Plans of calls whose weights are on a GPU: what depends on the weights alone is done once."""

from loopconv import registry
from loopconv.cuda import driver
from loopconv.cuda.door import together, writable
from loopconv.cuda.foreign import recognised
from loopconv.cuda.machine import machine
from loopconv.plan import Plan


class GpuPlan(Plan):
    """A plan whose arrays are on a GPU.

    With `out`, a call launches kernels and does nothing else, so that it can be captured in a CUDA graph. Calls of one
    plan share buffers: on the GPU one comes after the other, whichever streams they are on.
    """

    def __init__(self, name, contraction, g, w, bias, batched, algorithm, precision):
        given = {"w": w} if bias is None else {"w": w, "bias": bias}
        like = together(given)
        registry.select(contraction, "cuda", g, like.dtype, algorithm, precision)  # or the reason why not
        self._name, self._like, self._result = name, like, "y" if contraction == "forward" else "x"
        self._source = "x" if contraction == "forward" else "y"
        shapes = (g.x_shape, g.y_shape) if contraction == "forward" else (g.y_shape, g.x_shape)
        self.input_shape, self.output_shape = (shape if batched else shape[1:] for shape in shapes)
        self.dtype = like.dtype
        settings = driver.Settings(contraction, g, like.dtype, algorithm, precision, bias is not None)
        self._algorithm = algorithm or driver.preferred(settings, machine.capability(like.device))
        with machine.current(like.device):
            self._prepare(settings, given)

    def _prepare(self, settings, given):
        """Copy the weights, run the launches that depend on them alone, and wait for that."""
        like = self._like
        self._settings, self._call = settings, driver.ready(settings, True, like.device)
        kept = {name: machine.Kept(like.device, array.nbytes) for name, array in given.items()}
        for name, array in given.items():
            machine.copy(kept[name].pointer, machine.address(array), array.nbytes, array.stream)
            machine.wait(array.stream)
        kept |= {name: machine.Kept(like.device, size) for name, size in self._call.rooms.items()}
        self._kept, self._stream = kept, like.stream
        self._addresses = {"x": 0, "y": 0} | self._call.bias | {name: memory.pointer for name, memory in kept.items()}
        launches, fixed = self._call.plan.launches, {"w", *self._call.rooms}
        self._fixed = next((n for n, launch in enumerate(launches) if not fixed.issuperset(launch.arrays)), 0)
        self._call.launch(slice(self._fixed), self._addresses, like.stream)
        machine.wait(like.stream)

    @property
    def algorithm(self):
        return self._algorithm

    @property
    def nbytes(self):
        return sum(memory.nbytes for memory in self._kept.values())

    def __call__(self, x, out=None):
        source = recognised("x", x)
        if source is None:
            raise TypeError(f"x must be an array of the GPU, as the plan's weights are, got {type(x).__name__}")
        like = together({"the plan's w": self._like, "x": source})
        if source.shape != self.input_shape:
            raise ValueError(f"x must have the plan's input shape {self.input_shape}, got shape {source.shape}")
        given = {"x": source}
        result = (
            source.library.make(source, self.output_shape) if out is None else writable(out, self.output_shape, given)
        )
        with machine.current(like.device):
            self._run(source, result)
        return source.library.give(result) if out is None else out

    def _run(self, source, result):
        stream = result.stream
        driver.follow(stream, (source.stream if source.queue != result.queue else stream, self._stream))
        self._stream = stream
        arrays = {self._source: machine.address(source), self._result: machine.address(result)}
        is_aligned = not (source.pointer % 16 or result.pointer % 16)
        call = self._call if is_aligned else driver.ready(self._settings, False, result.device)
        call.launch(slice(self._fixed, None), self._addresses | arrays, stream)
