"""The compiled kernels of the room cuda/, run on the host by ptx_machine.py."""

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.mark.skipif(find_spec("numba_cuda") is None, reason="numba-cuda is not installed")
@pytest.mark.skipif(find_spec("nvidia") is None, reason="libnvvm, the compiler, is not installed")
@pytest.mark.skipif(not (shutil.which("cc") and sys.platform == "linux"), reason="there is no C compiler for Linux")
def test_what_the_compiled_kernels_do():
    """In two processes at a time, what is compiled is for devices."""
    tests = Path(__file__).with_name("cuda_on_ptx_machine.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests), "-k"]
    device = {key: value for key, value in os.environ.items() if key != "NUMBA_ENABLE_CUDASIM"}
    halves = [
        subprocess.Popen([*command, half], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=device)
        for half in ("weight or textbook", "not weight and not textbook")
    ]
    for half in halves:
        said = half.communicate()[0]
        assert half.returncode == 0, said
        assert re.search(r"\d+ passed", said)
