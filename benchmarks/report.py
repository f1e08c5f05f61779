"""The Markdown tables, and the roofline plot, of benchmark runs.

    pytest benchmarks --benchmark-json=times.json
    python -m loopconv bench --threads 1 --json one.json
    python benchmarks/report.py times.json one.json --readme README.md --roofline docs/roofline.png

Without --readme the tables are printed. The plot has one line of panels for each run of `loopconv bench`.
"""

import argparse
import json
import sys
from pathlib import Path

from loopconv.bench import number, summaries

MARKERS = {"benchmarks": "benchmarks", "rows": "peers"}  # of the tables that a run with this key becomes
GROUPS = ("forward", "adjoint", "weight", "public")  # of columns


# ------------------------------------------------------------------------------- pytest benchmarks


def backends_table(run):
    """Lines of Markdown: what was run and where, then one row per layer."""
    cells = {_key(b): (1e3 * b["stats"]["median"], b["extra_info"]["gflops"]) for b in run["benchmarks"]}
    macs = {b["params"]["layer"]: b["extra_info"]["macs"] for b in run["benchmarks"]}
    timed = list(dict.fromkeys(column for _, column in cells))
    columns = [column for contraction in GROUPS for column in timed if column[0] == contraction]
    rows = [["layer", "multiply-adds", *(" ".join(column) for column in columns)]]
    for layer in macs:
        times = {column: time for (of, column), time in cells.items() if of == layer}
        best = {
            min((ms, c) for c, (ms, _) in times.items() if c[0] == group)[1] for group, _ in times if group != "public"
        }
        rows += [[layer, f"{macs[layer]:,}", *(_cell(times.get(c), c in best) for c in columns)]]
    return [
        "Median milliseconds in float32, and in brackets GFLOP/s: two for each multiply-add, also of padding.",
        "The fastest backend of each contraction is bold; `public call` is `conv` or `conv_transpose`, backend=None.",
        *provenance(run["machine_info"], " for `tiled` and `parallel`"),
        *markdown(rows),
    ]


def _key(benchmark):
    layer, *column = (benchmark["params"][name] for name in ("layer", "contraction", "backend"))
    return layer, ("public", "call") if column[1] == "call" else tuple(column)


def _cell(time, is_best):
    if time is None:
        return ""
    text = f"{number(time[0])} ({number(time[1])})"
    return f"**{text}**" if is_best else text


def provenance(machine, threads_for=""):
    """The machine, the versions and the command."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}{threads_for}"
    return [
        f"{machine['cpu']['brand_raw']}, {machine['system']} {machine['machine']}, {threads}; "
        f"Python {machine['python_version']}, {versions}.",
        f"`{machine['command']}`",
    ]


def markdown(rows):
    """A table of which the first row is the header, after an empty line; all but the first column are numbers."""
    header, *body = rows
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *body]
    return ["", *("| " + " | ".join(line) + " |" for line in lines)]


# ------------------------------------------------------------------------------------- loopconv bench


def peers_table(run):
    """Lines of Markdown: what was run and where, the summary, and one row per layer."""
    machine, rows = run["machine_info"], run["rows"]
    ops = list(dict.fromkeys(row["op"] for row in rows))
    header = [title for op in ops for title in (f"{op} ms (GFLOP/s)", "of the bound", "peer / ours")]
    layers = {row["layer"]: {} for row in rows}
    for row in rows:
        layers[row["layer"]][row["op"]] = row
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    return [
        f"**{threads}.** Median milliseconds of the public functions in float32. The bound is what takes longer: the",
        f"arithmetic at {machine['peak_gflops']:.0f} GFLOP/s of fused multiply-adds (Winograd saves some and may pass "
        "it), or each array once",
        f"from or to memory at {machine['bandwidth_gbs']:.1f} GB/s (small arrays stay in a cache and may pass it), both"
        " measured in the same run.",
        "The last number is the time of the fastest peer over ours: above 1, ours is faster.",
        *provenance(machine),
        *summary(rows),
        *markdown([["layer", *header], *([name, *_cells(layers[name], ops)] for name in layers)]),
    ]


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


def _cells(row_of, ops):
    """Three cells for each op of one layer."""
    cells = []
    for row in map(row_of.get, ops):
        if row is None or row["seconds"] is None:
            cells += ["wrong" if row else "", "", ""]
            continue
        cells += [f"{number(1e3 * row['seconds'])} ({number(row['gflops'])})", f"{row['percent']:.0f} %"]
        cells.append(f"{row['ratio']:.2f} {row['best']}" if row["ratio"] else "")
    return cells


# ------------------------------------------------------------------------------------------- roofline

# What is smaller times the call, not the arithmetic, and would stretch the axes by three decades.
LEAST_MACS = 10_000

INK, QUIET, BLUE, ORANGE = "#1a1a1a", "#5a5a5a", "#0072b2", "#d55e00"


def roofline(runs, output):
    """GFLOP/s over operations per byte: one panel for each run and op, under what the machine can do."""
    from matplotlib.figure import Figure

    ops = list(dict.fromkeys(row["op"] for run in runs for row in run["rows"]))
    size = 4.6 * len(ops) + 0.6, 4.1 * len(runs) + 0.9
    figure = Figure(figsize=size, dpi=120, facecolor="white", layout="constrained")
    panels = figure.subplots(len(runs), len(ops), sharex=True, sharey=True, squeeze=False)
    for line, run in zip(panels, runs):
        for axes, op in zip(line, ops):
            rows = [row for row in run["rows"] if row["op"] == op and row["seconds"] and row["macs"] >= LEAST_MACS]
            _panel(axes, run["machine_info"], rows)
            threads = run["machine_info"]["threads"]
            axes.set_title(f"{op}, {threads} thread{'s' if threads > 1 else ''}", color=INK, fontsize=12)
        line[0].set_ylabel("GFLOP/s")
    for axes in panels[-1]:
        axes.set_xlabel(f"operations per byte of x, w and y\n(layers of {LEAST_MACS:,} multiply-adds or more)")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    figure.savefig(output)


def _panel(axes, machine, rows):
    peak, bandwidth = machine["peak_gflops"], machine["bandwidth_gbs"]
    intensity = [2 * row["macs"] / row["bytes"] for row in rows]
    ends = min([*intensity, peak / bandwidth]) / 2, max([*intensity, peak / bandwidth]) * 2
    knee = peak / bandwidth
    axes.plot([ends[0], knee], [ends[0] * bandwidth, peak], color=QUIET, lw=1.5, label="measured bandwidth")
    axes.plot([knee, ends[1]], [peak, peak], color=INK, lw=1.5, label="measured FMA peak")
    peers = [(x, _peer_gflops(row), row["gflops"]) for x, row in zip(intensity, rows) if row["best"]]
    axes.vlines([x for x, _, _ in peers], [y for _, y, _ in peers], [y for *_, y in peers], color="#c8c8c8", lw=1)
    axes.scatter([x for x, _, _ in peers], [y for _, y, _ in peers], 38, marker="s", facecolors="none",
                 edgecolors=ORANGE, linewidths=1.3, label="best peer", zorder=3)  # fmt: skip
    axes.scatter(intensity, [row["gflops"] for row in rows], 34, color=BLUE, label="loopconv", zorder=4)
    axes.set(xscale="log", yscale="log")
    axes.grid(color="#e6e6e6", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.text(knee * 1.15, peak * 1.12, f"{peak:.0f} GFLOP/s", color=INK, fontsize=9)
    slanted = (ends[0] * knee) ** 0.5
    axes.text(slanted / 1.15, slanted * bandwidth * 1.15, f"{bandwidth:.1f} GB/s", color=QUIET, fontsize=9, ha="right")


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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, nargs="+", help="what --benchmark-json or `loopconv bench --json` wrote")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="put the tables between their markers")
    parser.add_argument("--roofline", type=Path, metavar="FILE", help="the plot, of runs of `loopconv bench`")
    arguments = parser.parse_args()
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in arguments.json]
    sections = {}
    for run in runs:
        name = MARKERS["rows" if "rows" in run else "benchmarks"]
        table = peers_table(run) if name == "peers" else backends_table(run)
        sections[name] = [*sections[name], "", *table] if name in sections else table
    for name, lines in sections.items():
        if arguments.readme:
            text = arguments.readme.read_text(encoding="utf-8")
            arguments.readme.write_text(insert(text, lines, name), encoding="utf-8")
        else:
            print("\n".join(lines))
    if arguments.roofline:
        compared = [run for run in runs if "rows" in run]
        roofline(compared, arguments.roofline) if compared else parser.error("--roofline needs a `loopconv bench` run")


if __name__ == "__main__":
    main()
