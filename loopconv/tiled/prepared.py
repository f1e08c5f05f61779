"""A forward or adjoint call whose weights are fixed: what depends on them alone is done once."""

import numpy as np

from loopconv.loops import driver as textbook
from loopconv.tiled.driver import is_small, preferred, run, run_images, sum_as_written, sum_plan, zeros
from loopconv.tiled.launch import SmallCall
from loopconv.tiled.workspace import Workspace, aligned


class Prepared:
    """``run(source, out)`` for weights and a bias of one dtype; several threads may call it at once."""

    def __init__(self, contraction, geometry, w, bias, algorithm):
        self.contraction, self.geometry, self.w = contraction, geometry, w
        channels = geometry.k if contraction == "forward" else geometry.c
        self.bias = zeros(channels, w.dtype) if bias is None else bias
        self.algorithm, self.direct, self.idle, self.kept = algorithm or "direct", None, [], {}
        self.small = None
        if geometry.macs:
            self._prepare(algorithm or preferred(contraction, geometry, w.dtype, is_planned=True))

    def _prepare(self, algorithm):
        w, self.algorithm = self.w, algorithm
        self.plan = sum_plan(self.contraction, self.geometry, w.dtype, algorithm, is_planned=True)
        # each call that is under way has a workspace of its own
        self.idle = [Workspace(kept_bytes=None)]
        self.kept = {"w": w.reshape(-1), "bias": self.bias}
        self.kept |= {name: aligned(size * w.itemsize).view(w.dtype) for name, size in self.plan.kept.items()}
        self.is_finite = run(self.plan.tests + self.plan.prepare, self.kept, {}, self.idle[0], self.plan.work)
        if is_small(self.geometry):
            names = ("source", "out", *self.kept)
            self.small = SmallCall(self.plan.call, names, self.plan.rooms, w.dtype)

    def run(self, source, out):
        """out = the contraction of source."""
        if not self.geometry.macs:
            out[...] = textbook.per_channel(self.bias, out.ndim)
        elif not self.is_finite:
            sum_as_written(self.contraction, self.geometry, source, self.w, out, self.bias)
        elif not self._run(source, out):
            # Winograd's results are not finite: the direct kernel has to say which ones really are not
            if self.direct is None:
                self.direct = Prepared(self.contraction, self.geometry, self.w, self.bias, "direct")
            self.direct.run(source, out)

    def _run(self, source, out):
        try:
            workspace = self.idle.pop()
        except IndexError:
            workspace = Workspace(kept_bytes=None)
        try:
            if self.small:
                return self.small.run(workspace, source.ravel(), out.ravel(), *self.kept.values())
            arrays = {**self.kept, "source": source.ravel(), "out": out.ravel()}
            return run_images(self.plan, arrays, self.geometry.batch, workspace)
        finally:
            self.idle.append(workspace)

    @property
    def nbytes(self):
        """Bytes of weights and buffers."""
        workspaces = sum(
            array.nbytes for workspace in self.idle for array in workspace.kept.values() if array.dtype == np.uint8
        )
        return workspaces + sum(array.nbytes for array in self.kept.values())
