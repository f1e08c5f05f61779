"""docs/lessons: every lesson runs on its own and asserts what it says, and its page shows this very text."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "lessons"
LESSONS = sorted(FOLDER.glob("[0-9]*.py"))
EACH = pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)


def cells(lesson):
    """The text of every cell of a lesson: Markdown without its comment signs, code as it is."""
    _, *parts = re.split(r"^# %%(.*)\n", lesson.read_text(encoding="utf-8"), flags=re.M)
    for kind, body in zip(parts[::2], parts[1::2]):
        if kind.strip() == "[markdown]":
            body = re.sub(r"^# ?", "", body, flags=re.M)
        yield body.strip()


def page_of(lesson):
    return lesson.with_suffix(".md").read_text(encoding="utf-8")


def pictures_of(page):
    """(words, path below docs/lessons) of every picture of a page."""
    return re.findall(r"^!\[(.*)\]\((.*)\)$", page, flags=re.M)


def assert_is_a_picture(path):
    """A slide on which something is drawn: neither all white nor all of one kind of cell."""
    with Image.open(path) as image:
        assert image.size == (1280, 720)
        grey = np.asarray(image.convert("L"))
    ink = grey < 250
    assert 0.01 < ink.mean() < 0.9
    assert ink[:100].any()  # a title
    assert ink[100:].any(axis=0).mean() > 0.3  # and something below it that is not small
    assert len(np.unique(grey)) > 10


def test_there_are_six():
    assert [path.name[:2] for path in LESSONS] == ["01", "02", "03", "04", "05", "06"]


@EACH
def test_runs_without_a_warning_and_draws(lesson, tmp_path):
    command = [sys.executable, "-W", "error", str(lesson)]
    environment = {**os.environ, "MPLBACKEND": "Agg"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    drawn = sorted((tmp_path / "lesson-pictures").iterdir())
    assert len(drawn) >= 1
    for path in drawn:
        assert f"[picture: {path.relative_to(tmp_path)}]" in done.stdout
        assert_is_a_picture(path)
    # The page shows the same ones.
    assert sorted(Path(name).name for _, name in pictures_of(page_of(lesson))) == [path.name for path in drawn]


@EACH
def test_the_page_is_that_of_the_lesson(lesson):
    page, position = page_of(lesson), 0
    for cell in cells(lesson):
        found = page.find(cell, position)
        assert found >= 0, (
            f"{lesson.stem}.md does not have, or not in this place: python docs/lessons/render.py\n{cell}"
        )
        position = found + len(cell)
    assert "Traceback" not in page
    assert "Error:" not in page


@EACH
def test_the_pictures_of_the_page(lesson):
    pictures = pictures_of(page_of(lesson))
    assert pictures
    for words, name in pictures:
        assert len(words) > 30  # for those who do not see it
        assert_is_a_picture(FOLDER / name)


def test_no_picture_is_left_over():
    shown = {name for lesson in LESSONS for _, name in pictures_of(page_of(lesson))}
    assert shown == {path.relative_to(FOLDER).as_posix() for path in (FOLDER / "images").iterdir()}


@EACH
def test_ends_with_the_loops_of_the_library(lesson):
    headings = re.findall(r"^# ## (.+)$", lesson.read_text(encoding="utf-8"), flags=re.M)
    assert headings[-2:] == ["Run the library's loops", "Try it"]
    assert lesson.read_text(encoding="utf-8").count("assert ") >= 5


def test_links_lead_somewhere():
    for path in [*FOLDER.glob("*.md"), *LESSONS]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (path.parent / target).exists(), f"{path.name}: {target}"


@pytest.mark.parametrize("index", [ROOT / "README.md", FOLDER / "README.md"], ids=["README", "lessons"])
def test_all_lessons_are_listed(index):
    targets = re.findall(r"\]\(([^)]+\.md)\)", index.read_text(encoding="utf-8"))
    pages = [(index.parent / target).resolve() for target in targets]
    assert [page for page in pages if page.name[0].isdigit()] == [lesson.with_suffix(".md") for lesson in LESSONS]
