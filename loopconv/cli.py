"""`python -m loopconv`: what this machine has, whether every backend is right, a demonstration, and explanations."""

from __future__ import annotations

import argparse
import math
import os
import platform
import re
import sys
from importlib import import_module, metadata
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np

import loopconv
from loopconv import arrays, geometry, reference, registry, threads
from loopconv.cases import CASES


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand and return the exit status: 0, or 1 for a failed check or a missing extra.

    Parameters
    ----------
    argv : list of str, optional
        The arguments; those of the process by default.

    Returns
    -------
    int

    Raises
    ------
    SystemExit
        With status 2 for bad arguments, after saying what is wrong with them.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help()
        return 0
    try:
        status = arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads, `head` say, has seen enough; at exit the rest would fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _parser():
    parser = argparse.ArgumentParser(prog="python -m loopconv", description=loopconv.__doc__)
    commands = parser.add_subparsers(dest="command", metavar="command")

    info = commands.add_parser("info", help="versions, processor, threads, cache and backends")
    info.set_defaults(run=_info)

    check = commands.add_parser("check", help="every backend against the reference, with times")
    check.add_argument("--backend", nargs="+", choices=list(by_backend()), metavar="NAME", help="only these")
    dtypes = [np.dtype(code).name for code in dict.fromkeys(arrays.COMPUTE.values())]
    check.add_argument("--dtype", nargs="+", choices=dtypes, metavar="NAME", default=["float32", "float64"],
                       help=f"of {', '.join(dtypes)}; by default float32 float64")  # fmt: skip
    check.set_defaults(run=_check)

    demo = commands.add_parser("demo", help="filter a photograph, learn the way back, and draw a picture of it")
    demo.add_argument("--output", type=Path, default=Path("loopconv-demo.png"), metavar="FILE",
                      help="the picture; by default %(default)s")  # fmt: skip
    demo.add_argument("--steps", type=_positive, default=200, metavar="N", help="of learning; by default %(default)s")
    demo.set_defaults(run=_demo, error=demo.error)
    _add_explain(commands)
    _add_bench(commands)
    return parser


def _add_explain(commands):
    explain = commands.add_parser(
        "explain", help="sizes, products, way back and work of one convolution", description=EXPLAIN
    )
    explain.add_argument("--input", type=_sizes, required=True, metavar="SIZES", help="pixels of x: 9, 5x5 or 4x5x5")
    explain.add_argument("--kernel", type=_sizes, required=True, metavar="SIZES", help="taps of w: 3, 3x3 or 2x3x3")
    explain.add_argument("--stride", type=_sizes, default=1, metavar="SIZES", help="by default %(default)s")
    explain.add_argument("--padding", type=_padding, default=0, metavar="PIXELS",
                         help="1, 1x2, or 0,1x2,1 for lo,hi on each axis, or valid, same or full; --padding=-1 crops; "
                         "by default %(default)s")  # fmt: skip
    explain.add_argument("--dilation", type=_sizes, default=1, metavar="SIZES", help="by default %(default)s")
    explain.add_argument("--channels", type=_positive, default=1, metavar="N", help="of x; by default %(default)s")
    explain.add_argument(
        "--filters", type=_positive, default=1, metavar="N", help="channels of y; by default %(default)s"
    )
    explain.add_argument("--groups", type=_positive, default=1, metavar="N", help="by default %(default)s")
    explain.add_argument("--transposed", action="store_true", help="a conv_transpose")
    explain.add_argument("--output-padding", type=_pixels, metavar="PIXELS", help="of a conv_transpose: 1 or 1x0")
    explain.add_argument("--output-size", type=_pixels, metavar="SIZES", help="of a conv_transpose, instead: 9 or 9x8")
    explain.add_argument("--figure", type=Path, metavar="FILE", help="draw it: .png, .svg, .pdf, or moving .gif, .mp4")
    explain.add_argument("--html", type=Path, metavar="FILE", help="write the explorer, a page that starts with it")
    explain.set_defaults(run=_explain, error=explain.error)


def _add_bench(commands):
    bench = commands.add_parser(
        "bench", help="the public functions, or plans, against PyTorch and other peers; with --backend cuda on a GPU"
    )
    bench.add_argument("--layers", type=Path, metavar="CSV", help="by default benchmarks/layers.csv; per axis: 0x3")
    bench.add_argument("--ops", type=_ops, metavar="NAMES", help="of forward,input_grad,weight_grad; by default all")
    bench.add_argument("--threads", type=_positive, metavar="N", help="of ours and of the peers; by default all")
    bench.add_argument("--peers", type=_peers, metavar="NAMES",
                       help="of torch,onnxruntime,openvino,scipy,im2col, or none; by default the first three, "
                            "where installed")  # fmt: skip
    bench.add_argument("--backend", choices=list(by_backend()), metavar="NAME", help="ours; by default the fastest")
    bench.add_argument("--plan", action="store_true", help="ours are plans, made once: forward only")
    bench.add_argument("--json", type=Path, metavar="FILE", help="what benchmarks/report.py reads")
    bench.set_defaults(run=_bench, error=bench.error)


def _ops(text):
    from loopconv import bench

    return bench.names(text, bench.OPS)


def _peers(text):
    from loopconv import bench

    return [] if text == "none" else bench.names(text, bench.PEERS)


def _sizes(text):
    return _per_axis(text, 1)


def _pixels(text):
    return _per_axis(text, 0)


def _per_axis(text, least):
    """An int, or a tuple of them where there is an x; 5x4 is (5, 4)."""
    if not re.fullmatch(r"\d{1,9}(x\d{1,9})*", text, re.ASCII) or min(map(int, text.split("x"))) < least:
        raise argparse.ArgumentTypeError(f"must be numbers from {least} to 999999999 like 3 or 3x4, got {text!r}")
    axes = tuple(map(int, text.split("x")))
    return axes if len(axes) > 1 else axes[0]


def _padding(text):
    """A word, an int, or a tuple of ints and of (lo, hi) pairs; 0,1x2 is ((0, 1), 2)."""
    if text in geometry.PADDING_WORDS:
        return text
    if not re.fullmatch(r"-?\d{1,9}(,-?\d{1,9})?(x-?\d{1,9}(,-?\d{1,9})?)*", text, re.ASCII):
        words = ", ".join(geometry.PADDING_WORDS)
        raise argparse.ArgumentTypeError(f"must be numbers like 1, 1x2 or 0,1x2,1, or one of {words}, got {text!r}")
    axes = [tuple(map(int, axis.split(","))) for axis in text.split("x")]
    if len(axes) == 1 and len(axes[0]) == 1:
        return axes[0][0]
    return tuple(axis if len(axis) > 1 else axis[0] for axis in axes)


def _positive(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)


def by_backend() -> dict[str, list[registry.Implementation]]:
    """Every backend's rows of the registry, backends in order of preference."""
    rows: dict[str, list[registry.Implementation]] = {}
    for row in registry.implementations():
        rows.setdefault(row.backend, []).append(row)
    return rows


def table(header, rows, align) -> str:
    """Lines of cells under `header`; `align` has one of < and > for every column."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    lines = ("  ".join(f"{cell:{a}{n}}" for cell, a, n in zip(row, align, widths)) for row in (header, *rows))
    return "\n".join(line.rstrip() for line in lines)


def progress(text: str) -> None:
    """Show `text` in place of what was shown before, where somebody watches."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


# --------------------------------------------------------------------------------------------- info


def _info(_):
    facts = {
        "loopconv": f"{loopconv.__version__}, in {Path(loopconv.__file__).parent}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "NumPy": np.__version__,
        **{name: version(name) for name in ("Numba", "llvmlite", "numba-cuda", "SciPy", "Cython")},
        "extensions": _extensions(),
        "platform": platform.platform(),
        "processor": known(processor),
        "cores": f"{_cores()} usable of {os.cpu_count()}",
        "threads": f"{threads.get_num_threads()} in use; layer of the backend 'parallel': {known(_threading_layer)}",
        "cache": known(_cache),
        "GPU": known(_gpus),
    }
    for name, fact in facts.items():
        print(f"{name:<12}{fact}")
    print("\nbackends, in order of preference")
    for name, state in registry.backends().items():
        print(f"  {name:<12}{state}")
    return 0


def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def known(fact):
    """What `fact()` says, or why it cannot say it."""
    try:
        return fact()
    except (ImportError, RuntimeError, ValueError) as error:
        return f"unknown ({error})"


def _extensions():
    """Who built the `cython` backend: Cython names the type of its functions after its own version."""
    try:
        kind = type(import_module("loopconv.loops.cythonized.forward").forward)
    except ImportError:
        return "not built"
    return f"built by Cython {kind.__module__.removeprefix('_cython_').replace('_', '.')}"


# What the kernels can use, as LLVM calls it.
FEATURES = ("avx2", "fma", "f16c", "avx512f", "avx512vl", "avx512bf16", "avx512fp16", "neon", "sve")


def processor():
    binding = import_module("llvmlite.binding")
    features = binding.get_host_cpu_features()
    return f"{binding.get_host_cpu_name()} with {' '.join(name for name in FEATURES if features.get(name))}"


def _cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _threading_layer():
    numba = import_module("numba")
    numba.get_num_threads()  # starts the threads, and there is no layer before
    return numba.threading_layer()


def _cache():
    path = import_module("loopconv.loops.compile").kernel("forward", parallel=False).stats.cache_path
    return path or "none: no directory is writable, so every process compiles anew"


def _gpus():
    if (state := registry.backends()["cuda"]) != "ready":
        return f"none: {state}"
    gpu = import_module("loopconv.cuda.gpu")
    return "; ".join(map(gpu.description, range(gpu.count()))) if not gpu.is_simulated() else "Numba's simulator"


# -------------------------------------------------------------------------------------------- check

RESULT = {"forward": "y", "adjoint": "x", "weight": "w"}


class Problem(NamedTuple):
    """One contraction of one geometry: what goes in, and what has to come out."""

    name: str
    geometry: loopconv.geometry.Geometry
    arrays: dict[str, np.ndarray]
    expected: np.ndarray
    allowed: np.ndarray


class Outcome(NamedTuple):
    """Worst error as a fraction of the tolerance, and the seconds of one call."""

    error: float
    seconds: float


def random_arrays(geometry, dtype) -> dict[str, np.ndarray]:
    """x, w and y of `geometry`: standard normal numbers, or integers below 100."""
    rng = np.random.default_rng(0)

    def draw(shape):
        if dtype.kind in "iu":
            return rng.integers(0 if dtype.kind == "u" else -99, 100, shape).astype(dtype)
        values = rng.standard_normal(shape)
        return (values + 1j * rng.standard_normal(shape) if dtype.kind == "c" else values).astype(dtype)

    return {role: draw(getattr(geometry, f"{role}_shape")) for role in "xwy"}


def expectation(geometry, contraction, operands) -> tuple[np.ndarray, np.ndarray]:
    """(what the reference gives in double precision, the error that rounding in the operands' dtype may make)."""
    dtype = operands["x"].dtype
    wide = np.result_type(dtype, np.float64) if dtype.kind in "fc" else dtype
    exact = {role: array.astype(wide) for role, array in operands.items()}
    magnitudes = {role: np.abs(array) for role, array in exact.items()}
    for given in (exact, magnitudes):
        getattr(reference, contraction)(geometry, **given)
    role = RESULT[contraction]
    return exact[role], registry.tolerance(geometry, contraction, dtype) * magnitudes[role]


def measure(row, problem, calls=2) -> Outcome:
    """Worst error of all `calls`, and the shortest time but for the first, which may compile."""
    run, role = registry.loaded(row), RESULT[row.contraction]
    operands = {**problem.arrays, role: np.empty_like(problem.arrays[role])}
    errors, seconds = [], []
    for _ in range(calls):
        operands[role].fill(np.nan if operands[role].dtype.kind in "fc" else 77)  # no cell may stay unwritten
        started = perf_counter()
        run(problem.geometry, **operands)
        seconds.append(perf_counter() - started)
        errors.append(worst_error(operands[role], problem))
    return Outcome(float(np.max(errors)), min(seconds[1:]))


def worst_error(result, problem):
    """Largest error as a fraction of what is allowed; NaN where there is one."""
    with np.errstate(all="ignore"):
        error = np.abs(result - problem.expected)
        return np.max(np.where(error == 0, 0.0, error / problem.allowed), initial=0.0)


def _problems(contraction, dtype):
    problems = []
    for case in CASES:
        operands = random_arrays(case.geometry, dtype)
        expected = expectation(case.geometry, contraction, operands)
        problems.append(Problem(case.name, case.geometry, operands, *expected))
    return problems


HEADER = ("backend", "contraction", "dtype", "cases", "error/tolerance", "worst case", "ms", "result")


def _check(arguments):
    started = perf_counter()
    backends = by_backend()
    dtypes = [np.dtype(name) for name in dict.fromkeys(arguments.dtype)]
    problems = {(c, dtype): _problems(c, dtype) for c in registry.CONTRACTIONS for dtype in dtypes}
    lines = []
    for backend in dict.fromkeys(arguments.backend or backends):
        if reason := backends[backend][0].missing():
            lines.append((backend, "", "", "0", "", "", "", f"cannot run: {reason}"))
            continue
        for row, dtype in product(backends[backend], dtypes):
            progress(f"{backend} {row.contraction} {dtype}")
            lines.append(_check_row(row, dtype, problems[row.contraction, dtype]))
    progress("")
    print(table(HEADER, lines, "<<<>><><"))
    return _summary(lines, perf_counter() - started)


def _check_row(row, dtype, problems):
    """The line of one implementation and dtype."""
    outcomes = {}
    reason = ""
    for problem in problems:
        if unsupported := row.unsupported(problem.geometry, dtype):
            reason = unsupported
            continue
        try:
            outcomes[problem.name] = measure(row, problem)
        except Exception as error:  # whatever a broken backend raises is its result
            what = f"FAIL: {type(error).__name__}: {error}".splitlines()[0]
            return row.backend, row.contraction, dtype.name, str(len(outcomes)), "", problem.name, "", what
    if not outcomes:
        return row.backend, row.contraction, dtype.name, "0", "", "", "", f"cannot run: {reason}"
    worst, outcome = max(outcomes.items(), key=lambda item: math.inf if math.isnan(item[1].error) else item[1].error)
    milliseconds = 1e3 * sum(outcome.seconds for outcome in outcomes.values())
    result = "pass" if outcome.error <= 1 else "FAIL"
    return (row.backend, row.contraction, dtype.name, str(len(outcomes)), f"{outcome.error:.2f}",
            worst, f"{milliseconds:.1f}", result)  # fmt: skip


def _summary(lines, seconds):
    """Say how it went and return the exit status: a check of nothing is no pass."""
    failed = sum(line[-1].startswith("FAIL") for line in lines)
    passed = sum(line[-1] == "pass" for line in lines)
    cases = sum(int(line[3]) for line in lines)
    verdict = f"{failed} of {failed + passed} rows FAIL" if failed else f"all {passed} rows pass"
    missing = f"; {len(lines) - failed - passed} cannot run here" if failed + passed < len(lines) else ""
    print(f"\n{cases} cases in {seconds:.0f} s: {verdict if failed + passed else 'nothing was checked'}{missing}.")
    return 0 if passed and not failed else 1


# --------------------------------------------------------------------------------------------- demo


def _demo(arguments):
    from loopconv import demo

    if problem := demo.output_problem(arguments.output):
        arguments.error(problem)
    try:
        demo.require()
    except ImportError as error:
        print(f"the demo needs matplotlib and tqdm ({error}): pip install 'loopconv[demo]'", file=sys.stderr)
        return 1
    demo.run(arguments.output, arguments.steps)
    return 0


# ------------------------------------------------------------------------------------------ explain

EXPLAIN = "Sizes, products, way back and work of a convolution. One number stands for all axes."


def _explain(arguments):
    from loopconv import explain_text

    return explain_text.run(arguments)


# -------------------------------------------------------------------------------------------- bench


def _bench(arguments):
    module = "loopconv.bench_gpu" if arguments.backend == "cuda" else "loopconv.bench"
    return import_module(module).run(arguments)
