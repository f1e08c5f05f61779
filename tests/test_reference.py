"""The reference judges all other kernels; here it is judged by loops that share no code with the package."""

import ast
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import assert_within, literal, magnitudes, random_array, random_integers, unwritten

from loopconv import reference


def by_hand(batch, groups, c, k, input, kernel, output, stride, dilation, pad):
    """A geometry written down in full, so that no size formula of the package is trusted here."""
    return SimpleNamespace(
        batch=batch, groups=groups, c=c, k=k, input=input, kernel=kernel, output=output, stride=stride,
        dilation=dilation, pad=pad, rank=len(kernel),
    )  # fmt: skip


GEOMETRIES = {
    "1d": by_hand(2, 1, 3, 4, (7,), (3,), (5,), (1,), (1,), (0,)),
    "1d-stride-tail": by_hand(1, 1, 1, 1, (9,), (2,), (3,), (3,), (1,), (0,)),
    "2d": by_hand(2, 1, 2, 3, (5, 4), (3, 2), (3, 3), (1, 1), (1, 1), (0, 0)),
    "2d-stride-pad": by_hand(1, 1, 2, 2, (5, 6), (3, 3), (3, 3), (2, 2), (1, 1), (1, 1)),
    "2d-asymmetric": by_hand(1, 1, 1, 2, (4, 3), (3, 3), (4, 5), (1, 1), (1, 1), (0, 3)),
    "2d-crop": by_hand(1, 1, 2, 1, (6, 5), (2, 3), (3, 3), (1, 1), (1, 1), (-1, -1)),
    "2d-dilation": by_hand(1, 1, 1, 2, (7, 6), (3, 2), (3, 3), (1, 1), (2, 3), (0, 0)),
    "2d-all": by_hand(2, 2, 4, 6, (7, 6), (2, 3), (4, 2), (2, 3), (3, 2), (2, 1)),
    "2d-groups": by_hand(1, 2, 4, 2, (4, 3), (2, 2), (3, 2), (1, 1), (1, 1), (0, 0)),
    "2d-depthwise": by_hand(2, 3, 3, 6, (4, 4), (3, 2), (2, 3), (1, 1), (1, 1), (0, 0)),
    "2d-padding-only": by_hand(1, 1, 1, 1, (2, 2), (2, 2), (4, 4), (3, 3), (1, 1), (5, 5)),
    "2d-crop-everything": by_hand(1, 1, 1, 1, (3, 3), (1, 1), (2, 2), (1, 1), (1, 1), (-7, 0)),
    "3d": by_hand(1, 2, 2, 4, (4, 3, 5), (2, 1, 3), (2, 4, 3), (2, 1, 1), (1, 2, 1), (0, 1, 0)),
    "4d": by_hand(1, 1, 1, 2, (3, 2, 3, 2), (2, 1, 2, 2), (2, 2, 1, 2), (1, 1, 2, 1), (1, 1, 1, 1), (0, 0, 0, 1)),
    "no-images": by_hand(0, 1, 2, 3, (4,), (2,), (3,), (1,), (1,), (0,)),
    "no-input-channels": by_hand(2, 1, 0, 3, (4,), (2,), (3,), (1,), (1,), (0,)),
}
RESULT = {"forward": "y", "adjoint": "x", "weight": "w"}


def operands(g, make, dtype):
    """{'x', 'w', 'y'} of a geometry."""
    shapes = {
        "x": (g.batch, g.c, *g.input),
        "w": (g.k, g.c // g.groups, *g.kernel),
        "y": (g.batch, g.k, *g.output),
    }
    return {name: make(shape, dtype, seed) for seed, (name, shape) in enumerate(shapes.items())}


def run(contraction, g, arrays, **bias):
    """What the reference writes into an unwritten result."""
    name = RESULT[contraction]
    arrays = arrays | {name: unwritten(arrays[name].shape, arrays[name].dtype)}
    getattr(reference, contraction)(g, **arrays, **bias)
    return arrays[name]


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128", "int64", "uint64"])
@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("contraction", RESULT)
def test_integers_give_the_literal_sum_exactly(contraction, name, dtype):
    g = GEOMETRIES[name]
    arrays = operands(g, random_integers, dtype)
    expected = literal(contraction, g, **arrays)
    assert np.array_equal(run(contraction, g, arrays), expected.astype(dtype))


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("contraction", RESULT)
def test_floats_give_the_literal_sum_to_rounding(contraction, name, dtype):
    g = GEOMETRIES[name]
    arrays = operands(g, random_array, dtype)
    expected = literal(contraction, g, **arrays).astype(dtype)
    size = literal(contraction, g, **magnitudes(arrays)).astype(float)
    terms = {
        "forward": arrays["w"][:1].size,
        "adjoint": arrays["w"][:, :1].size // g.groups,
        "weight": arrays["y"][:, :1].size,
    }[contraction]
    # Both sums round; a complex product is four products.
    tolerance = 2 * (2 + terms**0.5) * np.finfo(float).eps * (2 if dtype == "complex128" else 1)
    assert_within(run(contraction, g, arrays), expected, tolerance * size, name)


def test_float32_is_computed_in_double_precision():
    g = GEOMETRIES["2d"]
    arrays = operands(g, random_array, "float32")
    expected = literal("forward", g, **{name: array.astype(float) for name, array in arrays.items()})
    # One rounding to float32 at the end is all: half a unit in the last place.
    half_unit = np.spacing(np.abs(expected.astype(np.float32))) / 2
    assert_within(run("forward", g, arrays), expected.astype(float), half_unit * (1 + 1e-6))


@pytest.mark.parametrize("contraction", ["forward", "adjoint"])
@pytest.mark.parametrize("name", ["1d", "2d-all", "3d", "no-input-channels"])
def test_bias_is_added_to_every_pixel(contraction, name):
    g = GEOMETRIES[name]
    arrays = operands(g, random_integers, "int64")
    bias = 100 * np.arange(g.k if contraction == "forward" else g.c)
    expected = literal(contraction, g, **arrays).astype("int64")
    for channel, value in enumerate(bias):
        expected[:, channel] += value
    assert np.array_equal(run(contraction, g, arrays, bias=bias), expected)


def test_one_dimension_by_numpy():
    x, w = np.array([1, 2, 3, 4, 5]), np.array([1, 10])
    g = by_hand(1, 1, 1, 1, (5,), (2,), (4,), (1,), (1,), (0,))
    y = run("forward", g, {"x": x[None, None], "w": w[None, None], "y": np.empty((1, 1, 4), int)})
    assert y.ravel().tolist() == [21, 32, 43, 54] == np.correlate(x, w, "valid").tolist()
    back = run("adjoint", g, {"x": np.empty((1, 1, 5), int), "w": w[None, None], "y": y})
    assert back.ravel().tolist() == np.convolve(y.ravel(), w, "full").tolist()


def test_every_pair_of_pixel_and_tap_is_met_once():
    # With ones everywhere an output counts its windows' pixels; the counts of a 2x2 kernel on 3x3 are known.
    g = by_hand(1, 1, 1, 1, (3, 3), (2, 2), (2, 2), (1, 1), (1, 1), (0, 0))
    ones = {name: np.ones(shape) for name, shape in zip("xwy", ((1, 1, 3, 3), (1, 1, 2, 2), (1, 1, 2, 2)))}
    assert (run("forward", g, ones) == 4).all()
    assert run("adjoint", g, ones)[0, 0].tolist() == [[1, 2, 1], [2, 4, 2], [1, 2, 1]]
    assert (run("weight", g, ones) == 4).all()
    for p, r in product(np.ndindex(2, 2), np.ndindex(2, 2)):
        single = {name: np.zeros_like(array) for name, array in ones.items()}
        single["w"][(0, 0, *r)] = single["y"][(0, 0, *p)] = 1
        assert np.argwhere(run("adjoint", g, single)[0, 0]).tolist() == [[p[0] + r[0], p[1] + r[1]]]


def test_it_imports_numpy_only():
    tree = ast.parse(Path(reference.__file__).read_text(encoding="utf-8"))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add("." * node.level + (node.module or ""))
    assert imported == {"numpy"}
    assert not {"__import__", "import_module"} & {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
