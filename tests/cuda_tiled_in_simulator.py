"""Tests of the tuned kernels in Numba's simulator, which test_cuda_tiled.py runs in a process of their own.

NUMBA_ENABLE_CUDASIM=1 pytest tests/cuda_tiled_in_simulator.py
"""

from itertools import product

import numpy as np
import pytest
from cuda_checks import RESULT, bias_of, check_plan
from helpers import literal, random_array, random_integers

from loopconv import geometry, registry
from loopconv.cases import CASES
from loopconv.cuda import depthwise, driver, intrinsics, plans, tiled, winograd
from loopconv.cuda.plans import Numbers
from loopconv.cuda.tiles import CHIPS, TILES, WEIGHT_TILES, Tile

BY_NAME = {case.name: case.geometry for case in CASES}
# A simulated thread takes 0.1 ms a slab, so blocks are single warps, and of the table these are some of the smallest:
# compiled kernels take them all (cuda_on_ptx_machine.py).
SMALL = [name for name, g in BY_NAME.items() if 0 < g.macs < 2_500 and g.groups < 3][::4]
LEAST = Tile(16, 32, (1, 1), 8, 3, 1, 1.0)
CONTRACTIONS = registry.CONTRACTIONS
CAPABILITY = (9, 0)
FLOAT32 = Numbers("float32")


def plan_of(contraction, g, numbers, tile, has_bias=False):
    return plans.tile_plan(contraction, g, numbers, CAPABILITY, has_bias, tile)


def grouped_plan_of(contraction, g, numbers, has_bias=False, shape=(2, 16)):
    if contraction == "weight":
        return plans.grouped_weight_plan(g, numbers, CAPABILITY, shape=shape)
    return plans.grouped_sum_plan(g, contraction, numbers, CAPABILITY, has_bias, shape=shape)


def check(contraction, g, plan, numbers=FLOAT32, bias=None, make=random_array):
    return check_plan(run, contraction, g, plan, numbers, bias, make)


def run(plan, flat):
    from numba import cuda

    for launch in plan.launches:
        assert launch.numbers.dtype == np.int64
        kernel = cuda.jit(launch.make(*launch.constants))
        kernel[launch.grid, launch.block, 0, launch.shared](*(flat[name] for name in launch.arrays), launch.numbers)


# --------------------------------------------------------------------------------------- the kernels


@pytest.mark.parametrize("name", SMALL)
def test_tiles_on_the_cases(name):
    g = BY_NAME[name]
    for contraction in CONTRACTIONS:
        bias = bias_of(contraction, g)
        if bias is None or bias.size:
            check(contraction, g, plan_of(contraction, g, Numbers("float32"), LEAST, bias is not None), bias=bias)


@pytest.mark.parametrize("name", ["3d-all", "t-1d"])
def test_small_groups_on_the_cases(name):
    g = BY_NAME[name]
    for contraction in CONTRACTIONS:
        bias = bias_of(contraction, g)
        plan = grouped_plan_of(contraction, g, Numbers("float32"), bias is not None)
        check(contraction, g, plan, bias=bias)


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
@pytest.mark.parametrize("settings", [{"padding": 1}, {"stride": (2, 3), "padding": ((2, 0), (1, 2)), "dilation": 2}])
def test_depthwise(settings, storage):
    g, numbers = geometry.conv((2, 2, 9, 10), (2, 1, 3, 3), groups=2, **settings), Numbers(storage)
    for contraction in CONTRACTIONS:
        bias = bias_of(contraction, g)
        plan = plans.plan(contraction, g, numbers, CAPABILITY, bias is not None)
        assert plan.launches[0].make.__module__ == depthwise.__name__
        check(contraction, g, plan, numbers, bias)


def test_depthwise_of_volumes():
    g = geometry.conv((1, 2, 4, 4, 5), (2, 1, 3, 2, 2), groups=2, stride=(2, 1, 1), padding=1)
    for contraction in CONTRACTIONS:
        check(contraction, g, plans.plan(contraction, g, FLOAT32, CAPABILITY))


def test_which_layers_are_narrow():
    """Few result channels in a group, taps that fit registers with some pixels, tiles that 31 bits count."""
    layer = geometry.conv((8, 64, 56, 56), (64, 1, 3, 3), groups=64)
    choices = {
        layer: True,
        geometry.conv((1, 1, 17, 17), (1, 1, 9, 9)): True,
        geometry.conv((8, 64, 56, 56), (256, 1, 3, 3), groups=64): True,
        geometry.conv((8, 64, 56, 56), (320, 1, 3, 3), groups=64): False,
        geometry.conv((256, 64, 56, 56), (3, 64, 5, 5)): True,
        geometry.conv((256, 64, 56, 56), (3, 64, 7, 7)): False,
        geometry.conv((1, 2048, 7, 7), (4, 2048, 1, 1)): False,
        geometry.conv((8, 64, 56, 56), (64, 1, 31, 31), groups=64): False,
        geometry.conv((2**15, 2**16, 1, 1), (2**16, 1, 1, 1), groups=2**16): False,
    }
    for g, expected in choices.items():
        assert plans.is_narrow(g, "forward", FLOAT32) is expected


@pytest.mark.parametrize("size", [1, 2, 3, 7, 49, 112, 12544, 2**30 - 35, 2**31 - 1])
def test_division_of_31_bits(size):
    numbers = np.array([*plans._divisor(size), 0], np.int64)
    words = numbers.astype(np.uint32).view(np.int64)
    for i in {0, 1, size - 1, size, 2 * size - 1, 2**31 - 1, *range(97, 2**31, 2**31 // 50)}:
        if i < 2**31:
            assert depthwise.parted(np.int32(i), words, 0) == divmod(i, size)


# Sizes around the tile of 16 result channels, 32 pixels and 8 steps, and primes; then images of 4 and of 13 x 5 pixels.
EDGES = [
    ((1, c, n), (k, c, 1), {})
    for c, k, n in ((7, 15, 31), (8, 16, 32), (9, 17, 33), (1, 1, 1), (5, 37, 3), (3, 16, 37))
] + [
    ((3, 5, 2, 2), (18, 5, 1, 1), {}),
    ((2, 3, 13, 5), (5, 3, 3, 2), {"stride": (3, 1), "padding": ((0, 2), (1, 0)), "dilation": (2, 1)}),
    ((1, 4, 4, 4), (34, 2, 3, 2), {"padding": 1, "groups": 2}),
]  # fmt: skip


@pytest.mark.parametrize(("x_shape", "w_shape", "settings"), EDGES)
def test_edges_of_tiles(x_shape, w_shape, settings):
    g = geometry.conv(x_shape, w_shape, **settings)
    for contraction in CONTRACTIONS:
        check(contraction, g, plan_of(contraction, g, Numbers("float32"), LEAST))


LAYER = geometry.conv((1, 3, 5, 4), (18, 3, 3, 2), padding=1, stride=(2, 1))
TWO_CHANNELS = geometry.conv((1, 2, 4, 3), (4, 1, 2, 2), groups=2)
POINTWISE = geometry.conv((2, 5, 4, 4), (20, 5, 1, 1))
TWO_WARPS = Tile(32, 64, (2, 1), 8, 4, 1, 1.0)
WHOLE = Tile(128, 128, (2, 2), 8, 4, 2, 1.0)
# A thread does not know of the others' fragments here, and sums its part of the tile alone.
TENSOR = Tile(32, 32, (1, 1), 16, 2, 1, 1.0)
TENSOR_WEIGHT = Tile(64, 64, (2, 2), 16, 3, 1, 1.0)


@pytest.mark.parametrize("storage", ["float64", "float16", "bfloat16"])
def test_dtypes(storage):
    numbers = Numbers(storage)
    for contraction in CONTRACTIONS:
        check(contraction, TWO_CHANNELS, grouped_plan_of(contraction, TWO_CHANNELS, numbers), numbers)
        if storage == "float64":
            for g in (LAYER, POINTWISE):
                check(contraction, g, plan_of(contraction, g, numbers, LEAST), numbers)


@pytest.mark.parametrize("contraction", CONTRACTIONS)
def test_tiles_of_two_warps(contraction):
    g = geometry.conv((2, 3, 5, 4), (34, 3, 3, 2), padding=1)
    check(contraction, g, plan_of(contraction, g, FLOAT32, TWO_WARPS))


@pytest.mark.parametrize(
    ("contraction", "numbers"),
    [*((c, Numbers("float32", "tf32")) for c in ("forward", "weight")), ("adjoint", Numbers("bfloat16"))],
    ids=str,
)
def test_tensor_cores(contraction, numbers):
    """What the lanes load for each other is only known where the compiled kernels run (cuda_on_ptx_machine.py)."""
    tile = (TENSOR_WEIGHT if contraction == "weight" else TENSOR)._replace(depth=16 if numbers.precision else 32)
    bias = bias_of(contraction, LAYER)
    check(contraction, LAYER, plan_of(contraction, LAYER, numbers, tile, bias is not None), numbers, bias)


def test_a_tile_as_it_is_on_the_device():
    g = geometry.conv((1, 3, 4, 32), (129, 3, 1, 3), padding=(0, 1))
    check("forward", g, plan_of("forward", g, Numbers("float32"), WHOLE))


@pytest.mark.parametrize("aligned", [False, True])
def test_runs_of_sixteen_bytes_are_for_aligned_arrays(aligned):
    numbers = Numbers("float32", aligned=aligned)
    for contraction in ("forward", "adjoint"):
        plan = plan_of(contraction, POINTWISE, numbers, LEAST)
        *_, wide_source, wide_out = plan.launches[1].constants
        assert wide_source == wide_out == aligned
        check(contraction, POINTWISE, plan, numbers)
    odd = geometry.conv((2, 5, 3, 5), (20, 5, 1, 1))
    assert plan_of("forward", odd, numbers, LEAST).launches[1].constants[-2:] == (False, False)


def test_parts_are_added_in_order():
    g = geometry.conv((1, 260, 2, 2), (3, 260, 1, 1))
    pixels = geometry.conv((2, 2, 8, 9), (3, 2, 1, 1))
    for contraction, of, bias in (("forward", g, bias_of("forward", g)), ("weight", pixels, None)):
        plan = plan_of(contraction, of, Numbers("float32"), LEAST, bias is not None)
        assert plan.launches[-1].make is tiled.make_add_up
        first = check(contraction, of, plan, bias=bias)
        assert np.array_equal(first, check(contraction, of, plan, bias=bias))
    depthwise = geometry.conv((4, 2, 8, 9), (2, 1, 1, 2), groups=2)
    plan = grouped_plan_of("weight", depthwise, Numbers("float32"))
    assert plan.launches[-1].make is tiled.make_add_up
    check("weight", depthwise, plan)


def test_what_is_past_two_billion_elements_has_64_bits():
    g = geometry.conv((2**12, 64, 128, 128), (64, 64, 3, 3), padding=1)
    assert plans.is_in_reach(g)
    assert not plans.is_in_reach(geometry.conv((1, 2**9, 2**11, 2**11), (2, 2**9, 1, 1)))
    for contraction in ("forward", "adjoint"):
        numbers = plan_of(contraction, g, Numbers("float32"), WHOLE).launches[1].numbers
        assert numbers[tiled.SOURCE_IMAGE] * (2**12 - 1) > 2**31
    launch = plan_of("weight", g, Numbers("float32"), WHOLE).launches[0]
    assert launch.grid < 2**31
    assert launch.numbers[tiled.W_STEPS] / launch.numbers[tiled.W_SPLITS] < 2**30


@pytest.mark.parametrize("capability", CHIPS)
def test_blocks_fit_shared_memory(capability):
    """As many of them as registers are bounded for, each with the 1 KiB that the driver takes."""
    g, chip = geometry.conv((2, 64, 15, 15), (64, 64, 3, 3), padding=1), CHIPS[capability]
    for tables, contraction in ((TILES, "forward"), (WEIGHT_TILES, "weight")):
        for table, tiles in tables[capability].items():
            numbers = {"half": Numbers("float16"), "tf32": Numbers("float32", "tf32")}.get(table) or Numbers(table)
            for tile in tiles:
                launches = plans.tile_plan(contraction, g, numbers, capability, False, tile).launches
                shared = max(launch.shared for launch in launches)
                assert shared <= chip.shared
                assert tile.resident * (shared + 1024) <= chip.shared + 1024
    assert winograd.plan("forward", g, FLOAT32, capability).launches[1].shared <= chip.shared
    if capability in ((8, 0), (9, 0)):
        assert winograd.plan("weight", g, FLOAT32, capability).launches[0].shared <= chip.shared
    else:
        assert not winograd.is_faster(geometry.conv((256, 64, 56, 56), (64, 64, 3, 3)), "weight", capability)
        with pytest.raises(
            ValueError, match=r"^algorithm must not be 'winograd2' for weight gradients on this GPU: it t"
        ):
            winograd.plan("weight", g, FLOAT32, capability)


def test_nan_reaches_only_the_sums_it_is_in():
    g = geometry.conv((1, 2, 5, 5), (3, 2, 3, 3), padding=1)
    arrays = {name: random_array(getattr(g, f"{name}_shape"), "float32", 5) for name in "xwy"}
    arrays["x"][0, 1, 0, 0], arrays["y"][...] = np.nan, 7
    plan = plan_of("forward", g, Numbers("float32"), LEAST)
    rooms = {name: np.full(count, np.nan, "float32") for name, (count, _) in plan.rooms.items()}
    run(plan, {name: array.reshape(-1) for name, array in arrays.items()} | rooms)
    hit = np.zeros((5, 5), bool)
    hit[:2, :2] = True
    assert np.array_equal(np.isnan(arrays["y"][0]), np.broadcast_to(hit, (3, 5, 5)))


# ------------------------------------------------------------------------------------------- Winograd

# Two warps, each with 8 of the 16 numbers.
LEAST_BLOCK = Tile(32, 16, (1, 1), 4, 2, 1, 1.0)
# Around 16 tiles, 32 rows and slabs of 4 channels; odd numbers of pixels, and one; what padding, cropping, groups,
# slices and batches do to the patches.
STENCILS = [
    ((1, 3, 8, 8), (31, 3, 3, 3), {"padding": 1}),
    ((1, 4, 9, 5), (32, 4, 3, 3), {"padding": 1}),
    ((1, 33, 2, 33), (5, 33, 3, 3), {"padding": 1}),
    ((1, 1, 3, 3), (1, 1, 3, 3), {}),
    ((5, 2, 3, 4), (3, 2, 3, 3), {"padding": (1, 0)}),
    ((2, 6, 7, 9), (4, 3, 3, 3), {"padding": ((2, 0), (-1, 3)), "groups": 2}),
    ((1, 2, 2, 1), (2, 2, 3, 3), {"padding": 4}),
    ((2, 5, 4, 5, 5), (3, 5, 3, 3, 3), {"padding": 1, "dilation": (2, 1, 1)}),
    ((1, 2, 3, 4, 3), (2, 2, 2, 3, 3), {"padding": ((2, 1), (1, 1), (0, 0))}),
]


def winograd_plan(contraction, g, numbers=FLOAT32, bias=None, tile=LEAST_BLOCK):
    if contraction == "weight":
        return winograd.weight_plan(g, numbers, tile=tile)
    return winograd.sum_plan(g, contraction, numbers, bias is not None, tile)


@pytest.mark.parametrize(("x_shape", "w_shape", "settings"), STENCILS)
def test_winograd_of_stencils(x_shape, w_shape, settings):
    g = geometry.conv(x_shape, w_shape, **settings)
    for contraction in ("forward", "adjoint"):
        bias = random_integers((g.k if contraction == "forward" else g.c,), "float64", 3)
        check(contraction, g, winograd_plan(contraction, g, bias=bias), bias=bias, make=random_integers)
    check("weight", g, winograd_plan("weight", g), make=random_integers)


@pytest.mark.parametrize("storage", winograd.STORED)
def test_winograd_rounds_as_direct_sums_do(storage):
    """Over enough channels; see `is_winograd_exact`."""
    g, numbers = geometry.conv((1, 9, 5, 6), (9, 9, 3, 3), padding=1), Numbers(storage)
    for contraction in CONTRACTIONS:
        check(contraction, g, winograd_plan(contraction, g, numbers), numbers)


def test_winograd_as_it_is_on_the_device():
    """Past the ends of blocks of 32 tiles, 64 rows and slabs of 8 channels, or of 8 tiles."""
    g = geometry.conv((1, 9, 9, 13), (65, 9, 3, 3), padding=1)
    check("forward", g, winograd_plan("forward", g, tile=winograd.WINOGRAD), make=random_integers)
    g = geometry.conv((1, 33, 5, 7), (65, 33, 3, 3), padding=1)
    check("weight", g, winograd_plan("weight", g, tile=winograd.WINOGRAD_WEIGHT), make=random_integers)


def test_winograds_weight_gradient_in_parts(monkeypatch):
    """In order, and over more slabs than are looked up at once."""
    monkeypatch.setattr(winograd, "splits_of", lambda *_: 2)
    g = geometry.conv((2, 3, 18, 20), (5, 3, 3, 3))
    plan = winograd_plan("weight", g)
    assert plan.launches[-1].make is tiled.make_add_up
    parts = plan.launches[0].numbers[winograd.SPLITS]
    assert plan.launches[0].numbers[winograd.SLABS] // parts > 16
    assert np.array_equal(check("weight", g, plan), check("weight", g, plan))


@pytest.mark.filterwarnings("ignore:.*invalid value:RuntimeWarning")
@pytest.mark.parametrize("contraction", CONTRACTIONS)
def test_winograd_has_nan_and_inf_where_the_sum_has_them(contraction):
    g, role = geometry.conv((1, 2, 5, 6), (3, 2, 3, 3), padding=((1, 0), (0, 1))), RESULT[contraction]
    for name in {"x", "y", "w"} - {role}:
        for value, at in ((np.nan, -1), (np.inf, 0), (-np.inf, 14)):
            arrays = {n: random_integers(getattr(g, f"{n}_shape"), "float32", i) for i, n in enumerate("xwy")}
            arrays[name].reshape(-1)[at] = value
            expected = literal(contraction, g, **arrays).astype("float32")
            plan = winograd_plan(contraction, g)
            rooms = {room: np.full(count, np.nan, "float32") for room, (count, _) in plan.rooms.items()}
            arrays[role].fill(np.nan)
            run(plan, {n: array.reshape(-1) for n, array in arrays.items()} | rooms)
            assert not np.isfinite(expected).all()
            assert np.array_equal(arrays[role], expected, equal_nan=True), f"{value} in {name}"


STENCIL = geometry.conv((32, 64, 56, 56), (64, 64, 3, 3), padding=1)
CHOICES = {
    "batch": (STENCIL, "winograd2"),
    "volume": (geometry.conv((8, 32, 32, 32, 32), (32, 32, 3, 3, 3), padding=1), "winograd2"),
    "few blocks": (geometry.conv((1, 64, 14, 14), (64, 64, 3, 3)), "tiled"),
    "few channels": (geometry.conv((32, 4, 56, 56), (4, 4, 3, 3), padding=1), "tiled"),
    "small groups": (geometry.conv((32, 64, 56, 56), (64, 4, 3, 3), padding=1, groups=16), "tiled"),
    "stride": (geometry.conv((32, 64, 56, 56), (64, 64, 3, 3), padding=1, stride=2), "tiled"),
    "dilation": (geometry.conv((32, 64, 56, 56), (64, 64, 3, 3), padding=2, dilation=2), "tiled"),
    "1-D": (geometry.conv((32, 64, 5600), (64, 64, 3)), "tiled"),
}


@pytest.mark.parametrize(("g", "expected"), CHOICES.values(), ids=CHOICES)
def test_where_winograd_is_chosen(g, expected):
    """In float32, where blocks fill the chip; and not where factors are rounded, which tensor cores are for."""
    for contraction, capability in product(CONTRACTIONS, CHIPS):
        names = driver.algorithms(contraction, g)
        wanted = expected if winograd.fits(contraction, capability) else "tiled"
        for dtype, precision in (("float32", None), ("float32", "tf32"), ("float64", None), ("bfloat16", None)):
            settings = driver.Settings(contraction, g, dtype, None, precision, False)
            chosen = driver.preferred(settings, capability)
            assert chosen == (wanted if (dtype, precision) == ("float32", None) else "tiled")
            assert chosen in names
            plan = driver.plan_of(settings, True, capability)
            assert (plan.launches[0].make.__module__ == winograd.__name__) == (chosen == "winograd2")
    padded = geometry.conv((32, 64, 56, 1), (64, 64, 3, 3), padding=7)  # of which most taps see nothing
    assert driver.preferred(driver.Settings("weight", padded, "float32", None, None, False), (9, 0)) == "tiled"
    with pytest.raises(ValueError, match=r"^algorithm must not be 'winograd2' in float64: it is for float32, float"):
        driver.plan_of(driver.Settings("forward", STENCIL, "float64", "winograd2", None, False), True, (9, 0))


# ------------------------------------------------------------------------------------------- intrinsics


@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 5, 7), (1, 1, 2**30 - 35), (2, 3, 100_003)])
def test_division_by_multiplication(sizes):
    plan = np.array(plans.divisors(sizes), np.int64)
    image, (_, rows, row) = int(np.prod(sizes)), sizes
    for i in {0, 1, row - 1, row, image - 1, image, image + 1, 2**31 - 1, 2**31 - 2, *range(97, 2**31, 2**31 // 50)}:
        n, rest = divmod(i, image)
        z, rest = divmod(rest, rows * row)
        assert intrinsics.pixel(i, plan, 0) == (n, z, *divmod(rest, row))


def test_rounding_to_tf32():
    given = np.array([0, 1, 1 + 2**-11, 1 + 2**-12, -1 - 2**-11, np.inf, -np.inf, np.nan, -np.nan], np.float32)
    right = np.array([0, 1, 1 + 2**-10, 1, -1 - 2**-10, np.inf, -np.inf, np.nan, np.nan], np.float32)
    assert np.array_equal(intrinsics.rounded(given), right, equal_nan=True)
    assert np.isnan(
        intrinsics.rounded(np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001], np.uint32).view(np.float32))[:2]
    ).all()


def test_lanes_that_read_the_same_are_beside_each_other():
    """As NVIDIA's engineers say where 128 bits take two turns: https://forums.developer.nvidia.com/t/77228/2."""
    place = intrinsics.make_place(1, 16, 32)
    spots = [place(lane) for lane in range(32)]
    assert len({(row, column) for _, row, column, _, _ in spots}) == 32
    for lane, (_, row, column, _, _) in enumerate(spots):
        assert row == spots[lane ^ 1][1]
        assert column == spots[lane ^ 2][2]


def test_no_two_lanes_meet_in_a_bank():
    """What 8 lanes load from shared memory at a time lies in 32 different banks, or is the same."""
    pitch = 128 + tiled.PAD
    place = intrinsics.make_tile("float32", (128, 128), 2, 2, 8, pitch, pitch, False)[0]
    for quarter in range(0, 32, 8):
        for operand in (3, 4):
            starts = {place(t)[operand] for t in range(quarter, quarter + 8)}
            assert len({(start + i) % 32 for start in starts for i in range(4)}) == 4 * len(starts)
