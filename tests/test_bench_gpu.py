"""`python -m loopconv bench --backend cuda` with a stand-in for PyTorch and its GPU, and the tables of its result."""

import json
import re
import runpy
import sys
from math import prod
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace

import numpy as np
import pytest

import loopconv
from loopconv import bench, bench_gpu, cli
from loopconv.cuda import gpu

REPORT = Path(__file__).parents[1] / "benchmarks" / "report.py"
HEADER = "name,network,op,n,c_in,spatial,c_out,kernel,stride,padding,output_padding,dilation,groups"
LAYERS = ("down,N,conv,16,3,9x8,4,3x2,2,1,0,1,1", "up,N,conv_transpose,1,4,5x5,6,3x3,2,1,1,1,2")
CHIP = {
    "device": "Stand-in, compute capability 9.0, 1 GiB", "processors": 1, "cache_bytes": 20_000, "driver": "13.0",
    "peak_gflops": {"float32": 100.0, "tf32": 800.0, "float16": 1600.0}, "bandwidth_gbs": 20.0, "cudnn": "91000",
}  # fmt: skip


class Tensor(np.ndarray):
    """As much of torch.Tensor as is asked for."""

    def clone(self):
        return self.copy()

    def double(self):
        return self.astype(np.float64)

    def to(self, dtype):
        return self.astype(dtype)

    def abs(self):
        return np.abs(self)

    def mul_(self, factor):
        self *= factor
        return self

    def fill_(self, value):
        self[...] = value

    def abs_(self):
        return np.abs(self, out=self)


class Event:
    """One that happens at once."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.time = perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return 1e3 * (end.time - self.time)


class Torch:
    """As much of torch as is asked for, computing by loopconv; it notes the precision that each result was made in."""

    def __init__(self):
        self.precision, self.made, self.spoil = None, [], lambda result: result
        self.nan, self.where, self.float32, self.float16 = np.nan, np.where, np.float32, np.float16
        self.cuda = SimpleNamespace(Event=Event, synchronize=lambda: None)
        self.backends = SimpleNamespace(cudnn=SimpleNamespace(conv=SimpleNamespace(fp32_precision=None)))
        functions = {f"conv{n}d": self.forward(loopconv.conv) for n in (1, 2, 3)}
        functions |= {f"conv_transpose{n}d": self.forward(loopconv.conv_transpose) for n in (1, 2, 3)}
        self.nn = SimpleNamespace(functional=SimpleNamespace(**functions))
        self.ops = SimpleNamespace(aten=SimpleNamespace(convolution_backward=self.backward))
        self.Generator = lambda device: SimpleNamespace(manual_seed=np.random.default_rng)

    def randn(self, shape, device, generator):
        assert device == "cuda"
        return generator.standard_normal(shape, np.float32).view(Tensor)

    def note(self, result):
        self.made.append((result.dtype.name, self.backends.cudnn.conv.fp32_precision))
        return (result if result.dtype == np.float64 else self.spoil(result)).view(Tensor)

    def forward(self, function):
        return lambda x, w, **settings: self.note(function(x, w, **settings))

    def backward(self, grad, x, w, _, stride, padding, dilation, transposed, output_padding, groups, wanted):
        function = "conv_transpose" if transposed else "conv"
        settings = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        if wanted[0]:
            return self.note(getattr(loopconv, f"{function}_input_grad")(grad, w, x.shape, **settings)), None, None
        return None, self.note(getattr(loopconv, f"{function}_weight_grad")(grad, x, w.shape, **settings)), None


@pytest.fixture
def torch(monkeypatch):
    torch = Torch()
    monkeypatch.setattr(bench_gpu, "_torch", lambda arguments: torch)
    monkeypatch.setattr(bench_gpu, "facts", lambda torch: CHIP)
    monkeypatch.setattr(bench_gpu, "SAMPLE_SECONDS", 1e-6)
    monkeypatch.setattr(bench_gpu, "FILLING", 1000)
    asked = []

    def ours(case, op, precision, given):
        asked.append((case.name, case.geometry.batch, op, precision, id(given[0])))
        given[2][...] = bench_gpu.theirs(Torch(), case, op, given)
        return given[2]

    monkeypatch.setattr(bench_gpu, "ours", ours)
    torch.asked = asked
    return torch


@pytest.fixture
def layers(tmp_path):
    path = tmp_path / "tiny.csv"
    path.write_text("\n".join([HEADER, *LAYERS, ""]), encoding="utf-8")
    return path


@pytest.fixture
def saved(torch, layers, tmp_path):
    """The file of a run."""
    path = tmp_path / "gpu.json"
    arguments = ["bench", "--backend", "cuda", "--peers", "torch", "--layers", str(layers), "--json", str(path)]
    assert cli.main(arguments) == 0
    return path


def test_every_layer_batch_op_and_precision(saved, torch, capsys):
    run = json.loads(saved.read_text(encoding="utf-8"))
    rows = run["rows"]
    cells = [(row["precision"], row["layer"], row["batch"], row["op"]) for row in rows]
    sizes = {"down": (1, 16), "up": (1, 2)}  # 4x5x5 and 6x10x10 results of an image, to 1000 of them
    assert cells == [
        (precision, name, batch, op)
        for precision in bench_gpu.PRECISIONS for name in sizes for batch in sizes[name] for op in bench.OPS
    ]  # fmt: skip
    for row in rows:
        assert (row["wrong"], row["notes"], row["best"]) == ("", {}, "torch")
        assert row["ratio"] == pytest.approx(row["peers"]["torch"] / row["seconds"])
        flops = CHIP["peak_gflops"][row["precision"]] * 1e9
        bound = max(2 * row["macs"] / flops, row["bytes"] / 20e9)
        assert row["percent"] == pytest.approx(100 * bound / row["seconds"])
    made = {(d, p) for d in ("float32", "float64") for p in ("ieee", "tf32")} | {("float16", "ieee")}
    assert set(torch.made) == made
    assert {precision for *_, precision, _ in torch.asked} == {None, "tf32"}
    assert run["machine_info"]["device"] == CHIP["device"]
    assert "--backend cuda --ops forward,input_grad,weight_grad --peers torch" in run["machine_info"]["command"]


def test_calls_go_round_through_more_than_the_cache(saved, torch):
    sets = {}
    for name, batch, op, _, where in torch.asked:
        sets.setdefault((name, batch, op), set()).add(where)
    case = bench.read_layers(saved.with_name("tiny.csv"))["down"]
    g = bench_gpu.at_batch(case, 1).geometry
    size = 4 * (prod(g.x_shape) + prod(g.w_shape) + prod(g.y_shape))
    copies = bench_gpu.tensors(torch, bench_gpu.at_batch(case, 1), "forward", "float32", CHIP["cache_bytes"])
    assert len(copies) * size >= 2 * CHIP["cache_bytes"]
    assert all(np.array_equal(a, b) for a, b in zip(copies[0], copies[-1]))
    assert not np.shares_memory(copies[0][0], copies[-1][0])
    assert min(map(len, sets.values())) > 1


def test_wrong_results_are_not_timed(torch, layers, capsys, monkeypatch):
    monkeypatch.setattr(bench_gpu, "ours", lambda case, op, precision, given: given[2])  # which is NaN
    torch.spoil = lambda result: result + 1
    assert cli.main(["bench", "--backend", "cuda", "--layers", str(layers), "--ops", "forward"]) == 1
    out = capsys.readouterr().out
    assert re.search(r"down x16 +forward +WRONG", out)
    assert "ours differs from double precision by nan times the tolerance" in out
    assert "torch is not timed: differs from double precision by" in out


def test_the_tables_of_a_run(saved, capsys, monkeypatch, tmp_path):
    readme = tmp_path / "R.md"
    readme.write_text("before\n<!-- gpu:begin -->\nnothing yet\n<!-- gpu:end -->\nafter\n", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["report.py", str(saved), "--readme", str(readme)])
    runpy.run_path(str(REPORT), run_name="__main__")
    text = readme.read_text(encoding="utf-8")
    assert text.startswith(f"before\n<!-- gpu:begin -->\n**{CHIP['device']}.**")
    assert text.endswith("<!-- gpu:end -->\nafter\n")
    assert "CUDA 13.0, cuDNN 91000" in text
    titles = [line for line in text.splitlines() if line.startswith("**") and "batch" in line]
    kinds = ("batch 1", "a batch that fills the chip")
    assert titles == [f"**{precision}, {kind}.**" for precision in bench_gpu.PRECISIONS for kind in kinds]
    assert text.count("| layer | bound by | forward ms (% of bound) | torch / ours |") == 6
    assert text.count("| down | ") == text.count("| down x16 | ") == 3


REFUSED = [
    (["--peers", "onnxruntime"], "--backend cuda compares with --peers torch alone, got 'onnxruntime'"),
    (["--plan"], "--backend cuda times calls, not plans: leave --plan out"),
    ([], "--backend cuda cannot run here: "),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_what_is_refused(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(gpu, "_found", False)
    monkeypatch.setattr(gpu, "_missing_toolkit", lambda: "there is no compiler")
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "--backend", "cuda", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_info_names_the_gpu_or_why_there_is_none(capsys):
    assert cli.main(["info"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("GPU "))
    state = loopconv.backends()["cuda"]
    assert "compute capability" in line if state == "ready" else line.endswith(f"none: {state}")
