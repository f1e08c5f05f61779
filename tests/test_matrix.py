"""The matrix C itself; test_ops.py holds the public functions against it."""

import sys

import numpy as np
import pytest
from helpers import literal, random_integers

from loopconv import conv, conv_matrix, conv_transpose
from loopconv.cases import CASES

CONVS = {case.name: case for case in CASES if case.op == "conv"}


def matrix_of(case, dtype="int64", **more):
    w = random_integers(case.w_shape, dtype, 0)
    return conv_matrix(w, case.x_shape, **case.settings, **more), w


@pytest.mark.parametrize("name", CONVS)
def test_its_shape_is_that_of_output_and_input(name):
    case = CONVS[name]
    g = case.geometry
    for format in ("dense", "csr"):
        if format == "csr":
            pytest.importorskip("scipy", reason="SciPy is not installed")
        C, _ = matrix_of(case, format=format)
        assert C.shape == (np.prod(g.y_shape), np.prod(g.x_shape))


@pytest.mark.parametrize("dtype", ["float32", "complex128", "int64"])
@pytest.mark.parametrize("name", CONVS)
def test_csr_equals_dense(name, dtype):
    sparse = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
    (dense, w), (csr, _) = matrix_of(CONVS[name], dtype), matrix_of(CONVS[name], dtype, format="csr")
    assert isinstance(csr, sparse.csr_array)
    assert type(dense) is np.ndarray
    assert csr.dtype == dense.dtype == dtype
    assert np.array_equal(csr.toarray(), dense)
    assert csr.nnz <= CONVS[name].geometry.macs  # padding has no entries
    x = random_integers(CONVS[name].x_shape, dtype, 1)
    assert np.array_equal(csr @ x.ravel(), conv(x, w, **CONVS[name].settings).ravel())


@pytest.mark.parametrize("name", ["1d", "groups", "crop", "only-padding-in-window", "dilation-stride"])
def test_its_columns_are_the_outputs_of_single_pixels(name):
    # By the literal sum, which shares nothing with the package.
    case = CONVS[name]
    C, w = matrix_of(case)
    for column in np.random.default_rng(0).choice(C.shape[1], min(20, C.shape[1]), replace=False):
        x = np.zeros(C.shape[1], np.int64)
        x[column] = 1
        y = literal("forward", case.geometry, x.reshape(case.geometry.x_shape), w, np.zeros(case.geometry.y_shape))
        assert C[:, column].tolist() == y.ravel().tolist()


def test_a_batch_repeats_the_block_of_one_image():
    w = random_integers((4, 2, 3, 2), "int64", 0)
    settings = {"stride": (2, 1), "padding": 1, "groups": 2}
    block = conv_matrix(w, (4, 5, 4), **settings)
    assert np.array_equal(conv_matrix(w, (1, 4, 5, 4), **settings), block)
    assert np.array_equal(conv_matrix(w, (3, 4, 5, 4), **settings), np.kron(np.eye(3, dtype=int), block))
    assert conv_matrix(w, (0, 4, 5, 4), **settings).shape == (0, 0)


def test_groups_are_blocks():
    w = random_integers((4, 2, 3), "int64", 0)
    C = conv_matrix(w, (4, 5), groups=2)
    expected = np.zeros((12, 20), int)
    expected[:6, :10], expected[6:, 10:] = conv_matrix(w[:2], (2, 5)), conv_matrix(w[2:], (2, 5))
    assert np.array_equal(C, expected)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("bool", "int64"),
        ("int8", "int64"),
        ("uint8", "uint64"),
        ("float16", "float16"),
        ("float32", "float32"),
        (">f8", "float64"),
        ("complex64", "complex64"),
    ],
)
def test_its_dtype_is_that_of_results(dtype, expected):
    w = np.array([[[1, 0, 1]]]).astype(dtype)
    C = conv_matrix(w, (1, 4))
    assert C.dtype == expected == conv(np.ones((1, 4), bool), w).dtype
    assert C.dtype.isnative
    assert C.tolist() == [[1, 0, 1, 0], [0, 1, 0, 1]]


def test_its_transpose_scatters():
    w = np.array([[[1, 10, 100]]])
    C = conv_matrix(w, (1, 7), stride=2)
    y = np.array([[1, 2, 3]])
    assert (C.T @ y.ravel()).tolist() == [1, 10, 102, 20, 203, 30, 300]
    assert np.array_equal(C.T @ y.ravel(), conv_transpose(y, w, stride=2).ravel())


def test_it_owns_its_entries():
    w = np.ones((1, 1, 2))
    C = conv_matrix(w, (1, 2))
    C[...] = 5
    assert (w == 1).all()


def test_an_unknown_format_is_refused():
    with pytest.raises(ValueError, match="format must be one of dense, csr, got 'coo'"):
        conv_matrix(np.ones((1, 1, 2)), (1, 4), format="coo")


def test_csr_without_scipy_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "scipy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    with pytest.raises(ImportError, match="format='csr' needs SciPy: pip install scipy, or use format='dense'"):
        conv_matrix(np.ones((1, 1, 2)), (1, 4), format="csr")
    assert conv_matrix(np.ones((1, 1, 2)), (1, 4)).shape == (3, 4)


@pytest.mark.parametrize("shape", [(2, 4), (1, 1, 1, 4), (1,)])
def test_input_shapes_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match="input_shape must have"):
        conv_matrix(np.ones((1, 1, 2)), shape)
