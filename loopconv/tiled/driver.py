"""The three contractions by tiled kernels: which algorithm, and then the stages of its plan."""

from dataclasses import replace
from functools import cache, lru_cache, partial
from math import prod

import numpy as np

from loopconv import threads
from loopconv.loops import driver as textbook
from loopconv.loops import executions
from loopconv.tiled.launch import SmallCall, apart, launch
from loopconv.tiled.layout import problem, reaches_most_pixels, stencil_taps
from loopconv.tiled.plans import (
    depthwise_plan,
    depthwise_weight_plan,
    direct_plan,
    dots_plan,
    images_together,
    indirect_plan,
    outer_plan,
    product_lines,
    task,
    tile_lines,
    winograd_plan,
    winograd_weight_plan,
    work,
)
from loopconv.tiled.simd import MATRICES
from loopconv.tiled.team import team
from loopconv.tiled.tiles import (
    OWN_BYTES,
    OWN_WORK,
    UNITS,
    direct_layout,
    direct_tile,
    dots_tile,
    indirect_layout,
    indirect_tile,
    outer_tile,
    winograd_tile,
    winograd_weight_tile,
)
from loopconv.tiled.workspace import own

# What `algorithm=` may say, and the plan it stands for.
SUMS = {
    "direct": direct_plan,
    "indirect": indirect_plan,
    "depthwise": depthwise_plan,
    "winograd2": lambda t: winograd_plan(t, 2),
    "winograd4": lambda t: winograd_plan(t, 4),
}
PRODUCTS = {
    "outer": outer_plan,
    "dots": dots_plan,
    "depthwise": depthwise_weight_plan,
    "winograd2": winograd_weight_plan,
}


def forward(geometry, x, w, y, bias=None, algorithm=None):
    """y = C x + bias."""
    if not _sum("forward", geometry, x, w, y, bias, algorithm):
        sum_as_written("forward", geometry, x, w, y, bias)


def adjoint(geometry, x, w, y, bias=None, algorithm=None):
    """x = C.T y + bias."""
    if not _sum("adjoint", geometry, y, w, x, bias, algorithm):
        sum_as_written("adjoint", geometry, y, w, x, bias)


def weight(geometry, x, w, y, algorithm=None):
    """w = the form without w."""
    if not geometry.macs:
        w[...] = 0
        return
    plan = weight_plan(geometry, x.dtype, algorithm)
    # where results are not finite, dot products have to say which ones really are not
    arrays = {"x": x.ravel(), "y": y.ravel(), "w": w.ravel()}
    if not run(plan.call, arrays, plan.rooms, own(), plan.work):
        weight(geometry, x, w, y, "dots")


def settle(contraction, geometry, dtype, algorithm=None):
    """``run(x, w, y, bias=None)`` for all calls of this geometry; small ones take the short way."""
    general = partial(
        {"forward": forward, "adjoint": adjoint, "weight": weight}[contraction], geometry, algorithm=algorithm
    )
    if not is_small(geometry):
        return general
    if contraction == "weight":
        plan = weight_plan(geometry, dtype, algorithm)
        stages = SmallCall(plan.call, ("x", "w", "y"), plan.rooms, dtype)

        def run(x, w, y):
            if not stages.run(own(), x.ravel(), w.ravel(), y.ravel()):
                general(x, w, y)

        return run
    plan, is_forward = sum_plan(contraction, geometry, dtype, algorithm), contraction == "forward"
    names = ("source", "w", "out", "bias") if is_forward else ("out", "w", "source", "bias")
    stages = SmallCall(plan.tests + plan.prepare + plan.call, names, plan.kept | plan.rooms, dtype)
    nothing = zeros(geometry.k if is_forward else geometry.c, dtype)

    def run_sum(x, w, y, bias=nothing):
        if not stages.run(own(), x.ravel(), w.ravel(), y.ravel(), bias):
            general(x, w, y, bias)

    return run_sum


def is_small(geometry):
    """Whether a call is one thread's alone, and its batch one slab."""
    return geometry.macs > 0 and work(geometry) < threads.SHARED_MACS


def _sum(contraction, geometry, source, w, out, bias, algorithm):
    """Run a forward or adjoint call; False if its weights are not finite, which that kernel cannot take."""
    if not geometry.macs:
        out[...] = 0 if bias is None else textbook.per_channel(bias, out.ndim)
        return True
    plan = sum_plan(contraction, geometry, out.dtype, algorithm)
    arrays = {
        "source": source.ravel(), "w": w.ravel(), "out": out.ravel(),
        "bias": zeros(out.shape[1], out.dtype) if bias is None else bias,
    }  # fmt: skip
    workspace = own()
    if plan.tests and not run(plan.tests, arrays, {}, workspace, plan.work):
        return False
    if plan.images is None:
        is_finite = run(plan.prepare + plan.call, arrays, plan.kept | plan.rooms, workspace, plan.work)
    else:
        arrays |= {name: workspace.room(name, size, out.dtype) for name, size in plan.kept.items()}
        run(plan.prepare, arrays, {}, workspace, plan.work)
        is_finite = run_images(plan, arrays, geometry.batch, workspace)
    if not is_finite:
        # where Winograd's results are not finite, the direct kernel has to say which ones really are not
        return _sum(contraction, geometry, source, w, out, bias, "direct")
    return True


def sum_as_written(contraction, geometry, source, w, out, bias):
    """The call by textbook loops, for weights that are not finite and kernels that meet more or less of the padding."""
    x, y = (source, out) if contraction == "forward" else (out, source)
    getattr(textbook, contraction)(executions.numba(contraction), geometry, x, w, y, bias)


def run_images(plan, arrays, batch, workspace):
    """The call of a plan, for as many images at a time as it takes; see `run`."""
    if plan.images is None:
        return run(plan.call, arrays, plan.rooms, workspace, plan.work)
    slabs = (np.split(arrays[name], batch // plan.images) for name in ("source", "out"))
    return all(
        run(plan.call, {**arrays, "source": source, "out": out}, plan.rooms, workspace, plan.work)
        for source, out in zip(*slabs)
    )


def run(stages, arrays, rooms, workspace, work):
    """Run the stages one after the other, with room for more arrays; False as soon as one finds what is not finite.

    `work`, that of the whole call, says how many threads it is worth.
    """
    workers = threads.worth(work)
    if workers == 1 or not team.is_free.acquire(blocking=False):
        return run_on(1, stages, arrays, rooms, workspace, work)
    try:
        return run_on(team.gather(workers, work), stages, arrays, rooms, workspace, work)
    finally:
        team.let_go()


def run_on(workers, stages, arrays, rooms, workspace, work):
    """The stages on so many threads; see `run`."""
    dtype, own, before, said = arrays["w"].dtype, {}, [], 0
    if workers > 1:
        fitting = min(OWN_BYTES // (workers * dtype.itemsize), work // (OWN_WORK * (workers - 1)))
        own = {stage.fills: rooms[stage.fills] for stage in stages if rooms.get(stage.fills, fitting + 1) <= fitting}
    for name, size in rooms.items():
        arrays[name] = workspace.room(name, workers * apart(size) if name in own else size, dtype)
    for stage in stages:
        if stage.fills in own:
            before.append(stage)
        else:
            said = said or launch(stage, arrays, workspace, workers, before, own)
            before = []
    return not said


@cache
def zeros(size, dtype):
    """The bias of a call without one."""
    return np.zeros(size, dtype)


# ------------------------------------------------------------------------------------ which algorithm


def algorithms(contraction, geometry):
    """The names that `algorithm=` may have for a call."""
    fitting = {"depthwise": is_depthwise(geometry), "indirect": is_indirect(geometry)}
    fitting |= {f"winograd{m}": is_winograd(geometry, m) for m in (2, 4)}
    return tuple(name for name in (PRODUCTS if contraction == "weight" else SUMS) if fitting.get(name, True))


def is_depthwise(geometry):
    """Whether every group is one channel."""
    return geometry.groups == geometry.c == geometry.k and has_pixels(geometry)


def is_indirect(geometry):
    """Whether there are pixels, and several channels for a vector."""
    return has_pixels(geometry) and not is_depthwise(geometry)


def is_winograd(geometry, m=2):
    """Whether F(m x m, R x S) takes the call."""
    taps = stencil_taps(geometry)
    return (
        has_pixels(geometry) and taps is not None and max(taps) > 1 and all((m, n, "input") in MATRICES for n in taps)
    )


def has_pixels(geometry):
    """Whether there is something to add up, and where to; padding alone may be read, and written to."""
    return geometry.macs > 0 and 0 not in geometry.input


@lru_cache(maxsize=256)
def sum_plan(contraction, geometry, dtype, algorithm=None, is_planned=False):
    """The plan of a forward or adjoint call; a planned one prepares its weights only once."""
    make = SUMS[algorithm or preferred(contraction, geometry, dtype, is_planned)]
    plan = make(task(geometry, contraction, dtype, is_planned))
    images = images_together(geometry, plan, dtype)
    if images < geometry.batch:  # weights are prepared once for all
        plan = make(task(replace(geometry, batch=images), contraction, dtype, True))._replace(images=images)
    return plan._replace(work=work(geometry))


def preferred(contraction, geometry, dtype, is_planned=False):
    """The algorithm that is expected to be the fastest; a plan prepares its weights only once."""
    if is_depthwise(geometry):
        return "depthwise"
    t = task(geometry, contraction, dtype, is_planned)
    direct, indirect = direct_layout(t), indirect_layout(t)
    if is_winograd(geometry) and is_winograd_exact(t) and is_winograd_faster(t, direct[1], indirect[1]):
        return "winograd2"
    return "indirect" if is_indirect(geometry) and indirect[0] < direct[0] else "direct"


def is_winograd_exact(t):
    """Whether F(2x2, 3x3) rounds no more than is allowed.

    Its error is relative to 2x2 pixels together. Over few channels it may be too large for a pixel at the border that
    few products reach: 1.7 times what `registry.tolerance` allows, over 4 channels.
    """
    return t.C >= 8


def is_winograd_faster(t, direct, indirect):
    """Whether Winograd is expected to be faster than the others with these layouts.

    In a plain call, its transform of the weights included.
    """
    tiles = tile_lines(t.geometry, t.adjoint, 2)
    others = direct_tile(t.M, t.C, direct, t.dtype)[0], indirect_tile(t, indirect)[0]
    return winograd_tile(t, 2, stencil_taps(t.geometry), tiles)[0] < min(others)


@lru_cache(maxsize=256)
def weight_plan(geometry, dtype, algorithm=None):
    """The plan of a weight gradient."""
    return PRODUCTS[algorithm or preferred_product(geometry, dtype)](geometry, dtype)._replace(work=work(geometry))


def preferred_product(geometry, dtype):
    """The algorithm of a weight gradient that is expected to be the fastest."""
    if is_depthwise(geometry) and geometry.groups >= UNITS:
        return "depthwise"
    p = problem(geometry)
    taps, pixels = prod(p.k), p.N * p.G * prod(p.y)
    costs = {
        "outer": outer_tile(p, dtype)[0],
        "dots": dots_tile(p.K, p.C, taps, p.y, dtype)[0] * pixels,  # where channels would leave lanes empty
    }
    if is_winograd(geometry) and reaches_most_pixels(p):
        costs["winograd2"] = winograd_weight_tile(p, stencil_taps(geometry), product_lines(geometry), dtype)[0]
    return min(costs, key=costs.get)
