"""Every peer of `python -m loopconv bench` against the reference, where it is installed."""

from itertools import product

import numpy as np
import pytest
from helpers import assert_within

from loopconv import bench, cli, peers
from loopconv.cases import Case
from loopconv.peers import OPS, PEERS


def layer(op, x_shape, w_shape, **settings):
    """What a line of layers.csv becomes."""
    settings = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **settings}
    if op == "conv_transpose":
        settings = {"output_padding": 0, **settings}
    return Case(op, op, x_shape, w_shape, settings)


LAYERS = {
    "1-d": layer("conv", (2, 6, 19), (4, 3, 3), stride=3, padding=2, dilation=2, groups=2),
    "2-d": layer("conv", (2, 3, 9, 8), (4, 3, 3, 2), stride=2, padding=1),
    "3-d": layer("conv", (1, 4, 7, 6, 5), (8, 1, 3, 2, 1), groups=4),
    "pointwise": layer("conv", (2, 5, 7, 6), (3, 5, 1, 1), stride=2),
    "padding-over-kernel": layer("conv", (1, 2, 3, 4), (2, 2, 2, 2), padding=3),
    "per-axis": layer("conv", (1, 2, 9, 11), (3, 2, 1, 7), stride=(1, 2), padding=(0, 3), dilation=(2, 1)),
    "t-1-d": layer("conv_transpose", (2, 4, 9), (4, 3, 4), stride=2, padding=1),
    "t-2-d": layer("conv_transpose", (2, 4, 5, 6), (4, 3, 3, 2), stride=2, padding=1, output_padding=1, groups=2),
    "t-3-d": layer("conv_transpose", (1, 4, 3, 4, 3), (4, 1, 3, 2, 3), stride=3, output_padding=2, groups=4),
    "t-holes": layer("conv_transpose", (1, 2, 4, 3), (2, 3, 2, 2), stride=4, output_padding=3),
    "t-per-axis": layer(
        "conv_transpose", (1, 2, 4, 3), (2, 3, 2, 4), stride=(1, 3), padding=(0, 2), output_padding=(0, 1)
    ),
    "t-dilation": layer("conv_transpose", (1, 2, 4, 5), (2, 3, 3, 2), dilation=2, padding=1),
}
GRADIENTS = ("torch", "im2col")
COMBINATIONS = [
    pytest.param(name, LAYERS[case], op, id=f"{name}-{case}-{op}")
    for name, case, op in product(PEERS, LAYERS, OPS)
    if op == "forward" or name in GRADIENTS
]


def ready(name):
    """The peer, or a skip that says what is not installed."""
    for module in peers.MODULES[name]:
        pytest.importorskip(module, reason=f"the peer {name} needs {module}")
    return PEERS[name]


@pytest.fixture(autouse=True)
def threads_put_back():
    """PyTorch's and the BLAS's, which are of the whole process."""
    try:
        import torch
    except ImportError:
        torch = None
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        threadpool_limits = None
    before = torch and torch.get_num_threads()
    limits = threadpool_limits and threadpool_limits(1, user_api="blas")
    yield
    if torch:
        torch.set_num_threads(before)
    if limits:
        limits.restore_original_limits()


@pytest.mark.parametrize(("name", "case", "op"), COMBINATIONS)
def test_peers_agree_with_the_reference(name, case, op):
    peer, g = ready(name), case.geometry
    arrays = cli.random_arrays(g, bench.DTYPE)
    expected, allowed = cli.expectation(g, peers.CONTRACTION[case.op][op], arrays)
    before = {role: array.copy() for role, array in arrays.items()}
    call = peer(case, op, arrays, 1)
    tolerance = np.max(allowed) if name in peers.SPREADING else allowed
    for _ in range(2):  # a call leaves nothing behind
        assert_within(call(), expected, bench.PEER_TOLERANCE * tolerance, name)
    for role, array in arrays.items():
        np.testing.assert_array_equal(array, before[role])


@pytest.mark.parametrize("name", [name for name in PEERS if name not in GRADIENTS])
@pytest.mark.parametrize("op", ["input_grad", "weight_grad"])
def test_no_gradients(name, op):
    case = LAYERS["2-d"]
    with pytest.raises(ValueError, match=r"^forward only$"):
        PEERS[name](case, op, cli.random_arrays(case.geometry, bench.DTYPE), 1)


@pytest.mark.parametrize(("name", "size"), [("scipy", "23.8"), ("im2col", "214.5")])
def test_layers_that_need_too_much_memory_are_refused(name, size):
    # 4 images of 16 channels of 9998 x 9998 windows of 9 numbers; 4 times 4 images of 4 channels of 10^8 numbers
    case = layer("conv", (4, 16, 10_000, 10_000), (4, 16, 3, 3))
    g = case.geometry
    nothing = {role: np.broadcast_to(np.float32(0), getattr(g, f"{role}_shape")) for role in "xwy"}
    with pytest.raises(ValueError, match=rf"^it would need {size} GiB, more than 2$"):
        PEERS[name](case, "forward", nothing, 1)


def test_threads_are_those_asked_for():
    case = LAYERS["2-d"]
    arrays = cli.random_arrays(case.geometry, bench.DTYPE)
    torch, threadpoolctl = (pytest.importorskip(name, reason="sets threads") for name in ("torch", "threadpoolctl"))
    for threads in (1, 2):
        ready("torch")(case, "forward", arrays, threads)
        assert torch.get_num_threads() == threads
        ready("im2col")(case, "forward", arrays, threads)
        blas = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
        assert {pool["num_threads"] for pool in blas} == {threads}


@pytest.mark.parametrize(
    ("before", "size", "expected"),
    [
        (0, 3, [1, 2, 3]),
        (2, 6, [0, 0, 1, 2, 3, 0]),
        (1, 3, [0, 1, 2]),
        (-1, 2, [2, 3]),
        (-2, 4, [3, 0, 0, 0]),
        (-1, 1, [2]),
    ],
)
def test_fitted_by_hand(before, size, expected):
    np.testing.assert_array_equal(peers.fitted(np.array([[[1, 2, 3]]]), [before], [size]), [[expected]])
