"""What `pytest benchmarks` runs: the layers of layers.csv x contractions x the backends of the registry."""

import csv
import re
import shlex
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import loopconv
from loopconv import registry
from loopconv.cases import Case

# The contraction that a layer's public function runs.
CALLS = {"conv": "forward", "conv_transpose": "adjoint"}


def pytest_addoption(parser):
    group = parser.getgroup("loopconv")
    for name in ("layers", "backends"):
        group.addoption(f"--{name}", default="", metavar="REGEX", help=f"only {name} whose name begins like this")


def _case(row):
    spatial, kernel = (tuple(map(int, row[key].split("x"))) for key in ("spatial", "kernel"))
    n, c_in, c_out, groups = (int(row[key]) for key in ("n", "c_in", "c_out", "groups"))
    channels = (c_out, c_in // groups) if row["op"] == "conv" else (c_in, c_out // groups)
    names = ["stride", "padding", "dilation", "groups"] + ["output_padding"] * (row["op"] == "conv_transpose")
    return Case(
        row["name"], row["op"], (n, c_in, *spatial), (*channels, *kernel), {name: int(row[name]) for name in names}
    )


with open(Path(__file__).with_name("layers.csv"), newline="", encoding="utf-8") as _file:
    LAYERS = {row["name"]: _case(row) for row in csv.DictReader(_file)}


@pytest.fixture
def case(layer):
    """The layer of this name, as a case."""
    return LAYERS[layer]


def pytest_generate_tests(metafunc):
    # Layers are outermost: the suite keeps the expected results of one at a time.
    options = metafunc.config.option
    runs = [
        (name, contraction, backend)
        for name, layer in LAYERS.items()
        if re.match(options.layers, name)
        for contraction in registry.CONTRACTIONS
        for backend in [
            *(row.backend for row in registry.implementations() if row.contraction == contraction),
            *["call"] * (CALLS[layer.op] == contraction),
        ]
        if re.match(options.backends, backend)
    ]
    metafunc.parametrize(("layer", "contraction", "backend"), runs)


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["threads"] = loopconv.get_num_threads()
    machine_info["versions"] = {name: _version(name) for name in ("loopconv", "numpy", "numba", "llvmlite")}
    arguments = [text for text in config.invocation_params.args if not text.startswith("--benchmark-json")]
    machine_info["command"] = shlex.join(["pytest", *arguments])


def _version(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
