"""Runs the PTX of a kernel on the host: translated to C, instruction by instruction, and compiled by `cc`.

What the instructions do is here, what a thread may do with memory and other threads in ptx_runtime.h, both by NVIDIA's
manual of PTX: nothing comes from loopconv, which this checks. What is not known here fails while it is translated.
"""

import atexit
import ctypes
import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

FOLDER = tempfile.TemporaryDirectory()
atexit.register(FOLDER.cleanup)
RUNTIME = Path(__file__).with_name("ptx_runtime.h")
# Not optimised, as to compile takes longer than to run: with -O1 the tests of kernels took 128 s, and take 49.
# Contractions of a * b + c are another number; signed numbers go around; bits are read as numbers of another type.
FLAGS = ("-O0", "-ffp-contract=off", "-fwrapv", "-fno-strict-aliasing", "-shared", "-fPIC", "-w")

# What an instruction puts into its first operand, of the others: {a}, {b}, {c} and {d}, as numbers of the type {t} that
# its name ends with. An entry is for a whole name, or for one without the type, or without all of it but its letter.
OPERATIONS = {
    "add": "{a} + {b}", "add.rn": "{a} + {b}", "sub": "{a} - {b}", "sub.rn": "{a} - {b}", "neg": "-{a}", "mov": "{a}",
    "abs.f32": "fabsf({a})", "mul.f": "{a} * {b}", "mul.rn.f": "{a} * {b}",
    "bfi.b": "{b} & ~((~0ull >> (64 - {d_u32})) << {c_u32}) | ({a} & ~0ull >> (64 - {d_u32})) << {c_u32}",
    "fma.rn.f32": "fmaf({a}, {b}, {c})", "fma.rn.f64": "fma({a}, {b}, {c})",
    "mul.lo": "{a} * {b}", "mul.wide": "({wide}){a} * {b}", "mad.lo": "{a} * {b} + {c}",
    "mul.hi": "({wide}){a} * {b} >> {bits}",
    "div.s": "divide_{t}({a}, {b}, 0, {line})", "div.u": "divide_{t}({a}, {b}, 0, {line})",
    "rem": "divide_{t}({a}, {b}, 1, {line})",
    "and": "{a} & {b}", "or": "{a} | {b}", "xor": "{a} ^ {b}", "not": "~{a}", "not.pred": "!{a}",
    "shl": "{b_u32} < {bits} ? {a} << {b_u32} : 0", "shr.u": "{b_u32} < {bits} ? {a} >> {b_u32} : 0",
    "shr.s": "{a} >> ({b_u32} < {bits} ? {b_u32} : {bits} - 1)",
    **dict.fromkeys(("min.s", "min.u"), "{a} < {b} ? {a} : {b}"),
    **dict.fromkeys(("max.s", "max.u"), "{a} > {b} ? {a} : {b}"),
    "selp": "{c_pred} ? {a} : {b}",
    "cvta.to.global": "{a}", "prmt.b32": "permuted({a}, {b}, {c})", "bfe.u32": "field({a}, {b}, {c})",
    "bfi.b32": "with_field({a}, {b}, {c}, {d})",
}  # fmt: skip
CONVERSIONS = {
    "f64.f32": "{a}", "rn.f32.f64": "{a}", "f32.f16": "from_f16({a})", "f32.bf16": "from_bf16({a})",
    "rn.f16.f32": "to_f16({a})", "rn.bf16.f32": "to_bf16({a})",
    "rna.tf32.f32": "round_tf32({a})",
    "rn.f16x2.f32": "(uint32_t)to_f16({a}) << 16 | to_f16({b})",
    "rn.bf16x2.f32": "(uint32_t)to_bf16({a}) << 16 | to_bf16({b})",
    **{f"{to}{size}.{of}{width}": "{a}" for to in "su" for size in (8, 16, 32, 64) for of in "su"
       for width in (8, 16, 32, 64)},
}  # fmt: skip
# Comparisons: those of floats are false for NaN, and end with `u` where they are true.
COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
SPECIAL = {
    "%tid.x": "me->number", "%ntid.x": "block_size", "%ctaid.x": "block", "%nctaid.x": "grid",
    "%laneid": "(me->number % LANES)", "%dynamic_smem_size": "dynamic_bytes",
}  # fmt: skip
# Of loads and stores, what says how to go through caches and in which order, not what is read.
CACHES = {"nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "weak", "volatile", "relaxed", "cta", "gpu", "sys"}
MMA = {
    "m16n8k8.row.col.f32.tf32.tf32.f32": "mma_tf32",
    "m16n8k16.row.col.f32.f16.f16.f32": "mma_f16",
    "m16n8k16.row.col.f32.bf16.bf16.f32": "mma_bf16",
    "m8n8k4.row.col.f64.f64.f64.f64": "mma_f64",
}


class PtxError(Exception):
    """What a kernel did that it must not; or what is not known here."""


# ---------------------------------------------------------------------------------------------- translation


class Translation:
    """The C of the one kernel in a text of PTX."""

    def __init__(self, text):
        kind, self.name = re.search(r"\.(entry|func)\s+([\w$]+)", text).groups()
        if kind == "func" or len(re.findall(r"\.(?:entry|func)\b", text)) > 1:
            raise PtxError(f"{self.name}: there are functions besides the kernel")
        self.parameters = re.findall(r"\.param\s+\.u64\s+([\w$]+)", text)
        self.lines = text.splitlines()
        self.registers, self.symbols, self.static, self.blocks, self.body = {}, {}, 0, [], []
        self._place_shared(text)
        begin = self.lines.index("{")
        self._new_block()
        for n, line in enumerate(self.lines[begin + 1 :], begin + 2):
            code = line.partition("//")[0].strip()
            if code == "}":
                break
            if within := re.fullmatch(r"\{(.+)\};?", code):  # what has a register of its own: %p0 is nobody else's
                code = within[1]
            for statement in filter(None, map(str.strip, code.split(";"))):
                self.line = n
                try:
                    self.body.append(f"/* {n} */ {self._statement(statement)}")
                except (KeyError, ValueError, IndexError, AttributeError) as problem:
                    raise PtxError(f"{self.name}, line {n}: not known: {statement}") from problem

    @property
    def code(self):
        """The C file."""
        used = sorted(set(re.findall(rf"\b(?:{'|'.join(self.registers)})\d+(?=\.)", self._joined)))
        sizes = {"STATIC_BYTES": self.static, "BLOCKS": len(self.blocks), "STACK_BYTES": 65536 + 16 * len(used)}
        defined = "".join(f"#define {name} {size}\n" for name, size in sizes.items())
        declared = "".join(f"    Register {name};\n" for name in used)
        return f'{defined}#include "{RUNTIME}"\n\nstatic void kernel(void) {{\n{declared}{self._joined}\n}}\n'

    @property
    def _joined(self):
        return "\n".join(self.body)

    def _place_shared(self, text):
        """Static arrays one after the other, dynamic ones behind them in one place."""
        for align, name, size in re.findall(r"\.shared\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d+)\]", text):
            at = -(-self.static // int(align)) * int(align)
            self.symbols[name], self.static = at, at + int(size)
        self.static = -(-self.static // 16) * 16
        for name in re.findall(r"\.extern\s+\.shared\s+\.align\s+\d+\s+\.b8\s+([\w$]+)\[\]", text):
            self.symbols[name] = self.static

    def _new_block(self):
        self.blocks.append([])
        self.body.append(f"hits[{len(self.blocks) - 1}]++;")

    def _statement(self, code):
        """The C of a label, a declaration or an instruction."""
        if code.startswith(".reg"):
            kind, prefix, count = re.fullmatch(r"\.reg\s+\.(\w+)\s+%(\w+)<(\d+)>", code).groups()
            _, before = self.registers.get(prefix, (0, 0))
            self.registers[prefix] = 1 if kind == "pred" else int(kind[1:]), max(int(count), before)
            return ""
        if code.startswith(".pragma"):
            return ""
        if code.endswith(":"):
            self.body.append(f"{_label(code[:-1])}:;")
            self._new_block()
            return ""
        guard, name, rest = re.fullmatch(r"(?:@(!?%p\d+)\s+)?([\w.:]+)\s*(.*)", code, re.DOTALL).groups()
        operands = [part.strip() for part in re.findall(r"(?:\{[^}]*\}|\[[^]]*\]|[^,{\[])+", rest) if part.strip()]
        self.blocks[-1].append(name)
        done = self._instruction(name, name.split("."), operands)
        done = f"if ({self._value(guard, 'pred')}) {{ {done} }}" if guard else done
        if name in ("bra", "bra.uni"):
            self.body.append(done)
            self._new_block()
            return ""
        return done

    def _instruction(self, name, parts, operands):
        if name in ("bra", "bra.uni"):
            return f"goto {_label(*operands)};"
        if name == "ret":
            return "return;"
        if name in ("bar.sync", "barrier.sync") and operands == ["0"]:
            return f"barrier({self.line});"
        special = {"ld": self._load, "st": self._store, "setp": self._compare, "mma": self._mma, "cp": self._copy,
                   "ldmatrix": self._matrices, "red": self._add}  # fmt: skip
        if parts[0] in special:
            return special[parts[0]](parts[1:], operands)
        if parts[0] == "cvt":
            return self._operation(CONVERSIONS[name[4:]], parts[-2], parts[-1], operands)
        if parts[0] == "mov" and "{" in "".join(operands):
            return self._pack(int(parts[1][1:]), operands)
        stem, t = ".".join(parts[:-1]), parts[-1]
        found = OPERATIONS.get(name) or OPERATIONS.get(f"{stem}.{t[0]}") or OPERATIONS[stem]
        to = t[0] + str(2 * int(t[1:])) if stem.endswith("wide") else t
        return self._operation(found, to, t, operands)

    def _operation(self, formula, to, t, operands):
        target, *sources = operands
        wide = f"{t[0]}{2 * _bits_of(t)}"
        values = {"t": t, "bits": _bits_of(t), "line": self.line, "wide": _c_type(wide)}
        for letter, source in zip("abcd", sources, strict=False):
            for key, of in ((letter, t), (f"{letter}_u32", "u32"), (f"{letter}_pred", "pred")):
                if "{" + key + "}" in formula:
                    values[key] = self._value(source, of)
        if len(sources) != len({key[0] for key in re.findall(r"\{([abcd])", formula)}):
            raise ValueError
        return f"{self._target(target, to)} = {formula.format(**values)};"

    # ------------------------------------------------------------------------------------- operands

    def _value(self, operand, t):
        """An operand, read as a number of a type."""
        if operand.startswith("!"):
            return f"!{self._value(operand[1:], t)}"
        if operand in SPECIAL:
            return SPECIAL[operand]
        if operand in self.symbols:
            return f"(SHARED_BASE + {self.symbols[operand]})"
        if found := re.fullmatch(r"0([fd])([0-9A-F]+)", operand):
            return f"{'float_of' if found[1] == 'f' else 'double_of'}(0x{found[2]})"
        if re.fullmatch(r"-?\d+", operand):
            return f"(({_c_type(t)}){operand}{'ull' if t[1:] == '64' and operand[0] != '-' else 'll'})"
        self._bits(operand)
        return f"{operand[1:]}.{t}"

    def _bits(self, operand):
        """Bits of a register."""
        prefix, number = re.fullmatch(r"%([a-z]+)(\d+)", operand).groups()
        bits, count = self.registers[prefix]
        if int(number) >= count:
            raise ValueError
        return bits

    def _target(self, operand, t):
        """A register that takes a number of a type, which is extended to as many bits as it has."""
        bits = self._bits(operand)
        if t[0] in "su" and _bits_of(t) < bits:
            t = t[0] + str(bits)
        elif _bits_of(t) != bits:
            raise ValueError
        return f"{operand[1:]}.{t}"

    def _vector(self, operand, count):
        names = [part.strip() for part in operand.strip("{}").split(",")]
        if len(names) != count:
            raise ValueError
        return names

    def _address(self, operand):
        base, offset = re.fullmatch(r"\[\s*([%\w$]+)\s*(?:\+\s*(-?\d+))?\s*\]", operand).groups()
        if base[0] == "%" and self._bits(base) == 32:
            return f"{self._value(base, 'u32')} + {offset or 0}"
        return f"{self._value(base, 'u64')} + {offset or 0}"

    # --------------------------------------------------------------------------------------- memory

    def _space(self, parts):
        """(shared or global, numbers, type, bytes) of a load or store."""
        rest = [part for part in parts if part not in CACHES and not re.match(r"L[12]", part)]
        space = rest.pop(0) if rest[0] in ("shared", "global") else "global"
        count = int(rest.pop(0)[1:]) if re.fullmatch(r"v[24]", rest[0]) else 1
        (t,) = rest
        return space, count, t, count * int(t[1:]) // 8

    def _load(self, parts, operands):
        target, source = operands
        if parts == ["param", "u64"]:
            return f"{self._target(target, 'u64')} = parameters[{self.parameters.index(source.strip('[]'))}];"
        space, count, t, size = self._space(parts)
        values = [f"{self._target(name, t)} = (({_c_type(t)} *)at)[{i}];"
                  for i, name in enumerate(self._vector(target, count))]  # fmt: skip
        return f"{{ void *at = {space}({self._address(source)}, {size}, {self.line}, READS); {' '.join(values)} }}"

    def _store(self, parts, operands):
        target, source = operands
        space, count, t, size = self._space(parts)
        values = [f"(({_c_type(t)} *)at)[{i}] = {self._value(name, t)};"
                  for i, name in enumerate(self._vector(source, count))]  # fmt: skip
        return f"{{ void *at = {space}({self._address(target)}, {size}, {self.line}, WRITES); {' '.join(values)} }}"

    def _add(self, parts, operands):
        space, _, t, size = self._space([part for part in parts if part != "add"])
        if space == "shared" or "add" not in parts:
            raise ValueError
        place = f"*({_c_type(t)} *)global({self._address(operands[0])}, {size}, {self.line}, ADDS)"
        return f"{place} += {self._value(operands[1], t)};"

    def _copy(self, parts, operands):
        if parts == ["async", "commit_group"]:
            return "commit_group();"
        if parts == ["async", "wait_all"]:
            return "wait_all();"
        if parts == ["async", "wait_group"]:
            return f"wait_group({int(*operands)});"
        if not re.fullmatch(r"async\.c[ag]\.shared\.global(\.L2::\w+)?", ".".join(parts)):
            raise ValueError
        to, source, size, *count = operands
        if int(size) not in ((16,) if parts[1] == "cg" else (4, 8, 16)):
            raise ValueError
        copied = self._value(*count, "u32") if count else size
        return f"begin_copy({self._address(to)}, {self._address(source)}, {size}, {copied}, {self.line});"

    # ---------------------------------------------------------------------------------------- others

    def _compare(self, parts, operands):
        name, t = parts
        target, *sources = operands
        a, b = (self._value(source, t) for source in sources)
        if t[0] != "f":
            test = f"{a} {COMPARISONS[name]} {b}"
        else:
            test = f"{a} {COMPARISONS[name.removesuffix('u')]} {b}"
            test = f"isunordered({a}, {b}) || {test}" if name.endswith("u") else f"!isunordered({a}, {b}) && {test}"
        return f"{self._target(target, 'pred')} = {test};"

    def _pack(self, bits, operands):
        """Several registers as one, the first of them lowest, or the other way round."""
        target, source = operands
        names = self._vector(target if target[0] == "{" else source, 2)
        half = f"u{bits // 2}"
        if target[0] == "{":
            whole = self._value(source, f"u{bits}")
            low, high = (self._target(name, half) for name in names)
            return f"{{ uint{bits}_t whole = {whole}; {low} = whole; {high} = whole >> {bits // 2}; }}"
        low, high = (self._value(name, half) for name in names)
        return f"{self._target(target, f'u{bits}')} = (uint{bits}_t){high} << {bits // 2} | {low};"

    def _mma(self, parts, operands):
        function = MMA[".".join(parts).removeprefix("sync.aligned.")]
        counts, of_sums, of_factors, kind = (4, 4, 2, 4), "f32", "b32", "Mma"
        if function == "mma_f64":
            counts, of_sums, of_factors, kind = (2, 1, 1, 2), "f64", "f64", "Mma64"
        d, a, b, c = (self._vector(operand, count) for operand, count in zip(operands, counts, strict=True))
        given = [
            [self._value(name, t) for name in names] for names, t in ((a, of_factors), (b, of_factors), (c, of_sums))
        ]
        fields = ", ".join("{" + ", ".join(values) + "}" for values in given)
        taken = " ".join(f"{self._target(name, of_sums)} = m.d[{i}];" for i, name in enumerate(d))
        return f"{{ {kind} m = {{{{0}}, {fields}}}; warp({self.line}, &m, {function}); {taken} }}"

    def _matrices(self, parts, operands):
        found = re.fullmatch(r"sync\.aligned\.m8n8\.x([124])(\.trans)?\.shared\.b16", ".".join(parts))
        count = int(found[1])
        values = [f"{self._target(name, 'b32')} = m.d[{i}];" for i, name in enumerate(self._vector(operands[0], count))]
        matrices = f"load_matrices({self._address(operands[1])}, {count}, {int(bool(found[2]))}, {self.line})"
        return f"{{ Matrices m = {matrices}; {' '.join(values)} }}"


def _label(name):
    return name.replace("$", "")


def _bits_of(t):
    if t == "pred":
        return 1
    size, pair = re.fullmatch(r"[a-z]+(\d+)(x2)?", t).groups()
    return int(size) * (2 if pair else 1)


def _c_type(t):
    known = {"pred": "uint8_t", "f32": "float", "f64": "double", "s128": "__int128", "u128": "unsigned __int128"}
    return known.get(t) or f"{'' if t[0] == 's' else 'u'}int{t[1:]}_t"


# ------------------------------------------------------------------------------------------------ execution


class Memory(ctypes.Structure):
    """Bytes that a kernel may read, and write if `written`."""

    _fields_ = (
        ("base", ctypes.c_uint64), ("size", ctypes.c_uint64), ("written", ctypes.c_int32), ("owner", ctypes.c_void_p),
    )  # fmt: skip


class Kernel:
    """A kernel that can be run."""

    def __init__(self, text):
        self.translation = Translation(text)
        path = Path(FOLDER.name, f"kernel{len(list(Path(FOLDER.name).iterdir()))}")
        path.with_suffix(".c").write_text(self.translation.code)
        command = ["cc", *FLAGS, "-o", str(path.with_suffix(".so")), str(path.with_suffix(".c")), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise PtxError(f"{self.translation.name}: {done.stderr[:2000]}")
        self.library = ctypes.CDLL(str(path.with_suffix(".so")))

    def run(self, arrays, written, grid, block, shared=0, early=False):
        """Run a grid on NumPy arrays, the kernel's arguments, of which the numbers in `written` may be written.

        Copies that are asynchronous are carried out when they are waited for, or `early`, when they begin.
        """
        self.run_at(*_given(arrays, written), grid, block, shared, early)

    def run_at(self, addresses, memory, grid, block, shared=0, early=False, logged=False):
        """The same with addresses for arguments, and all memory that there is."""
        assert len(addresses) == len(self.translation.parameters)
        message = ctypes.create_string_buffer(400)
        line = self.library.launch(
            (ctypes.c_uint64 * len(addresses))(*addresses), (Memory * len(memory))(*memory), len(memory), grid, block,
            shared, early, logged, message,
        )  # fmt: skip
        if line:
            code = self.translation.lines[line - 1].strip()
            raise PtxError(f"{self.translation.name}, line {line}, {code!r}, {message.value.decode()}")

    def count(self, arrays, written, grid, block, shared=0):
        """Run a grid as `run` does: ({class of instructions: executions by a thread}, [Traffic of each line]).

        Arrays are counted as if they began at multiples of 256 bytes, as those of a GPU do.
        """
        placed = [_placed(array) for array in arrays]
        self.run_at(*_given(placed, written), grid, block, shared, logged=True)
        for i in written:
            arrays[i][...] = placed[i]
        log = np.empty(ctypes.c_long.in_dll(self.library, "access_count").value, ACCESS)
        ctypes.memmove(log.ctypes.data, ctypes.c_void_p.in_dll(self.library, "accesses"), log.nbytes)
        self.library.forget()
        code = self.translation.lines
        traffic = [Traffic(line, code[line - 1].strip(), *numbers) for line, *numbers in _traffic(log)]
        return self._executed(grid * block), traffic

    def _executed(self, threads):
        blocks = self.translation.blocks
        executed = dict.fromkeys((*CLASSES, "other"), 0.0)
        for times, names in zip((ctypes.c_long * len(blocks)).in_dll(self.library, "hits"), blocks):
            for name in names:
                kind = next((kind for kind, begins in CLASSES.items() if name.startswith(begins)), "other")
                executed[kind] += times / threads
        return executed


compiled = cache(Kernel)


def _placed(array):
    """A copy that begins at a multiple of 256 bytes."""
    room = np.empty(array.nbytes + 256, np.uint8)
    start = -room.ctypes.data % 256
    copy = room[start : start + array.nbytes].view(array.dtype)
    copy[...] = array
    return copy


def _given(arrays, written):
    """(addresses, Memory of each) of NumPy arrays."""
    memory = [Memory(array.ctypes.data, array.nbytes, i in written) for i, array in enumerate(arrays)]
    return [array.base for array in memory], memory


# ------------------------------------------------------------------------------------------------- counting

ACCESS = np.dtype(
    [("address", "i8"), *((name, "i4") for name in ("block", "thread", "line", "size", "shared"))], align=True
)
CLASSES = {"fma": ("fma",), "mma": ("mma",), "memory": ("ld", "st", "red", "cp.async.ca", "cp.async.cg")}
WARP, SECTOR, WORD, BANKS = 32, 32, 4, 32


class Traffic(NamedTuple):
    """What the accesses of one line to shared or global memory cost.

    A copy to shared memory has two of these, of which the first is what it reads. `requests` are executions by a warp;
    `parts` are the sectors of 32 bytes that they touch in global memory, or, in shared memory, the turns in which each
    bank gives one word; `least` is how many parts the same bytes need that lie best.
    """

    line: int
    code: str
    shared: bool
    requests: int
    parts: int
    least: int


def _traffic(log):
    """(line, whether shared, requests, parts, least) of each line.

    Lanes are taken to execute a line for the nth time together.
    """
    log = log[np.lexsort((log["thread"], log["block"], log["line"], log["shared"]))]  # stable: then by time
    of_thread = log[["shared", "line", "block", "thread"]]
    first = np.flatnonzero(np.append(True, of_thread[1:] != of_thread[:-1]))
    time = np.arange(log.size) - np.repeat(first, np.diff(np.append(first, log.size)))
    request = np.zeros(log.size, int)
    for column in (log["shared"], log["line"], log["block"], log["thread"] // WARP, time):
        values, place = np.unique(column, return_inverse=True)
        request = np.unique(request * len(values) + place, return_inverse=True)[1]
    one = log[np.unique(request, return_index=True)[1]]  # access of each request
    cost = np.where(one["shared"], _turns(log, request), _sectors(log, request, one["size"]))
    lines, of_line = np.unique(one[["shared", "line"]], return_inverse=True)
    requests, parts, least = (np.bincount(of_line, weights).astype(int) for weights in (None, *cost))
    for n, (shared, line) in enumerate(lines.tolist()):
        yield line, bool(shared), requests[n], parts[n], least[n]


def _distinct(a, b):
    """The pairs of numbers at the same place of both, each once."""
    values, place = np.unique(b, return_inverse=True)
    pairs = np.unique(a * len(values) + place)
    return pairs // len(values), values[pairs % len(values)]


def _sectors(log, request, size):
    """[sectors, least] of each request, of which each lane's has `size` bytes."""
    sectors, _ = _distinct(request, log["address"] // SECTOR)
    places, _ = _distinct(request, log["address"])
    return np.stack([np.bincount(sectors), -(-np.bincount(places) * size // SECTOR)])


def _turns(log, request):
    """[turns, least] of each request: of 8 bytes, half a warp is served at once, of 16 a quarter."""
    words = np.maximum(log["size"] // WORD, 1)
    quarter = log["thread"] % WARP // 8
    part = request * 4 + np.select([words == 2, words == 4], [quarter // 2, quarter], 0)
    step = np.arange(words.sum()) - np.repeat(np.cumsum(words) - words, words)
    parts, word = _distinct(np.repeat(part, words), np.repeat(log["address"] // WORD, words) + step)
    of_bank = np.bincount(parts * BANKS + word % BANKS, minlength=(request.max() + 1) * 4 * BANKS).reshape(-1, 4, BANKS)
    return np.stack([of_bank.max(2).sum(1), -(-of_bank.sum(2) // BANKS).sum(1)])
