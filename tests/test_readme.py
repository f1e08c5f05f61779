"""README.md does what it says: its Python runs, its doctests hold, its commands parse."""

import doctest
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from loopconv import cli, registry

README = Path(__file__).parents[1] / "README.md"


def python_blocks():
    """(line of the file that it starts on, text) of every block marked as Python."""
    text = README.read_text(encoding="utf-8")
    return [
        (text.count("\n", 0, match.start(1)), match[1])
        for match in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    ]


def test_python_blocks_run(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    # What the README registers is forgotten afterwards.
    monkeypatch.setattr(registry, "_table", list(registry._table))
    monkeypatch.setattr(registry, "_loaded", dict(registry._loaded))
    namespace = {"__name__": "README"}
    blocks = python_blocks()
    assert blocks
    for line, block in blocks:
        if ">>>" in block:
            test = doctest.DocTestParser().get_doctest(block, namespace, README.name, str(README), line)
            test.globs = namespace  # not the copy that DocTest makes: later blocks go on with these names
            runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
            printed = []
            runner.run(test, out=printed.append, clear_globs=False)
            assert not runner.failures, "".join(printed)
        else:  # the empty lines give a traceback the line numbers of the file
            exec(compile("\n" * line + block, str(README), "exec"), namespace)


def test_commands_parse():
    commands = re.findall(r"python -m loopconv\b([^`\n&|;]*)", README.read_text(encoding="utf-8"))
    assert commands
    for command in commands:
        try:
            cli._parser().parse_args(shlex.split(command, comments=True))
        except SystemExit:
            pytest.fail(f"README.md has `python -m loopconv{command}`, which does not parse")


def test_pictures_are_there_and_one_moves():
    pictures = re.findall(r"^!\[(.*)\]\((.*)\)$", README.read_text(encoding="utf-8"), re.MULTILINE)
    frames = []
    for words, name in pictures:
        assert len(words) > 30  # for those who do not see it
        with Image.open(README.parent / name) as image:
            frames.append(getattr(image, "n_frames", 1))
    assert sum(count > 1 for count in frames) == 1


def test_test_command_is_marked():
    """.ci/run runs the block after this marker."""
    assert re.search(r"^<!-- test-command -->\n```\w*\n(.+\n)+```$", README.read_text(encoding="utf-8"), re.MULTILINE)
