"""Numbers of threads, calls from many Python threads, and forked children."""

import os
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache

import numpy as np
import pytest
from numba import types

import loopconv
from loopconv import threads
from loopconv.loops.compile import built, jit
from loopconv.tiled import team

RNG = np.random.default_rng(5)
X, W = RNG.standard_normal((2, 16, 48, 48)), RNG.standard_normal((16, 16, 3, 3))  # enough work for the threads


@pytest.fixture(autouse=True)
def _restore(monkeypatch):
    monkeypatch.setattr(threads, "_requested", threads._requested)


def processors():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def run(code, **environment):
    """Run `code` in a new Python; its output, after it has ended well."""
    inherited = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ------------------------------------------------------------------------------------------ the number


def test_set_and_get(monkeypatch):
    monkeypatch.setattr(threads, "_available", lambda: 8)
    for n in (1, 3, np.int64(2), 8):
        assert loopconv.set_num_threads(n) is None
        assert loopconv.get_num_threads() == n
        assert type(loopconv.get_num_threads()) is int


def test_no_more_than_there_are_processors(monkeypatch):
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    loopconv.set_num_threads(10**6)
    assert loopconv.get_num_threads() == processors()
    assert np.isfinite(loopconv.conv(X, W, backend="parallel")).all()


def test_by_default_one_for_every_processor(monkeypatch):
    monkeypatch.setattr(threads, "_requested", None)
    for name in ("LOOPCONV_NUM_THREADS", "NUMBA_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert loopconv.get_num_threads() == processors()
    monkeypatch.setenv("LOOPCONV_NUM_THREADS", "")
    assert loopconv.get_num_threads() == processors()
    monkeypatch.setenv("NUMBA_NUM_THREADS", "1")
    assert loopconv.get_num_threads() == 1


def test_environment_variable():
    code = "import loopconv as lc; print(lc.get_num_threads()); lc.set_num_threads(1); print(lc.get_num_threads())"
    assert run(code, LOOPCONV_NUM_THREADS="1").split() == ["1", "1"]
    assert run(code, LOOPCONV_NUM_THREADS="1000000").split() == [str(processors()), "1"]


def test_the_environment_variable_is_read_once(monkeypatch):
    monkeypatch.setattr(threads, "_requested", None)
    monkeypatch.setattr(threads, "_available", lambda: 8)
    monkeypatch.setenv("LOOPCONV_NUM_THREADS", "3")
    assert loopconv.get_num_threads() == 3
    monkeypatch.setenv("LOOPCONV_NUM_THREADS", "2")
    assert loopconv.get_num_threads() == 3
    loopconv.set_num_threads(5)  # the call has the last word
    assert loopconv.get_num_threads() == 5


def test_small_calls_leave_the_environment_alone(monkeypatch):
    x, w = np.ones((1, 1, 9)), np.ones((1, 1, 3))
    loopconv.conv(x, w)
    monkeypatch.setattr(threads, "_from_environment", lambda name: 1 / 0)
    for out in (None, np.empty((1, 1, 7))):
        assert (loopconv.conv(x, w, out=out) == 3).all()
    monkeypatch.setattr(threads, "_requested", None)
    loopconv.registry.forget()
    with pytest.raises(ZeroDivisionError):
        loopconv.conv(x, w)


def test_numbas_own_number_is_left_alone():
    import numba

    before = numba.get_num_threads()
    loopconv.set_num_threads(1)
    loopconv.conv(X, W, backend="parallel")
    assert numba.get_num_threads() == before


def test_a_bad_call_changes_nothing():
    before = loopconv.get_num_threads()
    for n, error in ((0, ValueError), ("x", TypeError), (1.5, TypeError)):
        with pytest.raises(error):
            loopconv.set_num_threads(n)
        assert loopconv.get_num_threads() == before


@pytest.mark.parametrize("backend", ["parallel", None])
@pytest.mark.parametrize("contraction", ["forward", "adjoint", "weight"])
def test_the_same_bits_at_any_number_of_threads(contraction, backend):
    y = loopconv.conv(X, W, backend="parallel")
    call = {
        "forward": lambda: loopconv.conv(X, W, backend=backend),
        "adjoint": lambda: loopconv.conv_transpose(y, W, backend=backend),
        "weight": lambda: loopconv.conv_weight_grad(y, X, W.shape, backend=backend),
    }[contraction]
    loopconv.set_num_threads(1)
    one = call()
    loopconv.set_num_threads(processors())
    for _ in range(3):
        np.testing.assert_array_equal(call(), one)


# ---------------------------------------------------------------------------------- many Python threads


def test_calls_from_many_python_threads_at_once():
    inputs = [X + n for n in range(8)]
    expected = [loopconv.conv(x, W, backend="reference") for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        for backend in ("parallel", "numba", None):
            for _ in range(3):
                results = pool.map(lambda x, b=backend: loopconv.conv(x, W, backend=b), inputs)
                for result, right in zip(results, expected):
                    np.testing.assert_allclose(result, right, rtol=1e-12, atol=1e-11)


WORKQUEUE = """
    from concurrent.futures import ThreadPoolExecutor
    import numpy as np, loopconv

    x, w = np.ones((1, 16, 60, 60)), np.ones((16, 16, 3, 3))
    x[0, 0, 0, 0] = 5
    right = loopconv.conv(x, w, backend="reference")

    def call(n):
        return all((loopconv.conv(x, w, backend=b) == right).all() for b in ("parallel", None) for _ in range(5))

    with ThreadPoolExecutor(8) as pool:  # the first calls compile, at the same time
        assert all(pool.map(call, range(16)))
    import numba
    print(numba.threading_layer())
"""


def test_calls_from_many_python_threads_with_workqueue():
    assert run(WORKQUEUE, NUMBA_THREADING_LAYER="workqueue", NUMBA_NUM_THREADS="2") == "workqueue"


# ------------------------------------------------------------------------------------- forked children

FORK = """
    import os, signal, warnings
    import numpy as np, loopconv
    from loopconv.loops import executions

    warnings.simplefilter("ignore", DeprecationWarning)  # of fork in a process with threads
    x, w = np.ones((1, 16, 60, 60)), np.ones((16, 16, 3, 3))
    x[0, 0, 0, 0] = 5
    right = loopconv.conv(x, w, backend="reference")
    grad = loopconv.conv_weight_grad(right, x, w.shape, backend="reference")
    for backend in ("parallel", None):  # threads of every kind are there before the fork
        assert (loopconv.conv(x, w, backend=backend) == right).all()
    executions._one_at_a_time.acquire()  # as if another thread were in a parallel kernel
    children = []
    for backend in (None, "parallel"):
        child = os.fork()
        if not child:
            signal.alarm(30)  # ends a child that hangs
            code = 1
            try:
                assert (loopconv.conv(x, w, backend=backend) == right).all()
                assert (loopconv.conv_weight_grad(right, x, w.shape, backend=backend) == grad).all()  # compiled here
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    executions._one_at_a_time.release()
    print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
    assert (loopconv.conv(x, w, backend="parallel") == right).all()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("layer", ["default", "workqueue"])
def test_forked_children_after_a_parallel_kernel(layer):
    assert run(FORK, NUMBA_THREADING_LAYER=layer, NUMBA_NUM_THREADS="2") == "[0, 0]"


POOL = """
    import multiprocessing, warnings
    import numpy as np, loopconv

    warnings.simplefilter("ignore", DeprecationWarning)
    x, w = np.ones((1, 16, 60, 60)), np.ones((16, 16, 3, 3))

    def work(n):
        return all((loopconv.conv(x * n, w, backend=b) == 144 * n).all() for b in (None, "parallel"))

    if __name__ == "__main__":
        assert work(1)
        with multiprocessing.get_context("fork").Pool(2) as pool:
            print(pool.map(work, range(4)))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_pool_of_forked_workers():
    assert run(POOL, NUMBA_NUM_THREADS="2") == "[True, True, True, True]"


# ------------------------------------------------------------------------------- the threads of the tiled kernels


def make_count():
    def count(arrays, scratch, plan, first, last):
        """Add one to each unit's number, after work that takes some time; the units."""
        for unit in range(first, last):
            for i in range(plan[0]):
                scratch[i % scratch.size] += i
            arrays[0][unit] += 1
            arrays[1][unit] = scratch[0]
        return last - first

    return count


@cache
def counting():
    array, words = types.Array(types.float64, 1, "C"), team.WORDS
    return built(jit(make_count()), (types.UniTuple(array, 2), array, words, types.int64, types.int64))


@contextmanager
def gathered(a_team, workers, work):
    a_team.is_free.acquire()
    try:
        yield a_team.gather(workers, work)
    finally:
        a_team.let_go()


def counted(a_team, workers, units, effort=300, work=10**9):
    """How often each unit of a job was done, after a look at what the kernels said, and which threads did some."""
    done = np.zeros((2, units))
    with gathered(a_team, workers, work) as workers:
        scratches = np.zeros((workers, 16))
        said = a_team.run(counting().address, tuple(done), scratches, np.array([effort]), units)
    assert said == units
    return done[0], scratches.any(axis=1)


@cache
def doubling():
    def double(arrays, scratch, plan, first, last):
        """The second array is twice the first, and plan[0] more."""
        for i in range(first, last):
            arrays[1][i] = 2 * arrays[0][i] + plan[0]
        return 0

    array, words = types.Array(types.float64, 1, "C"), team.WORDS
    return built(jit(double), (types.UniTuple(array, 2), array, words, types.int64, types.int64))


@pytest.fixture
def a_team():
    a_team = team.Team()
    yield a_team
    a_team.dismiss()


@pytest.mark.parametrize("workers", [2, 3, 8])
def test_each_unit_is_done_once(a_team, workers):
    for units in (1, workers, 4 * workers - 1, 4 * workers, 100):
        for _ in range(50):
            done, _ = counted(a_team, workers, units)
            assert (done == 1).all()


def test_a_job_for_fewer_and_for_more_threads(a_team):
    for workers in (3, 2, 5, 2):
        assert (counted(a_team, workers, 40, 10_000)[0] == 1).all()
    assert len(a_team.members) == 4


@pytest.mark.skipif(processors() < 2, reason="needs two processors")
def test_members_do_their_share(a_team):
    shares = [counted(a_team, 2, 64, 200_000)[1] for _ in range(50)]
    assert np.any(shares, axis=0).all()


@pytest.mark.parametrize("workers", [2, 5])
def test_each_thread_does_for_itself_what_comes_before(a_team, workers):
    """All units are done with what a thread has of the operands, after it has made that."""
    units, numbers = 40, np.arange(40.0)
    own, twice, done = np.full((workers, 48), np.nan), np.full((workers, 40), np.nan), np.full(40, np.nan)
    first = doubling().address, (numbers, own.ravel()), np.array([1]), units
    second = doubling().address, (own.ravel(), twice.ravel()), np.array([2]), units
    shares = [(40, 40), (0, 40), (0, 40), (48, 40), (48, 40), (40, 40)]
    with gathered(a_team, workers, 10**9):
        scratches, operands = np.zeros((workers, 16)), (twice.ravel(), done)
        a_team.run(doubling().address, operands, scratches, np.array([3]), units, (first, second), shares)
    assert np.array_equal(done, 2 * (2 * (2 * numbers + 1) + 2) + 3)
    took_part = ~np.isnan(own).all(axis=1)
    assert np.array_equal(own[took_part, :40], np.tile(2 * numbers + 1, (took_part.sum(), 1)))
    assert np.isnan(own[:, 40:]).all()


def until(is_true):
    """Wait for what happens soon, and fails where it does not."""
    end = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_small_work_wakes_nobody(a_team, monkeypatch):
    monkeypatch.setattr(team.Member, "start", lambda self: None)
    monkeypatch.setattr(team.Member, "join", lambda self: None)
    counted(a_team, 2, 8)
    (member,) = a_team.members
    for is_asleep, work, workers, rings in (
        (True, threads.WAKING_MACS - 1, 1, 0),
        (False, threads.WAKING_MACS - 1, 2, 0),
        (False, threads.WAKING_MACS, 2, 0),
        (True, threads.WAKING_MACS, 2, 1),
    ):
        member.is_asleep = is_asleep
        with gathered(a_team, 2, work) as given:
            assert (given, member.bell.qsize()) == (workers, rings)


def test_members_do_not_sleep_during_a_call(a_team):
    counted(a_team, 2, 8)
    (member,) = a_team.members
    until(lambda: member.is_asleep)
    with gathered(a_team, 2, threads.WAKING_MACS) as workers:
        assert workers == 2
        until(lambda: not member.is_asleep)
        time.sleep(0.01)
        assert not member.is_asleep
    until(lambda: member.is_asleep)


def test_nobody_waits_for_a_member_that_does_not_come(a_team, monkeypatch):
    monkeypatch.setattr(team.Member, "start", lambda self: None)
    monkeypatch.setattr(team.Member, "join", lambda self: None)
    for workers in (2, 4):
        assert (counted(a_team, workers, 20)[0] == 1).all()


def test_where_no_more_threads_may_start(a_team, monkeypatch):
    def start(member):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(team.Member, "start", start)
    for _ in range(2):
        assert (counted(a_team, 4, 20)[0] == 1).all()
    assert a_team.members == []


@pytest.mark.skipif(team.current_processor is None, reason="threads cannot be kept off a processor here")
@pytest.mark.skipif(processors() < 2, reason="needs two processors")
def test_a_member_does_not_wake_on_the_processor_of_the_caller(a_team):
    before = os.sched_getaffinity(0)
    counted(a_team, 2, 8)
    (member,) = a_team.members
    try:
        for processor in sorted(before)[:2]:
            os.sched_setaffinity(0, {processor})
            until(lambda: member.is_asleep)
            counted(a_team, 2, 8)
            assert os.sched_getaffinity(member.native_id) == before - {processor}
    finally:
        os.sched_setaffinity(0, before)


EXIT = """
    import numpy as np, loopconv

    x, w = np.ones((1, 16, 60, 60)), np.ones((16, 16, 3, 3))
    assert (loopconv.conv(x, w) == 144).all()
    print("ends while a member may still look for work")
"""


def test_members_end_with_the_process():
    assert run(EXIT, LOOPCONV_NUM_THREADS="2").startswith("ends")
