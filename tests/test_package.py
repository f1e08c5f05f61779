"""The package as such: what an import costs, what is documented, and rules that its sources keep."""

import ast
import doctest
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import loopconv
from loopconv import registry

PACKAGE = Path(loopconv.__file__).parent
ROOT = Path(__file__).parent.parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
FUNCTIONS = [name for name in loopconv.__all__ if inspect.isfunction(getattr(loopconv, name))]
WITH_RANK = [f"{name}{rank}d" for name in ("conv", "conv_transpose") for rank in (1, 2, 3)]


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


# --------------------------------------------------------------------------------------------- imports


def test_import_is_light():
    code = """
import sys, loopconv
loopconv.backends()
loopconv.conv([[1.0, 2.0]], [[[1.0]]], backend="python")
heavy = ("numba", "llvmlite", "matplotlib", "scipy", "tqdm", "pytest", "torch", "Cython")
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


def test_every_module_imports():
    for path in SOURCES:
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if parts[-1] != "__main__":
            importlib.import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))


def test_version_is_that_of_pyproject():
    (version,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    assert loopconv.__version__ == version


def test_types_are_declared():
    assert (PACKAGE / "py.typed").is_file()


# --------------------------------------------------------------------------------------- documentation


def test_all_names_what_is_public():
    public = {
        name
        for name, value in vars(loopconv).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }  # fmt: skip
    assert set(loopconv.__all__) == public | {"__version__"}
    assert len(loopconv.__all__) == len(set(loopconv.__all__))
    assert list(loopconv.__all__) == sorted(loopconv.__all__)


def sections(function):
    """Section titles of a numpydoc docstring and the lines below each."""
    lines = inspect.getdoc(function).splitlines()
    found, title = {}, "summary"
    for line, below in zip(lines, [*lines[1:], ""]):
        if line and set(below) == {"-"} and len(below) == len(line):
            title = line
        elif set(line) != {"-"}:
            found.setdefault(title, []).append(line)
    return found


def documented_parameters(function):
    lines = sections(function).get("Parameters", [])
    heads = [line.split(" : ")[0] for line in lines if line and not line.startswith(" ")]
    return [name.strip() for head in heads for name in head.split(",")]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstrings_name_every_parameter(name):
    function = getattr(loopconv, name)
    if name in WITH_RANK:
        assert f"as `{function.__wrapped__.__name__}`" in " ".join(function.__doc__.split())
        assert f"{name[-2]} spatial ax" in function.__doc__
        return
    found = sections(function)
    (summary,) = "\n".join(found["summary"]).strip().split("\n\n")[:1]
    assert "\n" not in summary
    assert summary.endswith(".")
    parameters = list(inspect.signature(function).parameters)
    documented = documented_parameters(function)
    assert sorted(documented) == sorted(parameters)
    if name != "set_num_threads":
        assert "Returns" in found
    if name not in ("backends", "get_num_threads"):
        assert "Raises" in found


def test_the_signature_of_the_functions_of_one_rank():
    for name in WITH_RANK:
        function = getattr(loopconv, name)
        assert function.__name__ == function.__qualname__ == name
        assert inspect.signature(function) == inspect.signature(getattr(loopconv, name[:-2]))


def test_classes_and_modules_are_documented():
    assert loopconv.Gradients.__doc__.startswith("Gradients ")
    assert loopconv.Gradients._fields == ("input", "weight", "bias")
    for path in SOURCES:
        assert path.name.startswith("__") or ast.get_docstring(tree(path)), path.name
    for node in ast.walk(tree(PACKAGE / "registry.py")):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name


@pytest.mark.parametrize("module", ["ops", "matrix", "gradcheck", "explain", "einsum"])
def test_examples(module):
    result = doctest.testmod(importlib.import_module(f"loopconv.{module}"))
    assert result.attempted > 0
    assert result.failed == 0


# -------------------------------------------------------------------------------- rules of the sources


@pytest.mark.parametrize("name", ["forward", "adjoint", "weight"])
def test_kernels_hold_loops_and_nothing_else(name):
    module = tree(PACKAGE / "loops" / f"{name}.py")
    kinds = [type(node) for node in module.body]
    assert kinds == [ast.Expr, ast.ImportFrom, ast.FunctionDef]
    assert ast.unparse(module.body[1]) == "from loopconv.loops import prange"
    assert module.body[2].name == name
    allowed = (ast.Expr, ast.Assign, ast.AugAssign, ast.For)
    statements = [node for node in ast.walk(module.body[2]) if isinstance(node, ast.stmt)][1:]
    assert all(isinstance(node, allowed) for node in statements)
    calls = {ast.unparse(node.func) for node in ast.walk(module.body[2]) if isinstance(node, ast.Call)}
    assert calls == {"prange", "range"}
    loops = [node for node in statements if isinstance(node, ast.For)]
    assert ast.unparse(loops[0].iter.func) == "prange"  # the outermost
    assert [ast.unparse(node.iter.func) for node in loops[1:]] == ["range"] * (len(loops) - 1)


JITS = {"jit", "njit", "vectorize", "guvectorize", "stencil", "cfunc"}
ALLOWED_FLAGS = {"contract", "reassoc"}  # the others assume that there is no NaN, infinity or -0


def test_fastmath_is_explicit_and_never_everything():
    found = 0
    for path in SOURCES:
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func).rpartition(".")[2]
            given = [keyword.value for keyword in node.keywords if keyword.arg == "fastmath"]
            found += len(given)
            assert given or name not in JITS, f"{path.name}:{node.lineno} leaves fastmath to a default"
            for value in given:
                flags = ast.literal_eval(value) if not isinstance(value, ast.Name) else set()
                assert flags is False or set(flags) <= ALLOWED_FLAGS, f"{path.name}:{node.lineno}"
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"@\s*(numba\.)?n?jit\s*$", text, re.M), f"{path.name} has a bare decorator"
        assert not re.search(r"fastmath\s*=\s*True|\bnnan\b|\bninf\b|-ffast-math", text), path.name
    assert found


def test_the_flags_of_the_kernels():
    from loopconv.loops.compile import LOOPS, kernel

    for contraction, (_, flags) in LOOPS.items():
        assert flags <= ALLOWED_FLAGS
        for parallel in (False, True):
            assert set(kernel(contraction, parallel).targetoptions["fastmath"]) == flags


ABSOLUTE = re.compile(r"""(?:^|[\s"'`(=])(?:/[A-Za-z_.][\w.-]*/[\w.-]+|[A-Za-z]:\\\w)""", re.M)


def test_no_paths_of_one_machine():
    assert ABSOLUTE.search(f"x = '{Path(__file__).resolve()}'")  # the pattern finds what it should
    texts = [path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".pxd", ".toml", ".md", ".typed")]
    texts += [path for path in ROOT.iterdir() if path.suffix in (".py", ".toml", ".md", ".cfg")]
    assert len(texts) > len(SOURCES)
    for path in texts:
        hit = ABSOLUTE.search(path.read_text(encoding="utf-8"))
        assert hit is None, f"{path.name}: {hit.group()}"


# ----------------------------------------------------------------------------------- without a compiler


def test_without_the_extension_modules(monkeypatch):
    find = registry.find_spec
    monkeypatch.setattr(registry, "find_spec", lambda name: None if "cythonized" in name else find(name))
    reason = registry._missing_cython()
    assert "not built" in reason
    assert "C compiler" in reason
    assert loopconv.backends()["cython"] == reason
    assert loopconv.backends()["numba"] == "ready"
    x, w = np.arange(12.0).reshape(1, 1, 12), np.ones((1, 1, 3))
    np.testing.assert_array_equal(loopconv.conv(x, w), loopconv.conv(x, w, backend="python"))
    with pytest.raises(ValueError, match=f"^backend='cython' cannot run this call: {re.escape(reason)}$"):
        loopconv.conv(x, w, backend="cython")


def test_without_a_compiler_or_numba(monkeypatch):
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    assert [name for name, state in loopconv.backends().items() if state == "ready"] == ["reference", "python"]
    x, w, y = np.arange(12.0).reshape(1, 1, 12), np.ones((1, 1, 3)), np.ones((1, 1, 10))
    np.testing.assert_array_equal(loopconv.conv(x, w), loopconv.conv(x, w, backend="python"))
    np.testing.assert_array_equal(loopconv.conv_transpose(y, w), loopconv.conv_transpose(y, w, backend="python"))
    grads = loopconv.conv_grads(y, x, w)
    for result, right in zip(grads, loopconv.conv_grads(y, x, w, backend="python")):
        np.testing.assert_array_equal(result, right)
