"""The explorer, driven in a real browser without a screen: what its cells show is what the library computes."""

import json
import os
import re
import shutil
from functools import cache
from itertools import product

import numpy as np
import pytest

import loopconv
from loopconv import explorer, geometry

# Where this is set, as in .ci/run, a missing browser is a failure.
REQUIRED = "LOOPCONV_REQUIRE_BROWSER"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
ARGUMENTS = [f"--disable-{what}" for what in ("gpu", "quic", "background-networking", "component-update", "sync")]
DESKTOP = {"viewport": {"width": 1280, "height": 800}}
PHONE = {"viewport": {"width": 360, "height": 740}, "device_scale_factor": 2, "has_touch": True, "is_mobile": True}
TIMEOUT = 120_000  # milliseconds that a busy machine may take for what takes a few
SIZES = pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])


def unavailable(reason):
    (pytest.fail if os.environ.get(REQUIRED) else pytest.skip)(f"the explorer is not tested: {reason}")


@pytest.fixture(scope="module")
def browser():
    """A Chromium of this machine."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        unavailable("playwright is not installed: pip install -e '.[test]'")
    with sync_playwright() as playwright:
        path = next(filter(None, map(shutil.which, BROWSERS)), playwright.chromium.executable_path)
        if not os.path.exists(path):
            unavailable(f"no {', '.join(BROWSERS)} on PATH, and none of playwright's own")
        started = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("explorer") / "explorer.html"
    explorer.write(path)
    return path


def listen(page, file, complaints):
    """Write down when a script of the page fails or says something, and when it asks for anything but itself."""
    page.on("pageerror", lambda error: complaints.append(f"{error}"))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("request", lambda request: request.url.startswith(file.as_uri()) or complaints.append(request.url))


@pytest.fixture
def opened(browser, page_file):
    """Opens the page at a link; afterwards no page may have failed in its script, or asked for anything else."""
    contexts, complaints = [], []

    def open_page(link="", size=DESKTOP, file=page_file, before=lambda page: None, **settings):
        contexts.append(browser.new_context(**size, **settings))
        contexts[-1].set_default_timeout(TIMEOUT)
        page = contexts[-1].new_page()
        listen(page, file, complaints)
        before(page)
        page.goto(f"{file.as_uri()}{link and f'#{link}'}")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


# -------------------------------------------------------------------------------- settings, and what they mean

DIRECTIONS = ("conv", "scatter", "gather")
PLAIN = {"stride": 1, "padding": 0, "dilation": 1, "output_padding": 0, "channels": 1, "filters": 1, "groups": 1}


def complete(op, input, kernel, **given):
    """Settings with every number written out."""
    rank = len(input)
    settings = {**PLAIN, **given, "op": op, "input": input, "kernel": kernel}
    settings["padding"] = geometry.padding_pairs(settings["padding"], rank)
    for name in ("stride", "dilation", "output_padding"):
        settings[name] = geometry.per_axis(name, settings[name], rank, 0)
    return settings


def link_of(settings, x=None, w=None, **more):
    parts = {name: "x".join(map(str, value)) if isinstance(value, tuple) else value for name, value in settings.items()}
    parts["padding"] = "x".join(f"{lo}:{hi}" for lo, hi in settings["padding"])
    for name, values in (("x", x), ("w", w)):
        if values is not None:
            more[name] = ",".join(str(value) for value in values.ravel().tolist())
    return "&".join(f"{name}={value}" for name, value in {**parts, **more}.items())


def library_op(settings):
    return "conv" if settings["op"] == "conv" else "conv_transpose"


def shapes(settings):
    """The shapes of x and w as the library takes them."""
    channels, filters, groups = (settings[name] for name in ("channels", "filters", "groups"))
    first, second = (filters, channels) if settings["op"] == "conv" else (channels, filters)
    return (channels, *settings["input"]), (first, second // groups, *settings["kernel"])


def keywords(settings):
    names = ["stride", "padding", "dilation", "groups"] + ["output_padding"] * (settings["op"] != "conv")
    return {name: settings[name] for name in names}


def library(settings, x, w, backend="python"):
    return getattr(loopconv, library_op(settings))(x, w, backend=backend, **keywords(settings))


def matrix(settings, x, w):
    """M with y = M x: the library's C, or the transposed convolution of every unit vector."""
    if settings["op"] == "conv":
        return loopconv.conv_matrix(w, x.shape, **keywords(settings))
    units = np.eye(x.size).reshape(x.size, *x.shape)
    return library(settings, units, w, "reference").reshape(x.size, -1).T


def products(settings, x, w):
    """The library's products as rows (output, input, weight, product) of flat indices, sorted."""
    x_shape, w_shape = shapes(settings)
    rows = loopconv.trace(library_op(settings), x_shape, w_shape, x=x, w=w, **keywords(settings))
    y_shape = library(settings, x, w).shape
    flat = [
        np.ravel_multi_index(rows[name].T, shape)
        for name, shape in (("output", y_shape), ("input", x_shape), ("weight", w_shape))
    ]
    return sorted(zip(*(column.tolist() for column in (*flat, rows["product"]))))


def fits(settings):
    """Whether the library and the page both can."""
    try:
        explorer_settings(settings)
    except ValueError:
        return False
    return True


def explorer_settings(settings):
    explorer.page({**settings, "op": library_op(settings)})


def operands(settings, seed):
    """Small integers; no tap is 0, so that every product has an entry in the matrix that can be seen."""
    rng = np.random.default_rng(seed)
    x_shape, w_shape = shapes(settings)
    return rng.integers(-9, 10, x_shape), rng.integers(1, 10, w_shape) * rng.choice([-1, 1], w_shape)


def random_settings(rng, op, most=1):
    """Settings that need not make sense, sizes up to the page's limits for `most=1`."""
    rank = int(rng.integers(1, 3))

    def per_axis(low, high):
        return tuple(int(value) for value in rng.integers(low, max(low, round(high * most)) + 1, rank))

    groups = int(rng.choice([1, 1, 1, 2, 3]))
    return complete(
        op, per_axis(1, 10), per_axis(1, 5), stride=per_axis(1, 4), dilation=per_axis(1, 4),
        padding=tuple(zip(per_axis(-2, 5), per_axis(-2, 5))),
        output_padding=(0,) * rank if op == "conv" else per_axis(0, 3),
        groups=groups, channels=groups * int(rng.choice([1, 1, 2])), filters=groups * int(rng.choice([1, 1, 2])),
    )  # fmt: skip


@cache
def random_cases(count):
    """Settings that make sense, as many of each direction."""
    rng, found = np.random.default_rng(5), []
    while len(found) < count:
        settings = random_settings(rng, DIRECTIONS[len(found) % 3], most=0.6)
        if settings["channels"] <= 4 and settings["filters"] <= 4 and fits(settings):
            found.append(settings)
    return found


EDGES = (
    complete("conv", (1, 1), (1, 1)),
    complete("conv", (4, 5), (4, 5)),
    complete("conv", (9,), (2,), stride=4),
    complete("conv", (2, 2), (2, 2), padding=5, stride=3),
    complete("conv", (6, 7), (3, 2), padding=((-1, 1), (2, -2)), stride=(2, 1)),
    complete("conv", (8, 8), (5, 5), padding=2),
    complete("conv", (10,), (5,), padding=4, dilation=2, channels=4, filters=4, groups=2),
    complete("conv", (4, 4), (2, 2), channels=3, filters=3, groups=3),
    complete("conv", (3, 3), (2, 2), channels=2, filters=4, groups=2),
    *(
        complete(op, *sizes, **given)
        for op in ("scatter", "gather")
        for sizes, given in (
            (((1, 1), (1, 1)), {"stride": 3}),
            (((2,), (1,)), {"stride": 3, "output_padding": 2}),
            (((3,), (3,)), {"stride": 2, "padding": 1, "output_padding": 1}),
            (((2, 3), (2, 3)), {"dilation": 4, "output_padding": (3, 2)}),
            (((4, 2), (3, 5)), {"stride": (2, 4), "padding": ((3, 1), (0, 2))}),
            (((3, 3), (2, 2)), {"padding": ((-2, -1), (1, -2))}),
            (((2, 2), (3, 3)), {"padding": ((1, 2), (2, 1))}),
            (((2, 3), (3, 2)), {"stride": 2, "channels": 4, "filters": 2, "groups": 2}),
            (((4, 3), (5, 5)), {"stride": 4, "padding": 1, "output_padding": 3}),
        )
    ),
)


# ------------------------------------------------------------------------------------- reading the page

READ = """() => {
  const found = {};
  for (const name of ["x", "w", "y"]) {
    const cells = [...document.querySelectorAll(`#stage [data-name=${name}]`)];
    cells.sort((a, b) => a.dataset.index - b.dataset.index);
    found[name] = cells.map(cell => cell.querySelector("input")?.value ?? cell.firstChild.textContent);
    found[`exact ${name}`] = cells.map(cell => Number(cell.dataset.value));
  }
  found.entries = [...document.querySelectorAll("#drawing .entry")]
    .map(e => [e.dataset.row, e.dataset.column, e.dataset.value].map(Number));
  for (const id of ["problem", "caption", "python", "count", "sizes", "shape", "spot"])
    found[id] = document.getElementById(id).textContent;
  found.stale = document.body.classList.contains("stale");
  const sliders = [...document.querySelectorAll("#fields input[type=range]")];
  found.fields = Object.fromEntries(sliders.map(slider => [slider.id, Number(slider.value)]));
  return found;
}"""

# What each step lights up and lists, from the current one to the last.
WALK = """() => {
  const all = selector => [...document.querySelectorAll(selector)], index = cell => Number(cell.dataset.index);
  const lit = name => all(`#stage [data-name=${name}].lit`).map(index);
  const corners = name => all(`#stage [data-name=${name}]`).filter(cell => cell.querySelector(".corner").textContent)
    .map(cell => [index(cell), cell.querySelector(".corner").textContent]);
  const steps = [], { max } = document.getElementById("scrub");
  for (;;) {
    steps.push({
      terms: all("#terms button").map(b => [b.dataset.out, b.dataset.in, b.dataset.tap, b.dataset.value].map(Number)),
      texts: all("#terms button").map(b => b.textContent),
      total: document.querySelector("#terms .total")?.textContent,
      entries: all("#drawing .entry.lit").map(e => [Number(e.dataset.row), Number(e.dataset.column)]),
      lit: { x: lit("x"), w: lit("w"), y: lit("y") },
      corners: { x: corners("x"), w: corners("w"), y: corners("y") },
      y: all("#stage [data-name=y]").sort((a, b) => index(a) - index(b)).map(cell => cell.firstChild.textContent),
    });
    if (steps.length > Number(max)) return steps;
    document.getElementById("next").click();
  }
}"""

FOLLOW = """link => {
  history.replaceState(null, "", `#${link}`);
  dispatchEvent(new HashChangeEvent("hashchange"));
}"""


def asked(page, script):
    """What a function returns in the page, as text: thousands of nested numbers take the driver seconds."""
    return json.loads(page.evaluate(f"() => JSON.stringify(({script})())"))


def read(page):
    return asked(page, READ)


def plain(text):
    """With quotes and minus signs of ASCII."""
    return re.sub("[\u201c\u201d]", "'", text).replace("\N{MINUS SIGN}", "-")


def number(text):
    return int(plain(text))


def numbers(texts):
    return [number(text) for text in texts]


def factors(text):
    """The two numbers of '3 x (-2)', whatever stands before."""
    left, right = text.rsplit("+= ", 1)[-1].split(" \N{MULTIPLICATION SIGN} ")
    return number(left.strip("()")), number(right.strip("()"))


def corner(text):
    """The number of a corner: a factor, or what is added."""
    return number(text.lstrip("\N{MULTIPLICATION SIGN}+"))


def product_of(step):
    """The index that all products of a step share: of the output, input or tap."""
    return {"cell": {"conv": 0, "gather": 0, "scatter": 1}, "tap": dict.fromkeys(DIRECTIONS, 2)}[step]


@pytest.fixture(scope="module")
def on(browser, page_file):
    """Follows a link in the one page of its size: opening a page takes longer than most tests."""
    pages, complaints = {}, []

    def follow(link, size=DESKTOP):
        name = f"{size}"
        if name not in pages:
            pages[name] = browser.new_context(**size).new_page()
            pages[name].set_default_timeout(TIMEOUT)
            listen(pages[name], page_file, complaints)
            pages[name].goto(page_file.as_uri())
        pages[name].evaluate(FOLLOW, link)
        return pages[name]

    yield follow
    for page in pages.values():
        page.context.close()
    assert complaints == []


# -------------------------------------------------------------------------------- the library's numbers


@pytest.mark.parametrize("case", range(60 + len(EDGES)))
def test_cells_and_products_are_the_librarys(on, case):
    settings = (random_cases(60) + list(EDGES))[case]
    by = ("cell", "tap")[case // 3 % 2] if case < 60 else ("cell", "tap")[case % 2]
    x, w = operands(settings, case)
    page = on(link_of(settings, x, w, by=by))
    steps, at_end = asked(page, WALK), read(page)
    y = library(settings, x, w)

    assert at_end["problem"] == ""
    for name, array in (("x", x), ("w", w), ("y", y)):
        assert numbers(at_end[name]) == array.ravel().tolist() == at_end[f"exact {name}"]
    dense = np.zeros((y.size, x.size), int)
    for row, column, value in at_end["entries"]:
        dense[row, column] = value
    np.testing.assert_array_equal(dense, matrix(settings, x, w))

    listed = [tuple(term) for step in steps for term in step["terms"]]
    assert sorted(listed) == products(settings, x, w)
    assert len(at_end["entries"]) == len(listed)
    owner, own = product_of(by)[settings["op"]], {0: "y", 1: "x", 2: "w"}
    assert len(steps) == {0: y, 1: x, 2: w}[owner].size
    so_far = np.zeros(y.size, int)
    for index, step in enumerate(steps):
        assert all(term[owner] == index for term in step["terms"])
        assert [np.prod(factors(text)) for text in step["texts"]] == [term[3] for term in step["terms"]]
        assert sorted(step["entries"]) == sorted([out, pixel] for out, pixel, _, _ in step["terms"])
        for position, name in own.items():
            always = {index} if owner == position and name != "w" else set()
            assert set(step["lit"][name]) == {term[position] for term in step["terms"]} | always
        for out, _, _, value in step["terms"]:
            so_far[out] += value
        corners = {name: {(cell, corner(text)) for cell, text in step["corners"][name]} for name in "xwy"}
        factor_of = {(pixel, w.ravel()[tap]) for _, pixel, tap, _ in step["terms"]}
        added_to = {(out, value) for out, _, _, value in step["terms"]}
        beside = {"x": factor_of} if owner == 0 else {"y": added_to}
        assert corners == {"x": set(), "w": set(), "y": set(), **beside}
        if owner == 0:
            assert number(step["total"].removeprefix("= ")) == y.ravel()[index] == so_far[index]
            assert numbers(step["y"]) == y.ravel().tolist()
        else:
            assert numbers(step["y"]) == so_far.tolist()


@pytest.mark.parametrize(
    ("link", "grid", "top", "left", "rows", "columns"),
    [
        ("op=conv&input=5x5&kernel=3x2&stride=2&padding=1&step=4", "x", 2, 2, 3, 2),
        ("op=conv&input=6x6&kernel=2x2&dilation=3x2&padding=-1:1x0&step=5", "x", 2, 1, 4, 3),
        ("op=scatter&input=3x3&kernel=3x2&stride=2&padding=1&step=4", "y", 2, 2, 3, 2),
        ("op=gather&input=3x3&kernel=3x2&stride=2&padding=1&step=6", "x", 1, 2, 3, 2),
        ("op=gather&input=3&kernel=3&stride=2&padding=-1:0&step=0", "x", 0, 0, 1, 3),
    ],
)
def test_the_outline_is_around_the_cells_that_meet_taps(on, link, grid, top, left, rows, columns):
    page = on(link)
    page.wait_for_function("() => document.getAnimations().length === 0")  # it has moved there
    outline = page.locator(f"#stage .{grid} .window").bounding_box()
    lines = page.locator(f"#stage .{grid} [role=row]")
    first = lines.nth(top).locator(".cell").nth(left).bounding_box()
    last = lines.nth(top + rows - 1).locator(".cell").nth(left + columns - 1).bounding_box()
    for axis, size in (("x", "width"), ("y", "height")):
        assert outline[axis] == pytest.approx(first[axis], abs=1.5)
        assert outline[axis] + outline[size] == pytest.approx(last[axis] + last[size], abs=1.5)


def test_entries_stand_at_their_rows_and_columns(on):
    page = on("op=scatter&input=3x2&kernel=2x2&stride=2x1&step=3")
    x, y = ([mark.bounding_box() for mark in page.locator(f"#drawing .of-{name}").all()] for name in "xy")
    assert (len(x), len(y)) == (6, 18)
    for entry in page.locator("#drawing .entry").all():
        box, row, column = (
            entry.bounding_box(),
            *(int(entry.get_attribute(f"data-{axis}")) for axis in ("row", "column")),
        )
        assert box["x"] == pytest.approx(x[column]["x"], abs=0.1)
        assert box["y"] == pytest.approx(y[row]["y"], abs=0.1)


@pytest.mark.parametrize(
    ("link", "grid", "expected"),
    [  # p is a pixel, 0 padding, - a zero between, x cropped
        ("op=conv&input=2x3&kernel=1&padding=1:0x-1:1", "x", ["x000", "xpp0", "xpp0"]),
        (
            "op=gather&input=2x2&kernel=3x2&stride=2&padding=1:0x0",
            "x",
            ["00000", "0p-p0", "0---0", "0p-p0", "00000", "00000"],
        ),
        ("op=gather&input=3&kernel=2&padding=2:0", "x", ["xpp0"]),
        ("op=conv&input=3&kernel=1&padding=0:-1", "x", ["ppx"]),
        ("op=gather&input=3&kernel=1&padding=0:1", "x", ["ppx"]),
        ("op=scatter&input=2&kernel=2&padding=0:1", "y", ["ppx"]),
        ("op=scatter&input=2x1&kernel=2x1&stride=2x1&padding=1:0x0", "y", ["x", "p", "p", "p"]),
        ("op=scatter&input=2&kernel=1&stride=3&padding=-1:1&output_padding=2", "y", ["pppppp"]),
    ],
)
def test_what_is_drawn_around_the_arrays(on, link, grid, expected):
    letters = {"pixel": "p", "pad": "0", "gap": "-", "cropped": "x"}
    rows = on(link).locator(f"#stage .{grid} [role=row]")
    found = rows.evaluate_all("rows => rows.map(row => [...row.children].map(cell => cell.classList[1]))")
    assert ["".join(letters[kind] for kind in row) for row in found] == expected


@pytest.mark.parametrize(("op", "order"), [("conv", [0, 1, 2, 3]), ("scatter", [0, 1, 2, 3]), ("gather", [3, 2, 1, 0])])
def test_a_gather_has_the_kernel_flipped(on, op, order):
    cells = on(f"op={op}&input=3x3&kernel=2x2").locator("#stage [data-name=w]")
    assert cells.evaluate_all("cells => cells.map(cell => Number(cell.dataset.index))") == order


def test_numbers_that_are_not_whole(on):
    settings = complete("conv", (4, 4), (2, 2), padding=1)
    rng = np.random.default_rng(0)
    x, w = (rng.normal(size=shape).round(7) for shape in shapes(settings))
    found = read(on(link_of(settings, x, w)))
    y = loopconv.conv(x, w, backend="reference", **keywords(settings)).ravel()
    # At most 4 products a sum: their rounding errors.
    np.testing.assert_allclose(found["exact y"], y, rtol=0, atol=8 * np.finfo(float).eps * np.abs(y).max() * 4)
    shown = [float(plain(text)) for text in found["y"]]
    np.testing.assert_allclose(shown, y, rtol=6e-4)


@pytest.mark.parametrize("op", DIRECTIONS)
def test_the_sum_of_an_output_that_is_pointed_at(on, op):
    settings = complete(op, (3, 3), (3, 3), stride=2, padding=1)
    x, w = operands(settings, 1)
    page = on(link_of(settings, x, w, by="tap"))
    y = library(settings, x, w)
    page.locator("#stage [data-name=y]").nth(1).click()
    terms = asked(page, WALK.replace('document.getElementById("next").click()', "return steps"))[0]["terms"]
    assert sorted(map(tuple, terms)) == [row for row in products(settings, x, w) if row[0] == 1]
    assert number(page.locator("#terms .total").text_content().removeprefix("= ")) == y.ravel()[1]
    assert numbers(read(page)["y"]) == y.ravel().tolist()  # whole sums, also where the step has only a part
    page.locator("#terms button").first.focus()
    assert f"= {w.ravel()[terms[0][2]]}".replace("-", "\N{MINUS SIGN}") in read(page)["spot"]
    assert page.locator(".spot").count() == 4  # x, w, y, and the matrix


@pytest.mark.parametrize("op", DIRECTIONS)
def test_the_python_code_gives_the_same(on, op):
    settings = complete(op, (4, 3), (2, 2), stride=(2, 1), padding=((1, 0), (1, 1)), channels=2, filters=2, groups=2)
    x, w = operands(settings, 2)
    code = read(on(link_of(settings, x, w)))["python"]
    names = {}
    exec(code.removesuffix("print(y)"), names)
    np.testing.assert_array_equal(names["y"], library(settings, x, w))


@pytest.mark.parametrize(
    "start",
    [
        {"op": "conv", "input": (7,), "kernel": (3,), "stride": 2, "padding": ((1, 0),)},
        {"op": "conv_transpose", "input": [3, 2], "kernel": [2, 3], "stride": [2, 1], "output_padding": [1, 0]},
        {"op": "conv", "input": (4, 4), "kernel": (2, 2), "channels": 4, "filters": 2, "groups": 2},
    ],
)
def test_the_settings_it_is_written_with(opened, tmp_path, start):
    path = tmp_path / "page.html"
    explorer.write(path, start)
    page = opened(file=path)
    found = read(page)
    settings = complete(**start)
    if start["op"] == "conv_transpose":
        settings["op"] = "scatter"
    assert found["problem"] == ""
    x, w = (np.array(found[f"exact {name}"], int).reshape(shape) for name, shape in zip("xw", shapes(settings)))
    names = {}
    exec(found["python"], names)
    np.testing.assert_array_equal(names["y"], library(settings, x, w))
    page.locator("#by [value=tap]").check()
    asked(page, WALK)
    assert numbers(read(page)["y"]) == library(settings, x, w).ravel().tolist()


# ---------------------------------------------------------------------------------- settings that make no sense

REFUSALS = {  # what the library's and the page's sentence have in common
    "must fit in the padded input: on spatial axis": None,
    "output_padding must be less than max(stride, dilation) = ": None,
    "padding must leave an output": None,
    "groups must divide": None,
    "the explorer shows at most": None,
}


def test_the_page_refuses_what_the_library_refuses(on):
    rng, met = np.random.default_rng(3), dict.fromkeys(REFUSALS, 0)
    for case in range(80):
        settings = random_settings(rng, DIRECTIONS[case % 3])
        settings["channels"] = int(rng.integers(1, 5))
        settings["filters"] = min(settings["filters"], 4)
        try:
            explorer_settings(settings)
            sentence = ""
        except ValueError as error:
            sentence = str(error)
        found = read(on(link_of(settings, step=0)))
        assert (found["problem"] == "") == (sentence == ""), (settings, found["problem"], sentence)
        if sentence:
            (common,) = (text for text in REFUSALS if text in sentence)
            met[common] += 1
            assert common.lower() in found["problem"].lower()
            assert found["problem"].count(".") == 1
            if "for the explorer to show" not in sentence:  # of an empty output, which the library can give
                of_page, of_library = (set(re.findall(r"-?\d+", text)) for text in (found["problem"], sentence))
                assert of_page <= of_library | set(map(str, settings["output_padding"])), found["problem"]
    assert all(met.values()), met


def test_an_error_dims_the_picture_and_its_end_brings_it_back(on):
    page = on("op=conv&input=5x5&kernel=3x3")
    before = read(page)
    page.locator("#dilation-0-number").fill("3")
    found = read(page)
    assert "its 3 taps at dilation 3 cover 7 pixels, got 5 + padding 0 + 0 = 5" in found["problem"]
    assert found["stale"]
    assert found["y"] == before["y"]  # the last valid picture
    assert page.locator("#play").is_disabled()
    assert float(page.locator("#stage").evaluate("node => getComputedStyle(node).opacity")) < 0.5
    assert page.locator("#stage").evaluate("node => node.inert")
    page.locator("#padding-0-0").press("ArrowRight")
    found = read(page)
    assert (found["problem"], found["stale"]) == ("", False)
    assert len(found["y"]) == 1


@pytest.mark.parametrize("typed", ["", "9", "0", "-1", "1.5", "1e1"])
def test_a_number_that_is_none_or_out_of_range(on, typed):
    page = on("input=5x5&kernel=3x3")
    before = read(page)
    page.locator("#stride-0-number").fill(typed)
    found = read(page)
    given = f"'{typed}'" if typed == "1e1" else typed or "nothing"
    assert plain(found["problem"]) == f"stride must be a whole number from 1 to 4, got {given}."
    assert found["stale"]
    page.locator("#stride-0-number").blur()
    assert read(page) == before


@pytest.mark.parametrize("typed", ["", "a", "1,5", "--1", "1e9", "NaN", "Infinity", "0x10"])
def test_a_value_that_is_no_number(on, typed):
    page = on("input=5x5&kernel=3x3")
    before = read(page)
    cell = page.locator("#stage .x input").first
    cell.fill(typed)
    found = read(page)
    assert plain(found["problem"]).startswith("A value must be a number from -1000000 to 1000000, got ")
    assert cell.get_attribute("aria-invalid") == "true"
    assert found["y"] == before["y"]
    cell.blur()
    assert read(page) == before


@pytest.mark.parametrize(
    ("link", "sentence"),
    [
        ("stride=9", "stride must be a whole number from 1 to 4, got 9."),
        ("stride=", "stride must be a whole number from 1 to 4, got nothing."),
        ("stride=NaN", "stride must be a whole number from 1 to 4, got 'NaN'."),
        ("stride=%E2%88%922", "stride must be a whole number from 1 to 4, got '-2'."),
        ("padding=-3", "padding must be a whole number from -2 to 6, got -3."),
        ("padding=1:2:3", "padding must be one number or two with a colon between, got '1:2:3'."),
        ("input=5x5x5", "input must have one or two sizes, got 3."),
        ("input=5x5&kernel=3x3x3", "kernel must be one number or 2 with an x between, got '3x3x3'."),
        ("op=deconv", "op must be one of conv, scatter, gather, got 'deconv"),
        ("by=row", "by must be one of cell, tap, got"),
        ("colour=red", "nothing here is called 'colour'; there are input, kernel, stride,"),
        ("__proto__=1", "nothing here is called"),
        ("x=1,2,3", "x must have 25 values, got 3."),
        ("x=constructor", "x must be count, ones, impulse, or numbers from -1000000 to 1000000, got 'constructor'."),
        ("x=", "x must be count, ones, impulse, or numbers from -1000000 to 1000000, got nothing."),
        ("w=1,2,3,4,5,6,7,8,q", "w must be count, ones, impulse, or numbers from -1000000 to 1000000, got 'q'."),
        ("groups=2", "groups must divide the input and the output channels, got groups 2 for 1 and 1."),
        ("stride=%", "stride must have two hexadecimal digits after every %, got '%'."),
        ("step=x", "step must be a whole number from 0 to 4096, got 'x'."),
        ("<img src=x onerror=alert(1)>", "nothing here is called"),
        ("stride=" + "9" * 9000, "stride must be a whole number from 1 to 4, got 99999999999999999999."),
    ],
)
def test_a_link_that_says_nothing_sensible(on, link, sentence):
    before = read(on("input=6x5&kernel=2x3&stride=2"))
    found = read(on(link))
    assert plain(found.pop("problem")).startswith(f"This link cannot be shown: {sentence}")
    assert before.pop("problem") == ""
    assert found == before


def test_a_page_opened_with_such_a_link(opened):
    start, found = read(opened()), read(opened("stride=9"))
    assert found.pop("problem").startswith("This link cannot be shown: stride must be")
    assert start.pop("problem") == ""
    assert found == start


def test_a_link_with_too_many_steps_or_with_settings_that_make_no_sense(opened):
    found = read(opened("input=3&kernel=2&step=7"))
    assert found["problem"] == "This link asks for too many steps: step must be at most 1, got 7."
    assert found["count"] == "2 / 2"
    page = opened("input=2x2&kernel=5x5")
    found = read(page)
    assert "The kernel must fit in the padded input" in found["problem"]
    assert found["stale"]
    assert found["fields"]["kernel-0"] == 5  # what is wrong can be put right


BAD_STARTS = [
    ({"op": "conv"}, "settings must have op, input, kernel, got none for input"),
    ({"op": "conv", "input": (3,), "kernel": (2,), "bias": 1}, "settings must be among op, .*, got 'bias'"),
    ({"op": "dot", "input": (3,), "kernel": (2,)}, "op must be one of conv, conv_transpose, got 'dot'"),
    ({"op": "conv", "input": (3, 3, 3), "kernel": (2, 2, 2)}, "the explorer shows one or two axes, got input"),
    ({"op": "conv", "input": (3, 3), "kernel": (2,)}, "the explorer shows one or two axes, got input"),
    ({"op": "conv", "input": (224, 224), "kernel": (3, 3)}, "the explorer shows input from 1 to 10, got"),
    ({"op": "conv", "input": (0,), "kernel": (1,)}, "the explorer shows input from 1 to 10, got"),
    ({"op": "conv", "input": (3,), "kernel": (4,)}, "kernel must fit in the padded input"),
    ({"op": "conv", "input": (3,), "kernel": (2,), "padding": "same"}, "the explorer takes padding in pixels"),
    ({"op": "conv", "input": (3,), "kernel": (2,), "padding": 7}, "the explorer shows padding from -2 to 6"),
    ({"op": "conv", "input": (3,), "kernel": (2,), "output_padding": 1}, "output_padding must be left out for a conv"),
    ({"op": "conv", "input": (3,), "kernel": (2,), "groups": 2}, "groups must divide channels and filters"),
    ({"op": "conv", "input": (3,), "kernel": (2,), "groups": 0}, "the explorer shows groups from 1 to 4, got 0"),
    ({"op": "conv", "input": (3,), "kernel": (2,), "stride": 0}, "stride must be at least 1"),
    ({"op": "conv_transpose", "input": (2,), "kernel": (2,), "padding": 2}, "padding must leave an output"),
    ({"op": "conv_transpose", "input": (1,), "kernel": (2,), "padding": 1}, "padding must leave an output"),
    ({"op": "conv_transpose", "input": (8, 8), "kernel": (3, 3), "stride": 4}, "at most 20 output pixels on an axis"),
    ({"op": "conv", "input": (10, 10), "kernel": (3, 3), "channels": 4}, "at most 256 input values"),
    ({"op": "conv", "input": (8, 8), "kernel": (5, 5), "padding": 2, "channels": 3}, "at most 4096 products, got 4800"),
]


@pytest.mark.parametrize(("settings", "message"), BAD_STARTS)
def test_write_refuses_what_cannot_be_shown(tmp_path, settings, message):
    path = tmp_path / "page.html"
    with pytest.raises(ValueError, match=message) as caught:
        explorer.write(path, settings)
    assert "\n" not in str(caught.value)
    assert not path.exists()


@pytest.mark.parametrize("settings", [5, [("op", "conv")], {"op": "conv", "input": "5", "kernel": (2,)}])
def test_write_refuses_what_are_no_settings(tmp_path, settings):
    with pytest.raises(TypeError, match="must be a"):
        explorer.write(tmp_path / "page.html", settings)


# --------------------------------------------------------------------------------------- controls


def test_sliders_and_boxes(on):
    page = on("op=conv&input=4x4&kernel=3x3")
    page.locator("#input-0").press("ArrowRight")
    page.locator("#stride-0").press("ArrowRight")
    page.locator("#padding-0-0-number").fill("1")
    page.locator("#channels").press("ArrowRight")
    page.locator("#filters-number").fill("2")
    page.locator("#groups-number").fill("2")
    page.locator("#apart").check()
    page.locator("#dilation-1-number").fill("2")
    page.locator("#padding-1-1-number").fill("0")
    settings = complete(
        "conv", (5, 5), (3, 3), stride=2, padding=((1, 1), (1, 0)), dilation=(1, 2), channels=2, filters=2, groups=2
    )
    for direction in DIRECTIONS:
        page.locator(f"#op [value={direction}]").check()
        settings["op"] = direction
        page.locator("#by [value=tap]").check()
        asked(page, WALK)
        found = read(page)
        x, w = (np.array(found[f"exact {name}"], int).reshape(shape) for name, shape in zip("xw", shapes(settings)))
        assert numbers(found["y"]) == library(settings, x, w).ravel().tolist()
    page.locator("#output_padding-0-number").fill("1")
    settings["output_padding"] = (1, 0)
    assert len(read(page)["y"]) == library(settings, x, w).size
    page.locator("#apart").uncheck()  # the first number for all
    assert read(page)["fields"]["padding-0-0"] == 1
    page.locator("#rank [value='1']").check()
    settings = complete("gather", (5,), (3,), stride=2, padding=1, output_padding=1, channels=2, filters=2, groups=2)
    assert len(read(page)["y"]) == library(settings, *operands(settings, 0)).size


def test_values_are_edited_and_filled(on):
    settings = complete("conv", (4,), (2,))
    page = on(link_of(settings))
    page.locator("#stage .x input").nth(2).fill("-7")
    page.locator("#stage .w input").nth(1).fill("0.5")
    x, w = np.array([[1, 2, -7, 4]]), np.array([[[1, 0.5]]])
    found = read(page)
    assert found["exact y"] == library(settings, x, w).ravel().tolist()
    assert (page.locator("#fill-x").input_value(), page.locator("#fill-w").input_value()) == ("edited", "edited")
    page.locator("#input-0").press("ArrowRight")  # what was edited stays
    assert read(page)["exact x"] == [1, 2, -7, 4, 5]
    page.locator("#fill-x").select_option("ones")
    page.locator("#fill-w").select_option("impulse")
    found = read(page)
    assert (found["exact x"], found["exact w"], found["exact y"]) == ([1] * 5, [0, 1], [1] * 4)
    page.locator("#fill-x").select_option("random")
    found = read(page)
    assert set(found["exact x"]) <= set(range(-9, 10))
    assert found["exact y"] == found["exact x"][1:]


@SIZES
def test_long_values_get_larger_cells(on, size):
    page = on("op=conv&input=3x3&kernel=2x2&x=-123456,0.333333,1e6,-0.00001234,999999,5,6,7,8", size)
    fonts = page.locator("#stage [data-index]").evaluate_all(
        "cells => cells.map(cell => parseFloat(getComputedStyle(cell).fontSize))"
    )
    assert min(fonts) >= 10
    assert page.evaluate("() => document.documentElement.scrollWidth") == size["viewport"]["width"]


def test_every_example_can_be_shown(on):
    page = on("")
    links = page.evaluate("() => [...document.querySelectorAll('#examples option')].map(o => o.value).filter(Boolean)")
    assert len(links) > 10
    for link in links:
        page.locator("#examples").select_option(link)
        page.wait_for_function("link => location.hash === `#${link}`", arg=link)
        found = read(page)
        assert found["problem"] == ""
        assert found["y"]


def test_the_examples_of_the_documents(on):
    """The sum of shifted kernels, and the matrix of a 3 x 3 kernel over 4 x 4 pixels."""
    page = on("op=scatter&input=2x2&kernel=2x2&x=0,1,2,3&w=0,1,2,3")
    steps = asked(page, WALK)
    assert numbers(steps[-1]["y"]) == [0, 0, 1, 0, 4, 6, 4, 12, 9]
    assert numbers(steps[1]["y"]) == [0, 0, 1, 0, 2, 3, 0, 0, 0]
    found = read(on("op=conv&input=4x4&kernel=3x3"))
    assert found["shape"].startswith("4 \N{MULTIPLICATION SIGN} 16: 36 of 64 entries are taps")
    assert [entry for entry in found["entries"] if entry[0] == 3] == [
        [3, column, tap + 1] for tap, column in enumerate((5, 6, 7, 9, 10, 11, 13, 14, 15))
    ]
    assert "(4 + 0 + 0 \N{MINUS SIGN} 3) / 1\N{RIGHT FLOOR} + 1 = 2 on both axes" in found["sizes"]


def test_play_and_pause(opened):
    page = opened("op=conv&input=5&kernel=3", before=lambda page: page.clock.install())

    def count():
        return page.locator("#count").text_content()

    page.locator("#play").click()
    assert page.locator("#play").get_attribute("aria-label") == "Pause"
    assert page.locator("#caption").get_attribute("aria-live") == "off"
    page.clock.run_for(850)
    assert count() == "2 / 3"
    page.locator("#play").click()
    page.clock.run_for(5000)
    assert (count(), page.locator("#play").get_attribute("aria-label")) == ("2 / 3", "Play")
    assert page.locator("#caption").get_attribute("aria-live") == "polite"
    page.locator("body").press("Space")
    page.clock.run_for(10000)
    assert (count(), page.locator("#play").get_attribute("aria-label")) == ("3 / 3", "Play")  # it stops at the end
    page.locator("#play").click()
    assert count() == "1 / 3"
    page.locator("#speed").select_option("fast")
    page.clock.run_for(260)
    assert count() == "2 / 3"
    page.locator("#stage [data-name=y]").first.click()
    page.clock.run_for(5000)
    assert count() == "1 / 3"


def test_the_keyboard_alone(opened):
    settings = complete("conv", (5, 5), (3, 3), padding=1)
    page = opened(link_of(settings))

    def focused(what):
        return page.evaluate(f"() => document.activeElement.{what}")

    page.locator("body").press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert read(page)["count"] == "2 / 25"
    for _ in range(60):  # by Tab to the first value of the input: one stop for each grid
        page.keyboard.press("Tab")
        if focused("closest('.x [data-index]')"):
            break
    assert focused("getAttribute('aria-label')") == "x[0, 0]"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert focused("getAttribute('aria-label')") == "x[1, 1]"
    page.keyboard.type("42")
    assert read(page)["exact x"][6] == 42
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")  # there is no further value
    assert focused("getAttribute('aria-label')") == "x[0, 1]"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert focused("getAttribute('aria-label')").startswith("y[0, 0] = ")
    page.keyboard.press("ArrowDown")
    assert read(page)["count"] == "6 / 25"
    assert read(page)["caption"].startswith("y[1, 0] reads 9 cells through the kernel; 3 of them are padding")
    page.keyboard.press("Tab")
    assert focused("className") == "term"
    page.keyboard.press("ArrowRight")
    assert page.locator("#terms button").nth(1).evaluate("node => node === document.activeElement")
    assert "gives" in read(page)["spot"]
    page.locator("#scrub").press("End")
    assert read(page)["count"] == "25 / 25"


def test_touch_on_a_phone(opened):
    page = opened("op=scatter&input=3x3&kernel=3x3&stride=2", size=PHONE)
    page.locator("#next").tap()
    assert read(page)["count"] == "2 / 9"
    page.locator("#stage .x [data-index='4'] input").tap()
    assert read(page)["count"] == "5 / 9"
    page.keyboard.type("8")
    assert read(page)["exact x"][4] == 8
    page.locator("#stage .y [data-index='24']").tap()
    assert read(page)["caption"].startswith("y[3, 3] = ")
    page.locator("#terms button").first.tap()
    assert "gives" in read(page)["spot"]
    page.locator("summary").first.tap()
    page.locator("#kernel-0").tap()  # in the middle of the slider
    assert read(page)["fields"]["kernel-0"] == 3
    page.locator("#op label").last.tap()
    assert "flipped" in page.locator("#stage .w .note").text_content()


def test_its_state_is_in_its_link(opened):
    page = opened("op=conv&input=4x4&kernel=2x2")
    page.locator("#op [value=gather]").check()
    page.locator("#stride-0").press("ArrowRight")
    page.locator("#apart").check()
    page.locator("#padding-1-0-number").fill("-1")
    page.locator("#stage .x input").nth(3).fill("-2.5")
    page.locator("#fill-w").select_option("ones")
    page.locator("#by [value=tap]").check()
    page.locator("#next").click()
    page.wait_for_function("() => location.hash.includes('step=1')")
    link = page.url.partition("#")[2]
    assert link == (
        "op=gather&input=4x4&kernel=2x2&stride=2x2&padding=0x-1:0&x=1,2,3,-2.5,5,6,7,8,9,1,2,3,4,5,6,7&w=ones"
        "&by=tap&step=1"
    )
    assert read(opened(link)) == read(page)
    page.evaluate("() => { location.hash = 'input=6&kernel=3'; }")
    page.wait_for_function("() => document.getElementById('count').textContent === '1 / 4'")
    page.evaluate("() => history.back()")
    page.wait_for_function("() => document.getElementById('count').textContent === '2 / 4'")
    assert page.url.endswith(link)


def test_copying_the_link(opened):
    page = opened("input=4&kernel=2", permissions=["clipboard-read", "clipboard-write"])
    page.locator("#next").click()
    page.locator("#link").click()
    page.wait_for_function("() => document.getElementById('link').textContent !== 'Copy link'")
    assert page.url.endswith("#op=conv&input=4&kernel=2&step=1")


# ---------------------------------------------------------------------------------------- everybody can use it

STATES = {
    "start": "op=conv&input=5x5&kernel=3x3&stride=2&padding=1",
    "conv": "op=conv&input=4x4&kernel=3x3&step=2",
    "scatter": "op=scatter&input=3x3&kernel=3x3&stride=2&padding=1&output_padding=1&step=4",
    "gather": "op=gather&input=3x3&kernel=3x3&stride=2&padding=3:0&step=5",
    "taps": "op=conv&input=5x5&kernel=3x3&stride=3&padding=1&by=tap&step=4",
    "one axis": "op=scatter&input=4&kernel=3&stride=2&step=1",
    "crop": "op=conv&input=6x7&kernel=3x2&padding=-1:1x2:-2&stride=2x1",
    "channels": "op=conv&input=4x4&kernel=2x2&channels=4&filters=4&groups=2",
    "large": "op=scatter&input=4x3&kernel=5x5&stride=4&padding=1&output_padding=3",
    "error": "op=conv&input=2x2&kernel=5x5",
    "bad link": "stride=x",
}
EVERY_STATE = pytest.mark.parametrize("state", STATES)


@pytest.mark.parametrize("state", ["start", "scatter", "gather", "channels", "error"])
def test_axe_finds_nothing(on, state):
    from axe_playwright_python.sync_playwright import Axe

    page = on(STATES[state], PHONE if state in ("start", "gather") else DESKTOP)
    page.evaluate("() => document.querySelectorAll('details').forEach(node => { node.open = true; })")
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    # Of what passes only the rules: to describe every node that passes takes two thirds of the time.
    found = Axe().run(page, options={"runOnly": {"type": "tag", "values": tags}, "resultTypes": ["violations"]})
    assert len(found.response["passes"]) > 10
    assert found.response["violations"] == [], found.generate_report()


# Every text with the colours it can stand on: those of the nearest background, all of a pattern's.
TEXTS = """() => {
  const colours = text => text.match(/rgba?\\([^)]*\\)/g) ?? [], clear = colour => /^rgba\\(.*, 0\\)$/.test(colour);
  const grounds = node => {
    for (; node; node = node.parentElement) {
      const { backgroundColor, backgroundImage } = getComputedStyle(node);
      const found = [backgroundColor, ...colours(backgroundImage)].filter(colour => !clear(colour));
      if (!clear(backgroundColor) || found.length > 1) return found;
    }
    return ["rgb(255, 255, 255)"];
  };
  const isText = child => child.nodeType === 3 && child.textContent.trim();
  const writes = node => [...node.childNodes].some(isText) || node.matches("input[type=text], input[type=number]");
  const isSeen = node => node.getClientRects().length && getComputedStyle(node).opacity === "1"
    && !node.closest("[inert], :disabled, .sr-only, script, option");
  const list = [];
  for (const node of document.querySelectorAll("body *")) {
    if (!writes(node) || !isSeen(node)) continue;
    const { color, fill } = getComputedStyle(node);
    if (!node.closest("svg")) { list.push([node.textContent || node.value, color, grounds(node)]); continue; }
    node.scrollIntoView({ block: "center" });
    const { left, top, width, height } = node.getBoundingClientRect();
    const here = document.elementsFromPoint(left + width / 2, top + height / 2);
    list.push([node.textContent, fill, [getComputedStyle(here.find(other => other.matches("rect"))).fill]]);
  }
  return list;
}"""


def luminance(colour):
    """Of an opaque CSS colour, by the definition of WCAG 2."""
    channels = np.array([float(part) for part in re.findall(r"[\d.]+", colour)[:3]]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one, other):
    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)


def test_contrast_of_known_colours():
    assert contrast("rgb(0, 0, 0)", "rgb(255, 255, 255)") == pytest.approx(21)
    assert contrast("rgb(118, 118, 118)", "rgb(255, 255, 255)") == pytest.approx(4.54, abs=0.005)


@EVERY_STATE
def test_every_text_has_contrast(on, state):
    on(STATES["start"])  # what is behind an error
    page = on(STATES[state])
    page.evaluate("() => document.querySelectorAll('details').forEach(node => { node.open = true; })")
    found = page.evaluate(TEXTS)
    assert len(found) > (20 if state == "error" else 60)
    for text, colour, grounds in found:
        for ground in grounds:
            assert contrast(colour, ground) >= 4.5, (text, colour, ground)


def test_what_is_lit_is_seen_without_colour(on):
    """Lit and not lit differ by 3:1 in luminance; so do borders and marks from what they are on."""
    page = on("op=conv&input=4x4&kernel=3x3&stride=1&step=0")

    def style(selector, name):
        return page.locator(selector).first.evaluate(f"node => getComputedStyle(node).{name}")

    page.locator("#fill-w").select_option("impulse")
    for name in "xy":
        lit, other = (style(f"#stage .{name} .pixel{state}", "backgroundColor") for state in (".lit", ":not(.lit)"))
        assert contrast(lit, other) >= 3
        lit, other = (style(f"#drawing .of-{name}{state}", "fill") for state in (".lit", ":not(.lit)"))
        assert contrast(lit, other) >= 3
    lit, other = (style(f"#drawing .entry{state}", "fill") for state in (".lit", ":not(.lit)"))
    assert contrast(lit, other) >= 3
    white = "rgb(255, 255, 255)"
    assert contrast(style("#drawing .entry:not(.lit)", "stroke"), white) >= 3
    for selector in ("#stage .cell", "#link", "#fill-x", ".number"):
        assert contrast(style(selector, "borderTopColor"), white) >= 3
    page.locator("#by [value=tap]").check()
    lit, other = (style(f"#stage .w .pixel{state}", "backgroundColor") for state in (".lit", ":not(.lit)"))
    assert contrast(lit, other) >= 3
    on("op=conv&input=10x10&kernel=3x3")  # a matrix of very small entries
    assert "tiny" in page.locator("#drawing svg").get_attribute("class")
    lit, other = (style(f"#drawing .entry{state}", "fill") for state in (".lit", ":not(.lit)"))
    assert min(contrast(lit, other), contrast(other, white)) >= 3


# [HTML, width, height] of every element that is there to be seen.
SEEN = """selector => {
  const seen = [...document.querySelectorAll(selector)].filter(node => node.getClientRects().length);
  return seen.map(node => {
    const { width, height } = node.getBoundingClientRect();
    return [node.outerHTML.slice(0, 200), width, height];
  });
}"""


@EVERY_STATE
@SIZES
def test_it_fits_and_can_be_touched(on, size, state):
    page = on(STATES[state], size)
    page.evaluate("() => document.querySelectorAll('details').forEach(node => { node.open = true; })")
    width = size["viewport"]["width"]
    assert page.evaluate("() => [innerWidth, document.documentElement.scrollWidth]") == [width, width]
    for html, *sides in page.evaluate(
        SEEN, "button:not(.term), select, input:not(.cell input, [type=checkbox]), .check, summary"
    ):
        assert min(sides) >= 40, html
    coarse = size is PHONE
    for html, _, height in page.evaluate(SEEN, ".term"):
        assert height >= (40 if coarse else 24), html
    for html, across, _ in page.evaluate(SEEN, "#stage [data-index]"):
        assert across >= (40 if state in ("start", "conv") and coarse else 24), html


def test_no_state_is_wider_than_320_pixels(on):
    for link in STATES.values():
        page = on(link, {"viewport": {"width": 320, "height": 640}})
        assert page.evaluate("() => document.documentElement.scrollWidth") == 320, link


@pytest.mark.parametrize("wish", ["reduce", "no-preference"])
def test_reduced_motion(opened, wish):
    page = opened(reduced_motion=wish)
    times = page.evaluate(
        "() => [...document.querySelectorAll('*')].map(node => getComputedStyle(node).transitionDuration)"
    )
    assert any(re.search("[1-9]", time) for time in times) == (wish == "no-preference")


def test_what_a_screen_reader_is_told(on):
    page = on("op=conv&input=4x4&kernel=3x3")
    names = [node.get_attribute("aria-label") for node in page.locator("[role=grid]").all()]
    assert names == ["Input x", "Kernel w", "Output y"]
    assert page.locator("#problem").get_attribute("role") == "alert"
    assert page.locator("#caption").get_attribute("aria-live") == "polite"
    page.locator("#next").click()
    assert page.locator("#scrub").get_attribute("aria-valuetext") == "step 2 of 4"
    assert page.locator("#drawing svg").get_attribute("aria-label") == "C: 9 of 36 entries lit"
    assert page.locator("#stage .y [aria-selected=true]").get_attribute("aria-label").startswith("y[0, 1] = ")
    for name, count in product(("x", "w", "y"), (1,)):
        assert page.locator(f"#stage .{name} [tabindex='0']").count() == count


# -------------------------------------------------------------------------------------- one file


def test_the_page_is_one_file_that_asks_for_nothing(page_file):
    text = page_file.read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert set(re.findall(r"https?://[^\"'\s]+", text)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert not re.search(r"""\b(src|href)=["'](?!data:)""", text)
    assert len(text) < 200_000


def test_what_it_starts_with_is_replaced_and_nothing_else(tmp_path):
    explorer.write(tmp_path / "a.html")
    explorer.write(tmp_path / "b.html", {"op": "conv", "input": (3,), "kernel": (np.int64(2),)})
    a, b = (
        explorer._CONFIGURATION.split((tmp_path / name).read_text(encoding="utf-8")) for name in ("a.html", "b.html")
    )
    assert a == b
    assert len(a) == 2
