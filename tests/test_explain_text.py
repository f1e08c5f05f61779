"""What `explain` says is evaluated: its calls are run, its formulas and indices computed, its numbers counted."""

import re
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import loopconv
from loopconv import cli, explain_text, geometry
from loopconv.cases import CASES, Case

CASES = {case.name: case for case in CASES if min(case.x_shape + case.w_shape) > 0}
SETTINGS = {
    "stride": Case("", "conv", (1, 5, 5), (1, 1, 3, 3), {"stride": 2, "padding": 1}),
    "words": Case("", "conv", (1, 7, 6), (2, 1, 3, 2), {"padding": "full", "dilation": (1, 2)}),
    "long": Case("", "conv", (4, 160), (6, 2, 5), {"groups": 2, "stride": 3, "padding": [(1, 0)]}),
    "large": Case("", "conv", (3, 224, 224), (8, 3, 7, 7), {"stride": 2, "padding": 3}),
    "wide": Case("", "conv", (1, 4000), (1, 1, 2), {"dilation": 999}),
    "many taps": Case("", "conv", (1, 9, 9), (1, 1, 8, 8), {}),
    "no pixels left": Case("", "conv_transpose", (1, 2, 2), (1, 1, 1, 1), {"padding": 1}),
    "volume": Case("", "conv_transpose", (2, 3, 4, 4), (2, 1, 2, 3, 3), {"stride": (1, 2, 2)}),
    "output padding over stride": Case("", "conv_transpose", (1, 3), (1, 1, 2), {"dilation": 3, "output_padding": 2}),
}
ALL = CASES | SETTINGS


REFERENCE = SimpleNamespace(
    conv=partial(loopconv.conv, backend="reference"),
    conv_transpose=partial(loopconv.conv_transpose, backend="reference"),
)


def section(text, title):
    """Lines of the section whose first line starts with `title`, without that one."""
    (found,) = (part for part in text.split("\n\n") if part.startswith(title))
    return found.splitlines()[1:]


def shape_of(text, name):
    return tuple(map(int, re.search(rf"^  {name} \(.*?\) +\((.*)\)$", text, re.M)[1].split(",")))


def unfolded(text):
    """`text` with the lines in one that were folded."""
    return re.sub(r"\n    (?=\S)", " ", text)


@pytest.mark.parametrize("name", ALL)
def test_it_fits_a_terminal(name):
    text = explain_text.explain(ALL[name])
    assert max(map(len, text.splitlines())) <= 100
    assert text.isascii()
    assert not re.search(r" $|\n\n\n", text, re.M)


@pytest.mark.parametrize("name", ALL)
def test_its_call_runs_and_so_does_the_way_back(name):
    text = unfolded(explain_text.explain(ALL[name]))
    call, _, back, has = (
        text.splitlines()[0],
        *re.search(r"^The way back\n(.+\n)+?(  loopconv.+)\n  has (.+)$", text, re.M).groups(),
    )
    x, w = np.ones(shape_of(text, "x"), "float32"), np.ones(shape_of(text, "w"), "float32")
    names = {"loopconv": REFERENCE, "x": x, "w": w}
    exec(call, names)
    assert names["y"].shape == shape_of(text, "y")
    shape = eval(back, names).shape
    if has.startswith("the shape of x"):
        assert shape == x.shape
    else:
        assert has == f"shape {shape}, not that of x"
        assert shape != x.shape


@pytest.mark.parametrize("name", ALL)
def test_its_formulas_are_true(name):
    case = ALL[name]
    rows = section(explain_text.explain(case), "Size of y")[1:]
    g, found = case.geometry, {}
    for row in (row for row in rows if ":" not in row):
        axes, extent, size = re.fullmatch(r"  (\w(?:, \w)*) +(\d+ = .+?)  +(\d+ = .+)", row).groups()
        for equation in (extent, size):
            left, right = equation.split(" = ")
            assert eval(right) == int(left), equation
        found |= {axis: int(size.split(" = ")[0]) for axis in axes.split(", ")}
    assert tuple(found[axis] for axis in "DHW"[3 - g.rank :]) == (g.output if case.op == "conv" else g.input)


@pytest.mark.parametrize("name", ALL)
def test_its_indices_are_those_of_the_trace(name):
    case = ALL[name]
    text = unfolded(explain_text.explain(case))
    sum_ = re.search(r"What every.*\n  (y.+)", text)[1]
    large, small = ("y", "x") if case.op == "conv_transpose" else ("x", "y")
    at, pixel, weight = (re.search(rf"\b{array}\[(.+?)\]", sum_)[1] for array in (large, small, "w"))
    rank = len(case.w_shape) - 2
    g = case.geometry
    if g.macs > 100_000:
        assert name in ("large", "long", "wide")
        return
    t = loopconv.trace(case.op, case.x_shape[-1 - rank :], case.w_shape, **case.settings)
    large, small = ("output", "input") if case.op == "conv_transpose" else ("input", "output")
    for row in t[:: max(len(t) // 50, 1)]:
        letters = dict(zip(pixel.split(", "), row[small].tolist()))
        taps = dict(zip(weight.split(", "), row["weight"].tolist()))
        assert letters["k"] == taps["k"]
        taps.pop("0", None)
        assert list(eval(f"[{at}]", {}, letters | taps)) == row[large].tolist()


@pytest.mark.parametrize("name", ALL)
def test_its_work_is_counted(name):
    case = ALL[name]
    g = case.geometry
    lines = section(unfolded(explain_text.explain(case)), "Work")
    one = g.macs // max(g.batch, 1)
    pixels, taps, pairs = (int(n.replace(",", "")) for n in re.findall(r"([\d,]+) (?:pixel|tap|pair)", lines[0]))
    assert lines[0].startswith(f"  {one:,} multiply-add")
    assert pixels * taps * pairs == one
    assert f"{2 * one:,} FLOP:" in lines[0]
    if one <= 100_000:
        met = len(loopconv.trace(case.op, case.x_shape[-1 - g.rank :], case.w_shape, **case.settings))
        place = r"  on pixels of [xy]: ([\d,]+), (?:padding|outside): ([\d,]+)"
        said = re.fullmatch(place, lines[1])
        assert bool(said) == (met < one)
        if said:
            assert [int(n.replace(",", "")) for n in said.groups()] == [met, one - met]
    total, *parts = (int(n.replace(",", "")) for n in re.findall(r"([\d,]+) (?:bytes|of [xwy])", lines[-2]))
    assert parts[0] == 4 * np.prod(case.x_shape[-1 - g.rank :])
    assert parts[1] == 4 * np.prod(case.w_shape)
    assert sum(parts) == total


def said(name, op="conv", **settings):
    """The sentences about the way back of one axis: 'input kernel' and settings."""
    n, k = map(int, name.split())
    case = Case("", op, (1, n), (1, 1, k), settings)
    return section(explain_text.explain(case), "The way back")[0].strip()


def test_the_ambiguity_is_said():
    # windows of 3 at stride 2 reach 5 pixels for 2 outputs; the sixth is the rest
    assert said("5 3", stride=2) == "W: 5 or 6 pixels of x give 2 of y; output_padding 0 or 1 says which, here 0"
    assert said("6 3", stride=2) == "W: 5 or 6 pixels of x give 2 of y; output_padding 0 or 1 says which, here 1"
    assert said("9 2", stride=3) == (
        "W: 8, 9 or 10 pixels of x give 3 of y; output_padding 0, 1 or 2 says which, here 1"
    )
    assert said("9 2", stride=5) == "W: 7 to 11 pixels of x give 2 of y; output_padding 0 to 4 says which, here 2"
    assert said("5 3") == "W: only 5 pixels of x give 3 of y in a conv: nothing is ambiguous"
    assert said("5 3", stride=2, padding="same") == (
        "W: 5 or 6 pixels of x give 3 of y; output_size says which, here 5"
    )
    # 1 pixel of padding on both sides leaves no size below 0: only 0 and 1 of -1, 0 and 1 are sizes
    assert said("1 1", stride=3, padding=1) == (
        "W: 0 or 1 pixels of x give 1 of y; output_padding 1 or 2 says which, here 2"
    )


def test_the_ambiguity_of_the_transpose_is_said():
    transposed = {"op": "conv_transpose", "stride": 2}
    assert said("2 3", **transposed) == (
        "W: output_padding 0 or 1 gives 5 or 6 pixels of y, here 5; a conv makes 2 of each"
    )
    assert said("2 3", output_size=6, **transposed).endswith("here 6; a conv makes 2 of each")
    assert said("2 3", padding="same", **transposed) == (
        "W: output_size gives 3 or 4 pixels of y, here 4; a conv makes 2 of each"
    )
    assert said("2 3", op="conv_transpose") == "W: only 4 pixels of y give 2 of x in a conv: nothing is ambiguous"
    assert said("3 2", op="conv_transpose", dilation=3, output_padding=2) == (
        "W: a conv makes 3 only of 6 pixels; y has 8, as output_padding 2 >= stride"
    )


def test_axes_that_are_alike_share_a_line():
    text = explain_text.explain(Case("", "conv", (1, 5, 6, 6), (1, 1, 3, 3, 3), {"stride": 2}))
    assert [line.split("  ")[1] for line in section(text, "Size of y")] == ["axis", "D", "H, W", "H, W: rounded down, "
        "as windows do not reach the last 1 of the 6 pixels, padding included"]  # fmt: skip


# ------------------------------------------------------------------------------------- the command line


def explained(arguments):
    return cli.main(["explain", *arguments.split()])


def parsed(arguments):
    return explain_text.case_of(cli._parser().parse_args(["explain", *arguments.split()]))


def test_arguments_make_the_call():
    case = parsed("--input 5x4 --kernel 3 --stride 2x1 --padding 0,1x2 --channels 4 --filters 6 --groups 2")
    assert (case.op, case.x_shape, case.w_shape) == ("conv", (4, 5, 4), (6, 2, 3, 3))
    assert case.settings == {"stride": (2, 1), "padding": ((0, 1), 2), "dilation": 1, "groups": 2}
    case = parsed("--input 5 --kernel 3 --padding=-1,1 --transposed --channels 4 --filters 6 --groups 2")
    assert (case.op, case.x_shape, case.w_shape) == ("conv_transpose", (4, 5), (4, 3, 3))
    assert case.settings["padding"] == ((-1, 1),)
    case = parsed("--input 5x5x5 --kernel 1x2x3 --dilation 1x2x1 --padding same")
    assert (case.w_shape, case.settings["dilation"], case.settings["padding"]) == ((1, 1, 1, 2, 3), (1, 2, 1), "same")
    case = parsed("--input 5 --kernel 3 --stride 2 --transposed --output-padding 1")
    assert case.geometry.input == (12,)
    case = parsed("--input 5x5 --kernel 3 --stride 2 --transposed --output-size 12x11")
    assert case.geometry.input == (12, 11)


def test_what_it_prints_is_the_explanation(capsys):
    assert explained("--input 5x5 --kernel 3x3 --stride 2 --padding 1") == 0
    printed = capsys.readouterr()
    assert printed.out == explain_text.explain(SETTINGS["stride"]) + "\n"
    assert printed.err == ""


def refused(capsys, arguments):
    """The last line on stderr of a call that must not print anything else."""
    with pytest.raises(SystemExit) as stop:
        explained(arguments)
    printed = capsys.readouterr()
    assert (stop.value.code, printed.out) == (2, "")
    return printed.err.splitlines()[-1].removeprefix("python -m loopconv explain: error: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--kernel 3", "the following arguments are required: --input"),
        ("--input 5x --kernel 3", "argument --input: must be numbers from 1 to 999999999 like 3 or 3x4, got '5x'"),
        ("--input 0 --kernel 3", "argument --input: must be numbers from 1 to 999999999 like 3 or 3x4, got '0'"),
        ("--input 5.5 --kernel 3", "argument --input: must be numbers from 1 to 999999999 like 3 or 3x4, got '5.5'"),
        ("--input 5 --kernel three", "argument --kernel: must be numbers from 1 to"),
        ("--input 9999999999 --kernel 3", "argument --input: must be numbers from 1 to"),
        ("--input 5 --kernel 3 --stride 0", "argument --stride: must be numbers from 1 to"),
        ("--input 5 --kernel 3 --padding 1,2,3", "argument --padding: must be numbers like 1, 1x2 or 0,1x2,1, or one "
                                               "of valid, same, full, got '1,2,3'"),
        ("--input 5 --kernel 3 --padding SAME", "argument --padding: must be numbers like"),
        ("--input 5 --kernel 3 --groups 0", "argument --groups: must be an integer of at least 1, got '0'"),
        ("--input 1x1x1x1 --kernel 1", "--input must have 1 to 3 axes, got 4"),
        ("--input 5 --kernel 3x3", "kernel must be an int or one int per axis: 1 for this 1-D call, got 2 in (3, 3)"),
        ("--input 5x5 --kernel 3 --stride 1x2x3", "stride must be an int or one int per axis: 2 for this 2-D call"),
        ("--input 5x5 --kernel 7", "--kernel must fit in the padded input: on spatial axis 0 its 7 taps at "
                                   "dilation 1 cover 7 pixels, got 5 + padding 0 + 0 = 5 from --input of shape "),
        ("--input 5 --kernel 3 --channels 4 --filters 3 --groups 2", "--groups must divide --channels 4 and "
                                                                     "--filters 3, got 2"),
        ("--input 5 --kernel 3 --output-padding 0", "--output-padding and --output-size must come with --transposed"),
        ("--input 5 --kernel 3 --output-size 5", "--output-padding and --output-size must come with --transposed"),
        ("--input 5 --kernel 3 --transposed --output-padding 1", "output_padding must be less than max(stride, "
                                                                 "dilation) = 1 on spatial axis 0, got 1"),
        ("--input 5 --kernel 3 --transposed --padding 4", "padding must leave an output: on spatial axis 0"),
        ("--input 5 --kernel 3 --html no/such/directory/a.html", "--html must be a file that can be written, got "
                                                                 "'no/such/directory/a.html': No such file"),
        ("--input 50x50 --kernel 3 --html a.html", "--html: the explorer shows input from 1 to 10, got (50, 50)"),
        ("--input 5x5x5 --kernel 3 --html a.html", "--html: the explorer shows one or two axes"),
    ],
)  # fmt: skip
def test_bad_settings_are_one_sentence(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refused(capsys, arguments).startswith(message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        "--input 999999999 --kernel 999999999 --channels 999999999 --filters 999999999",
        "--input 3x3 --kernel 3 --padding 999999999",
        "--input 999999999x3 --kernel 3 --stride 999999999 --dilation 999999999 --transposed",
        "--input 2 --kernel 1000000 --dilation 999999999 --padding full",
        "--input 9 --kernel 3 --padding=-999999999,999999999",
    ],
)
def test_huge_settings_are_quick(arguments, capsys):
    assert explained(arguments) == 0
    assert capsys.readouterr().out


def test_html_is_the_explorer_with_the_same_settings(tmp_path, capsys, monkeypatch):
    written = SimpleNamespace()
    monkeypatch.setattr("loopconv.explorer.page", lambda settings: vars(written).update(settings) or "page")
    monkeypatch.chdir(tmp_path)
    command = "--input 3x4 --kernel 3 --stride 2 --padding same --transposed --channels 2 --filters 4 --groups 2"
    assert explained(f"{command} --html a.html") == 0
    assert capsys.readouterr().out.endswith("\n\nWrote a.html.\n")
    assert vars(written) == {
        "op": "conv_transpose", "input": (3, 4), "kernel": (3, 3), "stride": (2, 2),
        "padding": ((0, 1), (0, 1)), "dilation": (1, 1), "output_padding": (0, 0), "channels": 2, "filters": 4,
        "groups": 2,
    }  # fmt: skip
    g = geometry.conv_transpose((2, 3, 4), (2, 2, 3, 3), stride=2, padding="same", groups=2)
    assert g == geometry.conv_transpose((2, 3, 4), (2, 2, 3, 3), stride=2, padding=((0, 1), (0, 1)), groups=2)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ("--html a.html --figure b.xyz", "--figure: path must end in one of"),
        ("--html a.html --figure no/b.svg", "--figure: path must be a file in a directory"),
        ("--html no/a.html --figure b.svg", "--html must be a file that can be written"),
    ],
)
def test_of_two_files_none_is_written_where_one_is_refused(files, message, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib", reason="figures are drawn with matplotlib")
    monkeypatch.chdir(tmp_path)
    assert refused(capsys, f"--input 5 --kernel 3 {files}").startswith(message)
    assert list(tmp_path.iterdir()) == []


def test_html_writes_a_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert explained("--input 5 --kernel 3 --html a.html") == 0
    assert "<html" in (tmp_path / "a.html").read_text(encoding="utf-8")


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """In an empty directory, (what is saved, file name) of every picture that is saved."""
    figures = pytest.importorskip("loopconv.figures", reason="matplotlib is not installed")
    saved = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(figures, "arithmetic", lambda case: ("still", case))
    monkeypatch.setattr(figures, "animate", lambda case: ("moving", case))
    monkeypatch.setattr(figures, "save", lambda picture, path: saved.append((*picture, path)))
    return saved


def test_figure_is_a_picture_or_an_animation_of_the_call(drawn, capsys):
    command = "--input 3x4 --kernel 3 --stride 2 --transposed"
    for name in ("a.png", "b.svg", "c.gif"):
        assert explained(f"{command} --figure {name}") == 0
        assert capsys.readouterr().out.endswith(f"\n\nWrote {name}.\n")
    assert [(kind, path.name) for kind, _, path in drawn] == [
        ("still", "a.png"),
        ("still", "b.svg"),
        ("moving", "c.gif"),
    ]
    assert {(case.op, case.x_shape, case.geometry.stride) for _, case, _ in drawn} == {
        ("conv_transpose", (1, 3, 4), (2, 2))
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.xyz", "--figure: path must end in one of .png .svg .pdf .jpg .webp .gif .mp4, got 'a.xyz'"),
        ("a", "--figure: path must end in one of .png"),
        ("no/a.png", "--figure: path must be a file in a directory that exists and is writable, got 'no/a.png'"),
        ("no/a.gif", "--figure: path must be a file in a directory that exists and is writable, got 'no/a.gif'"),
    ],
)
def test_figures_that_cannot_be_written(name, message, drawn, capsys):
    assert refused(capsys, f"--input 5 --kernel 3 --figure {name}").startswith(message)
    assert drawn == []


def test_figure_writes_a_picture(monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="figures are drawn with matplotlib")
    monkeypatch.chdir(tmp_path)
    assert explained("--input 5 --kernel 3 --figure a.svg") == 0
    assert "<svg" in Path("a.svg").read_text(encoding="utf-8")
    capsys.readouterr()
    assert refused(capsys, "--input 65 --kernel 3 --figure b.svg").startswith("--figure: setting must have at most")
    assert [path.name for path in tmp_path.iterdir()] == ["a.svg"]


def test_figure_without_matplotlib_says_what_to_install(monkeypatch, tmp_path, capsys):
    for name in [name for name in sys.modules if name.startswith("loopconv.figures")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(loopconv, "figures", raising=False)
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.animation", "matplotlib.patches"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.chdir(tmp_path)
    assert explained("--input 5 --kernel 3 --figure a.svg") == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"loopconv.figures needs matplotlib\S*: pip install 'loopconv\[figures\]'\n", printed.err)
    assert list(tmp_path.iterdir()) == []
