"""Builds the Cython backend from the textbook loops; everything else is in pyproject.toml."""

import sys

from Cython.Build import cythonize
from setuptools import Extension, setup

extensions = cythonize(
    [
        Extension(
            f"loopconv.loops.cythonized.{name}",
            [f"loopconv/loops/{name}.py"],
            extra_compile_args=["/O2"] if sys.platform == "win32" else ["-O3", "-g0"],
        )
        for name in ("forward", "adjoint", "weight")
    ],
    build_dir="build",
    language_level=3,
    compiler_directives={"boundscheck": False, "wraparound": False, "cdivision": True},
)
for extension in extensions:
    # Where there is no C compiler the install goes on without them, and `loopconv.backends()` says so.
    # An argument of Extension would not do: cythonize drops it.
    extension.optional = True

setup(ext_modules=extensions)
