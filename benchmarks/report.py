"""The Markdown table of a benchmark run.

    pytest benchmarks --benchmark-json=times.json
    python benchmarks/report.py times.json --readme README.md

Without --readme it is printed.
"""

import argparse
import json
import sys
from pathlib import Path

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
GROUPS = ("forward", "adjoint", "weight", "public")  # of columns


def table(run):
    """Lines of Markdown: what was run and where, then one row per layer."""
    cells = {_key(b): (1e3 * b["stats"]["median"], b["extra_info"]["gflops"]) for b in run["benchmarks"]}
    macs = {b["params"]["layer"]: b["extra_info"]["macs"] for b in run["benchmarks"]}
    timed = list(dict.fromkeys(column for _, column in cells))
    columns = [column for contraction in GROUPS for column in timed if column[0] == contraction]
    rows = [["layer", "multiply-adds", *(" ".join(column) for column in columns)]]
    rows += [["---", *["--:"] * (len(columns) + 1)]]
    for layer in macs:
        times = {column: time for (of, column), time in cells.items() if of == layer}
        best = {
            min((ms, c) for c, (ms, _) in times.items() if c[0] == group)[1] for group, _ in times if group != "public"
        }
        rows += [[layer, f"{macs[layer]:,}", *(_cell(times.get(c), c in best) for c in columns)]]
    return [*heading(run["machine_info"]), "", *("| " + " | ".join(row) + " |" for row in rows)]


def _key(benchmark):
    layer, *column = (benchmark["params"][name] for name in ("layer", "contraction", "backend"))
    return layer, ("public", "call") if column[1] == "call" else tuple(column)


def _cell(time, is_best):
    if time is None:
        return ""
    text = f"{number(time[0])} ({number(time[1])})"
    return f"**{text}**" if is_best else text


def number(value):
    """Three significant digits, without an exponent where there are more before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def heading(machine):
    """What the numbers are, the machine, the versions and the command."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return [
        "Median milliseconds in float32, and in brackets GFLOP/s: two for each multiply-add, also of padding.",
        "The fastest backend of each contraction is bold; `public call` is `conv` or `conv_transpose`, backend=None.",
        f"{machine['cpu']['brand_raw']}, {machine['system']} {machine['machine']}, {machine['threads']} threads for "
        f"`parallel`; Python {machine['python_version']}, {versions}.",
        f"`{machine['command']}`",
    ]


def insert(text, lines):
    """`text` with `lines` in place of what is between the markers."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        sys.exit(f"the file must have one line {BEGIN} and one line {END}")
    before, _, rest = text.partition(BEGIN)
    return "\n".join([before + BEGIN, *lines, END + rest.partition(END)[2]])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, help="what --benchmark-json wrote")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="put the table between its markers")
    arguments = parser.parse_args()
    lines = table(json.loads(arguments.json.read_text(encoding="utf-8")))
    if arguments.readme:
        text = arguments.readme.read_text(encoding="utf-8")
        arguments.readme.write_text(insert(text, lines), encoding="utf-8")
    else:
        print("\n".join(lines))


if __name__ == "__main__":
    main()
