"""What the assembler says of every tuned kernel: `python -m loopconv.cuda.assembled` prints README.md's table."""

import re
import subprocess
import tempfile
from pathlib import Path

from loopconv import geometry
from loopconv.cuda import build, plans, winograd
from loopconv.cuda.plans import Numbers
from loopconv.cuda.tiles import TILES, WEIGHT_TILES
from loopconv.registry import CONTRACTIONS

CAPABILITIES = (8, 0), (9, 0)

# Nothing of these is aligned, and padding can be read on all axes; then the one that is read and written in runs.
GENERAL = geometry.conv((2, 64, 15, 15), (64, 64, 3, 3), padding=1)
VOLUMES = geometry.conv((2, 64, 5, 7, 9), (64, 64, 3, 3, 3), padding=1)
POINTWISE = geometry.conv((2, 64, 16, 16), (64, 64, 1, 1))
# Of depthwise layers, the plain one, one with phases, the most taps, and a loop over slices.
DEPTHWISE = {
    "3x3": geometry.conv((2, 64, 16, 16), (64, 1, 3, 3), padding=1, groups=64),
    "5x5 in steps of 2": geometry.conv((2, 64, 16, 16), (64, 1, 5, 5), padding=2, stride=2, groups=64),
    "7x7": geometry.conv((2, 64, 16, 16), (64, 1, 7, 7), padding=3, groups=64),
    "volumes": geometry.conv((2, 64, 3, 16, 16), (64, 1, 3, 3, 3), padding=1, groups=64),
}
GROUPS = geometry.conv((2, 64, 15, 15), (64, 4, 3, 3), padding=1, groups=16)
MANY_TAPS = geometry.conv((2, 64, 15, 15), (64, 1, 13, 13), padding=6, groups=64)

# How the numbers of each table of tiles are stored, and their precision.
STORED = {"float32": ("float32",), "float64": ("float64",), "half": ("bfloat16",), "tf32": ("float32", "tf32")}


def kernels(capability):
    """name -> (launch, rooms, dtype) of the tuned kernels: all tiles, and of the first ones the variants."""
    found = {}

    def add(name, plan, dtype, position=-1):
        launches = [launch for launch in plan.launches if launch.make.__name__ != "make_add_up"]
        found[name] = launches[position], plan.rooms, dtype

    for tables, contraction, kind in ((TILES, "forward", "sum"), (WEIGHT_TILES, "weight", "weight")):
        for table, tiles in tables[capability].items():
            numbers = Numbers(*STORED[table])
            for tile in tiles[:1] if table == "half" else tiles:
                plan = plans.tile_plan(contraction, GENERAL, numbers, capability, False, tile)
                add(f"{kind} {table} {tile.rows}x{tile.columns}", plan, numbers.storage)
        tile = tables[capability]["float32"][0]
        for name, g in (("volumes", VOLUMES), ("pointwise", POINTWISE)):
            add(
                f"{kind} float32 {name}",
                plans.tile_plan(contraction, g, Numbers("float32"), capability, False, tile),
                "float32",
            )
    for storage in ("float32", "float64"):
        for contraction, name in (("forward", "sum"), ("weight", "weight")):
            for kind, g in (("groups", GROUPS), ("many taps", MANY_TAPS)):
                add(f"{name} {storage} {kind}", plans.plan(contraction, g, Numbers(storage), capability), storage)
    for storage in ("float32", "bfloat16", "float64"):
        for name, g in DEPTHWISE.items() if storage == "float32" else [("3x3", DEPTHWISE["3x3"])]:
            for contraction in CONTRACTIONS:
                plan = plans.plan(contraction, g, Numbers(storage), capability)
                add(f"depthwise {contraction} {storage} {name}", plan, storage)
    for name, contraction, position in (("weights", "forward", 0), ("sum", "forward", 1), ("weight", "weight", 0)):
        plan = winograd.plan(contraction, GENERAL, Numbers("float32"), capability)
        add(f"winograd {name}", plan, "float32", position)
    whole = plans.sum_plan(
        geometry.conv((1, 512, 7, 7), (512, 512, 3, 3)), "forward", Numbers("float32"), capability, False
    )
    for table, stored in (("tf32", Numbers("float32", "tf32")), ("half", Numbers("bfloat16"))):
        plan = plans.tile_plan("forward", GENERAL, stored, capability, False)
        for position, name in enumerate(("pack", "last")):
            found[f"{name} {table}"] = plan.launches[position], plan.rooms, stored.storage
    found["pack"] = whole.launches[0], whole.rooms, "float32"
    found["add up"] = whole.launches[-1], whole.rooms, "float32"
    return found


def assemble(ptx, capability):
    """(registers, bytes of local memory, bytes of spills) by ptxas."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        command = ["ptxas", f"-arch=sm_{capability[0]}{capability[1]}", "-v", str(source), "-o", str(source) + ".cubin"]
        said = subprocess.run(command, capture_output=True, text=True)
    if said.returncode:
        raise RuntimeError(f"ptxas: {said.stdout}{said.stderr}")
    stack, stores, loads = re.search(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", said.stderr
    ).groups()
    return int(re.search(r"Used (\d+) registers", said.stderr)[1]), int(stack), int(stores) + int(loads)


def table():
    """README.md's table, line by line; a RuntimeError where a kernel has spilled or needs local memory."""
    columns = [kernels(capability) for capability in CAPABILITIES]
    for name, (launch, _, _) in columns[0].items():
        registers = []
        for capability, found in zip(CAPABILITIES, columns):
            this, rooms, dtype = found[name]
            used, stack, spills = assemble(build.compiled(this, rooms, dtype, capability).text, capability)
            if stack or spills:
                raise RuntimeError(f"{name} of {capability}: {stack} bytes of local memory, {spills} of spills")
            registers.append(str(used))
        yield f"| {name} | {launch.block} | {launch.resident} | {launch.shared / 1024:.1f} | {' | '.join(registers)} |"


if __name__ == "__main__":
    for line in table():
        print(line, flush=True)
