"""Functions that kernels call by name: `loopconv.tiled.linked`."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from loopconv.loops.compile import built, jit, named
from loopconv.tiled.linked import ARRAY, LINKED, POINTER, TABLE, build_links, linked, signature
from loopconv.tiled.simd import pointer

DTYPES = [np.dtype("float32"), np.dtype("float64")]


def make_scale(factor):
    @linked(array=ARRAY, numbers=POINTER, table=TABLE)
    @named(factor)
    def scale(array, numbers, table, count):
        for i in range(count):
            array[table[i]] = factor * numbers[i]
        return count

    return scale


def make_caller(factor):
    scale = make_scale(factor)

    @linked(array=ARRAY, source=ARRAY, table=TABLE)
    @named(factor)
    def caller(array, source, table, count):
        return scale(array, pointer(source, 1), table, count) + 1

    return caller


def run(function, dtype, *arguments):
    """As a kernel is built: what it calls first."""
    build_links(function, dtype)
    return built(jit(function, fastmath=set()), signature(dtype, ARRAY, ARRAY, TABLE, None)).run(*arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_linked_function_calls_another(dtype):
    caller = make_caller(3)

    def outer(array, source, table, count):
        return caller(array, source, table, count) * 10

    array, source = np.zeros(5, dtype), np.arange(4).astype(dtype)
    assert run(outer, dtype, array, source, np.array([4, 0, 2]), 3) == 40
    assert array.tolist() == [6, 0, 9, 0, 3]


@linked(array=ARRAY)
def count_up(array, n):
    for i in range(n):
        array[i] = i
    return n


def test_a_linked_function_of_the_module():
    def outer(array, source, table, count):
        return count_up(array, count)

    array = np.full(4, 9, DTYPES[0])
    assert run(outer, DTYPES[0], array, array, np.zeros(1, np.int64), 3) == 3
    assert array.tolist() == [0, 1, 2, 9]


def test_names_tell_sizes_and_dtypes_apart():
    for factor in (5, 7):
        for dtype in DTYPES:
            make_caller(factor).link.build(dtype)
    names = [name for name in LINKED if name.startswith(("loopconv_scale_5_", "loopconv_scale_7_"))]
    assert len(names) == 4
    assert len({make_scale(factor).link.name(dtype) for factor in (5, 7) for dtype in DTYPES} | {*names}) == 4


def test_one_function_has_each_name_for_good():
    """Kernels that were linked to it have its address."""
    first, second = make_scale(11), make_scale(11)
    for scale in (first, second):
        scale.link.build(DTYPES[0])
    assert LINKED[first.link.name(DTYPES[0])] is first.link


def test_kernels_of_many_threads_in_a_new_process(tmp_path):
    """Two threads that come first make the same kernel, and each finds what it calls; so does a process after them."""
    code = """
    from concurrent.futures import ThreadPoolExecutor
    import numpy as np, loopconv
    x, w = np.ones((1, 20, 9, 9), np.float32), np.ones((20, 1, 3, 3), np.float32)
    def call(_):
        return float(loopconv.conv(x, w, groups=20, backend="tiled").sum())
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(call, range(32))) == {20 * 49 * 9.0}
    """
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)], env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
