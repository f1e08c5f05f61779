"""Diagrams are read back, letter by letter, and compared with the trace."""

import re
from math import prod

import numpy as np
import pytest

import loopconv
from loopconv.cases import CASES, Case
from loopconv.explain_text import explain
from loopconv.text_diagrams import LETTERS

SETTINGS = {
    "guide": Case("", "conv", (1, 5, 5), (1, 1, 3, 3), {"stride": 2, "padding": 1}),
    "unread": Case("", "conv", (1, 6, 6), (1, 1, 3, 3), {"stride": 2, "padding": 1}),
    "crop": Case("", "conv", (1, 7, 7), (1, 1, 3, 3), {"padding": (-1, -2)}),
    "full": Case("", "conv", (1, 4, 4), (1, 1, 3, 2), {"padding": "full", "dilation": 2}),
    "transposed": Case("", "conv_transpose", (1, 3, 3), (1, 1, 3, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
    "many taps": Case("", "conv", (1, 10, 9), (1, 1, 9, 6), {}),
    "long": Case("", "conv", (1, 300), (1, 1, 5), {"stride": 3, "padding": 2}),
    "long, transposed": Case("", "conv_transpose", (1, 300), (1, 1, 4), {"stride": 3, "padding": 2}),
    "wide": Case("", "conv", (1, 400, 30), (1, 1, 3, 3), {"dilation": (150, 1)}),
    "photograph": Case("", "conv", (3, 224, 224), (8, 3, 7, 7), {"stride": 2, "padding": 3}),
}
ALL = {case.name: case for case in CASES if min(case.x_shape + case.w_shape) > 0} | SETTINGS
FLAT = {name: case for name, case in ALL.items() if case.geometry.rank == 2}


def pairs(g, axes):
    """{(pixel of the small side, pixel of the large side): tap} on `axes` of a geometry, from a trace."""

    def of(sizes):
        return tuple(sizes[axis] for axis in axes)

    pads = [(lo, span - n - lo) for n, span, lo in zip(of(g.input), of(g.span), of(g.pad))]
    t = loopconv.trace(
        "conv", (1, *of(g.input)), (1, 1, *of(g.kernel)), stride=of(g.stride), dilation=of(g.dilation), padding=pads
    )
    taps = np.ravel_multi_index(tuple(t["weight"][:, 2:].T), of(g.kernel))
    small, large = (map(tuple, t[name][:, 1:].tolist()) for name in ("output", "input"))
    return dict(zip(zip(small, large), taps.tolist()))


def boards(text):
    """(array, pixel, lines) of every board."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        for label in re.finditer(r"(?:^  |   )([xy])\[k, (\d+), (\d+)\](?= |$)", line):
            if "=" not in line:
                end = lines.index("", number)
                width = (re.compile(r"   |$").search(lines[number + 1], label.start(1))).start() - label.start(1)
                rows = [row[label.start(1) :][:width] for row in lines[number + 1 : end]]
                yield label[1], (int(label[2]), int(label[3])), [row.split(" ") for row in rows]


@pytest.mark.parametrize("name", FLAT)
def test_boards_show_the_trace(name):
    case = FLAT[name]
    g = case.geometry
    shown = list(boards(explain(case)))
    if not shown:
        assert max(g.input) > 12  # too large for boards
        return
    expected = pairs(g, (0, 1))
    assert shown[0][1] == (0, 0)
    assert (g.output[0] - 1, g.output[1] - 1) == shown[-1][1] or len(shown) < 9
    for array, pixel, rows in shown:
        assert array == ("x" if case.op == "conv_transpose" else "y")
        signs = np.array(rows)
        inside = np.argwhere((signs != ".") & (signs != "*"))
        if not prod(g.input):
            assert not len(inside)
            continue
        first = inside.min(axis=0)
        assert tuple(inside.max(axis=0) - first + 1) == g.input
        assert len(inside) == prod(g.input)
        letters = {tuple(at - first): signs[tuple(at)] for at in inside if signs[tuple(at)] != "-"}
        taps = {large: tap for (small, large), tap in expected.items() if small == pixel}
        assert letters.keys() == taps.keys()
        if prod(g.kernel) <= len(LETTERS):
            assert {at: LETTERS.index(letter) for at, letter in letters.items()} == taps
        else:
            assert set(letters.values()) <= {"#"}
        assert np.count_nonzero(signs == "*") == prod(g.kernel) - len(taps)


@pytest.mark.parametrize("name", FLAT)
def test_the_map_counts_the_trace(name):
    case = FLAT[name]
    found = re.search(r"^  How many .*\n((?:  +[\d ]+\n)+)", explain(case), re.M)
    if not found:
        assert not list(boards(explain(case))) or not prod(case.geometry.input)
        return
    counts = np.zeros(case.geometry.input, int)
    for _, large in pairs(case.geometry, (0, 1)):
        counts[large] += 1
    assert [list(map(int, line.split())) for line in found[1].splitlines()] == counts.tolist()


def staircases(text):
    """(names of axes, {(pixel, index): sign}, {index: count}) of every staircase."""
    head = r"  (?:[DHW](?:, [DHW])*|[xy])(?: +(?:\d+|\.))+(?:  \.\.\.)?\n"
    for block in re.findall(rf"^{head}(?:  .+\n)+", text, re.M):
        head, *rows = block.splitlines()
        columns = [(cell.end(), cell[0]) for cell in re.finditer(r"(?<= )(\d+|\.)(?= |$)", head[2:])]
        first = next((i for i, (_, sign) in enumerate(columns) if sign == "0"), None)
        signs, counts = {}, {}
        for row in rows:
            row = row[2:]
            label = re.match(r"(?:\w=(\d+)|count|\.\.\.|uneven)", row)
            if label[0] == "count":
                cells = [(i - first, row[:end].split(" ")[-1]) for i, (end, sign) in enumerate(columns) if sign != "."]
                counts = {i: int(cell) for i, cell in cells}
            elif label[1]:
                cells = ((i - first, row[end - 1 : end]) for i, (end, _) in enumerate(columns))
                signs |= {(int(label[1]), i): sign for i, sign in cells if sign.strip()}
        yield head[2:].split("  ")[0].split(" .")[0], signs, counts


@pytest.mark.parametrize("name", ALL)
def test_staircases_show_the_trace(name):
    case = ALL[name]
    g = case.geometry
    found = list(staircases(explain(case)))
    if g.rank != 2 and name != "no pixels left":
        assert found
    for names, signs, counts in found:
        for axis in [0] if g.rank == 1 else ["DHW"[3 - g.rank :].index(letter) for letter in names.split(", ")]:
            expected = {(p, i): tap for ((p,), (i,)), tap in pairs(g, (axis,)).items()}
            pixels = {p for p, _ in signs}
            assert pixels == set(range(len(pixels))) or pixels == {*range(7), g.output[axis] - 1}
            letters = {at: sign for at, sign in signs.items() if sign != "*"}
            assert letters.keys() == {(p, i) for p, i in expected if p in pixels}
            if g.kernel[axis] <= len(LETTERS):
                assert all(LETTERS[expected[at]] == sign for at, sign in letters.items())
            assert len(signs) == len(pixels) * g.kernel[axis]
            for i, count in counts.items():
                assert count == sum(j == i for _, j in expected)


def test_the_picture_of_the_guide():
    # Dumoulin and Visin, figure 2.6: 5x5, kernel 3x3, stride 2, padding 1; the first output reads four pixels.
    text = explain(SETTINGS["guide"])
    first = next(rows for _, pixel, rows in boards(text) if pixel == (0, 0))
    assert [" ".join(row) for row in first] == [
        "* * * . . . .",
        "* e f - - - .",
        "* h i - - - .",
        ". - - - - - .",
        ". - - - - - .",
        ". - - - - - .",
        ". . . . . . .",
    ]


def test_a_staircase_by_hand():
    text = explain(Case("", "conv_transpose", (1, 3), (1, 1, 3), {"stride": 2, "padding": 1, "output_padding": 1}))
    assert (
        """
  y     . 0 1 2 3 4 5
  q=0   * b c
  q=1       a b c
  q=2           a b c
  count   1 2 1 2 1 1
  uneven on W: taps do not spread evenly over the stride, seen in images as a checkerboard
"""
        in text
    )


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "uneven"),
    [(4, 2, 1, False), (3, 2, 1, True), (3, 1, 1, False), (2, 3, 1, True), (2, 2, 2, True), (6, 3, 2, False)],
)
def test_checkerboards_are_noticed(kernel, stride, dilation, uneven):
    # By the counts away from the borders.
    case = Case("", "conv_transpose", (1, 40), (1, 1, kernel), {"stride": stride, "dilation": dilation})
    y = loopconv.conv_transpose(
        np.ones((1, 40)), np.ones((1, 1, kernel)), stride=stride, dilation=dilation, backend="reference"
    )
    assert (len(set(y[0, 12:30].tolist())) > 1) == uneven
    assert ("checkerboard" in explain(case)) == uneven
    assert "checkerboard" not in explain(Case("", "conv", (1, 40), (1, 1, kernel), case.settings))


def test_a_window_that_is_too_wide_is_not_drawn():
    text = explain(SETTINGS["wide"])
    assert "  Not drawn on H: the taps of one pixel cover 301 pixels" in text.splitlines()
    assert [names for names, _, _ in staircases(text)] == ["W"]


def test_signs_that_are_not_drawn_are_not_explained():
    text = explain(Case("", "conv", (1, 4, 4), (1, 1, 4, 4), {}))
    assert not re.search(r"^ .*    [-*.]  ", text, re.M)
    assert "-  a pixel of x that this one of y does not read" in explain(SETTINGS["guide"])
