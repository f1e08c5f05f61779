"""The GPU, or Numba's simulator in its place: two modules with the same functions."""

from loopconv.cuda import gpu, simulator

machine = simulator if gpu.is_simulated() else gpu
