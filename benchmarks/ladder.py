"""What each idea of loopconv/tiled gains: the same convolution rung by rung, all timed in turn.

    python benchmarks/ladder.py --threads 2

prints the table of loopconv/tiled/README.md. GFLOP/s count the multiply-adds of the direct sum, on all rungs.
"""

import argparse
from statistics import median
from time import perf_counter
from unittest import mock

import numpy as np

import loopconv
from loopconv import geometry, registry
from loopconv.bench import peak
from loopconv.cli import known, processor
from loopconv.tiled import plans, tiles
from loopconv.tiled.driver import run
from loopconv.tiled.workspace import Workspace

GEOMETRY = geometry.conv((1, 64, 56, 56), (64, 64, 3, 3), padding=1)
FLOAT32 = np.dtype(np.float32)
ROUNDS = 25


def arrays():
    """x, w, y and a bias, as the drivers want them."""
    rng = np.random.default_rng(0)
    x, w, y = (rng.standard_normal(shape, FLOAT32) for shape in (GEOMETRY.x_shape, GEOMETRY.w_shape, GEOMETRY.y_shape))
    return x, w, y, np.zeros(GEOMETRY.k, FLOAT32)


def backend(name):
    """The call on another backend."""
    x, w, y, _ = arrays()
    forward = registry.select("forward", name, GEOMETRY, FLOAT32)
    return lambda: forward(GEOMETRY, x, w, y)


def stages(make, prepared=False, tile=None):
    """The stages of a plan; without those that the weights decide, which run once, if `prepared`."""
    task = plans.task(GEOMETRY, "forward", FLOAT32)
    if tile:
        with mock.patch.object(plans, "direct_tile", return_value=(0, *tile)):
            plan = make(task)
    else:
        plan = make(task)
    x, w, y, bias = arrays()
    given = {"source": x.reshape(-1), "w": w.reshape(-1), "out": y.reshape(-1), "bias": bias}
    workspace, rooms = Workspace(None), plan.kept | plan.rooms
    run(plan.prepare, given, rooms, workspace, GEOMETRY.macs)
    todo = plan.call if prepared else (*plan.prepare, *plan.call)
    return lambda: run(todo, given, rooms, workspace, GEOMETRY.macs)


def rungs():
    """(what is new, its call), from the textbook to the fastest."""
    _, rows, cols, *_ = tiles.direct_tile(64, 64, plans.task(GEOMETRY, "forward", FLOAT32).layout, FLOAT32)
    n = tiles.lanes(FLOAT32)
    yield "textbook loops, compiled by Numba", backend("numba")
    yield f"flattened buffer, one vector of {n} pixels", stages(plans.direct_plan, tile=(1, 1, "flat"))
    yield f"register tile, {rows} channels x {cols} vectors", stages(plans.direct_plan, tile=(rows, cols, "flat"))
    yield "panels: what a tile reads lies side by side", stages(plans.direct_plan, tile=(rows, cols, "paneled"))
    yield "Winograd's F(2x2, 3x3)", stages(lambda task: plans.winograd_plan(task, 2))
    yield "a plan: weights transformed once", stages(lambda task: plans.winograd_plan(task, 2), prepared=True)
    yield "F(4x4, 3x3), on request", stages(lambda task: plans.winograd_plan(task, 4), prepared=True)


def seconds(calls, threads):
    """Median seconds of the calls, timed in turn."""
    loopconv.set_num_threads(threads)
    samples = [[] for _ in calls]
    for _ in range(ROUNDS):
        for call, times in zip(calls, samples):
            call()
            started = perf_counter()
            call()
            times.append(perf_counter() - started)
    return [median(times) for times in samples]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="time with 1 and with N threads")
    counts = sorted({1, parser.parse_args().threads})
    names, calls = zip(*rungs())
    columns = [[2e-9 * GEOMETRY.macs / value for value in seconds(calls, n)] for n in counts]
    print(f"64 -> 64 channels, 3x3, 56x56 pixels, float32; {known(processor)}, {peak() / 1e9:.0f} GFLOP/s a core\n")
    titles = [f"{n} thread{'s' if n > 1 else ''}" for n in counts]
    print("| rung | " + " | ".join(f"GFLOP/s, {title}" for title in titles) + " | times the rung before |")
    print("|---|" + "---|" * (len(counts) + 1))
    for at, name in enumerate(names):
        gain = f"{columns[0][at] / columns[0][at - 1]:.2f}" if at else ""
        print(f"| {name} | " + " | ".join(f"{column[at]:.1f}" for column in columns) + f" | {gain} |")


if __name__ == "__main__":
    main()
