"""Room 3: the same three contractions on NVIDIA GPUs, through numba-cuda. README.md is where to start."""
