"""The table of implementations: order, states, and a backend of the user's own."""

import numpy as np
import pytest

import loopconv
from loopconv import geometry, registry
from loopconv.registry import CONTRACTIONS, Implementation, register, select

LOOPS = ["parallel", "numba", "cython", "reference", "python"]
BUILT_IN = list(loopconv.backends())
X, W = np.arange(10.0).reshape(1, 1, 10), np.ones((1, 1, 3))
SMALL = geometry.conv(X.shape, W.shape)
LARGE = geometry.conv((1, 8, 64, 64), (8, 8, 3, 3))


@pytest.fixture(autouse=True)
def table(monkeypatch):
    """A copy of the table for each test to change."""
    monkeypatch.setattr(registry, "_table", list(registry._table))
    monkeypatch.setattr(registry, "_loaded", dict(registry._loaded))
    registry.forget()
    yield
    registry.forget()


def fake(name, contraction="forward", loads=None, **rules):
    """An implementation that fills its result with 7 and counts in `loads` how often it was loaded."""
    result = {"forward": "y", "adjoint": "x", "weight": "w"}[contraction]

    def run(geometry, x, w, y, bias=None):
        {"x": x, "w": w, "y": y}[result][...] = 7

    def load():
        if loads is not None:
            loads.append(name)
        return run

    return Implementation(contraction, name, load, **rules)


def chosen(geometry=SMALL, contraction="forward", dtype="float64"):
    """Name of the backend that a call without one gets."""
    run = select(contraction, None, geometry, np.dtype(dtype))
    (name,) = (key[1] for key, value in registry._loaded.items() if value is run)
    return name


def names(contraction):
    return [row.backend for row in registry.implementations() if row.contraction == contraction]


@pytest.mark.parametrize("contraction", CONTRACTIONS)
def test_every_contraction_has_the_textbook_loops_in_the_same_order(contraction):
    assert [name for name in names(contraction) if name in LOOPS] == LOOPS
    assert len(set(names(contraction))) == len(names(contraction))
    assert set(names(contraction)) <= set(BUILT_IN)


def test_the_first_that_can_is_taken():
    before = names("forward")
    register(fake("second"), first=True)
    register(fake("first"), first=True)
    register(fake("last"))
    assert names("forward") == ["first", "second", *before, "last"]
    assert chosen() == "first"


@pytest.mark.parametrize(
    "rules",
    [
        {"missing": lambda: "no device"},
        {"unsupported": lambda geometry, dtype: "not these sizes"},
        {"worthwhile": lambda geometry: False},
    ],
    ids=lambda rules: next(iter(rules)),
)
def test_backends_that_cannot_or_should_not_are_passed_over(rules):
    register(fake("able"), first=True)
    register(fake("not", **rules), first=True)
    assert chosen() == "able"
    assert ("forward", "not") not in registry._loaded


def test_rules_see_the_geometry_and_the_dtype():
    seen = []
    register(
        fake("mine", unsupported=lambda *call: seen.append(call), worthwhile=lambda g: seen.append(g) or True),
        first=True,
    )
    select("forward", None, SMALL, np.dtype("float32"))
    assert seen == [SMALL, (SMALL, np.dtype("float32"))]


def test_a_named_backend_runs_even_where_it_is_not_worthwhile():
    register(fake("mine", worthwhile=lambda geometry: False))
    assert (loopconv.conv(X, W, backend="mine") == 7).all()


@pytest.mark.parametrize("rule", ["missing", "unsupported"])
def test_a_named_backend_that_cannot_gives_its_reason(rule):
    register(fake("mine", **{rule: lambda *_: "it is Sunday"}), first=True)
    out = np.full((1, 1, 8), -1.0)
    with pytest.raises(ValueError, match=r"^backend='mine' cannot run this call: it is Sunday$"):
        loopconv.conv(X, W, out=out, backend="mine")
    assert (out == -1).all()
    assert (loopconv.conv(X, W) != 7).all()  # by another backend


def test_no_backend_at_all():
    registry._table[:] = [row for row in registry._table if row.contraction != "forward"]
    with pytest.raises(ValueError, match=r"^backend=None found no backend for forward of .* in float64$"):
        loopconv.conv(X, W)


def test_parallel_is_for_large_calls_and_more_than_one_thread(monkeypatch):
    registry._table[:] = [row for row in registry._table if row.backend in ("parallel", "reference")]
    monkeypatch.setattr(registry.threads, "_available", lambda: 4)
    monkeypatch.setattr(registry.threads, "_requested", 2)
    assert chosen(SMALL) == "reference"
    assert chosen(LARGE) == "parallel"
    monkeypatch.setattr(registry.threads, "_requested", 1)
    assert chosen(LARGE) == "reference"
    monkeypatch.setattr(registry.threads, "_requested", 2)
    monkeypatch.setattr(registry.threads, "_forked", True)
    assert chosen(LARGE) == "reference"


def test_more_than_three_spatial_axes_go_to_the_reference():
    g = geometry.conv((1, 1, 2, 2, 2, 2), (1, 1, 1, 1, 1, 1))
    for contraction in CONTRACTIONS:
        assert chosen(g, contraction) == "reference"


def test_states():
    assert list(loopconv.backends()) == BUILT_IN
    assert loopconv.backends()["python"] == loopconv.backends()["reference"] == "ready"
    register(fake("mine"), first=True)
    register(fake("other", missing=lambda: "no device"))
    states = loopconv.backends()
    assert list(states) == ["mine", *BUILT_IN, "other"]
    assert states["mine"] == "ready"
    assert states["other"] == "no device"


def test_an_unknown_backend_is_told_the_names():
    register(fake("mine"))
    with pytest.raises(ValueError, match=rf"^backend must be .*{', '.join(names('forward'))}, got 'theirs'$"):
        loopconv.conv(X, W, backend="theirs")


def test_a_backend_without_this_contraction_is_not_offered():
    register(fake("mine", "forward"))
    with pytest.raises(ValueError, match=r"^backend.*'mine'") as caught:
        loopconv.conv_transpose(X, W, backend="mine")
    assert ", mine" not in str(caught.value)


def test_a_backend_of_ones_own():
    calls = []

    def load():
        def run(geometry, x, w, y, bias=None):
            calls.append(geometry)
            assert all(array.flags.c_contiguous and array.dtype == np.float32 for array in (x, w, y))
            assert (x.shape, w.shape, y.shape) == (geometry.x_shape, geometry.w_shape, geometry.y_shape)
            y[...] = x[:, :, 2:] + x[:, :, 1:-1] + x[:, :, :-2] + (0 if bias is None else bias[0])

        return run

    register(Implementation("forward", "mine", load))
    x, w = X.astype("f4"), W.astype("f4")
    for bias in (None, np.full(1, 5, "f4")):
        result = loopconv.conv(x, w, bias, backend="mine")
        np.testing.assert_array_equal(result, loopconv.conv(x, w, bias, backend="reference"))
        np.testing.assert_array_equal(loopconv.conv(x[0], w, bias, backend="mine"), result[0])
        out = np.empty_like(result)
        assert loopconv.conv(x, w, bias, out=out, backend="mine") is out
        np.testing.assert_array_equal(out, result)
    assert calls == [geometry.conv(x.shape, w.shape)] * 6


@pytest.mark.parametrize(
    ("contraction", "call"),
    [
        ("forward", lambda **s: loopconv.conv(X, W, **s)),
        ("adjoint", lambda **s: loopconv.conv_transpose(X, W, **s)),
        ("adjoint", lambda **s: loopconv.conv_input_grad(X, W, (1, 1, 12), **s)),
        ("weight", lambda **s: loopconv.conv_weight_grad(X, X, (1, 1, 1), **s)),
        ("forward", lambda **s: loopconv.conv_transpose_input_grad(X, W, (1, 1, 8), **s)),
        ("weight", lambda **s: loopconv.conv_transpose_weight_grad(X, X, (1, 1, 1), **s)),
    ],
)
def test_each_function_asks_for_its_contraction(contraction, call):
    register(fake("mine", contraction))
    assert (call(backend="mine") == 7).all()
    assert (call() != 7).any()
    register(fake("mine", contraction), first=True)
    assert (call() == 7).all()


def test_gradients_together_use_two_contractions():
    for contraction in ("adjoint", "weight"):
        register(fake("mine", contraction))
    grads = loopconv.conv_grads(np.ones((1, 1, 8)), X, W, backend="mine")
    assert (grads.input == 7).all()
    assert (grads.weight == 7).all()
    np.testing.assert_array_equal(grads.bias, [8])


def test_loaded_once_and_again_when_replaced():
    loads = []
    register(fake("mine", loads=loads))
    for _ in range(3):
        loopconv.conv(X, W, backend="mine")
    assert loads == ["mine"]
    size = len(registry.implementations())
    register(fake("mine", loads=loads))
    assert len(registry.implementations()) == size  # in place of the old one
    loopconv.conv(X, W, backend="mine")
    assert loads == ["mine", "mine"]


def test_replacing_a_built_in_row_leaves_the_others():
    register(fake("python", "forward"))
    assert (loopconv.conv(X, W, backend="python") == 7).all()
    np.testing.assert_array_equal(
        loopconv.conv_transpose(X, W, backend="python"), loopconv.conv_transpose(X, W, backend="reference")
    )


def test_a_failing_load_is_not_remembered():
    def load():
        raise ImportError("not today")

    register(Implementation("forward", "mine", load))
    for _ in range(2):
        with pytest.raises(ImportError, match="not today"):
            loopconv.conv(X, W, backend="mine")


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_integers_have_no_tolerance(dtype):
    assert registry.tolerance(SMALL, "forward", dtype) == 0


def test_tolerance_grows_with_the_terms_and_the_precision():
    def of(g, dtype):
        return registry.tolerance(g, "forward", dtype)

    assert 0 < of(SMALL, "float64") < of(LARGE, "float64") < of(LARGE, "float32")
    assert of(SMALL, "complex64") == 2 * of(SMALL, "float32")


def test_parallel_is_not_worthwhile_for_one_task_or_little_work(monkeypatch):
    monkeypatch.setattr(registry.threads, "get_num_threads", lambda: 2)
    one_pair = geometry.conv((4, 1, 200, 200), (1, 1, 9, 9))
    assert registry.is_parallel_worthwhile("forward", one_pair)
    assert not registry.is_parallel_worthwhile("weight", one_pair)
    assert not registry.is_parallel_worthwhile("forward", geometry.conv((4, 1, 9, 9), (1, 1, 3, 3)))
