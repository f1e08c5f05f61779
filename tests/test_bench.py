"""`python -m loopconv bench` and the tables and plot that benchmarks/report.py makes of its result."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

import loopconv
from loopconv import bench, cli, registry, threads
from loopconv.registry import Implementation, register

REPORT = Path(__file__).parents[1] / "benchmarks" / "report.py"
HEADER = "name,network,op,n,c_in,spatial,c_out,kernel,stride,padding,output_padding,dilation,groups"
TINY = ("down,N,conv,2,3,9x8,4,3x2,2,1,0,1,1", "up,N,conv_transpose,1,4,5x5,6,3x3,2,1,1,1,2")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Short rounds, small copies, and the number of threads put back afterwards."""
    monkeypatch.setattr(bench, "SECONDS", 0.001)
    monkeypatch.setattr(bench, "ROUND_SECONDS", 1e-6)
    monkeypatch.setattr(bench, "limits", lambda threads: {"peak_gflops": 100.0 * threads, "bandwidth_gbs": 20.0})
    monkeypatch.setattr(threads, "_requested", threads._requested)


@pytest.fixture
def layers(tmp_path):
    path = tmp_path / "tiny.csv"
    path.write_text("\n".join([HEADER, *TINY, ""]), encoding="utf-8")
    return str(path)


def run(*arguments):
    return cli.main(["bench", *arguments])


def result(tmp_path, *arguments):
    """(exit status, what --json wrote)"""
    path = tmp_path / "result.json"
    status = run(*arguments, "--json", str(path))
    return status, json.loads(path.read_text(encoding="utf-8"))


def test_without_peers(layers, tmp_path, capsys):
    status, saved = result(tmp_path, "--layers", layers, "--peers", "none", "--threads", "1")
    assert status == 0
    machine = saved["machine_info"]
    assert machine["command"] == (
        "python -m loopconv bench --layers tiny.csv --threads 1 --ops forward,input_grad,weight_grad --peers none"
    )
    assert (machine["threads"], machine["peak_gflops"], machine["bandwidth_gbs"]) == (1, 100, 20)
    assert machine["versions"]["loopconv"] == loopconv.__version__
    assert [(row["layer"], row["op"]) for row in saved["rows"]] == [(n, op) for n in ("down", "up") for op in bench.OPS]
    assert [row["contraction"] for row in saved["rows"][3:]] == ["adjoint", "forward", "weight"]
    for row in saved["rows"]:
        assert row["gflops"] == pytest.approx(2e-9 * row["macs"] / row["seconds"])
        assert (row["wrong"], row["peers"], row["best"], row["ratio"]) == ("", {}, None, None)
    bytes_ = 4 * (2 * 3 * 9 * 8 + 4 * 3 * 3 * 2 + 2 * 4 * 5 * 5)
    assert (saved["rows"][0]["bytes"], saved["rows"][0]["bound"]) == (bytes_, "bandwidth")
    assert saved["rows"][0]["percent"] == pytest.approx(100 * bytes_ / 20e9 / saved["rows"][0]["seconds"])
    assert "GFLOP/s" in capsys.readouterr().out


def test_against_torch(layers, tmp_path, capsys):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    before = torch.get_num_threads()
    try:
        status, saved = result(tmp_path, "--layers", layers, "--peers", "torch", "--threads", "1")
    finally:
        torch.set_num_threads(before)
    assert status == 0
    for row in saved["rows"]:
        assert (row["notes"], row["best"]) == ({}, "torch")
        assert row["ratio"] == pytest.approx(row["peers"]["torch"] / row["seconds"])
    assert "geometric mean" in capsys.readouterr().out


def test_a_wrong_kernel_is_reported_and_not_timed(layers, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(registry, "_table", list(registry._table))
    monkeypatch.setattr(registry, "_loaded", dict(registry._loaded))
    register(Implementation("forward", "wrong", load=lambda: lambda g, x, w, y, bias=None: y.fill(np.nan)))
    options = ["--layers", layers, "--peers", "none", "--ops", "forward", "--backend", "wrong"]
    status, saved = result(tmp_path, *options)
    down, up = saved["rows"]
    assert status == 1
    assert (down["seconds"], down["percent"]) == (None, None)
    assert down["wrong"] == "differs from the reference by nan times the tolerance"
    assert "backend must be None or one of" in up["wrong"]  # it has no adjoint
    out = capsys.readouterr().out
    assert "WRONG" in out
    assert f"down forward: ours {down['wrong']}" in out


def test_peers_that_fail_are_reported(layers, tmp_path, capsys, monkeypatch):
    def fails(case, op, arrays, threads):
        raise RuntimeError("not today")

    peers = {
        "wrong": lambda case, op, arrays, threads: lambda: np.ones_like(arrays["y" if case.op == "conv" else "x"]),
        "right": lambda case, op, arrays, threads: bench.ours(case, op, arrays, "reference"),
        "fails": fails,
    }
    monkeypatch.setattr(bench, "PEERS", peers)
    monkeypatch.setattr(bench, "MODULES", dict.fromkeys(peers, ("numpy",)))
    status, saved = result(tmp_path, "--layers", layers, "--ops", "forward", "--peers", "wrong,right,fails")
    assert status == 0
    for row in saved["rows"]:
        assert list(row["peers"]) == ["right"]
        assert row["notes"]["fails"] == "not today"
        assert row["notes"]["wrong"].startswith("differs from the reference by ")
    assert "up forward: fails is not timed: not today" in capsys.readouterr().out


def test_a_missing_peer(layers, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "PEERS", {"absent": None})
    monkeypatch.setattr(bench, "MODULES", {"absent": ("no_such_module",)})
    assert run("--layers", layers, "--ops", "forward") == 0
    said = "the peer absent cannot be imported (No module named 'no_such_module'): pip install no_such_module"
    assert capsys.readouterr().err.splitlines()[0] == f"{said}; going on without it"
    with pytest.raises(SystemExit) as stop:
        run("--layers", layers, "--peers", "absent")
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ops", "backward"], "argument --ops: must be some of forward,input_grad,weight_grad, got 'backward'"),
        (["--ops", "none"], "got 'none'"),
        (["--peers", "jax"], "argument --peers: must be some of torch,onnxruntime,openvino, got 'jax'"),
        (["--threads", "0"], "must be an integer of at least 1, got '0'"),
        (["--backend", "nope"], "argument --backend: invalid choice: 'nope'"),
        (["--layers", "nope.csv"], "--layers must be a CSV file of layers, got 'nope.csv'"),
        (["--peers", "none", "--json", "no/such/file.json"], "--json must be a file in a directory that exists"),
    ],
)
def test_bad_arguments_exit_with_2(arguments, message, layers, capsys):
    with pytest.raises(SystemExit) as stop:
        run("--layers", layers, *arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([HEADER], "it has no layers"),
        (["name,op", "a,conv"], "line 2: the column 'spatial' is missing"),
        ([HEADER, TINY[0].replace("9x8", "9by8")], "line 2: invalid literal"),
        ([HEADER, TINY[0], TINY[0]], "line 3: there is another layer of the name 'down'"),
        ([HEADER, TINY[0].replace("conv", "pool")], "line 2: op must be one of conv, conv_transpose, got 'pool'"),
        ([HEADER, TINY[1].removesuffix("2") + "0"], "line 2: groups must be at least 1, got 0"),
        ([HEADER, TINY[0].replace("3x2,2", "3x2,0")], "line 2: stride must be at least 1"),
        ([HEADER, "a,N,conv,1"], "line 2: "),
    ],
)
def test_bad_layers_name_the_line(lines, message, tmp_path, capsys):
    path = tmp_path / "bad.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        run("--layers", str(path), "--peers", "none")
    assert stop.value.code == 2
    assert f"--layers bad.csv: {message}" in capsys.readouterr().err


def test_without_a_checkout_layers_have_to_be_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "LAYERS", tmp_path / "layers.csv")
    with pytest.raises(SystemExit) as stop:
        run("--peers", "none")
    assert stop.value.code == 2
    assert "use --layers" in capsys.readouterr().err


def test_what_bounds_a_layer():
    machine = {"peak_gflops": 100, "bandwidth_gbs": 10}
    row = {"macs": 50_000_000, "bytes": 1_000_000, "seconds": 0.002, "peers": {"a": 0.003, "b": 0.001}}
    found = bench.judged(row, machine)
    assert found == {"gflops": 50, "bound": "FMA peak", "percent": 50, "best": "b", "ratio": 0.5}
    found = bench.judged({**row, "bytes": 100_000_000}, machine)
    assert (found["bound"], found["percent"]) == ("bandwidth", 500)


def test_the_limits_are_measured():
    assert 1e8 < bench.peak(steps=1000, rounds=3) < 1e13
    assert 1e7 < bench.bandwidth(2, size=1 << 20, rounds=2) < 1e13


def test_report_makes_tables_and_a_plot(layers, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="draws a plot")
    peer = {"right": lambda case, op, arrays, threads: bench.ours(case, op, arrays, "reference")}
    monkeypatch.setattr(bench, "PEERS", peer)
    monkeypatch.setattr(bench, "MODULES", {"right": ("numpy",)})
    assert result(tmp_path, "--layers", layers)[0] == 0
    readme, plot, saved = tmp_path / "R.md", tmp_path / "roofline.png", tmp_path / "result.json"
    readme.write_text("before\n<!-- peers:begin -->\nold\n<!-- peers:end -->\nafter\n", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["report.py", str(saved), "--readme", str(readme), "--roofline", str(plot)])
    runpy.run_path(str(REPORT), run_name="__main__")  # the plot is empty: these layers are too small for it
    text = readme.read_text(encoding="utf-8")
    assert text.startswith("before\n<!-- peers:begin -->\n**")
    assert text.endswith("<!-- peers:end -->\nafter\n")
    assert "old" not in text
    assert "| right / ours | " in text
    assert "\n| down | " in text
    assert plot.read_bytes().startswith(b"\x89PNG")
