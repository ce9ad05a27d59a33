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

from coppice.kernels._variants import includes, isa


@dataclass(frozen=True)
class Unit:
    """What products are computed by.

    Attributes:
        width: bytes of a vector register.
        features: of the processor, that the compiler may use.
        isa: that must be there.
        instruction: sum $0 += $1 * $2; None: the compiler's fused multiply-add of fp32; of tiles its name.
        products: of one instruction in each 32 bits.
        tiles: it multiplies tiles of sixteen rows, each of one such register.
    """

    width: int
    features: str
    isa: str
    instruction: str | None = None
    products: int = 1
    tiles: bool = False


#: fp32 by instruction set, others by the type of what is multiplied.
UNITS = {
    "generic": Unit(16, "", "generic"),
    "avx2": Unit(32, "+avx2,+fma", "avx2"),
    "avx512": Unit(64, "+avx512f", "avx512"),
    "int8": Unit(64, "+avx512f,+avx512vnni", "avx512_vnni", "vpdpbusd $2, $1, $0", 4),
    "bf16": Unit(64, "+avx512f,+avx512bf16", "avx512_bf16", "vdpbf16ps $2, $1, $0", 2),
    "fp16": Unit(64, "+avx512f,+avx512fp16", "avx512_fp16", "vfmadd231ph $2, $1, $0", 2),
    "int8 tiles": Unit(64, "+amx-tile,+amx-int8", "amx_int8", "tdpbsud", 4, tiles=True),
    "bf16 tiles": Unit(64, "+amx-tile,+amx-bf16", "amx_bf16", "tdpbf16ps", 2, tiles=True),
}
SUMS, LOADS = 12, 8
#: Tiles of sums; a tile has so many rows, and groups of products.
TILES, ROWS = 6, 16
#: Sizes of the arrays that are read: from well inside of the first-level cache to beyond the last one.
SIZES = tuple(1 << bits for bits in range(13, 28))
#: Seconds of one run, and runs of which the best counts.
SHORTEST, RUNS = 2e-3, 7


@dataclass(frozen=True)
class Peaks:
    """Of all threads together.

    Attributes:
        gflops: GFLOP/s of ``UNITS`` that this machine has, fp32 first; a product and its sum are two operations.
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
        """GFLOP/s of a unit; of the fastest in fp32 where it is not known, infinite where nothing is."""
        fp32 = [peak for known, peak in self.gflops.items() if known not in UNITS or not UNITS[known].instruction]
        return self.gflops.get(name or "", max(fp32, default=inf))

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
    widest = _widest(usable)
    gflops = {}
    for name in usable:
        unit = UNITS[name]
        together = TILES * ROWS * ROWS if unit.tiles else SUMS
        operations = 2 * together * unit.width // 4 * unit.products
        gflops[name] = 1e-9 * _best([_loop(name).sums] * threads, operations)
    reads = {}
    for size in SIZES:
        reads[size] = 1e-9 * _best([_reader(widest, size) for _ in range(threads)], size)
    return Peaks(gflops, reads)


def fastest_loop() -> Loop:
    """Of fp32, in the widest registers."""
    return _loop(_widest(_usable()))


def _widest(names: Sequence[str]) -> str:
    return max(names, key=lambda name: UNITS[name].width)


def _usable() -> list[str]:
    return [name for name, unit in UNITS.items() if includes(isa(), unit.isa)] or ["generic"]


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
    block = UNITS[name].width * LOADS

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

    width = UNITS[name].width
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()
    machine = llvm.Target.from_default_triple().create_target_machine(features=UNITS[name].features, opt=2)
    module = ir.Module()
    (_write_tiles if UNITS[name].tiles else _write_sums)(ir, module, width // 4, UNITS[name].instruction)
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


def _write_sums(ir: Any, module: Any, lanes: int, instruction: str | None) -> None:
    """sums(rounds, out): so many rounds of sum = sum * 1/2 + 1 on each of the sums; their total goes to out."""
    long, vector = ir.IntType(64), ir.VectorType(ir.FloatType(), lanes)
    kind = ir.FunctionType(vector, [vector] * 3)
    if instruction is None:
        multiply_add = ir.Function(module, kind, f"llvm.fmuladd.v{lanes}f32")
    else:
        multiply_add = ir.InlineAsm(kind, instruction, "=v,v,v,0")
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [long, long]), "sums")
    half, one = ir.Constant(vector, [0.5] * lanes), ir.Constant(vector, [1.0] * lanes)
    entry, body, end = (function.append_basic_block() for _ in range(3))
    ir.IRBuilder(entry).branch(body)
    build = ir.IRBuilder(body)
    count = build.phi(long)
    sums = [build.phi(vector) for _ in range(SUMS)]
    # Different beginnings, or the compiler would see one sum twelve times.
    found = []
    for held in sums:
        found.append(build.call(multiply_add, [held, half, one] if instruction is None else [half, one, held]))
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


def _write_tiles(ir: Any, module: Any, lanes: int, instruction: str | None) -> None:
    """sums(rounds, out): so many rounds of products of two tiles of zeros, added to each of the other tiles; out holds
    what the tiles are like (Intel SDM volume 1, 18.3) in the meantime."""
    long, byte = ir.IntType(64), ir.IntType(8)
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [long, long]), "sums")
    entry, body, end = (function.append_basic_block() for _ in range(3))

    def run(build: Any, text: str, *operands: Any) -> None:
        kind = ir.FunctionType(ir.VoidType(), [operand.type for operand in operands])
        places = ",".join(["r"] * len(operands) + ["~{memory}"])
        build.call(ir.InlineAsm(kind, text, places, side_effect=True), operands)

    palette, sizes = [1, *[0] * 15], [lanes * 4, 0] * 8 + [0] * 16 + [ROWS] * 8 + [0] * 8
    build = ir.IRBuilder(entry)
    whole = ir.ArrayType(byte, 64)
    build.store(ir.Constant(whole, palette + sizes), build.inttoptr(function.args[1], whole.as_pointer()))
    run(build, "ldtilecfg ($0)", function.args[1])
    build.branch(body)
    build = ir.IRBuilder(body)
    count = build.phi(long)
    for tile in range(TILES):
        run(build, f"{instruction} %tmm{TILES}, %tmm{TILES + 1}, %tmm{tile}")
    _next(ir, build, count, function.args[0], entry, end)
    build = ir.IRBuilder(end)
    run(build, "tilerelease")
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
