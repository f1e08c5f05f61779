"""`python -m loopconv`: info, check and demo, called as a function and twice as a process."""

import re
import subprocess
import sys

import numpy as np
import pytest

import loopconv
from loopconv import cli, demo, registry
from loopconv.cases import CASES
from loopconv.registry import Implementation, register

SMALL_CHECK = ["check", "--dtype", "float32", "--backend"]


@pytest.fixture
def table(monkeypatch):
    """A copy of the registry for the test to change."""
    monkeypatch.setattr(registry, "_table", list(registry._table))
    monkeypatch.setattr(registry, "_loaded", dict(registry._loaded))


def process(*arguments):
    command = [sys.executable, "-W", "error", "-m", "loopconv", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def lines_of(out, backend):
    return [line for line in out.splitlines() if line.split()[:1] == [backend]]


# ------------------------------------------------------------------------------------ the arguments


def test_no_subcommand_prints_help(capsys):
    assert cli.main([]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: python -m loopconv")
    assert all(name in out for name in ("info", "check", "demo", "explain", "bench"))


def test_the_module_runs_and_passes_the_exit_status_on():
    assert process("check", "--backend", "reference", "--dtype", "float32").returncode == 0
    wrong = process("demo", "--steps", "0")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "argument --steps: must be an integer of at least 1, got '0'" in wrong.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bogus"], "invalid choice: 'bogus'"),
        (["check", "--backend", "nope"], "argument --backend: invalid choice: 'nope'"),
        (["check", "--dtype", "float16"], "argument --dtype: invalid choice: 'float16'"),
        (["check", "--backend"], "expected at least one argument"),
        (["demo", "--steps", "many"], "must be an integer of at least 1, got 'many'"),
        (["demo", "--steps", "-3"], "must be an integer of at least 1, got '-3'"),
        (["demo", "--output", "picture.xyz"], "--output must end in one of .png"),
        (["demo", "--output", "picture"], "--output must end in one of .png"),
        (["demo", "--output", "no/such/directory/picture.png"], "a directory that exists and is writable"),
    ],
)
def test_bad_arguments_are_named_and_exit_with_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    printed = capsys.readouterr()
    assert (stop.value.code, printed.out) == (2, "")
    assert message in printed.err


def test_a_directory_is_no_picture(tmp_path, capsys):
    (tmp_path / "picture.png").mkdir()
    with pytest.raises(SystemExit):
        cli.main(["demo", "--output", str(tmp_path / "picture.png")])
    assert "must be a file" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------- info


def test_info_says_what_runs_here(capsys):
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    assert re.search(rf"^loopconv +{re.escape(loopconv.__version__)}, in ", out, re.MULTILINE)
    assert re.search(rf"^NumPy +{re.escape(np.__version__)}$", out, re.MULTILINE)
    assert re.search(
        rf"^threads +{loopconv.get_num_threads()} in use; layer of the backend .parallel.: \w+", out, re.MULTILINE
    )
    for name, state in loopconv.backends().items():
        assert re.search(rf"^  {re.escape(name)} +{re.escape(state)}$", out, re.MULTILINE)


def test_info_does_without_numba_cython_and_scipy(capsys, monkeypatch):
    for name in ("numba", "llvmlite.binding", "loopconv.loops.compile", "loopconv.loops.cythonized.forward"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(cli.metadata, "version", _no_version)
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^SciPy +not installed$", out, re.MULTILINE)
    assert re.search(r"^extensions +not built$", out, re.MULTILINE)
    assert out.count("unknown (") == 3


def _no_version(name):
    raise cli.metadata.PackageNotFoundError(name)


# -------------------------------------------------------------------------------------------- check


def test_check_passes_and_counts_every_case(capsys):
    assert cli.main([*SMALL_CHECK, "numba"]) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in lines_of(out, "numba")]
    assert [row[1] for row in rows] == list(registry.CONTRACTIONS)
    for _, _, dtype, cases, error, worst, _, result in rows:
        assert (dtype, int(cases), result) == ("float32", len(CASES), "pass")
        assert 0 < float(error) <= 1
        assert worst in {case.name for case in CASES}
    assert f"{3 * len(CASES)} cases in " in out
    assert "all 3 rows pass." in out


def test_check_takes_integers(capsys):
    assert cli.main(["check", "--backend", "reference", "--dtype", "int64", "uint64"]) == 0
    assert {line.split()[4] for line in lines_of(capsys.readouterr().out, "reference")} == {"0.00"}


def off_by_a_little(y):
    y *= 1 + 1e-4


def not_a_number(y):
    y[...] = np.nan


def half_written(y):
    y.reshape(-1)[1::2] = np.nan


def broken(y):
    raise OSError("no such instruction\nand more")


@pytest.mark.parametrize(
    ("damage", "result"),
    [
        (off_by_a_little, r"\d+\.\d\d .* FAIL$"),
        (not_a_number, r" nan .* FAIL$"),
        (half_written, r" nan .* FAIL$"),
        (broken, r"FAIL: OSError: no such instruction$"),
    ],
)
def test_check_fails_on_a_wrong_backend(damage, result, table, capsys):
    def run(geometry, x, w, y, bias=None):
        loopconv.reference.forward(geometry, x, w, y)
        damage(y)

    register(Implementation("forward", "wrong", lambda: run))
    assert cli.main([*SMALL_CHECK, "wrong", "reference"]) == 1
    out = capsys.readouterr().out
    (line,) = lines_of(out, "wrong")
    assert re.search(result, line)
    assert "1 of 4 rows FAIL" in out


def test_check_fails_when_only_the_second_call_is_wrong(table):
    seen = set()

    def forgetful(geometry, x, w, y, bias=None):
        if geometry not in seen:
            seen.add(geometry)
            loopconv.reference.forward(geometry, x, w, y)

    register(Implementation("forward", "forgetful", lambda: forgetful))
    assert cli.main([*SMALL_CHECK, "forgetful"]) == 1


def test_check_shows_what_cannot_run(table, capsys):
    def missing():
        return "no such device"

    def only_rank_1(geometry, dtype):
        return None if geometry.rank == 1 else "rank 1 only"

    load = registry.implementations()[0].load
    register(Implementation("forward", "absent", load, missing))
    register(Implementation("forward", "picky", lambda: loopconv.reference.forward, unsupported=only_rank_1))
    register(Implementation("forward", "useless", load, unsupported=lambda *_: "nothing suits it"))
    assert cli.main([*SMALL_CHECK, "absent", "picky", "useless"]) == 0
    out = capsys.readouterr().out
    assert lines_of(out, "absent")[0].endswith("cannot run: no such device")
    assert lines_of(out, "useless")[0].endswith("cannot run: nothing suits it")
    assert int(lines_of(out, "picky")[0].split()[3]) == sum(case.geometry.rank == 1 for case in CASES)
    assert "all 1 rows pass; 2 cannot run here." in out
    assert cli.main([*SMALL_CHECK, "absent"]) == 1
    assert "nothing was checked; 1 cannot run here." in capsys.readouterr().out


def test_progress_is_for_terminals_only(monkeypatch, capsys):
    cli.progress("half way")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    cli.progress("half way")
    assert capsys.readouterr().err.endswith("half way")


# --------------------------------------------------------------------------------------------- demo


@pytest.mark.parametrize("name", ["matplotlib", "tqdm", "PIL"])
def test_demo_without_its_extras_says_how_to_get_them(name, capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, name, None)
    assert cli.main(["demo", "--output", str(tmp_path / "picture.png")]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert "pip install 'loopconv[demo]'" in printed.err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def told():
    """One run of the demo's computation, long enough to beat the bilinear kernel."""
    pytest.importorskip("matplotlib", reason="the demo draws with matplotlib")
    pytest.importorskip("tqdm", reason="the demo shows progress with tqdm")
    return demo.tell(40)


def test_demo_learns(told):
    assert told.photo.shape == told.naive.shape == told.learned.shape == (3, 1, 600, 512)
    assert told.small.shape == (3, 1, 200, 171)
    assert len(told.losses) == 41
    assert np.all(np.diff(told.losses[::5]) < 0)
    assert told.losses[-1] == pytest.approx(demo.mean_square(told.learned - told.photo))
    bilinear = demo.mean_square(told.naive - told.photo)
    assert demo.decibels(told.losses[-1]) > demo.decibels(bilinear) + 0.5


def test_demo_draws_the_photo_pixel_by_pixel(told, tmp_path):
    from PIL import Image

    demo.draw(told, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.size == (demo.WIDTH, demo.HEIGHT)
        part = picture.crop((demo.LEFT + 300, demo.TOP, demo.LEFT + 500, demo.TOP + 10)).convert("RGB")
        drawn = np.asarray(part, float) / 255
    shown = np.clip(told.photo + told.grey, 0, 1)[:, 0, :10, 300:500].transpose(1, 2, 0)
    assert np.abs(drawn - shown).max() < 0.01


def test_demo_compares_every_backend(told, monkeypatch):
    monkeypatch.setattr(demo, "CORNER", 8 * demo.STRIDE)  # the interpreted loops take 16 times less
    corner = {name: getattr(told, name)[..., :90, :60] for name in ("photo", "naive", "learned")}
    out = demo.compare_backends(told._replace(**corner, small=told.small[..., :30, :20]))
    for backend, state in loopconv.backends().items():
        rows = lines_of(out, backend)
        assert [row.split()[1] for row in rows] == list(registry.CONTRACTIONS)
        assert all(row.endswith("agrees") for row in rows) or state != "ready"


def test_demo_runs_from_start_to_end(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib", reason="the demo draws with matplotlib")
    pytest.importorskip("tqdm", reason="the demo shows progress with tqdm")
    monkeypatch.setattr(demo, "compare_backends", lambda story: "")
    assert cli.main(["demo", "--steps", "1", "--output", str(tmp_path / "picture.pdf")]) == 0
    out = capsys.readouterr().out
    first, second = re.findall(r"^ +([01]) +(0\.\d+) +\d+\.\d\d dB$", out, re.MULTILINE)
    assert float(second[1]) < float(first[1])
    assert (tmp_path / "picture.pdf").read_bytes().startswith(b"%PDF")


def test_demo_kernels_keep_brightness():
    assert demo.gaussian().sum() == pytest.approx(1)
    flat = demo.upsample(np.ones((1, 1, 8, 8), np.float32), demo.triangle(), np.empty((1, 1, 24, 23)))
    assert flat.shape == (1, 1, 24, 23)
    np.testing.assert_allclose(flat[..., 3:-3, 3:-3], 1, rtol=1e-6)


def test_demo_curvature_is_the_largest_eigenvalue_of_the_hessian():
    rng = np.random.default_rng(0)
    small, like = rng.standard_normal((3, 1, 7, 6)) + 2, np.empty((3, 1, 21, 18))
    units = np.eye(demo.TAPS**2).reshape(-1, *demo.KERNEL_SHAPE)
    columns = np.array([demo.upsample(small, unit, like).ravel() for unit in units])
    largest = np.linalg.eigvalsh(columns @ columns.T)[-1]
    assert demo.curvature(small, like, rounds=300) == pytest.approx(largest, rel=1e-6)
    assert demo.curvature(small, like) < largest


def test_tables_line_up():
    lines = cli.table(("a", "number"), [("long name", "1"), ("b", "22")], "<>").splitlines()
    assert lines == ["a          number", "long name       1", "b              22"]


def test_a_reader_who_has_seen_enough():
    command = [sys.executable, "-m", "loopconv", "explain", "--input", "9x9", "--kernel", "3x3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
