"""The tuned kernels of the room cuda/: in the simulator, and through the assembler."""

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "loopconv" / "cuda" / "README.md"

needs_numba_cuda = pytest.mark.skipif(find_spec("numba_cuda") is None, reason="numba-cuda is not installed")


@needs_numba_cuda
def test_what_runs_in_the_simulator():
    """In two processes at a time, as it takes two minutes in one."""
    tests = Path(__file__).with_name("cuda_tiled_in_simulator.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests), "-k"]
    settings = {"text": True, "env": {**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}}
    halves = [
        subprocess.Popen([*command, half], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **settings)
        for half in ("cases", "not cases")
    ]
    for half in halves:
        said = half.communicate()[0]
        assert half.returncode == 0, said
        assert re.search(r"\d+ passed", said)


needs_compiler = pytest.mark.skipif(find_spec("nvidia") is None, reason="libnvvm, the compiler, is not installed")
# What is compiled is for devices.
DEVICE = {key: value for key, value in os.environ.items() if key != "NUMBA_ENABLE_CUDASIM"}

PRINT_PTX = """
from loopconv.cuda import assembled, build
print(build.compiled(*assembled.kernels((9, 0))["sum float32 pointwise"], (9, 0)).text)
"""


@needs_numba_cuda
@needs_compiler
def test_copies_are_asynchronous_and_wide():
    done = subprocess.run([sys.executable, "-c", PRINT_PTX], capture_output=True, text=True, env=DEVICE)
    assert done.returncode == 0, done.stderr
    for instruction in ("cp.async.cg.shared.global", "ld.global.v4", "ld.shared.v4.f32", "st.global.v4.f32"):
        assert instruction in done.stdout
    # sixteen steps of 8 x 8: no loop is left of them
    assert done.stdout.count("fma.rn.f32") == 16 * 64


@needs_numba_cuda
@needs_compiler
@pytest.mark.skipif(not shutil.which("ptxas"), reason="ptxas, the assembler, is not on the PATH")
def test_what_the_assembler_says():
    """Every tuned kernel is in README.md's table, needs no more registers than there, and spills none."""
    command = [sys.executable, "-m", "loopconv.cuda.assembled"]
    done = subprocess.run(command, capture_output=True, text=True, env=DEVICE)
    assert done.returncode == 0, done.stderr
    found, stated = (
        table(done.stdout),
        table(README.read_text(encoding="utf-8").partition("## What the assembler says")[2]),
    )
    assert len(found) > 30
    assert found.keys() == stated.keys()
    for name, (*fixed, registers_80, registers_90) in found.items():
        assert fixed == stated[name][:3], name
        assert int(registers_80) <= int(stated[name][3]), name
        assert int(registers_90) <= int(stated[name][4]), name


def table(text):
    """name -> (threads, blocks, shared memory, registers of 8.0, of 9.0) of the table's lines."""
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    return {name: numbers for name, *numbers in lines if numbers[0].isdigit()}
