"""What `pytest benchmarks` runs: the layers of layers.csv x contractions x the backends of the registry."""

import re
import shlex
from pathlib import Path

import pytest

import loopconv
from loopconv import registry
from loopconv.bench import CONTRACTION, read_layers
from loopconv.cli import version


def pytest_addoption(parser):
    group = parser.getgroup("loopconv")
    for name in ("layers", "backends"):
        group.addoption(f"--{name}", default="", metavar="REGEX", help=f"only {name} whose name begins like this")


LAYERS = read_layers(Path(__file__).with_name("layers.csv"))


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
            *["call"] * (CONTRACTION[layer.op]["forward"] == contraction),
        ]
        if re.match(options.backends, backend)
    ]
    metafunc.parametrize(("layer", "contraction", "backend"), runs)


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["threads"] = loopconv.get_num_threads()
    machine_info["versions"] = {name: version(name) for name in ("loopconv", "numpy", "numba", "llvmlite")}
    arguments = [text for text in config.invocation_params.args if not text.startswith("--benchmark-json")]
    machine_info["command"] = shlex.join(["pytest", *arguments])
