"""Builds the Cython backend from the textbook loops; everything else is in pyproject.toml."""

import sys

from Cython.Build import cythonize
from setuptools import Extension, setup

# optional=True: where there is no C compiler the install goes on without the extensions, and
# `loopconv.backends()` says so.
EXTENSIONS = [
    Extension(
        f"loopconv.loops.cythonized.{name}",
        [f"loopconv/loops/{name}.py"],
        extra_compile_args=["/O2"] if sys.platform == "win32" else ["-O3"],
        optional=True,
    )
    for name in ("forward", "adjoint", "weight")
]

setup(
    ext_modules=cythonize(
        EXTENSIONS,
        build_dir="build",
        language_level=3,
        compiler_directives={"boundscheck": False, "wraparound": False, "cdivision": True},
    )
)
