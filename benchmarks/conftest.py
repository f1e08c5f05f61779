"""What `pytest benchmarks` runs: layers of layers.csv x contractions x backends of the registry x algorithms."""

import re
import shlex
from pathlib import Path

import pytest

import loopconv
from loopconv import registry
from loopconv.bench import read_layers
from loopconv.cli import version
from loopconv.peers import CONTRACTION


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
        (name, contraction, backend, algorithm)
        for name, layer in LAYERS.items()
        if re.match(options.layers, name)
        for contraction in registry.CONTRACTIONS
        for backend, algorithm in ways(layer, contraction)
        if re.match(options.backends, backend)
    ]
    ids = ["-".join(filter(None, run)) for run in runs]
    metafunc.parametrize(("layer", "contraction", "backend", "algorithm"), runs, ids=ids)


def ways(layer, contraction):
    """Every (backend, algorithm) for one contraction of a layer; None is what the backend chooses itself."""
    g, result = layer.geometry, []
    for row in registry.implementations():
        if row.contraction == contraction:
            algorithms = () if row.missing() else row.algorithms(g)
            result += [(row.backend, algorithm) for algorithm in (None, *algorithms)]
    return result + [("call", None)] * (CONTRACTION[layer.op]["forward"] == contraction)


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["threads"] = loopconv.get_num_threads()
    machine_info["versions"] = {name: version(name) for name in ("loopconv", "numpy", "numba", "llvmlite")}
    given = iter(config.invocation_params.args)
    saved = "--benchmark-json"
    # where the result goes is no part of what was measured; the file follows after = or as the next argument
    kept = [text for text in given if not text.startswith(f"{saved}=") and not (text == saved and next(given))]
    machine_info["command"] = shlex.join(["pytest", *kept])
