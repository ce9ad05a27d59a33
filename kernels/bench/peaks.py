"""What the machine can do at most: products a second by instruction set, bytes a second by size of the array.

Both loops are written in LLVM's language for one vector length and turned into code as they stand, so no optimiser
decides what is measured: twelve independent sums hide the latency of the fused multiply-add, and a read is one load
into one of eight independent exclusive-ors. Each figure is the best of several runs: a limit is what was reached once.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from math import inf, log
from typing import Any

import numpy as np

from coppice.kernels._errors import KernelsUnavailable
from coppice.kernels._load import load
from coppice.kernels._variants import isa

#: Bytes of a vector register, and the features that the compiler may use; others are taken for the widest.
VECTORS = {"generic": (16, ""), "avx2": (32, "+avx2,+fma"), "avx512": (64, "+avx512f"), "avx512_vnni": (64, "+avx512f")}
SUMS, LOADS = 12, 8
#: Sizes of the arrays that are read: from well inside of the first-level cache to beyond the last one.
SIZES = tuple(1 << bits for bits in range(13, 28))
#: Seconds of one run, and runs of which the best counts.
SHORTEST, RUNS = 2e-3, 7


@dataclass(frozen=True)
class Peaks:
    """Of all threads together.

    Attributes:
        gflops: fp32 GFLOP/s by instruction set; a product and its sum are two operations.
        reads: GB/s by bytes of the array, of one thread, that is read again and again.
    """

    gflops: Mapping[str, float]
    reads: Mapping[int, float]

    def bandwidth(self, size: int) -> float:
        """GB/s for an array of so many bytes, between the measured sizes along the logarithm of the size."""
        if not self.reads:
            return inf
        sizes = [log(held) for held in self.reads]
        return float(np.interp(log(max(1, size)), sizes, list(self.reads.values())))

    def peak(self, name: str | None) -> float:
        """GFLOP/s of an instruction set; of the highest where it is not known, infinite where nothing is."""
        return self.gflops.get(name or "", max(self.gflops.values(), default=inf))

    def roof(self, name: str | None, intensity: float, size: int) -> float:
        """GFLOP/s that are possible at most (Williams, Waterman and Patterson 2009): at ``intensity`` operations a byte
        of an array of ``size`` bytes."""
        return min(self.peak(name), intensity * self.bandwidth(size))


def measure_peaks(threads: int = 1) -> Peaks:
    """Measure them, in about a second.

    Args:
        threads: run the same in so many threads at once, each with an array of its own.
    """
    usable = _usable()
    gflops = {}
    for name in usable:
        operations = 2 * SUMS * VECTORS[name][0] // 4
        gflops[name] = 1e-9 * _best([_loop(name).sums] * threads, operations)
    reads = {}
    for size in SIZES:
        reads[size] = 1e-9 * _best([_reader(usable[-1], size) for _ in range(threads)], size)
    return Peaks(gflops, reads)


def _usable() -> list[str]:
    try:
        names = load().isa_names()
    except KernelsUnavailable:
        return ["generic"]
    return [name for name in names[: names.index(isa()) + 1] if name in VECTORS]


def _best(runs: Sequence[Callable[[int], None]], work: int) -> float:
    """Work a second of all threads, each with its run, which does ``work`` as many times as it is told."""
    threads, rounds = len(runs), 1
    while (seconds := _seconds(runs[0], rounds)) < SHORTEST / 4:
        rounds *= 4
    rounds = max(1, round(rounds * SHORTEST / seconds))
    if threads == 1:
        return work * rounds / min(_seconds(runs[0], rounds) for _ in range(RUNS))
    best = inf
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(RUNS):
            begin = time.perf_counter()
            list(pool.map(lambda run: run(rounds), runs))
            best = min(best, time.perf_counter() - begin)
    return threads * work * rounds / best


def _seconds(run: Callable[[int], None], rounds: int) -> float:
    begin = time.thread_time()
    run(rounds)
    return time.thread_time() - begin


def _reader(name: str, size: int) -> Callable[[int], None]:
    memory = np.zeros(size + 64, np.uint8)
    address = memory.ctypes.data + -memory.ctypes.data % 64
    block = VECTORS[name][0] * LOADS

    def run(rounds: int, _alive: object = memory) -> None:
        _loop(name).read(address, size // block, rounds)

    return run


@dataclass(frozen=True)
class Loop:
    """Two compiled functions, and the engine that their code lives in."""

    sums: Callable[[int], None]
    read: Callable[[int, int, int], None]
    engine: Any


@cache
def _loop(name: str) -> Loop:
    """The loops for one vector length."""
    import llvmlite.binding as llvm
    from llvmlite import ir

    width, features = VECTORS[name]
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(features=features, opt=2)
    module = ir.Module()
    _write_sums(ir, module, width // 4)
    _write_read(ir, module, width // 4)
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    engine = llvm.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    out = np.zeros(width + 64, np.uint8)
    place = out.ctypes.data + -out.ctypes.data % 64
    sums = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)(engine.get_function_address("sums"))
    read = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(engine.get_function_address("read"))
    kept = (engine, out)
    return Loop(lambda rounds: sums(rounds, place), lambda at, blocks, rounds: read(at, blocks, rounds, place), kept)


def _write_sums(ir: Any, module: Any, lanes: int) -> None:
    """sums(rounds, out): so many rounds of sum = sum * 1/2 + 1 on each of the sums; their total goes to out."""
    long, vector = ir.IntType(64), ir.VectorType(ir.FloatType(), lanes)
    multiply_add = ir.Function(module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{lanes}f32")
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [long, long]), "sums")
    half, one = ir.Constant(vector, [0.5] * lanes), ir.Constant(vector, [1.0] * lanes)
    entry, body, end = (function.append_basic_block() for _ in range(3))
    ir.IRBuilder(entry).branch(body)
    build = ir.IRBuilder(body)
    count = build.phi(long)
    sums = [build.phi(vector) for _ in range(SUMS)]
    # Different beginnings, or the compiler would see one sum twelve times.
    found = [build.call(multiply_add, [held, half, one]) for held in sums]
    for position, held in enumerate(sums):
        held.add_incoming(ir.Constant(vector, [float(position)] * lanes), entry)
        held.add_incoming(found[position], body)
    _next(ir, build, count, function.args[0], entry, end)
    build = ir.IRBuilder(end)
    total = found[0]
    for other in found[1:]:
        total = build.fadd(total, other)
    build.store(total, build.inttoptr(function.args[1], vector.as_pointer()), align=4)
    build.ret_void()


def _write_read(ir: Any, module: Any, lanes: int) -> None:
    """read(from, blocks, rounds, out): reads so many blocks of LOADS vectors, so many times."""
    long, vector = ir.IntType(64), ir.VectorType(ir.IntType(32), lanes)
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [long] * 4), "read")
    address, blocks, rounds, out = function.args
    entry, outer, body, after, end = (function.append_basic_block() for _ in range(5))
    ir.IRBuilder(entry).branch(outer)
    build = ir.IRBuilder(outer)
    turn = build.phi(long)
    carried = [build.phi(vector) for _ in range(LOADS)]
    build.branch(body)
    build = ir.IRBuilder(body)
    count = build.phi(long)
    held = [build.phi(vector) for _ in range(LOADS)]
    base = build.add(address, build.mul(count, ir.Constant(long, lanes * 4 * LOADS)))
    found = []
    for position, phi in enumerate(held):
        place = build.inttoptr(build.add(base, ir.Constant(long, lanes * 4 * position)), vector.as_pointer())
        found.append(build.xor(phi, build.load(place, align=lanes * 4)))
        phi.add_incoming(carried[position], outer)
        phi.add_incoming(found[position], body)
    _next(ir, build, count, blocks, outer, after)
    build = ir.IRBuilder(after)
    for position, phi in enumerate(carried):
        phi.add_incoming(ir.Constant(vector, [position] * lanes), entry)
        phi.add_incoming(found[position], after)
    _next(ir, build, turn, rounds, entry, end, again=outer)
    build = ir.IRBuilder(end)
    total = found[0]
    for other in found[1:]:
        total = build.xor(total, other)
    build.store(total, build.inttoptr(out, vector.as_pointer()), align=4)
    build.ret_void()


def _next(ir: Any, build: Any, count: Any, limit: Any, entry: Any, end: Any, again: Any = None) -> None:
    """Count up from zero, and go round again below the limit."""
    one = ir.Constant(count.type, 1)
    following = build.add(count, one)
    count.add_incoming(ir.Constant(count.type, 0), entry)
    count.add_incoming(following, build.block)
    build.cbranch(build.icmp_signed("<", following, limit), again or build.block, end)
