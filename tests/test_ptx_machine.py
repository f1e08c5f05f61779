"""The machine that runs PTX on the host, on PTX of a few lines: its numbers, and what it reports."""

import re
import shutil
import sys

import numpy as np
import pytest
from ptx_machine import PtxError, compiled

pytestmark = pytest.mark.skipif(
    not (shutil.which("cc") and sys.platform == "linux"), reason="there is no C compiler for Linux"
)

# Of thread t: %rd4 and %rd5 are the addresses of source[t] and target[t], of 4 bytes each; %rd7 and %r2 that of place t
# in shared memory, %rd9 that of place 63 - t.
SNIPPET = """
.extern .shared .align 16 .b8 room[];
.visible .entry snippet(
    .param .u64 source,
    .param .u64 target
)
{
    .reg .pred %p<9>;
    .reg .b16 %rs<9>;
    .reg .b32 %r<29>;
    .reg .f32 %f<9>;
    .reg .b64 %rd<29>;
    ld.param.u64 %rd1, [source];
    ld.param.u64 %rd2, [target];
    mov.u32 %r4, %ctaid.x;
    mov.u32 %r5, %ntid.x;
    mov.u32 %r6, %tid.x;
    mad.lo.s32 %r1, %r4, %r5, %r6;
    mul.wide.u32 %rd3, %r1, 4;
    add.s64 %rd4, %rd1, %rd3;
    add.s64 %rd5, %rd2, %rd3;
    mov.u64 %rd6, room;
    add.s64 %rd7, %rd6, %rd3;
    cvt.u32.u64 %r2, %rd7;
    sub.s32 %r3, 63, %r1;
    mul.wide.u32 %rd8, %r3, 4;
    add.s64 %rd9, %rd6, %rd8;
    BODY
    ret;
}
"""
BODY_LINE = 1 + SNIPPET[: SNIPPET.index("BODY")].count("\n")


def run(body, source=None, target=None, threads=64, blocks=1, shared=256, early=False):
    """The target, in whose place 77 was before."""
    source = np.arange(64, dtype=np.uint32) if source is None else source
    target = np.full(64, 77, np.uint32) if target is None else target
    kernel_of(body).run([source, target], {1}, blocks, threads, shared, early)
    return target


def kernel_of(body):
    return compiled(SNIPPET.replace("BODY", body.replace("; ", ";\n    ") + ";").replace(":;", ":"))


# ------------------------------------------------------------------------------------ threads and memory

COPY = "cp.async.ca.shared.global [%r2], [%rd4], 4; "
COMMIT, WAIT = "cp.async.commit_group; ", "cp.async.wait_group 0; "
STORE, BARRIER = "st.shared.u32 [%rd7], %r1; ", "bar.sync 0; "
READ = "ld.shared.u32 %r4, [%rd9]; st.global.u32 [%rd5], %r4"
FINE = {
    "by a store": STORE + BARRIER + READ,
    "by a copy": COPY + COMMIT + WAIT + BARRIER + READ,
    "by the older of two groups": COPY + COMMIT + BARRIER + COMMIT + WAIT.replace("0", "1") + BARRIER + READ,
    "by all copies": COPY + "cp.async.wait_all; " + BARRIER + READ,
}


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("body", FINE.values(), ids=FINE)
def test_numbers_from_thread_to_thread(body, early):
    assert np.array_equal(run(body, early=early), np.arange(64)[::-1])


def test_there_is_one_kernel():
    with pytest.raises(PtxError, match=r"^snippet: there are functions besides the kernel$"):
        compiled(SNIPPET + ".func other () { ret; }")


def test_copies_of_fewer_bytes_end_in_zeros():
    some = "and.b32 %r5, %r1, 3; " + COPY.replace("4; ", "4, %r5; ")
    got = run(some + "cp.async.wait_all; ld.shared.u32 %r4, [%rd7]; st.global.u32 [%rd5], %r4", np.full(64, -1, "i4"))
    assert got[:5].tolist() == [0, 0xFF, 0xFFFF, 0xFFFFFF, 0]


def test_copies_are_late_or_early():
    body = COPY.replace("rd4", "rd5") + "st.global.u32 [%rd5], 5; cp.async.wait_all; ld.shared.u32 %r4, [%rd7]; "
    for early in (False, True):
        assert set(run(body + "st.global.u32 [%rd5], %r4", early=early)) == {77 if early else 5}


WRONG = {
    "no barrier": (STORE + READ, r"byte 252 of shared memory was never written"),
    "no barrier after the second": (STORE + BARRIER + READ + "; " + STORE + READ, "race: thread 31 wrote byte 124"),
    "no barrier before it": (STORE + BARRIER + "ld.shared.u32 %r4, [%rd6+252]; " + STORE, "race: another thread read"),
    "two writers": ("st.shared.u32 [%rd6], %r1", "thread 1: race: thread 0 wrote byte 0 of shared memory"),
    "two writers of an array": ("st.global.u32 [%rd2], %r1", "thread 1: race: another thread wrote byte 0 of array 1"),
    "a reader of what is written": ("st.global.u32 [%rd5], 0; ld.global.u32 %r4, [%rd2]", "race: another thread"),
    "no wait": (COPY + COMMIT + BARRIER + READ, "byte 252 of shared memory is the target of a copy under way"),
    "no wait for what is its own": (COPY + "ld.shared.u32 %r4, [%rd7]", "byte 0 of shared memory is the target"),
    "a wait for older groups": (COPY + COMMIT + WAIT.replace("0", "1") + BARRIER + READ, "is the target of a copy"),
    "a wait without a group": (COPY + WAIT + BARRIER + READ, "is the target of a copy"),
    "a wait without a barrier": (COPY + COMMIT + BARRIER + WAIT + READ, "byte 252 .* is the target of a copy"),
    "one that comes too early": (COPY + COMMIT + BARRIER + WAIT + STORE + "ld.shared.u32 %r4, [%rd6]", "1: race"),
    "a target that is read": (STORE + BARRIER + "ld.shared.u32 %r4, [%rd6+252]; " + COPY, "thread 63: race: another"),
    "a target twice": (COPY + COPY + WAIT, "byte 0 of shared memory is the target of a copy"),
    "outside of shared memory": ("st.shared.u32 [%rd7+4], %r1", "thread 63: outside of shared memory: byte 256"),
    "before shared memory": ("st.shared.u32 [%rd7+-4], %r1", "thread 0: outside of shared memory: byte -4"),
    "outside of arrays": ("ld.global.u32 %r4, [%rd4+4]", "thread 63: 4 bytes of global memory outside of all arrays"),
    "a copy from there": (COPY.replace("rd4", "rd4+4"), "thread 63: 4 bytes of global memory outside of all arrays"),
    "before the arrays": ("ld.global.u32 %r4, [%rd4+-4]", "thread 0: 4 bytes of global memory outside of all arrays"),
    "an argument that is read": ("st.global.u32 [%rd4], %r1", "write into array 0, which is only read"),
    "misaligned": ("ld.global.v2.u32 {%r4, %r5}, [%rd4]", "thread 1: 8 bytes of global memory at a misaligned"),
    "misaligned in shared memory": ("st.shared.v4.u32 [%rd7], {%r1, %r1, %r1, %r1}", "thread 1: 16 bytes of shared"),
    "a misaligned copy": ("cp.async.cg.shared.global [%r2], [%rd4], 16", "thread 1: copy of 16 of 16 bytes from"),
    "more than the copy": (COPY.replace("4; ", "4, 5; "), "thread 0: copy of 5 of 4 bytes from"),
    "division by zero": ("div.u32 %r4, 1, %r1", "thread 0: division by zero"),
    "a barrier for some": ("setp.gt.u32 %p1, %r1, 31; @%p1 bra $L_1; bar.sync 0; $L_1:",
                           "thread 0: waits here, but thread 32 has ended"),
    "a barrier for some of a warp": ("setp.ne.u32 %p1, %r1, 5; @%p1 bra $L_1; bar.sync 0; $L_1:",
                                     "thread 5: waits here, but thread 0 has ended"),
    "two barriers": ("setp.ne.u32 %p1, %r1, 5; @%p1 bra $L_1; bar.sync 0; bra $L_2; $L_1:; bar.sync 0; $L_2:",
                     "thread 0: waits here, but thread 5 waits elsewhere"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong(body, message):
    with pytest.raises(PtxError, match=rf"^snippet, line \d+, '[a-z].*;', block 0, thread \d+: .*|{message}") as error:
        run(body)
    assert re.search(message, str(error.value))


NOT_KNOWN = ("add.sat.s32 %r4, %r1, %r1", "tex.2d.v4.f32 %f1, %r1", "mov.u32 %r4, %clock", "call f", "bar.sync 1",
             "add.s32 %r4, %r1", "add.s32 %r4, %r1, %r1, %r1", "add.s64 %r4, %r1, %r1", "add.s32 %r29, %r1, %r1",
             "ld.global.u32 %f1, [%rd4]x", "ld.u8 %p1, [%rd4]", "cp.async.cg.shared.global [%r2], [%rd4], 4",
             "atom.add.f32 %f1, [%rd4], %f2")  # fmt: skip


@pytest.mark.parametrize("code", NOT_KNOWN)
def test_what_is_not_known(code):
    with pytest.raises(PtxError, match=rf"^snippet, line {BODY_LINE}: not known: {re.escape(code)}$"):
        run(code)


# ----------------------------------------------------------------------------------------------- numbers

EDGES = [0, 1, 2, 31, 32, 33, 63, 64, 65, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 2, 2**32 - 1]
WORDS = np.array([*EDGES, *np.random.default_rng(0).integers(0, 2**32, 243), *EDGES[::-1], 3], np.uint32)


def of_pairs(code, source=WORDS):
    """What becomes of each word %r4 and the next one %r5; of %rd10 = {%r4, %r5} and %rd11 = {%r5, %r4}: %rd12."""
    load = "ld.global.u32 %r4, [%rd4]; ld.global.u32 %r5, [%rd4+4]; "
    load += "mov.b64 %rd10, {%r4, %r5}; mov.b64 %rd11, {%r5, %r4}"
    store = "add.s64 %rd13, %rd5, %rd3; st.global.u64 [%rd13], %rd12"
    return run(f"{load}; {code}; {store}", source, np.zeros(source.size - 1, np.uint64), source.size - 1)


def quotient(a, b):
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


INTEGERS = {
    "add.s32": lambda a, b: a + b, "sub.s64": lambda a, b: a - b, "neg.s32": lambda a: -a, "not.b64": lambda a: ~a,
    "mul.lo.s32": lambda a, b: a * b, "mul.lo.s64": lambda a, b: a * b,
    "mul.wide.s32": lambda a, b: a * b, "mul.wide.u32": lambda a, b: a * b,
    "mul.hi.s32": lambda a, b: a * b >> 32, "mul.hi.u64": lambda a, b: a * b >> 64,
    "min.s64": min, "min.u32": min, "max.s32": max, "max.u64": max, "and.b32": lambda a, b: a & b,
    "or.b64": lambda a, b: a | b, "xor.b32": lambda a, b: a ^ b,
    "shl.b32": lambda a, b: a << min(b, 64), "shl.b64": lambda a, b: a << min(b, 64),
    "shr.s32": lambda a, b: a >> min(b, 64), "shr.u32": lambda a, b: a >> min(b, 64),
    "shr.s64": lambda a, b: a >> min(b, 64), "shr.u64": lambda a, b: a >> min(b, 64),
    "div.s32": quotient, "div.u32": quotient, "div.s64": quotient, "div.u64": quotient,
    "rem.s64": lambda a, b: a - quotient(a, b) * b, "rem.u32": lambda a, b: a - quotient(a, b) * b,
}  # fmt: skip


def number(bits, t):
    """Bits as a number of the type."""
    size = int(t[1:])
    return bits - (bits >> size - 1 << size) if t[0] == "s" else bits


@pytest.mark.parametrize("name", INTEGERS)
def test_integers(name):
    *stem, t = name.split(".")
    words = WORDS[WORDS != 0] if stem[0] in ("div", "rem") else WORDS
    whole, is_shift, count = t.endswith("64"), stem[0] in ("shl", "shr"), 1 if stem[0] in ("neg", "not") else 2
    sources = ["%rd10" if whole else "%r4", "%r5" if is_shift or not whole else "%rd11"][:count]
    wide = whole or "wide" in stem
    code = f"{name} {'%rd12' if wide else '%r6'}, {', '.join(sources)}" + ("" if wide else "; cvt.u64.u32 %rd12, %r6")
    for low, high, got in zip(words.tolist(), words[1:].tolist(), of_pairs(code, words).tolist()):
        a, b = number(high << 32 | low if whole else low, t), number(low << 32 | high if whole else high, t)
        given = (a, high if is_shift else b)[:count]
        assert got == INTEGERS[name](*given) % 2 ** (64 if wide else 32), given


def test_parts_of_words():
    for code, expected in (
        ("prmt.b32 %r6, %r4, %r5, 21520", lambda a, b: a & 0xFFFF | b << 16),  # 0x5410
        ("prmt.b32 %r6, %r4, %r5, 30258", lambda a, b: a >> 16 | b & 0xFFFF0000),  # 0x7632
        ("prmt.b32 %r6, %r4, %r5, 34440", lambda a, b: (a >> 7 & 1) * 0xFF00FFFF | b & 0xFF0000),  # 0x8688
        ("bfe.u32 %r6, %r4, 16, 8", lambda a, b: a >> 16 & 0xFF),
        ("bfe.u32 %r6, %r4, 8, 32", lambda a, b: a >> 8),
        ("bfi.b32 %r6, %r4, %r5, 12, 5", lambda a, b: b & ~0x1F000 | (a & 0x1F) << 12),
        ("{.reg .pred %p<1>;setp.lt.u32 %p0, %r4, %r5;selp.b32 %r6, 5, 7, %p0;}", lambda a, b: 5 if a < b else 7),
        ("mov.b32 %f1, %r4; abs.f32 %f2, %f1; mov.b32 %r6, %f2", lambda a, b: a & 0x7FFFFFFF),
    ):
        got = of_pairs(code + "; cvt.u64.u32 %rd12, %r6")
        for a, b, number in zip(WORDS.tolist(), WORDS[1:].tolist(), got.tolist()):
            assert number == expected(a, b) % 2**32, (code, a, b)


SIZES = [0.0, -0.0, 1.0, 2.0, -2.0, np.nan, np.inf, 1.5]
COMPARED = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip


@pytest.mark.parametrize("name", COMPARED)
def test_comparisons_of_floats(name):
    """Those with NaN are false, and true where the name ends with `u`."""
    a, b = (part.ravel().astype(np.float32) for part in np.meshgrid(SIZES, SIZES))
    source = np.stack([a, b], 1).ravel().view(np.uint32)
    unordered = np.isnan(a) | np.isnan(b)
    for suffix, expected in (("", COMPARED[name](a, b) & ~unordered), ("u", COMPARED[name](a, b) | unordered)):
        code = f"mov.b32 %f1, %r4; mov.b32 %f2, %r5; setp.{name}{suffix}.f32 %p1, %f1, %f2; selp.b64 %rd12, 1, 0, %p1"
        assert np.array_equal(of_pairs(code, np.append(source, 0).astype(np.uint32))[::2], expected)


def test_products_are_rounded_unless_fused():
    x = np.float32(1 + 2**-12)
    load = f"mov.f32 %f1, 0f{x.view(np.uint32):08X}; mov.f32 %f2, 0f{np.float32(-1 - 2**-11).view(np.uint32):08X}; "
    end = "; st.global.f32 [%rd5], %f3"
    apart = run(load + "mul.f32 %f3, %f1, %f1; add.f32 %f3, %f3, %f2" + end).view(np.float32)
    fused = run(load + "fma.rn.f32 %f3, %f1, %f1, %f2" + end).view(np.float32)
    assert set(apart) == {0}
    assert set(fused) == {np.float32(2**-24)}


# Every number whose upper half is any, ends of rounding intervals of float16, and random ones.
CONVERTED = np.concatenate([
    np.arange(2**16, dtype=np.uint32) << 16, (np.arange(2**15, dtype=np.uint32) << 12) + 0x33000000,
    np.random.default_rng(1).integers(0, 2**32, 2**15, dtype=np.uint32),
])  # fmt: skip


def of_each(code, source):
    """What becomes of each word, %f1 and %r4, in %r5."""
    body = f"ld.global.u32 %r4, [%rd4]; mov.b32 %f1, %r4; {code}; st.global.u32 [%rd5], %r5"
    return run(body, source, np.empty_like(source), 128, source.size // 128)


def test_conversions():
    numbers = CONVERTED.view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        half = numbers.astype(np.float16)
    got = of_each("cvt.rn.f16.f32 %rs1, %f1; cvt.u32.u16 %r5, %rs1", CONVERTED).astype(np.uint16).view(np.float16)
    assert np.array_equal(got, half, equal_nan=True)
    assert np.array_equal(np.signbit(got[~np.isnan(got)]), np.signbit(half[~np.isnan(half)]))
    back = of_each("cvt.u16.u32 %rs1, %r4; cvt.f32.f16 %f2, %rs1; mov.b32 %r5, %f2", half.view(np.uint16).astype("u4"))
    assert np.array_equal(back.view(np.float32), half.astype(np.float32), equal_nan=True)
    wide = of_each("cvt.u16.u32 %rs1, %r4; cvt.f32.bf16 %f2, %rs1; mov.b32 %r5, %f2", CONVERTED >> 16)
    assert np.array_equal(wide, CONVERTED >> 16 << 16)
    pairs = of_each("cvt.rn.f16x2.f32 %r5, %f1, 0f3F800000", CONVERTED).view(np.float16).reshape(-1, 2)
    assert np.array_equal(pairs, np.stack([np.ones_like(half), half], 1), equal_nan=True)
    tf32, bf16 = "cvt.rna.tf32.f32 %r5, %f1", "cvt.rn.bf16.f32 %rs1, %f1; cvt.u32.u16 %r5, %rs1; shl.b32 %r5, %r5, 16"
    for code, bits, to_even in ((tf32, 13, False), (bf16, 16, True)):
        rest, half_way = CONVERTED & np.uint32(2**bits - 1), 2 ** (bits - 1)
        up = (rest > half_way) | (rest == half_way) & (CONVERTED >> bits & 1 >= to_even)
        nearest = (CONVERTED - rest + (up.astype(np.uint32) << bits)).view(np.float32)
        nearest[np.isnan(numbers)] = np.nan
        assert np.array_equal(of_each(code, CONVERTED).view(np.float32), nearest, equal_nan=True)


# ---------------------------------------------------------------------------------------------- matrices

# Lane l has sums at source[256 + 4 * l] to begin with, and at target[4 * l] in the end.
MULTIPLY = """shl.b64 %rd10, %rd3, 2; add.s64 %rd11, %rd1, %rd10; add.s64 %rd12, %rd2, %rd10; \
ld.global.v4.f32 {{%f5, %f6, %f7, %f8}}, [%rd11+1024]; \
mma.sync.aligned.{}.f32 {{%f1, %f2, %f3, %f4}}, {{%r10, %r11, %r12, %r13}}, {{%r14, %r15}}, {{%f5, %f6, %f7, %f8}}; \
st.global.v4.f32 [%rd12], {{%f1, %f2, %f3, %f4}}"""
# a of 16 rows of 32 bytes, and b of 256 bytes, to shared memory, one behind the other.
FETCH = """shl.b64 %rd10, %rd3, 2; add.s64 %rd11, %rd1, %rd10; add.s64 %rd12, %rd6, %rd10; cvt.u32.u64 %r20, %rd12; \
cp.async.cg.shared.global [%r20], [%rd11], 16; \
shl.b64 %rd10, %rd3, 1; add.s64 %rd11, %rd1, %rd10; add.s64 %rd12, %rd6, %rd10; cvt.u32.u64 %r20, %rd12; \
cp.async.ca.shared.global [%r20+512], [%rd11+512], 8; cp.async.wait_all; bar.sync 0; mov.u64 %rd10, room; \
cvt.u32.u64 %r20, %rd10; and.b32 %r21, %r1, 15; shr.u32 %r22, %r1, 4; shl.b32 %r23, %r21, 5; shl.b32 %r24, %r22, 4; \
add.s32 %r25, %r20, %r23; add.s32 %r25, %r25, %r24; """
LOAD = "ldmatrix.sync.aligned.m8n8.{}.shared.b16 {{{}}}, [{}]; "
LOAD_A = LOAD.format("x4", "%r10, %r11, %r12, %r13", "%r25")
LOAD_B = "shl.b32 %r26, %r21, 4; add.s32 %r26, %r26, %r20; " + LOAD.format("x2.trans", "%r14, %r15", "%r26+512")
LOAD_COLUMNS = (
    "and.b32 %r26, %r1, 7; shl.b32 %r26, %r26, 5; add.s32 %r26, %r26, %r20; "
    + LOAD.format("x1", "%r14", "%r26+512")
    + LOAD.format("x1", "%r15", "%r26+528")
)
LOAD_PAIR = (
    "and.b32 %r26, %r1, 7; shl.b32 %r26, %r26, 5; add.s32 %r26, %r26, %r20; "
    + "and.b32 %r27, %r1, 8; shl.b32 %r27, %r27, 1; add.s32 %r26, %r26, %r27; "
    + LOAD.format("x2", "%r14, %r15", "%r26+512")
)
# a[lane / 4, lane % 4] and what is 8 rows below, 4 columns further; b[lane % 4, lane / 4], and 4 rows below.
TF32 = """shr.u32 %r20, %r1, 2; and.b32 %r21, %r1, 3; mad.lo.s32 %r22, %r20, 8, %r21; mul.wide.u32 %rd10, %r22, 4; \
add.s64 %rd11, %rd1, %rd10; ld.global.b32 %r10, [%rd11]; ld.global.b32 %r11, [%rd11+256]; \
ld.global.b32 %r12, [%rd11+16]; ld.global.b32 %r13, [%rd11+272]; mad.lo.s32 %r22, %r21, 8, %r20; \
mul.wide.u32 %rd10, %r22, 4; add.s64 %rd11, %rd1, %rd10; ld.global.b32 %r14, [%rd11+512]; \
ld.global.b32 %r15, [%rd11+640]; """


def small(shape, seed):
    """Numbers whose products have exact sums in float32, and which 8 bits hold."""
    return (np.random.default_rng(seed).integers(-64, 65, shape) / 16).astype(np.float32)


def product(fetch, kind, a, b, c):
    """a @ b + c of one warp, by the words of a and b."""
    group, member = np.divmod(np.arange(32)[:, None], 4)
    rows, columns = group + np.array([0, 0, 8, 8]), 2 * member + np.array([0, 1, 0, 1])
    source = np.zeros(384, np.uint32)
    source[: a.size], source[128 : 128 + b.size] = a.ravel(), b.ravel()
    source[256:] = c[rows, columns].ravel().view(np.uint32)
    target, result = np.zeros(128, np.float32), np.full((16, 8), np.nan, np.float32)
    run(fetch + MULTIPLY.format(kind), source, target, 32, shared=768)
    result[rows, columns] = target.reshape(32, 4)
    return result


def words(array, dtype):
    """The bits of numbers, two of 16 bits in a word."""
    if dtype == "bf16":
        return (array.view(np.uint32) >> 16).astype(np.uint16).view(np.uint32)
    return array.astype({"f16": np.float16, "tf32": np.float32}[dtype]).view(np.uint32)


@pytest.mark.parametrize("load", [LOAD_B, LOAD_COLUMNS, LOAD_PAIR], ids=["transposed", "one by one", "two"])
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_matrices_of_16_bits(dtype, load):
    a, b, c = small((16, 16), 0), small((16, 8), 1), small((16, 8), 2)
    stored = b if load is LOAD_B else np.ascontiguousarray(b.T)
    kind = f"m16n8k16.row.col.f32.{dtype}.{dtype}"
    got = product(FETCH + LOAD_A + load, kind, words(a, dtype), words(stored, dtype), c)
    assert np.array_equal(got, a @ b + c)


def test_matrices_of_tf32():
    a, b, c = small((16, 8), 0), small((8, 8), 1), small((16, 8), 2)
    for rest in (0, 2**13 - 1):  # bits that do not count
        got = product(TF32, "m16n8k8.row.col.f32.tf32.tf32", words(a, "tf32") | rest, words(b, "tf32") | rest, c)
        assert np.array_equal(got, a @ b + c)


def test_instructions_of_a_warp():
    with pytest.raises(PtxError, match="thread 0: its warp has only 31 lanes"):
        run(TF32 + MULTIPLY.format("m16n8k8.row.col.f32.tf32.tf32"), np.zeros(384, "u4"), np.zeros(128, "u4"), 31)
    part = "setp.eq.u32 %p1, %r1, 9; @%p1 bra $L_1; " + MULTIPLY.format("m16n8k8.row.col.f32.tf32.tf32") + "; $L_1:"
    with pytest.raises(PtxError, match="thread 0: waits here, but thread 9 has ended"):
        run(part, np.zeros(384, "u4"), np.zeros(128, "u4"), 32)
    with pytest.raises(PtxError, match="thread 0: byte 0 of shared memory was never written"):
        run(LOAD_A.replace("%r25", "%rd6"), threads=32)


# ---------------------------------------------------------------------------------------------- counting


def counted(body, blocks=1, threads=32):
    source, target = np.zeros(2048, np.uint32), np.zeros(2048, np.uint32)
    return kernel_of(body).count([source, target], {1}, blocks, threads, 8192)


# What is stored, bytes from lane to lane, and parts and the least of them: in shared memory turns, then sectors.
STORED = [
    ("shared.u32", 4, 1, 1), ("shared.u32", 8, 2, 1), ("shared.u32", 128, 32, 1), ("shared.u32", 132, 1, 1),
    ("shared.v2.u32", 8, 2, 2), ("shared.v2.u32", 16, 4, 2), ("shared.v4.u32", 16, 4, 4), ("shared.v4.u32", 32, 8, 4),
    ("global.u32", 4, 4, 4), ("global.u32", 32, 32, 4), ("global.v2.u32", 8, 8, 8), ("global.v4.u32", 32, 32, 16),
]  # fmt: skip


@pytest.mark.parametrize(("store", "stride", "parts", "least"), STORED)
def test_what_accesses_cost(store, stride, parts, least):
    base, count = "%rd6" if "shared" in store else "%rd2", int(store[8]) if store[7] == "v" else 1
    number = "%r1" if count == 1 else f"{{{', '.join(['%r1'] * count)}}}"
    place = f"mul.wide.u32 %rd10, %r1, {stride}; add.s64 %rd11, {base}, %rd10; "
    _, (traffic,) = counted(place + f"st.{store} [%rd11], {number}")
    assert traffic[:2] == (BODY_LINE + 2, f"st.{store} [%rd11], {number};")
    assert traffic[2:] == ("shared" in store, 1, parts, least)


def test_one_word_for_all_lanes():
    *_, shared, target = sorted(counted(STORE + BARRIER + "ld.shared.u32 %r4, [%rd6]; ld.global.u32 %r4, [%rd1]")[1])
    assert shared[2:] == (True, 1, 1, 1)
    assert target[2:] == (False, 1, 1, 1)


def test_what_is_executed():
    """By two blocks of two warps, of which the first adds twice."""
    loop = "setp.gt.u32 %p1, %r6, 31; @%p1 bra $L_1; fma.rn.f32 %f1, %f1, %f1, %f1; ld.global.u32 %r4, [%rd4]; $L_1:"
    executed, (traffic,) = counted(loop + "; fma.rn.f32 %f1, %f1, %f1, %f1", 2, 64)
    assert executed["fma"] == 1.5
    assert executed["mma"] == 0
    assert executed["memory"] == 2.5  # two are of parameters
    assert traffic.requests == 2
