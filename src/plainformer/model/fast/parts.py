"""Loops whose parts several threads take, one after another: what kernels use in place of OpenMP.

The thread that calls a kernel publishes a loop and works on it itself; helpers (`helpers.py`) that are running take parts of
what is left. Nobody waits for a helper to start, so a helper that the machine has no core for costs nothing. Only one that
is interrupted in the middle of a part does: then the caller sleeps in short naps, and the helper, which sees that it was waited
for, stays away for a while.

Everything goes through a few words of memory that are read and written atomically. `CLAIM` is the number of the loop in its
upper and of the next part in its lower half: a part is taken by adding one to the word if nobody else has.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import extending
from numba.core import cgutils, types

from plainformer.model.fast.jit import compiled

# Its own types have a first parameter that callers do not give.
intrinsic: Callable[[Callable[..., Any]], Any] = extending.intrinsic

# Words of the memory that threads share; those that different threads write are a cache line apart.
CLAIM, DONE, OWNER, HELPERS, NAPS = 0, 8, 16, 24, 32
TASK, JOB, COUNT, THREADS, HALVINGS, WORDS = 40, 41, 42, 43, 44, 48
WORD = ir.IntType(64)
SHARED = (ctypes.c_int64 * WORDS)()
ctypes.pythonapi.Py_IncRef(ctypes.py_object(SHARED))  # a helper may look at it while Python takes modules apart
X86 = platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")

# Looks at a word before a waiting thread sleeps: some 0.1 ms for helpers, which wait between loops, and 1 ms for the caller.
HELPER_LOOKS, CALLER_LOOKS = (3_000, 30_000) if X86 else (30_000, 300_000)
LOOPS = 300  # that a helper helps with, two tokens of a small model, before it looks how it fares
IDLE, HELPED, LATE = 0, 1, 2
NO_PARTS = 2**32 - 1
HALVINGS_MOST = 4  # the last parts of two threads are 1/32 of a loop
NAP = 50  # microseconds
HELPER_NAPS = 200  # before a helper that nobody needed leaves the processor to others


def _sleep_function() -> int:
    """Return the address of C's `usleep`, or on Windows of `Sleep`, whose milliseconds are then a longer nap."""
    if sys.platform == "win32":
        return ctypes.cast(ctypes.windll.kernel32.Sleep, ctypes.c_void_p).value or 0
    return ctypes.cast(ctypes.CDLL(None).usleep, ctypes.c_void_p).value or 0


# By name: compiled code that is kept on disk finds them again in another process.
llvm.add_symbol("plainformer_shared", ctypes.addressof(SHARED))
llvm.add_symbol("plainformer_sleep", _sleep_function())


def _word(builder: Any, at: Any) -> Any:
    kind, name = ir.ArrayType(WORD, WORDS), "plainformer_shared"
    shared = builder.module.globals.get(name) or ir.GlobalVariable(builder.module, kind, name)
    return builder.gep(shared, [WORD(0), at])


@intrinsic
def look(typing: Any, at: Any) -> Any:
    """Return a word, and see all that was written before it."""
    return types.int64(types.int64), lambda context, builder, sig, args: builder.load_atomic(
        _word(builder, args[0]), "acquire", 8
    )


@intrinsic
def put(typing: Any, at: Any, value: Any) -> Any:
    """Set a word, after all that was written before."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store_atomic(args[1], _word(builder, args[0]), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), code


@intrinsic
def add(typing: Any, at: Any, value: Any) -> Any:
    """Add to a word; return what it was."""
    return types.int64(types.int64, types.int64), lambda context, builder, sig, args: builder.atomic_rmw(
        "add", _word(builder, args[0]), args[1], "seq_cst"
    )


@intrinsic
def swap(typing: Any, at: Any, old: Any, new: Any) -> Any:
    """Set a word if it still is `old`; return whether it was."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        both = builder.cmpxchg(_word(builder, args[0]), args[1], args[2], "seq_cst", "seq_cst")
        return builder.extract_value(both, 1)

    return types.boolean(types.int64, types.int64, types.int64), code


@intrinsic
def relax(typing: Any) -> Any:
    """Tell the processor that this is a loop that waits."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if X86:
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), code


@intrinsic
def nap(typing: Any) -> Any:
    """Sleep for `NAP`."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        time = ir.IntType(32)
        kind = ir.FunctionType(time, [time])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "plainformer_sleep"), [time(NAP)])
        return context.get_dummy_value()

    return types.void(), code


# A part's function is called by its address: (address of what it needs, first, last) → nothing, as Numba calls functions.
PART = (types.int64, types.int64, types.int64)


@intrinsic
def _call(typing: Any, task: Any, job: Any, first: Any, last: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = context.call_conv.get_function_type(types.none, PART)
        context.call_conv.call_function(
            builder, builder.inttoptr(args[0], kind.as_pointer()), types.none, PART, args[1:]
        )
        return context.get_dummy_value()

    return types.void(types.int64, *PART), code


@intrinsic
def parts_of(typing: Any, task: Any, job: Any) -> Any:
    """Return the addresses of a function that runs `task(job, first, last)`, and of the job, which stays on the stack."""
    inner = task.get_call_type(typing, (job, types.int64, types.int64), {})

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function, convention = context.get_function(task, inner), context.call_conv
        context.add_linking_libs(getattr(function, "libs", ()))
        kind = convention.get_function_type(types.none, PART)
        part = ir.Function(builder.module, kind, builder.module.get_unique_name("part"))
        part.linkage = "internal"
        body = ir.IRBuilder(part.append_basic_block())
        at, first, last = convention.get_arguments(part)
        held = body.load(body.inttoptr(at, context.get_value_type(job).as_pointer()))
        function(body, [held, first, last])
        convention.return_value(body, ir.Constant(convention.get_return_type(types.none).pointee, None))
        place = cgutils.alloca_once_value(builder, args[1])
        both = builder.ptrtoint(part, WORD), builder.ptrtoint(place, WORD)
        return context.make_tuple(builder, signature.return_type, both)

    return types.UniTuple(types.int64, 2)(task, job), code


@compiled()
def _start_of(part: int, count: int, threads: int, halvings: int) -> Any:
    """Return where a part of a loop begins.

    `threads` parts make one half of the loop, as many the half of what is left, and so on; after `halvings`, the rest is cut
    in as many again. Taking a part costs 0.2 µs when two threads want one: few large ones first, small ones at the end.
    """
    done = min(part // threads, halvings)
    left = count >> done
    some = left - (left >> 1) if done < halvings else left
    return count - left + some * (part - done * threads) // threads


@compiled()
def _take(claim: int) -> Any:
    """Work on parts of the published loop while there are any; return the word that says so. `claim`: the word as it was."""
    while True:
        task, job, count, threads, halvings = look(TASK), look(JOB), look(COUNT), look(THREADS), look(HALVINGS)
        part = claim & NO_PARTS
        if part >= threads * (halvings + 1):
            return claim
        # Only if this is still the loop that was looked at: from here on, it waits for this part.
        if swap(CLAIM, claim, claim + 1):
            first = _start_of(part, count, threads, halvings)
            last = _start_of(part + 1, count, threads, halvings) if part + 1 < threads * (halvings + 1) else count
            _call(task, job, first, last)
            add(DONE, 1)
        claim = look(CLAIM)


@compiled()
def share(parts: Any, count: int, size: int) -> None:
    """Run what `parts_of` returned for 0 to `count`, with whichever helpers are there; return when all is done.

    `size`: what is worth a part of its own.
    """
    task, job = parts
    threads = look(HELPERS) + 1
    if count <= size or threads == 1 or not swap(OWNER, 0, 1):  # or the helpers are another caller's
        _call(task, job, 0, count)
        return
    claim = ((look(CLAIM) >> 32) + 1) << 32
    put(CLAIM, claim + NO_PARTS)  # first: else a helper may take a part of the last loop as this one's
    put(TASK, task)
    put(JOB, job)
    put(COUNT, count)
    halvings = 0
    while halvings < HALVINGS_MOST and (count >> halvings) > 2 * threads * size:
        halvings += 1
    put(THREADS, threads)
    put(HALVINGS, halvings)
    put(DONE, 0)
    put(CLAIM, claim)
    _take(claim)
    looks = 0
    while look(DONE) < threads * (halvings + 1):
        looks += 1
        if looks < CALLER_LOOKS:
            relax()
        else:
            add(NAPS, 1)
            nap()
    put(OWNER, 0)


@compiled(inner=False)
def serve(helper: int) -> Any:
    """Help with loops until there are none for a while, or helper number `helper` is not wanted: return `IDLE`.

    Return `LATE` when a caller had to sleep while this helper worked on a part, and `HELPED` after some loops.
    """
    looks, seen, loops = 0, 0, 0
    while helper < look(HELPERS):
        claim, naps = look(CLAIM), look(NAPS)
        taken = _take(claim)
        if look(NAPS) != naps:
            return LATE
        if taken != seen:
            looks, seen = 0, taken
            loops += 1
            if loops > LOOPS:
                return HELPED
        looks += 1
        if looks < HELPER_LOOKS:
            relax()
        elif looks < HELPER_LOOKS + HELPER_NAPS:
            nap()
        else:
            return IDLE
    return IDLE
