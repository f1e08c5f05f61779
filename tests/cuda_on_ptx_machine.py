"""Tests of the compiled kernels, run by ptx_machine.py, in processes of their own that test_cuda_ptx.py starts.

They are compiled for devices, so NUMBA_ENABLE_CUDASIM must not be set: pytest tests/cuda_on_ptx_machine.py
"""

import re
from functools import partial
from math import prod

import numpy as np
import pytest
from cuda_checks import RESULT, bias_of, check_plan
from helpers import random_array
from ptx_machine import PtxError, compiled

from loopconv import geometry, reference, registry
from loopconv.cases import CASES as TABLE
from loopconv.cuda import assembled, build, driver, plans, textbook, winograd
from loopconv.cuda.plans import Numbers
from loopconv.cuda.stages import DTYPES
from loopconv.cuda.tiles import TILES, WEIGHT_TILES, WINOGRAD

CAPABILITY = (9, 0)
CONTRACTIONS = registry.CONTRACTIONS
FLOAT32 = Numbers("float32")


def text_of(launch, plan, storage):
    return build.compiled(launch, plan.rooms, storage, CAPABILITY).text


def run(numbers, early, plan, arrays):
    """All launches of a plan; where the arrays need not be aligned, they are not."""
    moved = {name: array if numbers.aligned else displaced(array) for name, array in arrays.items() if name in "xwy"}
    for launch in plan.launches:
        given = [*((arrays | moved)[name] for name in launch.arrays), launch.numbers]
        kernel = compiled(text_of(launch, plan, numbers.storage))
        # the last array is the result
        kernel.run(given, {len(launch.arrays) - 1}, launch.grid, launch.block, launch.shared, early)
    for name, array in moved.items():
        arrays[name][...] = array


def displaced(array):
    """A copy one element after a multiple of 16 bytes."""
    room = np.empty(array.nbytes + 32, np.uint8)
    start = -room.ctypes.data % 16 + array.itemsize
    copy = room[start : start + array.nbytes].view(array.dtype)
    copy[...] = array
    return copy


def check(contraction, g, plan, numbers, bias=None):
    """Against the reference, with asynchronous copies carried out as late as may be, and at once: the same bits."""
    late, early = (
        check_plan(partial(run, numbers, early), contraction, g, plan, numbers, bias) for early in (False, True)
    )
    assert np.array_equal(late, early, equal_nan=True)


# ----------------------------------------------------------------------------------------- tuned kernels


def plan_of(contraction, g, numbers, tile=None):
    """The plan with a tile, or with what is chosen for the geometry."""
    has_bias = contraction != "weight"
    if tile is None:
        return plans.plan(contraction, g, numbers, CAPABILITY, has_bias)
    if tile is WINOGRAD:
        return winograd.plan(contraction, g, numbers, CAPABILITY, has_bias)
    return plans.tile_plan(contraction, g, numbers, CAPABILITY, has_bias, tile)


def edges(contraction, tile):
    """Two images with padding on both axes, whose rows, columns and steps all end within the second tile."""
    rows, channels = tile.rows + 2, tile.columns // 36 * 4 + 4
    if contraction == "adjoint":
        return geometry.conv((2, rows, 17, 11), (5, rows, 3, 3), stride=(2, 1), padding=((1, 0), (1, 2)))
    if contraction == "weight":
        return geometry.conv((2, channels, 5, 5), (rows, channels, 3, 3), padding=1)
    return geometry.conv((2, 3, 13, 11), (rows, 3, 3, 3), padding=1)


def tiles():
    """(contraction, geometry, numbers, tile) of every tile; of 16 bits, both dtypes."""
    for contraction in CONTRACTIONS:
        tables = WEIGHT_TILES if contraction == "weight" else TILES
        for table, of in tables[CAPABILITY].items():
            for tile in of[:1] if table == "half" else of:
                yield contraction, edges(contraction, tile), Numbers(*assembled.STORED[table]), tile
                if table == "half":
                    yield contraction, edges(contraction, tile), Numbers("float16"), tile


def of_widest(x_shape, w_shape, contractions=CONTRACTIONS, numbers=FLOAT32, **settings):
    """(contraction, geometry, numbers, tile) of the largest tile."""
    for contraction in contractions:
        tables = WEIGHT_TILES if contraction == "weight" else TILES
        yield contraction, geometry.conv(x_shape, w_shape, **settings), numbers, tables[CAPABILITY][numbers.table][0]


def of_chosen(x_shape, w_shape, contractions=CONTRACTIONS, storages=("float32",), **settings):
    """(contraction, geometry, numbers, None) of what is chosen for the geometry."""
    for contraction in contractions:
        for storage in storages:
            yield contraction, geometry.conv(x_shape, w_shape, **settings), Numbers(storage), None


def of_depthwise(x_shape, k, numbers=(FLOAT32,), contractions=CONTRACTIONS, **settings):
    """(contraction, geometry, numbers, None) of as many groups as there are channels."""
    g = geometry.conv(x_shape, (x_shape[1], 1, *k), groups=x_shape[1], **settings)
    for contraction in contractions:
        for each in numbers:
            yield contraction, g, each, None


EVERY_DTYPE = [Numbers(storage, aligned=storage != "float16") for storage in DTYPES]

TENSOR_CORES = Numbers("float32", "tf32"), Numbers("bfloat16", aligned=False)


def on_tensor_cores(x_shape, w_shape, numbers=TENSOR_CORES, contractions=CONTRACTIONS, **settings):
    """(contraction, geometry, numbers, None) in numbers that tensor cores multiply."""
    for contraction in contractions:
        for each in numbers:
            yield contraction, geometry.conv(x_shape, w_shape, **settings), each, None


def of_winograd(x_shape, w_shape, storages=("float32",), **settings):
    """(contraction, geometry, numbers, tile) of Winograd's kernels; the tile says no more than that."""
    for contraction in CONTRACTIONS:
        for storage in storages:
            yield contraction, geometry.conv(x_shape, w_shape, **settings), Numbers(storage, aligned=False), WINOGRAD


CASES = [
    *tiles(),
    *of_widest((2, 3, 4, 5, 9), (130, 3, 3, 3, 3), CONTRACTIONS[:2], padding=1, stride=(1, 2, 1)),
    *of_widest((2, 8, 3, 4, 5), (130, 8, 3, 3, 3), ("weight",), padding=1),
    # by 16 bytes, and where the arrays are not aligned
    *of_widest((2, 132, 6, 8), (136, 132, 1, 1)),
    *of_widest((2, 12, 6, 8), (136, 12, 1, 1), numbers=Numbers("float32", aligned=False)),
    # several parts
    *of_widest((1, 64, 7, 7), (130, 64, 3, 3), ("forward",), Numbers("bfloat16"), padding=1),
    *of_chosen((1, 130, 7, 5), (16, 130, 3, 3), ("forward",), padding=1),
    *of_chosen((2, 9, 3, 3), (300, 9, 1, 2), ("adjoint",)),
    *of_chosen((3, 4, 19, 20), (7, 4, 1, 3), ("weight",)),
    # groups, one axis, phases without taps
    *of_chosen((1, 12, 9, 7), (20, 6, 3, 3), groups=2, padding=(1, 0)),
    *of_chosen((2, 3, 150), (20, 3, 9), dilation=4, padding=5),
    *of_chosen((1, 5, 9, 8), (3, 5, 1, 2), ("adjoint",), stride=3, dilation=2),
    # tensor cores: pieces of channels that are filled up, small images, three axes, groups, steps of one slab, runs
    *on_tensor_cores((2, 8, 4, 5), (33, 8, 2, 2), padding=(1, 0)),
    *on_tensor_cores((9, 5, 2, 2), (18, 5, 2, 1), padding=((0, 0), (1, 0))),
    *on_tensor_cores((1, 3, 3, 4, 3), (5, 3, 2, 1, 3), padding=(1, 0, 1), dilation=(1, 1, 2)),
    *on_tensor_cores((1, 10, 4, 4), (34, 5, 3, 2), padding=1, groups=2, stride=(1, 3)),
    *on_tensor_cores((1, 600, 1, 2), (3, 600, 1, 1)),
    *on_tensor_cores((1, 3, 4, 8), (5, 3, 1, 1)),
    *on_tensor_cores((300, 8, 3, 1), (20, 8, 1, 1), (FLOAT32._replace(precision="tf32"),), CONTRACTIONS[2:]),
    # few result channels, with and without groups
    *of_chosen((1, 8, 15, 15), (8, 4, 3, 3), groups=2, padding=1, storages=("float32", "float64", "float16")),
    *of_chosen((2, 7, 13, 11), (3, 7, 3, 3), padding=1),
    *of_chosen((2, 8, 9, 10), (8, 4, 3, 3), groups=2, padding=1, stride=(2, 1)),
    *of_chosen((3, 6, 9, 10), (4, 3, 2, 3), groups=2, padding=(0, 1), dilation=(2, 1)),
    *of_chosen((2, 3, 16, 16), (20, 3, 4, 4), ("adjoint",), stride=2, padding=1),
    *of_chosen((1, 3, 5, 6, 7), (9, 3, 2, 3, 3), ("adjoint",), padding=1, stride=(2, 1, 1)),
    # depthwise: as in the table of the assembler, tiles past the ends of planes, small planes, and large ones in parts
    *of_depthwise((2, 3, 16, 16), (3, 3), EVERY_DTYPE, padding=1),
    *of_depthwise((2, 2, 16, 16), (5, 5), stride=2, padding=2),
    *of_depthwise((1, 2, 16, 16), (7, 7), padding=3),
    *of_depthwise((2, 2, 3, 16, 16), (3, 3, 3), padding=1),
    *of_depthwise((3, 5, 7, 7), (3, 3), padding=1),
    *of_depthwise((150, 2, 4, 4), (2, 3), padding=(0, 1)),
    *of_depthwise((5, 1, 50, 48), (3, 3), padding=1),
    # strides and dilations, phases without taps, taps beyond the image, cropping, one axis, three
    *of_depthwise((2, 3, 18, 20), (3, 3), (FLOAT32, Numbers("bfloat16", aligned=False)), stride=2, padding=1),
    *of_depthwise((2, 3, 17, 19), (3, 4), stride=(3, 2), dilation=(2, 3), padding=((3, 1), (0, 4))),
    *of_depthwise((1, 3, 9, 8), (1, 2), stride=(4, 3)),
    *of_depthwise((2, 2, 12, 10), (3, 2), padding=((-2, 1), (0, -1)), dilation=(1, 2)),
    *of_depthwise((2, 3, 150), (9,), (FLOAT32, Numbers("float16", aligned=False)), dilation=4, padding=5),
    *of_depthwise((2, 2, 5, 6, 8), (3, 2, 3), stride=(2, 1, 2), dilation=(1, 2, 1), padding=(2, 1, 1)),
    # more taps than a thread has registers for
    *of_depthwise((1, 2, 14, 15), (12, 13), (FLOAT32, Numbers("float64")), padding=6),
    # small groups, in one part and in several
    *of_chosen((3, 2, 27, 29), (4, 1, 3, 3), groups=2, stride=(1, 2), padding=1),
    *of_chosen((3, 2, 27, 29), (2, 1, 1, 1), ("weight",), groups=2),
    # Winograd's, past the ends of blocks and slabs, and in several parts
    *of_winograd((2, 33, 9, 13), (66, 33, 3, 3), winograd.STORED, padding=1),
    *of_winograd((2, 16, 5, 8, 9), (20, 8, 3, 3, 3), padding=((1, 1), (2, 0), (1, 2)), dilation=(2, 1, 1), groups=2),
    *of_winograd((3, 10, 31, 30), (9, 10, 3, 3), padding=1),
]  # fmt: skip


@pytest.mark.parametrize(("contraction", "g", "numbers", "tile"), CASES)
def test_tuned_kernels(contraction, g, numbers, tile):
    check(contraction, g, plan_of(contraction, g, numbers, tile), numbers, bias_of(contraction, g))


@pytest.mark.parametrize("contraction", CONTRACTIONS)
def test_where_depthwise_kernels_have_nan(contraction):
    """In the sums of one pixel alone, though rows of tiles that are not there would meet it with zeros."""
    g = geometry.conv((1, 2, 17, 9), (2, 1, 3, 3), groups=2, stride=(1, 2), padding=((1, 0), (0, 2)))
    for name, at in ((name, at) for name in {"x", "y"} - {RESULT[contraction]} for at in (0, -1)):
        arrays = {n: random_array(getattr(g, f"{n}_shape"), "float32", i) for i, n in enumerate("xwy")}
        arrays[name].reshape(-1)[at] = np.nan
        expected = {n: array.copy() for n, array in arrays.items()}
        getattr(reference, contraction)(g, **expected)
        plan = plans.plan(contraction, g, FLOAT32, CAPABILITY)
        run(FLOAT32, False, plan, {n: array.reshape(-1) for n, array in arrays.items()})
        result = RESULT[contraction]
        assert np.array_equal(np.isnan(arrays[result]), np.isnan(expected[result])), f"{name} {at}"


@pytest.mark.parametrize("g", [case.geometry for case in TABLE if driver.is_tiled(case.geometry)], ids=str)
def test_tiles_on_the_table_of_geometries(g):
    for contraction in CONTRACTIONS:
        tile = (WEIGHT_TILES if contraction == "weight" else TILES)[CAPABILITY]["float32"][-1]
        check(contraction, g, plan_of(contraction, g, FLOAT32, tile), FLOAT32, bias_of(contraction, g))


def test_every_kernel_in_the_assemblers_table_is_run():
    ran = set()
    for contraction, g, numbers, tile in CASES:
        plan = plan_of(contraction, g, numbers, tile)
        for launch in plan.launches:
            ran.add((launch.make, launch.constants, build.memory_types(launch, plan.rooms, numbers.storage)))
    for name, (launch, rooms, dtype) in assembled.kernels(CAPABILITY).items():
        assert (launch.make, launch.constants, build.memory_types(launch, rooms, dtype)) in ran, name


# -------------------------------------------------------------------------------------- textbook kernels

TEXTBOOK = [
    geometry.conv((2, 3, 9, 8), (4, 3, 3, 3), padding=((1, 0), (2, 1)), stride=(2, 1)),
    geometry.conv((1, 4, 5, 6, 4), (6, 2, 2, 3, 2), groups=2, dilation=(1, 2, 1), padding=1),
    geometry.conv((3, 2, 41), (3, 2, 5), stride=3),
]


@pytest.mark.parametrize("storage", DTYPES)
@pytest.mark.parametrize("g", TEXTBOOK)
def test_textbook_kernels(g, storage):
    for contraction, algorithms in driver.TEXTBOOK.items():
        for algorithm, plan in algorithms.items():
            if storage in driver.ONLY.get(algorithm, DTYPES):
                check(contraction, g, plan(g), Numbers(storage), bias_of(contraction, g))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums(dtype):
    y, result = random_array((3, 5, 70), dtype, 0), np.full(5, np.nan, dtype)
    run(Numbers(dtype), False, textbook.sums_plan(3, 5, 70, dtype), {"y": y.ravel(), "bias": result})
    np.testing.assert_allclose(result, y.sum((0, 2)), atol=210 * np.finfo(dtype).eps * np.abs(y).sum((0, 2)).max())


@pytest.mark.parametrize("pattern", [r"bar\.sync", r"cp\.async\.wait_group", r"cp\.async\.commit_group"])
@pytest.mark.parametrize("numbers", [FLOAT32, Numbers("float16")], ids=str)
@pytest.mark.parametrize("contraction", CONTRACTIONS)
def test_a_kernel_without_one_instruction(contraction, numbers, pattern):
    """Of the tuned kernels, none of what orders its threads can be left out."""
    tile = (WEIGHT_TILES if contraction == "weight" else TILES)[CAPABILITY][numbers.table][2]
    g = edges(contraction, tile)
    plan = plan_of(contraction, g, numbers, tile)
    *before, last = plan.launches
    lines = text_of(last, plan, numbers.storage).split("\n")
    found = [n for n, line in enumerate(lines) if re.match(rf"\s*{pattern}\b", line)]

    def without(left_out, plan, arrays):
        run(numbers, False, plan._replace(launches=tuple(before)), arrays)
        text = "\n".join(line for n, line in enumerate(lines) if n != left_out)
        kernel, result = compiled(text), len(last.arrays) - 1
        given = [*(arrays[name] for name in last.arrays), last.numbers]
        kernel.run(given, {result}, last.grid, last.block, last.shared)

    assert found
    for left_out in found:
        with pytest.raises(PtxError, match=r"line \d+, .*: (race|byte \d+ of shared memory (was never|is the target))"):
            check_plan(partial(without, left_out), contraction, g, plan, numbers, bias_of(contraction, g))


# ---------------------------------------------------------------------------------------------- counted


def costs(contraction, g, numbers, tile):
    """What the accesses of the kernel of a tile cost in one block."""
    found = []

    def run(plan, arrays):
        for launch in plan.launches:
            given = [*(arrays[name] for name in launch.arrays), launch.numbers]
            kernel = compiled(text_of(launch, plan, numbers.storage))
            found.append(kernel.count(given, {len(launch.arrays) - 1}, launch.grid, launch.block, launch.shared)[1])

    check_plan(run, contraction, g, plan_of(contraction, g, numbers, tile), numbers, bias_of(contraction, g))
    return found[-1]


@pytest.mark.parametrize(
    ("contraction", "numbers", "tile"), [(c, numbers, tile) for c, _, numbers, tile in tiles() if c != "adjoint"]
)
def test_banks_of_shared_memory(contraction, numbers, tile):
    """The turns that reading the factors takes, and writing what is fetched, for each that the bytes need."""
    rows, channels = tile.rows, tile.columns // 36 * 4 + 4
    g = geometry.conv((1, 2, 9, 11), (rows, 2, 3, 3), padding=1)
    if contraction == "weight":
        g = geometry.conv((1, channels, 5, 5), (rows, channels, 3, 3), padding=1)
    lines = [line for line in costs(contraction, g, numbers, tile) if line.shared]
    read_by = r"ld\.shared\.f64" if numbers.compute == "float64" else r"ld\.shared\.v|ldmatrix"
    read, written = (
        sum(line.parts for line in lines if re.search(pattern, line.code))
        / sum(line.least for line in lines if re.search(pattern, line.code))
        for pattern in (read_by, r"cp\.async")
    )
    assert read == 1
    # of 16 rows, packed weights of four steps lie in some of the same banks; of doubles, those of every fourth pixel
    assert written <= (2 if (contraction, numbers.compute) == ("weight", "float64") else 1 if rows > 16 else 1.125)


@pytest.mark.parametrize("contraction", CONTRACTIONS)
def test_banks_of_winograd(contraction):
    """Patches that are put, factors that are read and sums on their way out: no two lanes meet in a bank."""
    g = geometry.conv((1, 32, 16, 16), (64, 32, 3, 3), padding=1)
    lines = [line for line in costs(contraction, g, FLOAT32, WINOGRAD) if line.shared and ".f32" in line.code]
    assert len(lines) > 100
    assert all(line.parts == line.least for line in lines)


@pytest.mark.parametrize(
    ("contraction", "stride", "loads", "results"),
    [("forward", 1, 10 * 4, 8 * 2), ("adjoint", 1, 10 * 4, 8 * 2), ("forward", 2, 17 * 3, 8), ("adjoint", 2, 9, 4 * 4)],
)
def test_sectors_of_depthwise_layers(contraction, stride, loads, results):
    """What is written fills its sectors, also of all phases of the adjoint; a load of each tile touches 9 at most.

    So many are 64 neighbouring pixels, of which 32 threads load every other one.
    """
    g = geometry.conv((1, 2, 32, 64), (2, 1, 3, 3), groups=2, stride=stride, padding=1)
    lines = [line for line in costs(contraction, g, FLOAT32, None) if not line.shared]
    written, read = (
        sum(line.parts for line in lines if re.match(pattern, line.code)) for pattern in (r"st\.", r".*ld\.global\.nc")
    )
    size = prod(g.y_shape if contraction == "forward" else g.x_shape)
    assert written == size / 8
    assert 0 < read <= size / results / 32 * loads * 9
