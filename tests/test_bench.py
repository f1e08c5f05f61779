"""`python -m loopconv bench` and the tables and plot that benchmarks/report.py makes of its result."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import loopconv
from loopconv import bench, cli, registry, threads
from loopconv.cases import Case
from loopconv.peers import PEERS
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
    assert machine["plan"] is False
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


def test_the_slow_peers_have_to_be_asked_for(layers, tmp_path, capsys):
    pytest.importorskip("scipy", reason="the peer scipy needs it")
    pytest.importorskip("threadpoolctl", reason="the peer im2col needs it")
    assert set(PEERS) - set(bench.DEFAULT_PEERS) == {"scipy", "im2col"}
    status, saved = result(tmp_path, "--layers", layers, "--peers", "scipy,im2col", "--threads", "1")
    assert status == 0
    for row in saved["rows"]:
        assert list(row["peers"]) == ["scipy", "im2col"][row["op"] != "forward" :]
    assert "is not timed" not in capsys.readouterr().out  # that there are no gradients is no news


# -------------------------------------------------------------------------------------------- plans


@pytest.mark.parametrize("ops", [(), ("--ops", "forward")])
def test_plans(ops, layers, tmp_path, capsys, monkeypatch):
    made = []
    for name in ("plan_conv", "plan_conv_transpose"):
        plan = getattr(loopconv, name)
        monkeypatch.setattr(
            loopconv, name, lambda w, name=name, plan=plan, **given: made.append(name) or plan(w, **given)
        )
    options = ["--layers", layers, "--peers", "none", "--threads", "1", "--plan", *ops]
    status, saved = result(tmp_path, *options)
    assert status == 0
    assert made == ["plan_conv", "plan_conv_transpose"]  # once for each layer
    assert saved["machine_info"]["plan"] is True
    command = "python -m loopconv bench --layers tiny.csv --threads 1 --plan --ops forward --peers none"
    assert saved["machine_info"]["command"] == command
    assert [(row["layer"], row["op"], row["wrong"]) for row in saved["rows"]] == [
        ("down", "forward", ""),
        ("up", "forward", ""),
    ]
    assert "ours are plans" in capsys.readouterr().out


def test_a_planned_call_writes_into_one_array():
    case = Case("", "conv", (2, 3, 9, 8), (4, 3, 3, 2), {"stride": 2, "padding": 1})
    arrays = cli.random_arrays(case.geometry, bench.DTYPE)
    call = bench.planned(case, "forward", arrays)
    first = call()
    assert first is call()
    np.testing.assert_array_equal(first, loopconv.conv(arrays["x"], arrays["w"], **case.settings, backend="tiled"))


def test_a_wrong_plan_is_reported(layers, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loopconv, "plan_conv", lambda w, **given: lambda x, out: out)  # leaves it unwritten
    status, saved = result(tmp_path, "--layers", layers, "--peers", "none", "--plan")
    assert status == 1
    assert saved["rows"][0]["wrong"] == "differs from the reference by nan times the tolerance"
    assert saved["rows"][1]["wrong"] == ""
    assert "down forward: ours differs" in capsys.readouterr().out


# --------------------------------------------------------------------------------- what goes wrong


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
    monkeypatch.setattr(bench, "DEFAULT_PEERS", ("absent",))
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
        (["--peers", "jax"], "argument --peers: must be some of torch,onnxruntime,openvino,scipy,im2col, got 'jax'"),
        (
            ["--plan", "--ops", "forward,weight_grad"],
            "--plan times --ops forward alone, as there are no plans of gradie",
        ),
        (["--plan", "--backend", "numba"], "--plan times --backend tiled, the one that has plans, got 'numba'"),
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
        ([HEADER, TINY[0].replace("9x8", "9by8")], "line 2: spatial must be integers like 3 or 3x2, got '9by8'"),
        ([HEADER, TINY[0].replace("conv,2", "conv,two")], "line 2: n must be an integer, got 'two'"),
        ([HEADER, TINY[0], TINY[0]], "line 3: there is another layer of the name 'down'"),
        ([HEADER, TINY[0].replace("conv", "pool")], "line 2: op must be one of conv, conv_transpose, got 'pool'"),
        ([HEADER, TINY[1].removesuffix("2") + "0"], "line 2: groups must be at least 1, got 0"),
        ([HEADER, TINY[0].replace("3x2,2", "3x2,0")], "line 2: stride must be at least 1"),
        ([HEADER, "a,N,conv,1"], "line 2: spatial must be integers like 3 or 3x2, got None"),
    ],
)
def test_bad_layers_name_the_line(lines, message, tmp_path, capsys):
    path = tmp_path / "bad.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        run("--layers", str(path), "--peers", "none")
    assert stop.value.code == 2
    assert f"--layers bad.csv: {message}" in capsys.readouterr().err


def test_layers_with_settings_per_axis(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("\n".join([HEADER, "a,N,conv_transpose,1,4,9x8,4,1x7,1x2,0x3,0x1,1,2"]), encoding="utf-8")
    (case,) = bench.read_layers(path).values()
    settings = {"stride": (1, 2), "padding": (0, 3), "dilation": 1, "groups": 2, "output_padding": (0, 1)}
    assert (case.x_shape, case.w_shape, case.settings) == ((1, 4, 9, 8), (4, 2, 1, 7), settings)


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


def test_slow_calls_are_timed_once(monkeypatch):
    seconds = {"slow": 100.0, "fast": 1e-5, "other": 2e-5}
    timed = []

    def fake(call, repeats=1):
        timed.append(call())
        return seconds[call()]

    monkeypatch.setattr(bench, "_seconds", fake)
    assert bench.interleaved({name: lambda name=name: name for name in seconds}, 0) == seconds
    rounds = timed[1 + 2 + 2 :]  # after one call of the slow one and two of each of the others
    assert rounds == ["slow", *["fast", "other"] * bench.ROUNDS[1]]


def test_the_limits_are_measured():
    assert 1e8 < bench.peak(steps=1000, rounds=3) < 1e13
    assert 1e7 < bench.bandwidth(2, size=1 << 20, rounds=2) < 1e13


# -------------------------------------------------------------------------------------------- report


def report(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["report.py", *map(str, arguments)])
    runpy.run_path(str(REPORT), run_name="__main__")


@pytest.fixture
def compared(tmp_path, monkeypatch):
    """Two files of one machine: a run, and one with plans, of layers that the plot shows and that it does not."""
    path = tmp_path / "some.csv"
    wide = "wide,N,conv,1,8,16x16,8,3x3,1,1,0,1,1"
    path.write_text("\n".join([HEADER, *TINY, wide, ""]), encoding="utf-8")
    peer = {"right": lambda case, op, arrays, threads: bench.ours(case, op, arrays, "reference")}
    monkeypatch.setattr(bench, "PEERS", peer)
    monkeypatch.setattr(bench, "DEFAULT_PEERS", tuple(peer))
    monkeypatch.setattr(bench, "MODULES", {"right": ("numpy",)})
    files = []
    for plan in ([], ["--plan"]):
        assert result(tmp_path, "--layers", str(path), "--threads", "1", *plan)[0] == 0
        files.append((tmp_path / "result.json").rename(tmp_path / f"run{len(files)}.json"))
    return files


def edited(path, name, change):
    """A copy of a run, changed."""
    saved = json.loads(path.read_text(encoding="utf-8"))
    change(saved)
    copy = path.with_name(name)
    copy.write_text(json.dumps(saved), encoding="utf-8")
    return copy


def cells(text, layer):
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {layer} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_report_makes_tables_and_a_plot(compared, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="draws a plot")
    readme, plot = tmp_path / "R.md", tmp_path / "roofline.png"
    readme.write_text("before\n<!-- peers:begin -->\nstale\n<!-- peers:end -->\nafter\n", encoding="utf-8")
    report(monkeypatch, *compared, "--readme", readme, "--roofline", plot)
    text = readme.read_text(encoding="utf-8")
    assert text.startswith("before\n<!-- peers:begin -->\n**1 thread.**")
    assert text.endswith("<!-- peers:end -->\nafter\n")
    assert "stale" not in text
    assert "100 GFLOP/s and 20.0 GB/s, 100 GFLOP/s and 20.0 GB/s with plans" in text
    assert "| geometric mean; worst | forward | input_grad | weight_grad | forward, planned |" in text
    assert "| right / ours | " in text
    for plan in ("", "--plan "):
        assert f"`python -m loopconv bench --layers some.csv --threads 1 {plan}--ops forward" in text
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_report_shows_wins_and_losses(compared, capsys, monkeypatch):
    def plain(run):
        row = run["rows"][0]
        row.update(seconds=0.002, percent=40, peers={"torch": 0.003, "right": 0.001}, best="right", ratio=0.5)
        run["rows"][1].update(seconds=None, percent=None, ratio=None, wrong="differs", notes={"right": "not today"})

    def planned(run):
        run["rows"][0].update(
            seconds=0.001, percent=80, peers={"torch": 0.003, "right": 0.0012}, best="right", ratio=1.2
        )

    report(monkeypatch, edited(compared[0], "a.json", plain), edited(compared[1], "b.json", planned))
    text = capsys.readouterr().out
    assert cells(text, "down")[:6] == ["down", "memory", "2 (40 %)", "**1.50**", "wrong", ""]
    assert cells(text, "down")[-2:] == ["1 (80 %)", "**1.20** right"]
    assert cells(text, "up")[3] == ""  # without torch
    assert "- right on down input_grad: not today\n- ours on down input_grad: differs" in text
    assert "torch / ours" in text


def test_report_joins_runs_of_one_number_of_threads(compared, capsys, monkeypatch):
    def two(run):
        run["machine_info"]["threads"] = 2

    plain, planned = compared
    both = [edited(path, f"two{number}.json", two) for number, path in enumerate(compared)]
    report(monkeypatch, planned, both[0], plain, both[1], plain)
    text = capsys.readouterr().out
    headings = [line.split(".**")[0] for line in text.splitlines() if line.startswith("**")]
    assert headings == ["**1 thread", "**2 threads", "**1 thread"]  # a second run of the same is a table of its own
    assert text.count("forward, planned ms") == 2


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"rows": []}', '{"benchmarks": [{"params": null}]}'])
def test_report_refuses_other_files(text, tmp_path, capsys, monkeypatch):
    path = tmp_path / "other.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        report(monkeypatch, path)
    assert stop.value.code == 2
    assert "error: json must be " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--readme", "no.md"], "--readme must be a file that exists, got no.md"),
        (
            ["--roofline", "no/such/plot.png"],
            "--roofline must be a .png file in a directory that exists, got no/such/plot",
        ),
        (["--roofline", "plot.xyz"], "--roofline must be a .png file in a directory that exists, got plot.xyz"),
    ],
)
def test_report_says_where_it_cannot_write(arguments, message, compared, capsys, monkeypatch):
    with pytest.raises(SystemExit) as stop:
        report(monkeypatch, *compared, *arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_report_needs_its_markers(compared, tmp_path, monkeypatch):
    readme = tmp_path / "R.md"
    readme.write_text("nothing\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="the file must have one line <!-- peers:begin -->"):
        report(monkeypatch, *compared, "--readme", readme)
    assert readme.read_text(encoding="utf-8") == "nothing\n"


def test_the_suite_times_algorithms_and_report_shows_them(tmp_path, capsys, monkeypatch):
    pytest.importorskip("pytest_benchmark", reason="runs the suite in benchmarks/")
    saved = tmp_path / "times.json"
    options = ["--layers", "matrix_view", "-k", "tiled or call", "--benchmark-json", str(saved)]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(REPORT.parent), *options]
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # with which pytest-benchmark times nothing
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    run = json.loads(saved.read_text(encoding="utf-8"))
    names = {b["name"].split("matrix_view-")[1].rstrip("]") for b in run["benchmarks"]}
    ways = {
        f"{row.contraction}-tiled-{name}"
        for row in registry.implementations() if row.backend == "tiled"
        for name in row.algorithms(bench.read_layers(bench.LAYERS)["matrix_view"].geometry)
    }  # fmt: skip
    assert names == ways | {"forward-tiled", "adjoint-tiled", "weight-tiled", "forward-call"}
    assert "times.json" not in run["machine_info"]["command"]
    report(monkeypatch, saved)
    text = capsys.readouterr().out
    assert "| layer | multiply-adds | forward tiled | adjoint tiled | weight tiled | public call |" in text
    assert "| layer | multiply-adds | forward chosen | forward direct |" in text
