"""`python -m loopconv bench --backend cuda`: the public functions on a GPU against PyTorch's, which are cuDNN.

Every layer at batch 1 and at a batch that fills the chip: in full float32 on both sides, with TF32 on both, and in
float16. Times are those of CUDA events. Calls go in turn through copies of their arrays that are together larger than
the second-level cache, so that no call finds what the one before left there.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from importlib import import_module
from itertools import product
from math import ceil, prod
from statistics import median
from typing import Any

import numpy as np

import loopconv
from loopconv import bench, registry
from loopconv.peers import CONTRACTION, OPS, each_axis, is_transposed

# Seconds of one sample, and how many samples of each of ours and PyTorch's, taken in turn.
SAMPLE_SECONDS, SAMPLES = 0.01, 11
# The copies of the arrays of a call have so many times the bytes of the second-level cache.
CACHES = 2
# Result elements that fill the chip, for each multiprocessor: four blocks of 128 x 128.
FILLING = 4 * 128 * 128
MOST_IMAGES, MOST_BYTES = 256, 4 << 30
# Precision of the products: the dtype of the arrays, and what `precision=` says.
PRECISIONS = {"float32": ("float32", None), "tf32": ("float32", "tf32"), "float16": ("float16", None)}
# Fused multiply-adds in a clock of one multiprocessor, in each of them: A100 and H100.
UNITS = {(8, 0): (64, 512, 1024), (9, 0): (128, 1024, 2048)}
# Error allowed by rounding both factors of a product to 10 bits after the first; 1 % is for the sums in float32.
TF32 = 2 * 2**-11 * 1.01
# By rounding a result to float16; and what tensor cores may cut of each sum of 16 products.
HALF, CUT = 2**-11, 2**-23 / 16


def run(arguments: argparse.Namespace) -> int:
    """Measure, print and save what `arguments` ask for; 0, or 1 if one of our results is wrong."""
    layers, ops, torch = bench._layers(arguments), arguments.ops or OPS, _torch(arguments)
    if arguments.json and not arguments.json.parent.is_dir():
        arguments.error(f"--json must be a file in a directory that exists, got '{arguments.json}'")
    chip, rows = facts(torch), []
    peers = ("torch",) if arguments.peers != [] else ()
    cells = [(at_batch(case, n), op) for case in layers.values() for n in batches(case, chip) for op in ops]
    for precision in PRECISIONS:
        allow_tf32(torch, precision == "tf32")
        rows += [measure(torch, case, op, precision, peers, chip) for case, op in bench._shown(cells)]
    machine = {**bench.facts(arguments, ops, peers), **chip, "threads": 1}
    print(f"{chip['device']}\n")
    print(report(rows, list(peers)))
    if arguments.json:
        text = json.dumps({"machine_info": machine, "rows": rows}, indent=1, allow_nan=False)
        arguments.json.write_text(text + "\n", encoding="utf-8")
    return int(any(row["wrong"] for row in rows))


def _torch(arguments):
    """PyTorch with a GPU, whose tensors and events are used, or an error."""
    if others := set(arguments.peers or ()) - {"torch"}:
        arguments.error(f"--backend cuda compares with --peers torch alone, got {sorted(others)[0]!r}")
    if arguments.plan:
        arguments.error("--backend cuda times calls, not plans: leave --plan out")
    if (state := registry.backends()["cuda"]) != "ready":
        arguments.error(f"--backend cuda cannot run here: {state}")
    try:
        torch = import_module("torch")
    except ImportError as problem:
        arguments.error(f"--backend cuda uses PyTorch's tensors and events ({problem}): pip install torch")
    if not torch.cuda.is_available():
        arguments.error("--backend cuda uses PyTorch's tensors and events, and this PyTorch has no GPU")
    torch.backends.cudnn.benchmark = True  # cuDNN's fastest
    return torch


def facts(torch) -> dict[str, Any]:
    """The GPU, and what bounds it by its own data: GFLOP/s of each precision and GB/s."""
    gpu, properties = import_module("loopconv.cuda.gpu"), torch.cuda.get_device_properties(0)
    capability = gpu.capability(0)
    known = max((c for c in UNITS if c <= capability), default=min(UNITS))
    clock, memory, width = gpu.clocks(0)
    peaks = [2 * units * properties.multi_processor_count * clock / 1e9 for units in UNITS[known]]
    return {
        "device": gpu.description(0), "processors": properties.multi_processor_count,
        "cache_bytes": properties.L2_cache_size, "peak_gflops": dict(zip(PRECISIONS, peaks)),
        "bandwidth_gbs": 2 * memory * width / 8 / 1e9, "cudnn": str(torch.backends.cudnn.version()),
        "driver": gpu.driver_version(),
    }  # fmt: skip


def allow_tf32(torch, allowed):
    """Whether cuDNN may round the factors of float32 products."""
    cudnn = torch.backends.cudnn
    if hasattr(cudnn, "conv"):
        cudnn.conv.fp32_precision = "tf32" if allowed else "ieee"
    else:
        cudnn.allow_tf32 = allowed


# ------------------------------------------------------------------------------------------- batches


def at_batch(case, n):
    """The same layer with n images."""
    return case._replace(x_shape=(n, *case.x_shape[1:]))


def batches(case, chip):
    """1, and the least power of two of images that fills the chip, as far as they are not too large."""
    g, n = at_batch(case, 1).geometry, 1
    elements = prod((g.x_shape if is_transposed(case) else g.y_shape)[1:])
    size = 4 * max(prod(g.x_shape), prod(g.y_shape))
    while n * elements < FILLING * chip["processors"] and n < MOST_IMAGES and 2 * n * size <= MOST_BYTES:
        n *= 2
    return (1, n) if n > 1 else (1,)


# ------------------------------------------------------------------------------------------ one cell


def tensors(torch, case, op, dtype, cache_bytes):
    """Sets of (two factors, result) for the calls to go through, all with the same numbers."""
    g, generator = case.geometry, torch.Generator("cuda").manual_seed(0)
    shapes = {"x": g.x_shape, "w": g.w_shape, "y": g.y_shape}
    of = {"x": "y", "w": "w", "grad": "x"} if is_transposed(case) else {"x": "x", "w": "w", "grad": "y"}
    names = {"forward": ("x", "w", "grad"), "input_grad": ("grad", "w", "x"), "weight_grad": ("grad", "x", "w")}[op]
    first = [torch.randn(shapes[of[name]], device="cuda", generator=generator) for name in names]
    first = [tensor.to(getattr(torch, dtype)) for tensor in first]
    size = sum(tensor.nbytes for tensor in first)
    copies = max(2, min(ceil(CACHES * cache_bytes / size), 512))
    return [first, *([tensor.clone() for tensor in first] for _ in range(copies - 1))]


def ours(case, op, precision, given):
    """One call of the public function."""
    a, b, result = given
    settings = {**case.settings, "backend": "cuda", "precision": precision, "out": result}
    if op == "forward":
        return getattr(loopconv, case.op)(a, b, **settings)
    return getattr(loopconv, f"{case.op}_{op}")(a, b, tuple(result.shape), **settings)


def theirs(torch, case, op, given):
    """One call of PyTorch, for the gradients of what autograd calls."""
    a, b, result = given
    if op == "forward":
        return getattr(torch.nn.functional, f"{case.op}{case.geometry.rank}d")(a, b, **case.settings)
    each = each_axis(case)
    x, w = (result, b) if op == "input_grad" else (b, result)
    wanted = [op == "input_grad", op == "weight_grad", False]
    return torch.ops.aten.convolution_backward(
        a, x, w, None, each["stride"], each["padding"], each["dilation"], is_transposed(case), each["output_padding"],
        case.settings["groups"], wanted,
    )[wanted.index(True)]  # fmt: skip


def measure(torch, case, op, precision, peers, chip) -> dict[str, Any]:
    """Verify and time ours, and PyTorch's, on one op of one layer."""
    g, contraction = case.geometry, CONTRACTION[case.op][op]
    dtype, asked = PRECISIONS[precision]
    row = {
        "layer": case.name, "batch": g.batch, "op": op, "contraction": contraction, "precision": precision,
        "macs": g.macs, "bytes": np.dtype(dtype).itemsize * sum(map(prod, (g.x_shape, g.w_shape, g.y_shape))),
        "seconds": None, "wrong": "",
        "peers": {}, "notes": {},
    }  # fmt: skip
    sets = tensors(torch, case, op, dtype, chip["cache_bytes"])
    calls = {"ours": partial(ours, case, op, asked)} | {name: partial(theirs, torch, case, op) for name in peers}
    expected, allowed = expectation(torch, case, op, precision, sets[0])
    for name in list(calls):
        sets[0][2].fill_(torch.nan)
        factor = 1 if name == "ours" else bench.PEER_TOLERANCE
        if said := fault(torch, partial(calls[name], sets[0]), expected, factor * allowed):
            row["wrong" if name == "ours" else "notes"] = said if name == "ours" else {name: said}
            del calls[name]
    del expected, allowed
    seconds = timed(torch, calls, sets)
    row["seconds"] = seconds.pop("ours", None)
    row["peers"] = seconds
    limits = {"peak_gflops": chip["peak_gflops"][row["precision"]], "bandwidth_gbs": chip["bandwidth_gbs"]}
    return row | bench.judged(row, limits)


def expectation(torch, case, op, precision, given):
    """(what PyTorch gives in double precision, the error that rounding may make)."""
    wide = [tensor.double() for tensor in given]
    exact, magnitude = theirs(torch, case, op, wide), theirs(torch, case, op, [tensor.abs() for tensor in wide])
    contraction = CONTRACTION[case.op][op]
    full = registry.tolerance(case.geometry, contraction, np.float32)
    if precision == "float16":
        return exact, magnitude.mul_(full + CUT * case.geometry.terms[contraction]) + HALF * exact.abs()
    return exact, magnitude.mul_(full + TF32 if precision == "tf32" else full)


def fault(torch, call, expected, allowed):
    """What is wrong with the result, or ''."""
    try:
        result = call()
        torch.cuda.synchronize()
    except Exception as failure:  # whatever it raises is its result
        return " ".join(f"{failure}".split())[:200] or type(failure).__name__
    error = (result.double() - expected).abs_()
    worst = torch.where(error == 0, 0.0, error / allowed).max().item()
    return "" if worst <= 1 else f"differs from double precision by {worst:.3g} times the tolerance"


def timed(torch, calls, sets):
    """Median seconds of each call by events, all of them in turn, each going through all sets of arrays."""
    repeats = {name: _repeats(torch, call, sets) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(SAMPLES):
        for name, call in calls.items():
            samples[name].append(_seconds(torch, call, sets, repeats[name]))
    return {name: median(values) for name, values in samples.items()}


def _repeats(torch, call, sets):
    """How often to call for one sample, after the calls in which kernels are compiled and chosen."""
    for given in sets[:3]:
        call(given)
    return max(1, round(SAMPLE_SECONDS / _seconds(torch, call, sets, min(len(sets), 8))))


def _seconds(torch, call, sets, repeats):
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for number in range(repeats):
        call(sets[number % len(sets)])
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


# ------------------------------------------------------------------------------------------- report


def report(rows, peers) -> str:
    """One table for each precision and batch, 1 or more."""
    parts = []
    for precision, single in product(dict.fromkeys(row["precision"] for row in rows), (True, False)):
        some = [row for row in rows if row["precision"] == precision and (row["batch"] == 1) is single]
        if some:
            named = [{**row, "layer": f"{row['layer']} x{row['batch']}"} for row in some]
            parts.append(
                f"{precision}, batch {'1' if single else 'that fills the chip'}\n\n{bench.report(named, peers)}"
            )
    return "\n\n".join(parts)
