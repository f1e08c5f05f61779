"""`python -m loopconv bench`: the public functions, or plans, against PyTorch and other peers, layer by layer.

Ours and the peers are verified against the reference, then timed in turn within one run, so that whatever
else the machine does meets all of them.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import shlex
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from math import prod
from pathlib import Path
from statistics import geometric_mean, median
from time import perf_counter, sleep
from typing import Any, NamedTuple

import numpy as np

import loopconv
from loopconv import cli
from loopconv.cases import Case
from loopconv.peers import (
    CONTRACTION,
    DEFAULT_PEERS,
    FORWARD_ONLY,
    MODULES,
    OPS,
    PEERS,
    SPREADING,
    input_and_grad,
)

LAYERS = Path(__file__).parents[1] / "benchmarks" / "layers.csv"
DTYPE = np.dtype(np.float32)
# The backend that plans are of.
PLANNED = "tiled"

# Each of ours and the peers is timed for about so many seconds, in so many rounds; a round repeats a short call.
SECONDS, ROUNDS, ROUND_SECONDS = 0.5, (7, 25), 0.005
# Idle threads of OpenMP spin for 9 ms after a call, on the processors of whoever is next.
PAUSE = 0.012
# A peer may err by so many times the tolerance of our own kernels.
PEER_TOLERANCE = 10


def run(arguments: argparse.Namespace) -> int:
    """Measure, print and save what `arguments` ask for; 0, or 1 if one of our results is wrong."""
    layers, ops, peers = _layers(arguments), _ops(arguments), _peers(arguments)
    if arguments.json and not arguments.json.parent.is_dir():
        arguments.error(f"--json must be a file in a directory that exists, got '{arguments.json}'")
    if arguments.threads:
        loopconv.set_num_threads(arguments.threads)
    threads = loopconv.get_num_threads()
    cells = [(case, op) for case in layers.values() for op in ops]
    make = planned if arguments.plan else partial(ours, backend=arguments.backend)
    before = limits(threads)
    rows = [measure(case, op, make, peers, threads) for case, op in _shown(cells)]
    # what disturbs a measurement of the machine makes it slower
    most = {name: max(value, before[name]) for name, value in limits(threads).items()}
    rows = [row | judged(row, most) for row in rows]
    machine = {**facts(arguments, ops, peers), "threads": threads, **most}
    print(f"{machine['cpu']['brand_raw']}, threads: {threads}; measured {machine['peak_gflops']:.0f} GFLOP/s "
          f"and {machine['bandwidth_gbs']:.1f} GB/s{'; ours are plans' if arguments.plan else ''}\n")  # fmt: skip
    print(report(rows, list(peers)))
    if arguments.json:
        text = json.dumps({"machine_info": machine, "rows": rows}, indent=1, allow_nan=False)
        arguments.json.write_text(text + "\n", encoding="utf-8")
    return int(any(row["wrong"] for row in rows))


# ---------------------------------------------------------------------------------------- arguments


def names(text: str, allowed) -> list[str]:
    """The names in a list like ``a,b``, each once."""
    given = list(dict.fromkeys(text.split(",")))
    if bad := [name for name in given if name not in allowed]:
        raise argparse.ArgumentTypeError(f"must be some of {','.join(allowed)}, got {bad[0]!r}")
    return given


def read_layers(path: Path) -> dict[str, Case]:
    """Every layer of a CSV file as a case, by name, or a ValueError that says in which line it is wrong."""
    layers: dict[str, Case] = {}
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        for row in reader:
            try:
                case = _case(row)
                case.geometry  # noqa: B018 (raises where the sizes do not fit together)
            except KeyError as error:
                raise ValueError(f"line {reader.line_num}: the column {error} is missing") from None
            except (ValueError, TypeError, AttributeError) as error:
                raise ValueError(f"line {reader.line_num}: {error}") from None
            if layers.setdefault(case.name, case) is not case:
                raise ValueError(f"line {reader.line_num}: there is another layer of the name {case.name!r}")
    if not layers:
        raise ValueError("it has no layers")
    return layers


def _case(row):
    if row["op"] not in CONTRACTION:
        raise ValueError(f"op must be one of {', '.join(CONTRACTION)}, got {row['op']!r}")
    spatial, kernel = _numbers(row, "spatial"), _numbers(row, "kernel")
    n, c_in, c_out, groups = (_number(row, key) for key in ("n", "c_in", "c_out", "groups"))
    if groups < 1:
        raise ValueError(f"groups must be at least 1, got {groups}")
    channels = (c_out, c_in // groups) if row["op"] == "conv" else (c_in, c_out // groups)
    each = ["stride", "padding", "dilation"] + ["output_padding"] * (row["op"] == "conv_transpose")
    per_axis = {name: _numbers(row, name) for name in each}
    settings = {name: of[0] if len(of) == 1 else of for name, of in per_axis.items()} | {"groups": groups}
    return Case(row["name"], row["op"], (n, c_in, *spatial), (*channels, *kernel), settings)


def _numbers(row, key):
    """The numbers in a column like 3x2, which has one for each axis."""
    try:
        return tuple(map(int, row[key].split("x")))
    except (ValueError, AttributeError):  # a line may be too short
        raise ValueError(f"{key} must be integers like 3 or 3x2, got {row[key]!r}") from None


def _number(row, key):
    try:
        return int(row[key])
    except (ValueError, TypeError):
        raise ValueError(f"{key} must be an integer, got {row[key]!r}") from None


def _layers(arguments):
    path = arguments.layers or LAYERS
    if not path.is_file():
        said = f"--layers must be a CSV file of layers, got '{path}'"
        arguments.error(said if arguments.layers else "benchmarks/layers.csv is not next to this package; use --layers")
    try:
        return read_layers(path)
    except ValueError as error:
        arguments.error(f"--layers {path.name}: {error}")


def _ops(arguments):
    """What to time of each layer."""
    if not arguments.plan:
        return arguments.ops or OPS
    if others := [op for op in arguments.ops or () if op != "forward"]:
        arguments.error(f"--plan times --ops forward alone, as there are no plans of gradients, got {others[0]!r}")
    if arguments.backend not in (None, PLANNED):
        arguments.error(f"--plan times --backend {PLANNED}, the one that has plans, got {arguments.backend!r}")
    return ("forward",)


def _peers(arguments):
    """The peers to compare with, by name; one that is missing is an error only where it was asked for."""
    found = {}
    for name in DEFAULT_PEERS if arguments.peers is None else arguments.peers:
        try:
            for module in MODULES[name]:
                import_module(module)
        except ImportError as error:
            said = f"the peer {name} cannot be imported ({error}): pip install {' '.join(MODULES[name])}"
            if arguments.peers is not None:
                arguments.error(said)
            print(f"{said}; going on without it", file=sys.stderr)
        else:
            found[name] = PEERS[name]
    return found


def facts(arguments, ops, peers) -> dict[str, Any]:
    """Machine, versions and command, under the names that pytest-benchmark gives them."""
    threads = f"--threads {arguments.threads} " if arguments.threads else ""
    layers = f"--layers {shlex.quote(arguments.layers.name)} " if arguments.layers else ""
    backend = f"--backend {arguments.backend} " if arguments.backend else ""
    modules = dict.fromkeys(module for name in peers for module in MODULES[name])
    return {
        "cpu": {"brand_raw": cli.known(cli.processor)},
        "system": platform.system(),
        "machine": platform.machine(),
        "python_version": platform.python_version(),
        "versions": {name: cli.version(name) for name in ("loopconv", "numpy", "numba", "llvmlite", *modules)},
        "plan": arguments.plan,
        "command": f"python -m loopconv bench {layers}{threads}{backend}{'--plan ' * arguments.plan}"
        f"--ops {','.join(ops)} --peers {','.join(peers) or 'none'}",
    }


# --------------------------------------------------------------------------------- what bounds a layer


def limits(threads: int) -> dict[str, float]:
    """GFLOP/s of fused multiply-adds and GB/s of copying, measured, for all `threads`."""
    return {"peak_gflops": threads * peak() / 1e9, "bandwidth_gbs": bandwidth(threads) / 1e9}


# Factors of the peak's tile, which stay in the first-level cache. Were they the same in each step, the compiler
# would keep them in registers that the tile needs.
DEPTH = 64


def peak(steps: int = 20_000, rounds: int = 300) -> float:
    """FLOP/s of one core on the largest register tile of float32."""
    tiles, workspace = import_module("loopconv.tiled.tiles"), import_module("loopconv.tiled.workspace")
    lanes = tiles.lanes(DTYPE)
    rows, cols = max(tiles.TILES[tiles.registers()], key=prod)
    kernel = _peak_kernel(lanes, rows, cols)
    sizes = DEPTH * rows, DEPTH * cols * lanes, rows * cols * lanes
    # aligned, as vectors across two lines of the cache take longer to load
    a, b, out = (workspace.aligned(size * DTYPE.itemsize).view(DTYPE) for size in sizes)
    a[:], b[:] = 1, 1
    kernel(a, b, out, 1)  # compiles
    seconds = min(_seconds(lambda: kernel(a, b, out, steps // DEPTH)) for _ in range(rounds))
    return 2 * rows * cols * lanes * (steps // DEPTH * DEPTH) / seconds


def _peak_kernel(lanes, rows, cols):
    simd, numba = import_module("loopconv.tiled.simd"), import_module("numba")
    tile_zeros, tile_outer, tile_store = simd.tile_zeros, simd.tile_outer, simd.tile_store

    def kernel(a, b, out, repeats):
        acc = tile_zeros(a, lanes, rows, cols)
        for _ in range(repeats):
            for c in range(DEPTH):
                acc = tile_outer(acc, a, c * rows, 1, b, c * cols * lanes)
        tile_store(acc, out, 0, cols * lanes, lanes)  # or the compiler leaves out what nobody sees

    return numba.njit(kernel, nogil=True, fastmath=False)


def bandwidth(threads: int, size: int = 1 << 28, rounds: int = 7) -> float:
    """Bytes per second read and written while `threads` threads copy arrays of `size` bytes in all."""
    pairs = [(np.ones(size // threads, np.uint8), np.zeros(size // threads, np.uint8)) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:

        def copy():
            list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pairs))

        return 2 * size / min(_seconds(copy) for _ in range(rounds))


# ------------------------------------------------------------------------------------- measurement


class Candidate(NamedTuple):
    """Ours or a peer: what to time, or why not."""

    call: Callable[[], np.ndarray] | None
    note: str = ""


def ours(case, op, arrays, backend) -> Callable[[], np.ndarray]:
    """The public function of this op."""
    (x, grad), w = input_and_grad(case, arrays), arrays["w"]
    function = getattr(loopconv, case.op if op == "forward" else f"{case.op}_{op}")
    given = {"forward": (x, w), "input_grad": (grad, w, x.shape), "weight_grad": (grad, x, w.shape)}[op]
    return lambda: function(*given, backend=backend, **case.settings)


def planned(case, op, arrays) -> Callable[[], np.ndarray]:
    """A plan for this layer, and where it puts its results, both made once."""
    x, grad = input_and_grad(case, arrays)
    plan = getattr(loopconv, f"plan_{case.op}")(arrays["w"], input_shape=x.shape, **case.settings)
    out = np.full_like(grad, np.nan)
    return lambda: plan(x, out)


def measure(case, op, make, peers, threads) -> dict[str, Any]:
    """Verify and time ours, which is `make(case, op, arrays)`, and every peer on one op of one layer."""
    g = case.geometry
    arrays = cli.random_arrays(g, DTYPE)
    contraction = CONTRACTION[case.op][op]
    problem = cli.Problem(case.name, g, arrays, *cli.expectation(g, contraction, arrays))
    even = problem._replace(allowed=np.broadcast_to(np.max(problem.allowed, initial=0), problem.allowed.shape))
    candidates = {"ours": verified(lambda: make(case, op, arrays), problem, 1)}
    for name, peer in peers.items():
        candidates[name] = verified(
            lambda peer=peer: peer(case, op, arrays, threads), even if name in SPREADING else problem, PEER_TOLERANCE
        )
    seconds = interleaved({name: c.call for name, c in candidates.items() if c.call}, PAUSE if threads > 1 else 0)
    others = {name: seconds[name] for name in peers if name in seconds}
    return {
        "layer": case.name, "op": op, "contraction": contraction, "macs": g.macs,
        "bytes": sum(array.nbytes for array in arrays.values()), "seconds": seconds.pop("ours", None),
        "wrong": candidates["ours"].note, "peers": others,
        "notes": {name: c.note for name, c in candidates.items() if c.note and name != "ours"},
    }  # fmt: skip


def verified(make, problem, factor) -> Candidate:
    """What `make()` gives, if its result is within `factor` times the tolerance."""
    try:
        call = make()
        result = call()
    except Exception as failure:  # whatever it raises is its result
        return Candidate(None, " ".join(f"{failure}".split())[:200] or type(failure).__name__)
    if result.shape != problem.expected.shape:
        return Candidate(None, f"differs from the reference: shape {result.shape}, not {problem.expected.shape}")
    error = cli.worst_error(result, problem)
    if not error <= factor:
        return Candidate(None, f"differs from the reference by {error:.3g} times the tolerance")
    return Candidate(call)


def interleaved(calls, pause) -> dict[str, float]:
    """Median seconds of each call, all of them timed in turn, round after round; those of slow ones once."""
    once = {name: _once(call) for name, call in calls.items()}
    repeats = {name: max(1, int(ROUND_SECONDS / seconds)) for name, seconds in once.items()}
    slow = {name for name, seconds in once.items() if seconds >= SECONDS}
    longest = max((once[name] * repeats[name] for name in calls if name not in slow), default=SECONDS)
    rounds = int(np.clip(SECONDS / longest, *ROUNDS))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name, call in calls.items():
            if number and name in slow:
                continue
            sleep(pause)
            if once[name] < 4 * ROUND_SECONDS:
                call()  # wakes its threads and fills the caches
            samples[name].append(_seconds(call, repeats[name]))
    return {name: median(values) for name, values in samples.items()}


def _once(call):
    """About the seconds of one call."""
    first = _seconds(call)
    return first if first >= SECONDS else min(first, _seconds(call))


def _seconds(call, repeats=1):
    started = perf_counter()
    for _ in range(repeats):
        call()
    return (perf_counter() - started) / repeats


def judged(row, machine) -> dict[str, Any]:
    """Speed, share of what bounds the layer, and the comparison with the fastest peer."""
    flops = 2 * row["macs"]
    bounds = {
        "FMA peak": flops / (1e9 * machine["peak_gflops"]), "bandwidth": row["bytes"] / (1e9 * machine["bandwidth_gbs"])
    }  # fmt: skip
    bound = max(bounds, key=lambda name: bounds[name])
    seconds, best = row["seconds"], min(row["peers"], key=lambda name: row["peers"][name], default=None)
    return {
        "gflops": flops / seconds / 1e9 if seconds else None,
        "bound": bound,
        "percent": 100 * bounds[bound] / seconds if seconds else None,
        "best": best,
        "ratio": row["peers"][best] / seconds if best and seconds else None,
    }


def _shown(cells) -> Iterator[tuple[Case, str]]:
    """The cells one by one, with progress where somebody watches."""
    try:
        from tqdm import tqdm
    except ImportError:
        for number, (case, op) in enumerate(cells, 1):
            cli.progress(f"{number}/{len(cells)} {case.name} {op}")
            yield case, op
        cli.progress("")
        return
    with tqdm(cells, disable=None, leave=False) as bar:
        for case, op in bar:
            bar.set_description(f"{case.name} {op}")
            yield case, op


# -------------------------------------------------------------------------------------------- report


def report(rows, peers) -> str:
    """The table of all rows, what went wrong, and the summary."""
    header = ("layer", "op", "ms", "GFLOP/s", "%", "of", *(f"{name} ms" for name in peers), "best peer", "ratio")
    lines = [_line(row, peers) for row in rows]
    parts = [cli.table(header, lines, f"<<>>><{'>' * len(peers)}<>")]
    notes = [f"{row['layer']} {row['op']}: ours {row['wrong']}" for row in rows if row["wrong"]]
    unexpected = [(row, *note) for row in rows for note in row["notes"].items() if note[1] != FORWARD_ONLY]
    notes += [f"{row['layer']} {row['op']}: {name} is not timed: {why}" for row, name, why in unexpected]
    if notes:
        parts.append("\n".join(notes))
    if summary := summaries(rows):
        cells = [(s["op"], s["against"], str(s["layers"]), f"{s['mean']:.2f}", f"{s['worst']:.2f}", s["layer"])
                 for s in summary]  # fmt: skip
        parts.append(cli.table(("op", "against", "layers", "geometric mean", "worst", "layer"), cells, "<<>>><"))
    return "\n\n".join(parts)


def _line(row, peers):
    speed = ["WRONG" if row["wrong"] else "", "", ""]
    if row["seconds"]:
        speed = [number(1e3 * row["seconds"]), number(row["gflops"]), f"{row['percent']:.0f}"]
    others = [number(1e3 * row["peers"][name]) if name in row["peers"] else "-" for name in peers]
    ratio = f"{row['ratio']:.2f}" if row["ratio"] else ""
    return (row["layer"], row["op"], *speed, row["bound"], *others, row["best"] or "", ratio)


def number(value: float) -> str:
    """Three significant digits, without an exponent where there are more before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def summaries(rows) -> list[dict[str, Any]]:
    """Per op, against the best peer and against each: geometric mean and worst of (peer / ours)."""
    result = []
    for op in dict.fromkeys(row["op"] for row in rows):
        timed = [row for row in rows if row["op"] == op and row["ratio"]]
        against = {"best peer": {row["layer"]: row["ratio"] for row in timed}}
        for row in timed:
            for name, seconds in row["peers"].items():
                against.setdefault(name, {})[row["layer"]] = seconds / row["seconds"]
        for name, ratios in against.items():
            if ratios:
                layer = min(ratios, key=lambda layer: ratios[layer])
                result.append({"op": op, "against": name, "layers": len(ratios), "layer": layer,
                               "mean": geometric_mean(ratios.values()), "worst": ratios[layer]})  # fmt: skip
    return result
