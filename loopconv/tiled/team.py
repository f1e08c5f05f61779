"""Threads that do a kernel's work together with the thread that calls.

Numba's own threads would do, but a call that has woken one waits until it has run, and its processor may be busy, or be
given to it late: in a virtual machine, of calls with pauses of 20 ms and of 100 ms between them, most took 7.8 ms where
one thread alone takes 3.1 (128->128 3x3, stride 2, 56x56). Here nobody waits for a thread that has not begun: 2.1 ms.
"""

import atexit
import contextlib
import ctypes
import os
import threading
from functools import cache, lru_cache
from itertools import chain
from queue import SimpleQueue

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import impl_ret_borrowed
from numba.extending import intrinsic, register_jitable
from numba.np.arrayobj import populate_array

from loopconv import threads
from loopconv.loops.compile import built, jit, named
from loopconv.tiled.simd import address

# Where a thread's share of the work is cut into pieces: one that loses its processor for a while leaves the rest of it
# to the others, and the last are small, so that all end at the same time. With 16 pieces of one size 64 channels by
# themselves, 56x56, took 1.05 times as long, as a kernel clears its padding for each; with 4 of them, so did 128->128
# 3x3, 28x28.
CUTS = (0, 4, 8, 12, 14, 15, 16)
PIECES = len(CUTS) - 1

# How often a member that no call has looks for one before it goes to sleep; each look is a pause of some 30 ns, so
# that the next call of a loop finds it awake.
LOOKS = 4000

# What says which processor the caller is on, where threads can be kept off one.
current_processor = getattr(ctypes.PyDLL(None), "sched_getcpu", None) if hasattr(os, "sched_setaffinity") else None

# A job: integers that all threads see, in lines of the cache that belong to one purpose each.
LINE = 8
GATE, SAID, BUSY, PART, KERNEL, LENT, WORKERS, UNITS = 0, LINE, *range(2 * LINE, 2 * LINE + 6)
NEXT = 3 * LINE  # the next piece of each worker's own

# The gate counts the threads inside. It is closed while there is no job, and has a number that each job raises.
CLOSED, TURN = 1 << 31, 1 << 32

WORDS = types.Array(types.int64, 1, "C")
NOTHING = np.zeros(0, np.int64)


# ---------------------------------------------------------------------------------- what threads share


@intrinsic
def add(typing, words, index, value):
    """words[index], which is `value` more afterwards; no other thread comes between."""

    def codegen(context, builder, signature, arguments):
        place = address(context, builder, WORDS, *arguments[:2])
        return builder.atomic_rmw("add", place, arguments[2], "acq_rel")

    return types.int64(WORDS, types.int64, types.int64), codegen


@intrinsic
def look(typing, words, index):
    """words[index] as it is now, and all that was written before it became so."""

    def codegen(context, builder, signature, arguments):
        return builder.load_atomic(address(context, builder, WORDS, *arguments), "acquire", 8)

    return types.int64(WORDS, types.int64), codegen


@intrinsic
def pause(typing):
    """Tell an x86 processor that a loop is waiting; others need not know."""

    def codegen(context, builder, signature, arguments):
        if builder.module.triple.startswith(("x86_64", "i686")):
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def call(typing, place, arguments):
    """Call the function at `place`, of which no code is compiled again: linked in, it took 4 to 9 s."""

    def codegen(context, builder, signature, values):
        kind = context.call_conv.get_function_type(types.int64, arguments.types)
        function = builder.inttoptr(values[0], kind.as_pointer())
        numbers = cgutils.unpack_tuple(builder, values[1])
        return context.call_conv.call_function(builder, function, types.int64, arguments.types, numbers)[1]

    return types.int64(types.int64, arguments), codegen


@intrinsic
def lend(typing, values):
    """The address of a copy of `values`, which lasts until the calling function returns."""

    def codegen(context, builder, signature, arguments):
        return builder.ptrtoint(cgutils.alloca_once_value(builder, arguments[0]), ir.IntType(64))

    return types.int64(values), codegen


def lent(kind):
    """What takes values of a type from the address that `lend` gave."""

    @intrinsic
    def take(typing, where):
        def codegen(context, builder, signature, arguments):
            place = builder.inttoptr(arguments[0], context.get_value_type(kind).as_pointer())
            return impl_ret_borrowed(context, builder, kind, builder.load(place))

        return kind(types.int64), codegen

    return take


@intrinsic
def share(typing, operands, shares, me):
    """What thread `me` has of the arrays, of which `shares` says where that begins after another's, and its length.

    No count of references knows of it.
    """

    def codegen(context, builder, signature, arguments):
        arrays, table, me = arguments
        kind, int64 = operands.dtype, ir.IntType(64)

        def number(index):
            return builder.load(address(context, builder, WORDS, table, int64(index)))

        def one(i, array):
            step, size = number(2 * i), number(2 * i + 1)
            width = int64(context.get_abi_sizeof(context.get_data_type(kind.dtype)))
            part = context.make_array(kind)(context, builder)
            place = address(context, builder, kind, array, builder.mul(me, step))
            populate_array(part, data=place, shape=[size], strides=[width], itemsize=width, meminfo=None)
            return part._getvalue()

        some = [one(i, array) for i, array in enumerate(cgutils.unpack_tuple(builder, arrays))]
        return context.make_tuple(builder, operands, some)

    return operands(operands, WORDS, types.int64), codegen


# ---------------------------------------------------------------------------------------- the work itself


def attend(job, me, seen):
    """Take part in jobs after number `seen` until no call has the team for a while; the number of the last."""
    looks = 0
    while looks < LOOKS or look(job, BUSY):
        gate = look(job, GATE)
        if gate & CLOSED or gate >> 32 == seen:
            looks += 1
            pause()
            continue
        gate = add(job, GATE, 1)
        if not gate & CLOSED:
            seen, looks = gate >> 32, 0
            if me < job[WORKERS]:
                call(job[PART], (job, me))
        add(job, GATE, -1)
    return seen


@register_jitable
def cut(units, workers, whose, piece):
    """The first unit of a piece of someone's."""
    return units * (whose * CUTS[PIECES] + CUTS[piece]) // (workers * CUTS[PIECES])


@cache
def parts(arrays, before, dtype):
    """For kernels of so many arrays of `dtype`, (the address of what a member does, what the caller does).

    `before` is how many stages each thread does for itself. The table of these has their kernels, their units, and
    what `share` needs; operands and plans are those of the kernel, and then theirs.
    """
    element = numba.from_dtype(dtype)
    operands = types.UniTuple(types.Array(element, 1, "C"), arrays + 2 * before)
    lending = types.Tuple((operands, types.Array(element, 2, "C"), types.UniTuple(WORDS, 1 + before), WORDS))
    take = lent(lending)

    @register_jitable
    @named(arrays, before, dtype)
    def prepare(me, operands, scratch, plans, table):
        """Do the stages before the kernel; the kernel's operands, as this thread has them."""
        mine = share(operands, table[2 * before :], me)
        for stage in range(before):
            pair = mine[arrays + 2 * stage], mine[arrays + 2 * stage + 1]
            call(table[stage], (pair, scratch, plans[1 + stage], 0, table[before + stage]))
        return mine[:arrays]

    @register_jitable
    @named(arrays, before, dtype)
    def work(job, me, operands, scratches, plans, table):
        """Do pieces of the job as long as there are any: first one's own, which lie where one's caches have them."""
        workers, units, kernel = job[WORKERS], job[UNITS], job[KERNEL]
        mine, is_ready, said = operands[:arrays], before == 0, 0
        for other in range(workers):
            whose = (me + other) % workers
            piece = add(job, NEXT + whose * LINE, 1)
            while piece < PIECES:
                first, last = cut(units, workers, whose, piece), cut(units, workers, whose, piece + 1)
                if first < last and not is_ready:
                    mine, is_ready = prepare(me, operands, scratches[me], plans, table), True
                if first < last:
                    said += call(kernel, (mine, scratches[me], plans[0], first, last))
                piece = add(job, NEXT + whose * LINE, 1)
        add(job, SAID, said)

    @named(arrays, before, dtype)
    def assist(job, me):
        operands, scratches, plans, table = take(job[LENT])
        work(job, me, operands, scratches, plans, table)
        return 0

    @named(arrays, before, dtype)
    def lead(job, part, kernel, units, operands, scratches, plans, table):
        """Open a job for all, do what others leave, and wait for those who are at it; what the kernel says."""
        workers = len(scratches)
        job[SAID], job[PART], job[KERNEL], job[LENT] = 0, part, kernel, lend((operands, scratches, plans, table))
        job[WORKERS], job[UNITS] = workers, units
        for worker in range(workers):
            job[NEXT + worker * LINE], scratches[worker, 0] = 0, 0
        add(job, GATE, TURN - CLOSED)
        work(job, 0, operands, scratches, plans, table)
        add(job, GATE, CLOSED)
        while look(job, GATE) & (CLOSED - 1):
            pause()
        return job[SAID]

    part = built(jit(assist, fastmath=set()), (WORDS, types.int64)).address
    return part, built(jit(lead, fastmath=set()), (WORDS, *[types.int64] * 3, *lending)).run


@lru_cache(maxsize=256)
def _table(*numbers):
    return np.array(numbers, np.int64)


@cache
def attending():
    """`attend`, compiled."""
    return built(jit(attend, fastmath=set()), (WORDS, types.int64, types.int64)).run


# -------------------------------------------------------------------------------------------- its threads


class Member(threading.Thread):
    """A thread that attends calls and sleeps in between."""

    def __init__(self, job, me):
        super().__init__(name=f"loopconv-{me}", daemon=True)
        self.job, self.me, self.bell, self.is_asleep, self.is_dismissed = job, me, SimpleQueue(), False, False
        self.allowed, self.avoided = (), None

    def run(self):
        self.allowed = os.sched_getaffinity(0) if current_processor else ()
        seen = -1
        while not self.is_dismissed:
            seen = attending()(self.job, self.me, seen)
            # in this order, so that a call that begins meanwhile finds it asleep, or is found
            self.is_asleep = True
            if not self.job[BUSY] and not self.is_dismissed:
                self.bell.get()
            self.is_asleep = False

    def wake(self):
        """Have a sleeping member come; nobody waits for it."""
        if self.is_asleep:
            self._leave_to_caller()
            self.bell.put(None)

    def _leave_to_caller(self):
        """Not to wake on the caller's processor, which is busy.

        Linux puts it there when it takes another processor, halted in a virtual machine, for a busy one: of 1,491 jobs
        with pauses of up to 100 ms between them it came too late for 786, and now for 4.
        """
        if self.allowed and (processor := current_processor()) != self.avoided:
            self.avoided = processor
            with contextlib.suppress(OSError):
                os.sched_setaffinity(self.native_id, self.allowed - {processor})


class Team:
    """The calling thread and as many members as calls have had work for; one call at a time has them."""

    def __init__(self):
        self.begin()

    def begin(self):
        """Without members; also in a forked child, where they are not there."""
        self.is_free = threading.Lock()
        self.job, self.members = np.zeros(0, np.int64), []

    def gather(self, workers, work):
        """How many of `workers` threads take part in a call, which has taken `is_free`, until it lets the team go.

        Meanwhile members do not sleep: else the copies for a gradient of 24 ms often ended just while a member fell
        asleep, and the rest, 12 ms on two threads, took as long as on one.
        """
        if len(self.job) < NEXT + workers * LINE:
            self._grow(workers)
        self.job[BUSY] = 1
        members = self.members[: workers - 1]
        if work < threads.WAKING_MACS:
            return 1 if all(member.is_asleep for member in members) else workers
        for member in members:
            member.wake()
        return workers

    def let_go(self):
        """End what `gather` began, or tried to."""
        self.job[BUSY : BUSY + 1] = 0
        self.is_free.release()

    def run(self, kernel, operands, scratches, plan, units, before=(), shares=()):
        """What a kernel says of `units` units of work, done by up to as many threads as there are scratches.

        `before` are stages that each of them does first, as (kernel, (what it reads, what it writes), plan, units), and
        `shares` for each operand, theirs after those of the kernel, what a thread has of it: (step, size).
        """
        part, lead = parts(len(operands), len(before), operands[0].dtype)
        plans, table = (plan,), NOTHING
        if before:
            kernels, pairs, others, counts = zip(*before)
            operands, plans = (*operands, *chain(*pairs)), (plan, *others)
            table = _table(*kernels, *counts, *chain(*shares))
        return lead(self.job, part, kernel, units, operands, scratches, plans, table)

    def _grow(self, workers):
        self.dismiss()
        attending()  # compiled here, where no member has to wait for the lock of the compiler
        self.job = np.zeros(NEXT + workers * LINE, np.int64)
        self.job[GATE] = CLOSED
        with contextlib.suppress(RuntimeError):  # where no more threads may start, the others do the work
            for me in range(1, workers):
                member = Member(self.job, me)
                member.start()
                self.members.append(member)

    def dismiss(self):
        """End the members' threads."""
        for member in self.members:
            member.is_dismissed = True
            member.bell.put(None)
        for member in self.members:
            member.join()
        self.members = []


team = Team()
atexit.register(team.dismiss)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=team.begin)
