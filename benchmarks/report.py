"""The Markdown tables, and the roofline plot, of benchmark runs.

    pytest benchmarks --benchmark-json=times.json
    python -m loopconv bench --threads 1 --json one.json
    python -m loopconv bench --threads 1 --plan --json one-plan.json
    python -m loopconv bench --backend cuda --peers torch --json gpu.json
    python benchmarks/report.py times.json one.json one-plan.json --readme README.md --roofline docs/roofline.png
    python benchmarks/report.py gpu.json --readme README.md

Without --readme the tables are printed. Runs of `loopconv bench` with the same number of threads, one of them with
--plan, share a table and a line of panels of the plot.
"""

import argparse
import json
import sys
from math import atan, degrees
from pathlib import Path

from loopconv.bench import number, summaries
from loopconv.peers import FORWARD_ONLY, OPS

GROUPS = ("forward", "adjoint", "weight", "public")  # of columns
CHOSEN = "chosen"


# ------------------------------------------------------------------------------- pytest benchmarks


def backends_tables(run):
    """Lines of Markdown: what was run and where, one row per layer, and the same for algorithms."""
    times = {_key(b): (1e3 * b["stats"]["median"], b["extra_info"]["gflops"]) for b in run["benchmarks"]}
    macs = {b["params"]["layer"]: b["extra_info"]["macs"] for b in run["benchmarks"]}
    chosen = {(layer, (group, backend)): t for (layer, group, backend, algorithm), t in times.items() if not algorithm}
    lines = [
        "Median milliseconds in float32, and in brackets GFLOP/s: two for each multiply-add, also of padding.",
        "The fastest backend of each contraction is bold; `public call` is `conv` or `conv_transpose`, backend=None.",
        *provenance(run["machine_info"], " for `tiled` and `parallel`"),
        *_grid(macs, chosen),
    ]
    for name in dict.fromkeys(backend for _, _, backend, algorithm in times if algorithm):
        ways = {(layer, (group, algorithm or CHOSEN)): t for (layer, group, backend, algorithm), t in times.items()
                if backend == name}  # fmt: skip
        lines += [
            "",
            f"The same for each `algorithm=` of `{name}`, and for the one that it chooses.",
            *_grid(macs, ways),
        ]
    return lines


def _key(benchmark):
    """(layer, group, backend, algorithm)"""
    layer, contraction, backend, algorithm = map(
        benchmark["params"].get, ("layer", "contraction", "backend", "algorithm")
    )
    return layer, "public" if backend == "call" else contraction, backend, algorithm


def _grid(macs, times):
    """A table of the times by (layer, (group, name)); the fastest of each group is bold."""
    timed = dict.fromkeys(column for _, column in times)
    columns = [column for group in GROUPS for column in timed if column[0] == group]
    rows = [["layer", "multiply-adds", *(" ".join(column) for column in columns)]]
    for layer in macs:
        row = {column: times[layer, column] for column in columns if (layer, column) in times}
        ranked = sorted((c for c in row if c[0] != "public" and c[1] != CHOSEN), key=row.get)
        best = {group: next(c for c in ranked if c[0] == group) for group, _ in ranked}.values()
        rows += [[layer, f"{macs[layer]:,}", *(_time(row.get(column), column in best) for column in columns)]]
    return markdown(rows)


def _time(time, is_best):
    if time is None:
        return ""
    text = f"{number(time[0])} ({number(time[1])})"
    return f"**{text}**" if is_best else text


def provenance(machine, threads_for=""):
    """The machine, the versions and the command."""
    return [f"{_where(machine, threads_for)}.", f"`{machine['command']}`"]


def _where(machine, threads_for=""):
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['cpu']['brand_raw']}, {machine['system']} {machine['machine']}, {_threads(machine)}{threads_for}; "
        f"Python {machine['python_version']}, {versions}"
    )


def _threads(machine):
    return f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"


def markdown(rows):
    """A table of which the first row is the header, after an empty line; all but the first column are numbers."""
    header, *body = rows
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *body]
    return ["", *("| " + " | ".join(line) + " |" for line in lines)]


# ------------------------------------------------------------------------------------- loopconv bench

PLANNED = "forward, planned"
BOUNDS = {"FMA peak": "FMA", "bandwidth": "memory"}


def sections(runs):
    """Lists of runs that belong together: of one machine and number of threads, one without plans and one with."""
    found = []
    for run in runs:
        for section in found:
            if _place(section[0]) == _place(run) and all(_plan(run) != _plan(other) for other in section):
                section.append(run)
                break
        else:
            found.append([run])
    return [sorted(section, key=_plan) for section in found]


def _place(run):
    machine = run["machine_info"]
    return machine["cpu"], machine["system"], machine["machine"], machine["threads"]


def _plan(run):
    return run["machine_info"]["plan"]


def cells_of(section):
    """{op: {layer: row}}; what is planned is an op of its own."""
    cells = {}
    for run in section:
        for row in run["rows"]:
            op = PLANNED if _plan(run) else row["op"]
            cells.setdefault(op, {})[row["layer"]] = {**row, "op": op}
    return cells


def peers_table(section):
    """Lines of Markdown: what was run and where, the summary, and one row per layer."""
    return [
        *caption(section),
        *dict.fromkeys(f"{_where(run['machine_info'])}." for run in section),
        *(f"`{run['machine_info']['command']}`" for run in section),
        *layers_table(cells_of(section)),
    ]


def layers_table(cells):
    """The summary, one row per layer, and what is not timed."""
    against = {op: "best peer" if op == PLANNED or not _has(rows, "torch") else "torch" for op, rows in cells.items()}
    header = [title for op in cells for title in (f"{op} ms (% of bound)", f"{against[op]} / ours")]
    layers = {name: BOUNDS[row["bound"]] for rows in cells.values() for name, row in rows.items()}
    body = [
        [name, bound, *(text for op, rows in cells.items() for text in _cells(rows.get(name), against[op]))]
        for name, bound in layers.items()
    ]
    return [
        *summary([row for rows in cells.values() for row in rows.values()]),
        *markdown([["layer", "bound by", *header], *body]),
        *untimed(cells),
    ]


def gpu_tables(run):
    """Lines of Markdown of a run on a GPU: float32 and TF32, each at batch 1 and at a batch that fills the chip."""
    machine = run["machine_info"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"**{machine['device']}.** Median milliseconds by CUDA events, arrays going round through copies larger than",
        "the second-level cache, and in brackets the share of what bounds the layer: the chip's multiply-adds, or each",
        "array once from or to memory, both by the chip's own data. Ratios are PyTorch's time, which is cuDNN's, over",
        "ours: above 1, in bold, ours is faster.",
        f"CUDA {machine['driver']}, cuDNN {machine['cudnn']}, Python {machine['python_version']}, {versions}.",
        f"`{machine['command']}`",
    ]
    for precision, single in dict.fromkeys((row["precision"], row["batch"] == 1) for row in run["rows"]):
        rows = [
            {**row, "layer": row["layer"] + ("" if single else f" x{row['batch']}")}
            for row in run["rows"]
            if row["precision"] == precision and (row["batch"] == 1) is single
        ]
        lines += ["", f"**{precision}, {'batch 1' if single else 'a batch that fills the chip'}.**"]
        lines += layers_table(cells_of([{**run, "rows": rows}]))
    return lines


def caption(section):
    """What the numbers are."""
    limits = [
        f"{m['peak_gflops']:.0f} GFLOP/s and {m['bandwidth_gbs']:.1f} GB/s{' with plans' * m['plan']}"
        for m in (run["machine_info"] for run in section)
    ]
    lines = [
        f"**{_threads(section[0]['machine_info'])}.** Median milliseconds in float32, and in brackets the share of",
        "what bounds the layer: the arithmetic at the speed of fused multiply-adds (Winograd saves some and may pass",
        "it), or each array once from or to memory (small arrays stay in a cache and may pass it), both measured in",
        f"the same run: {', '.join(limits)}.",
        "Ratios are the peer's time over ours: above 1, in bold, ours is faster.",
    ]
    if any(map(_plan, section)):
        lines += ["A plan is made once, with its weights packed, and is given an `out`; neither is timed."]
    return lines


def _has(rows, peer):
    return any(peer in row["peers"] for row in rows.values())


def _cells(row, against):
    """The time with its share of the bound, and the ratio."""
    if row is None or row["seconds"] is None:
        return "wrong" if row else "", ""
    time = f"{number(1e3 * row['seconds'])} ({row['percent']:.0f} %)"
    peer = row["best"] if against == "best peer" else against
    if peer not in row["peers"]:
        return time, ""
    ratio = row["peers"][peer] / row["seconds"]
    text = f"**{ratio:.2f}**" if ratio >= 1 else f"{ratio:.2f}"
    return time, f"{text} {peer}" if against == "best peer" else text


def summary(rows):
    """Geometric mean and worst layer per op, against the best peer and against each."""
    lines = summaries(rows)
    ops = list(dict.fromkeys(line["op"] for line in lines))
    cells = {
        (line["op"], line["against"]): f"{line['mean']:.2f}; {line['worst']:.2f} {line['layer']}" for line in lines
    }
    against = list(dict.fromkeys(line["against"] for line in lines))
    table = [[f"{name} / ours", *(cells.get((op, name), "") for op in ops)] for name in against]
    return markdown([["geometric mean; worst", *ops], *table]) if lines else []


def untimed(cells):
    """What has no time, and why."""
    reasons = {}
    for op, rows in cells.items():
        for layer, row in rows.items():
            for name, why in [*row["notes"].items(), *[("ours", row["wrong"])] * bool(row["wrong"])]:
                if why != FORWARD_ONLY:
                    reasons.setdefault((name, why), []).append(f"{layer} {op}")
    return ["", "Not timed:", "", *(f"- {n} on {', '.join(on)}: {why}" for (n, why), on in reasons.items())] * bool(
        reasons
    )


# ------------------------------------------------------------------------------------------- roofline

# What is smaller times the call, not the arithmetic, and would stretch the axes by three decades.
LEAST_MACS = 10_000

INK, QUIET, BLUE, ORANGE = "#1a1a1a", "#5a5a5a", "#0072b2", "#d55e00"
MARKS = {
    "best peer": {"s": 38, "marker": "s", "facecolors": "none", "edgecolors": ORANGE, "linewidths": 1.3},
    "loopconv": {"s": 34, "color": BLUE},
    "loopconv, planned": {"s": 34, "marker": "D", "facecolors": "white", "edgecolors": BLUE, "linewidths": 1.3},
}


def roofline(parts, output):
    """GFLOP/s over operations per byte: one panel for each section and op, under what the machine can do."""
    from matplotlib.figure import Figure

    timed = {"forward" if op == PLANNED else op for section in parts for op in cells_of(section)}
    ops = [op for op in OPS if op in timed]
    size = 4.6 * len(ops) + 0.6, 4.1 * len(parts) + 0.9
    figure = Figure(figsize=size, dpi=120, facecolor="white", layout="constrained")
    panels = figure.subplots(len(parts), len(ops), sharex=True, sharey=True, squeeze=False)
    handles = {}
    for line, section in zip(panels, parts):
        for axes, op in zip(line, ops):
            _panel(axes, section, op)
            axes.set_title(f"{op}, {_threads(section[0]['machine_info'])}", color=INK, fontsize=12)
            handles = dict(zip(*reversed(axes.get_legend_handles_labels()))) | handles
        line[0].set_ylabel("GFLOP/s")
    for axes in panels[-1]:
        axes.set_xlabel(f"operations per byte of x, w and y\n(layers of {LEAST_MACS:,} multiply-adds or more)")
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=len(handles), frameon=False)
    figure.savefig(output)


def _panel(axes, section, op):
    cells = cells_of(section)
    plain = _timed(cells.get(op, {}))
    planned = _timed(cells.get(PLANNED, {})) if op == "forward" else {}
    compared = {layer: row for layer, row in (plain or planned).items() if row["best"]}
    speeds = {
        "best peer": {layer: _peer_gflops(row) for layer, row in compared.items()},
        "loopconv": {layer: row["gflops"] for layer, row in plain.items()},
        "loopconv, planned": {layer: row["gflops"] for layer, row in planned.items()},
    }
    intensity = {layer: 2 * row["macs"] / row["bytes"] for layer, row in {**planned, **plain}.items()}
    _roof(axes, section[0]["machine_info"], intensity.values())
    for layer, x in intensity.items():
        of_layer = [of[layer] for of in speeds.values() if layer in of]
        axes.vlines(x, min(of_layer), max(of_layer), color="#c8c8c8", lw=1)
    for order, (name, of) in enumerate(speeds.items(), 3):
        if of:
            axes.scatter([intensity[layer] for layer in of], of.values(), zorder=order, label=name, **MARKS[name])
    axes.set(xscale="log", yscale="log")
    axes.grid(color="#e6e6e6", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _roof(axes, machine, intensity):
    """Both limits of the machine, and what they are."""
    peak, bandwidth = machine["peak_gflops"], machine["bandwidth_gbs"]
    knee = peak / bandwidth
    first, last = min([*intensity, knee]) / 2, max([*intensity, knee]) * 2
    axes.plot([first, knee], [first * bandwidth, peak], color=QUIET, lw=1.5, label="measured bandwidth")
    axes.plot([knee, last], [peak, peak], color=INK, lw=1.5, label="measured FMA peak")
    # above the roof, where there is hardly a layer
    axes.text(knee / 1.1, peak * 1.08, f"{peak:.0f} GFLOP/s", color=INK, fontsize=9, ha="right")
    axes.text(first, first * bandwidth * 1.35, f"{bandwidth:.1f} GB/s", color=QUIET, fontsize=9,
              rotation=degrees(atan(bandwidth)), rotation_mode="anchor", transform_rotates_text=True)  # fmt: skip


def _timed(rows):
    return {layer: row for layer, row in rows.items() if row["seconds"] and row["macs"] >= LEAST_MACS}


def _peer_gflops(row):
    return 2e-9 * row["macs"] / row["peers"][row["best"]]


# --------------------------------------------------------------------------------------------- files


def insert(text, lines, name):
    """`text` with `lines` in place of what is between the markers of this name."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        sys.exit(f"the file must have one line {begin} and one line {end}")
    before, _, rest = text.partition(begin)
    return "\n".join([before + begin, *lines, end + rest.partition(end)[2]])


def read_run(path, error):
    """The run that a file holds, or an error."""
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        error(f"json must be files that can be read, got {path}: {problem}")
    if not isinstance(run, dict) or not (is_compared(run) or is_timed(run)):
        error(f"json must be what --benchmark-json or `loopconv bench --json` of this version wrote, got {path}")
    return run


def is_compared(run):
    return "rows" in run and "plan" in run.get("machine_info", ())


def is_on_gpu(run):
    return is_compared(run) and "device" in run["machine_info"]


def is_timed(run):
    timed = run.get("benchmarks")
    return bool(timed) and all("algorithm" in (benchmark["params"] or ()) for benchmark in timed)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, nargs="+", help="what --benchmark-json or `loopconv bench --json` wrote")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="put the tables between their markers")
    parser.add_argument("--roofline", type=Path, metavar="FILE", help="the plot, of runs of `loopconv bench`")
    arguments = parser.parse_args()
    runs = [read_run(path, parser.error) for path in arguments.json]
    on_gpu = [run for run in runs if is_on_gpu(run)]
    compared = sections(run for run in runs if is_compared(run) and run not in on_gpu)
    if arguments.readme and not arguments.readme.is_file():
        parser.error(f"--readme must be a file that exists, got {arguments.readme}")
    if arguments.roofline and not compared:
        parser.error("--roofline needs a `loopconv bench` run")
    if arguments.roofline and (arguments.roofline.suffix != ".png" or not arguments.roofline.parent.is_dir()):
        parser.error(f"--roofline must be a .png file in a directory that exists, got {arguments.roofline}")
    tables = {
        "peers": [line for section in compared for line in ("", *peers_table(section))][1:],
        "benchmarks": [line for run in runs if not is_compared(run) for line in ("", *backends_tables(run))][1:],
        "gpu": [line for run in on_gpu for line in ("", *gpu_tables(run))][1:],
    }
    text = arguments.readme.read_text(encoding="utf-8") if arguments.readme else ""
    for name, lines in tables.items():
        if lines and arguments.readme:
            text = insert(text, lines, name)
        elif lines:
            print("\n".join(lines))
    if arguments.readme:
        arguments.readme.write_text(text, encoding="utf-8")
    if arguments.roofline:
        roofline(compared, arguments.roofline)


if __name__ == "__main__":
    main()
