"""Numba's disk cache: hits, damage, directories that cannot be written, and what the names depend on."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from numba.core.caching import CacheImpl

import loopconv
from loopconv.loops import compile as builds
from loopconv.loops import prange
from loopconv.loops.forward import forward

PACKAGE = Path(loopconv.__file__).parent
FLAGS = {"fastmath": {"contract"}}


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty directory that new builds are cached in."""
    directory = tmp_path / "cache"
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(directory))
    return directory


def add_triple(x, y):
    """A kernel that is quick to compile."""
    for i in prange(x.size):
        y[i] += 3 * x[i]


def right(build, dtype=np.float64):
    """Whether `build` of `add_triple` adds three times one array to another."""
    x, y = np.arange(50, dtype=dtype), np.ones(50, dtype)
    build(x, y)
    return np.array_equal(y, 1 + 3 * x)


def counts(build):
    return sum(build.stats.cache_hits.values()), sum(build.stats.cache_misses.values())


def files(directory, suffix):
    return sorted(directory.rglob(f"*{suffix}"))


# ----------------------------------------------------------------------------------- between processes

PROCESS = """
import json
import numpy as np, loopconv
from loopconv.loops.compile import kernel

x, w = np.ones((1, 3, 9, 9)), np.ones((2, 3, 3, 3))
answers = [float(loopconv.conv(x, w, backend=b).sum()) for b in ("numba", "parallel")]
stats = [kernel("forward", parallel=p).stats for p in (False, True)]
hits, misses = ([sum(getattr(s, name).values()) for s in stats] for name in ("cache_hits", "cache_misses"))
print(json.dumps([answers, hits, misses]))
"""


def process(before="", **environment):
    done = subprocess.run(
        [sys.executable, "-c", before + PROCESS],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    answers, hits, misses = json.loads(done.stdout)
    assert answers == [2646.0, 2646.0]
    return hits, misses


def test_a_second_process_loads_what_the_first_compiled(tmp_path):
    assert process(NUMBA_CACHE_DIR=str(tmp_path)) == ([0, 0], [1, 1])
    indices, data = files(tmp_path, ".nbi"), files(tmp_path, ".nbc")
    assert len(indices) == len(data) == 2
    assert process(NUMBA_CACHE_DIR=str(tmp_path)) == ([1, 1], [0, 0])

    for path in indices + data:  # as a full disk leaves them
        os.truncate(path, path.stat().st_size // 2)
    assert process(NUMBA_CACHE_DIR=str(tmp_path)) == ([0, 0], [1, 1])
    assert process(NUMBA_CACHE_DIR=str(tmp_path)) == ([1, 1], [0, 0])


def test_a_process_that_can_write_no_cache(tmp_path):
    (tmp_path / "file").write_text("")
    # NUMBA_CACHE_DIR or nothing: not the directory of the sources, which tests may be able to write
    before = "from numba.core.caching import CacheImpl; CacheImpl._locator_classes = CacheImpl._locator_classes[:1]"
    assert process(before, NUMBA_CACHE_DIR=str(tmp_path / "file" / "cache")) == ([0, 0], [1, 1])


# ------------------------------------------------------------------------------------- in this process


def test_a_new_build_loads_what_another_compiled(cache):
    first = builds.jit(add_triple, **FLAGS)
    assert right(first)
    assert counts(first) == (0, 1)
    second = builds.jit(add_triple, **FLAGS)
    assert right(second)
    assert counts(second) == (1, 0)
    assert right(second, np.float32)  # another signature has an entry of its own
    assert counts(second) == (1, 1)
    assert len(files(cache, ".nbi")) == 1
    assert len(files(cache, ".nbc")) == 2


@pytest.mark.parametrize("suffix", [".nbi", ".nbc", ".nb?"])
@pytest.mark.parametrize("damage", ["half", "zero bytes", "all but one byte", "noise", "missing"])
def test_damaged_files_mean_compile_again(cache, suffix, damage):
    assert right(builds.jit(add_triple, **FLAGS))
    whole = {path: path.read_bytes() for path in files(cache, suffix)}
    assert whole
    for path, content in whole.items():
        if damage == "missing":
            path.unlink()
        else:
            path.write_bytes(
                {
                    "half": content[: len(content) // 2],
                    "zero bytes": b"",
                    "all but one byte": content[:-1],
                    "noise": np.random.default_rng(0).bytes(100),
                }[damage]
            )
    again = builds.jit(add_triple, **FLAGS)
    assert right(again)
    assert counts(again) == (0, 1)
    repaired = builds.jit(add_triple, **FLAGS)
    assert right(repaired)
    assert counts(repaired) == (1, 0)


def test_damage_to_one_signature_keeps_the_answers_of_the_other(cache):
    build = builds.jit(add_triple, **FLAGS)
    assert right(build)
    (data,) = files(cache, ".nbc")
    assert right(build, np.float32)
    data.write_bytes(b"")
    again = builds.jit(add_triple, **FLAGS)
    assert right(again)
    assert right(again, np.float32)
    repaired = builds.jit(add_triple, **FLAGS)
    assert right(repaired)
    assert right(repaired, np.float32)
    assert counts(repaired) == (2, 0)


def test_no_place_for_a_cache(monkeypatch):
    monkeypatch.setattr(CacheImpl, "_locator_classes", [])
    for parallel in (False, True):
        build = builds.jit(add_triple, parallel=parallel, **FLAGS)
        assert build.stats.cache_path is None
        assert right(build)
        assert counts(build) == (0, 1)


def test_a_cache_directory_that_goes_away_before_the_first_call(cache):
    build = builds.jit(add_triple, **FLAGS)
    shutil.rmtree(cache)
    cache.write_text("now a file")
    assert right(build)
    assert counts(build) == (0, 1)
    assert cache.read_text() == "now a file"


def test_a_disk_that_is_full_when_the_build_is_saved(cache, monkeypatch):
    build = builds.jit(add_triple, **FLAGS)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(build._cache._cache_file), "_save_data", full)
    assert right(build)
    monkeypatch.undo()
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(cache))
    assert right(builds.jit(add_triple, **FLAGS))


# ------------------------------------------------------------------------------------------- the names


def test_serial_and_parallel_builds_share_no_entry(cache):
    serial, parallel = builds.jit(add_triple, **FLAGS), builds.jit(add_triple, parallel=True, **FLAGS)
    assert right(serial)
    assert right(parallel)
    assert counts(serial) == counts(parallel) == (0, 1)
    for pattern in (".nbi", ".nbc"):
        first, second = (path.name for path in files(cache, pattern))
        assert ("parallel" in first, "serial" in second) == (True, True)
    for build in (builds.jit(add_triple, parallel=True, **FLAGS), builds.jit(add_triple, **FLAGS)):
        assert right(build)
        assert counts(build) == (1, 0)


def test_every_kernel_has_files_of_its_own():
    names = [
        builds.kernel(contraction, parallel)._cache._cache_file._index_name
        for contraction in builds.LOOPS
        for parallel in (False, True)
    ]
    assert len(set(names)) == 6
    assert all(builds.source_hash() in name for name in names)


def source_hash(package):
    """The digest that a copy of the package computes."""
    spec = importlib.util.spec_from_file_location("copy_of_compile", package / "loops" / "compile.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.source_hash()


def test_the_source_hash_changes_with_every_source_of_a_kernel(tmp_path):
    package = tmp_path / "loopconv"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__", "cythonized"))
    assert source_hash(package) == builds.source_hash()
    sources = sorted(path for room in builds.ROOMS for path in (package / room).glob("*.py"))
    assert {path.stem for path in sources} >= {"forward", "adjoint", "weight", "compile"}
    seen = {source_hash(package)}
    for path in sources:
        before = path.read_bytes()
        path.write_bytes(before + b"\n# a comment\n")
        changed = source_hash(package)
        assert changed not in seen, f"{path.parent.name}/{path.name}"
        seen.add(changed)
        path.write_bytes(before)
    assert source_hash(package) == builds.source_hash()


def test_a_changed_source_is_compiled_anew(cache, monkeypatch):
    assert right(builds.jit(add_triple, **FLAGS))
    monkeypatch.setattr(builds, "source_hash", lambda: "0" * 12)
    build = builds.jit(add_triple, **FLAGS)
    assert right(build)
    assert counts(build) == (0, 1)


def test_a_jitted_kernel_leaves_the_source_function_alone():
    before = forward.__globals__["prange"]
    builds.jit(forward, parallel=True, **FLAGS)
    assert forward.__globals__["prange"] is before is range
    assert forward.__name__ == "forward"
