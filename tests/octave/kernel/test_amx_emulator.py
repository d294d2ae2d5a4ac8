"""The emulator of AMX tiles against Intel's definitions in numpy; on a processor that has them, those against it."""

from __future__ import annotations

import ctypes
import itertools
import os
import re
import signal
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.octave.kernel.amx import RunWithAmx, run_in_process

INT8 = {"TDPBSSD": (True, True), "TDPBSUD": (True, False), "TDPBUSD": (False, True), "TDPBUUD": (False, False)}
SHAPES = [(16, 16, 16), (1, 1, 1), (5, 3, 7), (16, 9, 16), (11, 16, 2)]  # M, K in groups of 4 bytes, N
CPUINFO = Path("/proc/cpuinfo")
only_emulated = pytest.mark.skipif(
    CPUINFO.exists() and "amx_tile" in CPUINFO.read_text(), reason="a processor with AMX just ends the process"
)


@pytest.fixture(scope="module")
def instructions(compiler: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """amx_instructions.c, compiled, and `load_form_N` for each of FORMS."""
    library = tmp_path_factory.mktemp("instructions") / "instructions.so"
    source, forms = Path(__file__).with_name("amx_instructions.c"), library.with_suffix(".s")
    forms.write_text(assembly())
    flags = ["-O2", "-mamx-tile", "-mamx-bf16", "-mamx-int8", "-shared", "-fPIC"]
    command = [*compiler, *flags, "-x", "c", str(source), "-x", "assembler", str(forms), "-o", str(library)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unrecognized command" in made.stderr or "unknown argument" in made.stderr:
        pytest.skip(f"{compiler} knows no AMX (GCC does from version 11 on)")
    assert made.returncode == 0, made.stderr
    return library


# ---- Definitions


def config(*tiles: tuple[int, int], start_row: int = 0, palette: int = 1) -> np.ndarray:
    """The 64 bytes that LDTILECFG reads, for tiles of (rows, bytes of a row)."""
    made = np.zeros(64, np.uint8)
    made[:2] = palette, start_row
    for n, (rows, colsb) in enumerate(tiles):
        made[16 + 2 * n], made[48 + n] = colsb, rows
    return made


def flushed(x: np.ndarray) -> np.ndarray:
    """Denormals become zeros of their sign."""
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x).astype(np.float32)


def fused_multiply_add(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c with one rounding, of float32 that hold bfloat16 in a and b."""
    product, addend = a.astype(np.float64) * b, c.astype(np.float64)  # both exact
    total = product + addend
    part = total - product
    error = (product - (total - part)) + (addend - part)
    # Rounded to odd, so that the second rounding, to float32, acts as if it were the only one.
    inexact = np.isfinite(total) & (error != 0) & (total.view(np.int64) % 2 == 0)
    total = np.where(inexact, np.nextafter(total, np.copysign(np.inf, error)), total)
    return flushed(total.astype(np.float32))


def bf16_product(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """TDPBF16PS: c (M, N) + a (M, K, 2) b (K, N, 2), the latter as bits of bfloat16."""
    left, right = (flushed((x.astype(np.uint32) << 16).view(np.float32)) for x in (a, b))
    sums = np.zeros((*c.shape, 2), np.float32)
    with np.errstate(all="ignore"):
        for k in range(a.shape[1]):
            sums = fused_multiply_add(left[:, None, k], right[None, k], sums)
        return flushed(flushed(c) + flushed(sums[..., 0] + sums[..., 1]))


def int8_product(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """TDPB**D: c (M, N) + a (M, K, 4) b (K, N, 4) in 32 bits, which wrap around."""
    return (c + np.einsum("mki,kni->mn", a.astype(np.int64), b.astype(np.int64))).astype(np.int32)


def bf16_bits(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


# ---- What the other process does


def open_library(instructions: Path) -> Any:
    library = ctypes.CDLL(str(instructions))
    for name in ("load_config_of_array", "load_config_by_index"):
        getattr(library, name).argtypes = [ctypes.c_void_p, ctypes.c_long]
    for name in ("load_0", "load_1", "load_2", "load_7", "store_0", "store_7"):
        getattr(library, name).argtypes = [ctypes.c_void_p, ctypes.c_long]
    return library


def address(x: np.ndarray) -> Any:
    """A pointer, as an argument, that keeps the array alive."""
    return x.ctypes


def load(function: Any, x: np.ndarray) -> None:
    """Loads or stores with the array's stride, that of a slice or a reversed one too."""
    function(x.ctypes.data, x.strides[0])


def products(instructions: Path, cases: list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """c + a b of each (instruction, a, b, c)."""
    library, made = open_library(instructions), []
    for name, a, b, c in cases:
        (M, K), N = a.shape[:2], c.shape[1]
        library.load_config(address(config((M, 4 * N), (M, 4 * K), (K, 4 * N))))
        result = c.copy()
        for function, x in ((library.load_0, result), (library.load_1, a), (library.load_2, b)):
            load(function, x)
        getattr(library, name)()
        load(library.store_0, result)
        library.release()
        made.append(result)
    return made


def moves(instructions: Path, rows: int, colsb: int, x: np.ndarray) -> list[np.ndarray]:
    """x (32, 128) through tile 7, into zeros of its shape, with strides of all kinds."""
    library = open_library(instructions)
    library.load_config(address(config(*[(0, 0)] * 7, (rows, colsb))))
    results = []
    for from_, to in itertools.product([x, x[::2], x[::-1], x[::-2, 3:]], repeat=2):
        result = np.zeros_like(x)
        load(library.load_7, from_)
        first = to.__array_interface__["data"][0] - x.ctypes.data
        library.store_7(result.ctypes.data + first, to.strides[0])
        results.append(result)
    return results


def configurations(instructions: Path) -> list[np.ndarray]:
    """What STTILECFG says after each way to load a configuration, after a release, and after palette 0."""
    library, results = open_library(instructions), []
    configs = np.stack([config((n + 1, 4 * n + 1)) for n in range(4)])

    def note() -> None:
        results.append(np.full(64, 255, np.uint8))
        library.store_config(address(results[-1]))

    note()
    for name, arguments in {
        "load_config": (address(configs[1]),),
        "load_config_of_array": (configs.ctypes.data, 2),
        "load_config_by_index": (configs.ctypes.data, 1),
        "load_config_of_thread": (address(configs[3]),),
        "load_constant_config": (),
        "release": (),
    }.items():
        getattr(library, name)(*arguments)
        note()
    library.load_constant_config()
    library.load_config(address(config(palette=0)))
    note()
    return results


def clearing(instructions: Path) -> list[np.ndarray]:
    """Tile 0 after a row repeated in it, after TILEZERO, and after a configuration."""
    library, results = open_library(instructions), []
    row = np.arange(1, 65, dtype=np.uint8)

    def note() -> None:
        results.append(np.full((16, 64), 255, np.uint8))
        load(library.store_0, results[-1])

    for clear in (library.zero_0, library.load_constant_config):
        library.load_constant_config()
        library.load_repeated(address(row))
        note()
        clear()
        note()
    return results


def forms(instructions: Path, x: np.ndarray, stride: int) -> list[np.ndarray]:
    """Tile 0 as loaded by each of FORMS from x."""
    library, results = open_library(instructions), []
    stack = np.zeros(2**18, np.uint8)  # RSP as base: the signal's frame lies before the operand
    copy = stack[2**17 : 2**17 + len(x)]
    copy[:] = x
    library.load_constant_config()
    for n in range(len(FORMS)):
        function = getattr(library, f"load_form_{n}")
        function.argtypes = [ctypes.c_void_p, ctypes.c_long]
        function(copy.ctypes.data, stride)
        results.append(np.zeros((16, 64), np.uint8))
        load(library.store_0, results[-1])
    return results


def threads_in_turn(instructions: Path, cases: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """TDPBF16PS of a case in each thread; all of them do one step before any does the next."""
    library, barrier = open_library(instructions), threading.Barrier(len(cases), timeout=250)
    results = [c.copy() for *_, c in cases]

    def work(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
        tiles = address(config((len(a), 4 * c.shape[1]), (len(a), 4 * len(b)), (len(b), 4 * c.shape[1])))
        for function, *arguments in (
            (library.load_config, tiles),
            (load, library.load_0, c),
            (load, library.load_1, a),
            (load, library.load_2, b),
            (library.TDPBF16PS,),
            (load, library.store_0, c),
            (library.release,),
        ):
            barrier.wait()
            function(*arguments)

    workers = [threading.Thread(target=work, args=(a, b, c)) for (a, b, _), c in zip(cases, results, strict=True)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return results


def micro_kernel(instructions: Path, a: np.ndarray, b: np.ndarray, c: np.ndarray, steps: int) -> np.ndarray:
    library = open_library(instructions)
    library.load_config(address(config(*[(16, 64)] * 8)))
    library.kernel_2x2(address(a), address(b), address(c), ctypes.c_long(steps))
    library.TDPBF16PS_375(address(a), address(b), address(c))
    return c


def each_in_a_fork(instructions: Path, cases: list[tuple[str, np.ndarray | None]]) -> list[tuple[int, str]]:
    """The signal that `one` ends with in each case, and what is said on stderr then."""
    ends = []
    for case in cases:
        with tempfile.TemporaryFile() as said:
            pid = os.fork()
            if pid == 0:
                os.dup2(said.fileno(), 2)
                one(instructions, *case)
                os._exit(0)
            _, status = os.waitpid(pid, 0)
            said.seek(0)
            ends.append((os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, said.read().decode()))
    return ends


def one(instructions: Path, name: str, tiles: np.ndarray | None) -> None:
    library = open_library(instructions)
    if tiles is not None:
        library.load_config(address(tiles))
    memory = np.zeros(2**12, np.uint8)
    arguments = (memory.ctypes.data, 64) if name.startswith(("load_", "store_")) else ()
    getattr(library, name)(*arguments)


def variables(names: list[str]) -> list[str]:
    return [os.environ[name] for name in names]


# ---- Every form of a memory operand: (base, index or None, scale, displacement)

REGISTERS = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16))]
INDEXES = [None, *(name for name in REGISTERS if name != "rsp")]
FORMS = [
    (base, index, 1 << (m + n) % 4, (0, 0, 8, -128, 4096, -70000)[(m + 2 * n) % 6])
    for (m, base), (n, index) in itertools.product(enumerate(REGISTERS), enumerate(INDEXES))
    if base != index
]


def assembly() -> str:
    """load_form_n(memory, stride) for each n: loads tile 0 with that operand."""
    saved, lines = ["rbx", "rbp", "r12", "r13", "r14", "r15"], []
    for n, (base, index, scale, displacement) in enumerate(FORMS):
        operand = f"{displacement}(%{base},%{index},{scale})" if index else f"{displacement}(%{base})"
        lines += [f".globl load_form_{n}", f"load_form_{n}:", *(f"push %{name}" for name in saved)]
        lines += [f"sub ${displacement}, %rdi", f"sar ${scale.bit_length() - 1}, %rsi"]
        # By way of memory, as base and index may be the arguments' registers, or the stack's.
        lines += ["mov %rdi, base(%rip)", "mov %rsi, index(%rip)", "mov %rsp, stack(%rip)"]
        lines += [f"mov index(%rip), %{index}"] if index else []
        lines += [f"mov base(%rip), %{base}", f"tileloadd {operand}, %tmm0", "mov stack(%rip), %rsp"]
        lines += [*(f"pop %{name}" for name in reversed(saved)), "ret"]
    lines += [line for name in ("base", "index", "stack") for line in (f".local {name}", f".comm {name}, 8, 8")]
    return "\n".join([*lines, '.section .note.GNU-stack, "", @progbits', ""])


# ---- Tests


def test_bf16_products(instructions: Path, run_with_amx: RunWithAmx) -> None:
    random, cases = np.random.default_rng(0), []
    for M, K, N in SHAPES:
        a, b = bf16_bits(random.normal(size=(M, K, 2))), bf16_bits(random.normal(size=(K, N, 2)))
        c = random.normal(size=(M, N)).astype(np.float32)
        cases += [(a, b, c), (a[::-1], b, c[:, ::1])]
        wide = np.zeros((2 * K, N + 5, 2), np.uint16)
        wide[::2, 5:] = b
        cases.append((a, wide[::2, 5:], c))
    run = run_with_amx(products, instructions, [("TDPBF16PS", *case) for case in cases])
    for case, result in zip(cases, run.returned, strict=True):
        np.testing.assert_array_equal(result, bf16_product(*case))
        a, b, c = case
        exact = c + np.einsum("mki,kni->mn", *((x.astype(np.uint32) << 16).view(np.float32) for x in (a, b)))
        np.testing.assert_allclose(result, exact, rtol=1e-4, atol=1e-4)
    if run.emulated:
        counted = (len(cases), 3 * sum(M for M, _, _ in SHAPES), 3 * sum(2 * M * K * N for M, K, N in SHAPES))
        assert (run.products, run.rows, run.multiply_adds) == counted


def test_bf16_of_all_bits(instructions: Path, run_with_amx: RunWithAmx) -> None:
    """NaN, infinity, denormals, and results that overflow or underflow."""
    random, cases = np.random.default_rng(1), []
    special = np.array([0, 0x8000, 1, 0x8001, 0x7F, 0x80, 0x8080, 0x7F80, 0xFF80, 0x7FC0, 0x7F7F, 0xFF7F], np.uint16)
    for n in range(60):
        few = random.random() / 10  # NaN spreads: not too many of them in a case
        a, b = (random.integers(0, 2**16, (16, 16, 2), np.uint16) for _ in range(2))
        if n % 2:  # small ones, whose products are about the least normal number
            a, b = (x % 0x400 + 0x1C80 + (x & 0x8000) for x in (a, b))
        a, b = (np.where(random.random(x.shape) < few, random.choice(special, x.shape), x) for x in (a, b))
        if n % 3:
            a, b = (np.where((x & 0x7F80) == 0x7F80, x & 0x807F, x) for x in (a, b))
        bits = random.integers(0, 2**32, (16, 16), np.uint32)
        cases.append((a, b, (bits % 2**23 if n % 4 == 1 else bits).astype(np.uint32).view(np.float32)))
    run = run_with_amx(products, instructions, [("TDPBF16PS", *case) for case in cases])
    expected = [bf16_product(*case) for case in cases]
    np.testing.assert_array_equal(run.returned, expected)
    np.testing.assert_array_equal(
        np.signbit(run.returned) & ~np.isnan(expected), np.signbit(expected) & ~np.isnan(expected)
    )
    values = np.array(expected)
    kinds = [np.isnan(values), np.isinf(values), values == 0, np.isfinite(values) & (values != 0)]
    assert all(kind.sum() > 100 for kind in kinds)


def test_int8_products(instructions: Path, run_with_amx: RunWithAmx) -> None:
    random, cases = np.random.default_rng(2), []
    for (name, signed), (M, K, N) in itertools.product(INT8.items(), [*SHAPES, *SHAPES]):
        a, b = (
            random.integers(-128 if is_signed else 0, 128 if is_signed else 256, shape).astype(
                np.int8 if is_signed else np.uint8
            )
            for is_signed, shape in zip(signed, [(M, K, 4), (K, N, 4)], strict=True)
        )
        near = random.choice(np.array([-(2**31), 2**31 - 1, 0]), (M, N))  # sums wrap around
        cases.append((name, a, b, near.astype(np.int32)))
    run = run_with_amx(products, instructions, cases)
    for (name, *case), result in zip(cases, run.returned, strict=True):
        np.testing.assert_array_equal(result, int8_product(*case), name)
    if run.emulated:
        assert run.multiply_adds == len(INT8) * 2 * sum(4 * M * K * N for M, K, N in SHAPES)


@pytest.mark.parametrize(("rows", "colsb"), [(16, 64), (1, 1), (7, 13), (16, 3)])
def test_loads_and_stores(rows: int, colsb: int, instructions: Path, run_with_amx: RunWithAmx) -> None:
    x = np.random.default_rng(3).integers(1, 256, (32, 128)).astype(np.uint8)
    run = run_with_amx(moves, instructions, rows, colsb, x)
    views = [lambda y: y, lambda y: y[::2], lambda y: y[::-1], lambda y: y[::-2, 3:]]
    for (from_, to), result in zip(itertools.product(views, repeat=2), run.returned, strict=True):
        expected = np.zeros_like(x)
        to(expected)[:rows, :colsb] = from_(x)[:rows, :colsb]
        np.testing.assert_array_equal(result, expected)


def test_every_form_of_address(instructions: Path, run_with_amx: RunWithAmx) -> None:
    x = np.random.default_rng(4).integers(0, 256, 2**12).astype(np.uint8)
    stride = 72  # a multiple of each scale
    run = run_with_amx(forms, instructions, x, stride)
    for (_, index, _, _), result in zip(FORMS, run.returned, strict=True):
        step = stride if index else 0
        np.testing.assert_array_equal(result, [x[m * step : m * step + 64] for m in range(16)])


def test_configurations(instructions: Path, run_with_amx: RunWithAmx) -> None:
    constant, nothing = config((16, 64), (3, 8)), np.zeros(64, np.uint8)
    loaded = [config((n + 1, 4 * n + 1)) for n in (1, 2, 1, 3)]
    expected = [nothing, *loaded, constant, nothing, nothing]
    np.testing.assert_array_equal(run_with_amx(configurations, instructions).returned, expected)


def test_tiles_are_cleared(instructions: Path, run_with_amx: RunWithAmx) -> None:
    repeated = np.tile(np.arange(1, 65, dtype=np.uint8), (16, 1))
    expected = [repeated, np.zeros((16, 64)), repeated, np.zeros((16, 64))]
    np.testing.assert_array_equal(run_with_amx(clearing, instructions).returned, expected)


def test_each_thread_has_its_own_tiles(instructions: Path, run_with_amx: RunWithAmx) -> None:
    random, cases = np.random.default_rng(5), []
    for M, K, N in SHAPES:
        a, b = bf16_bits(random.normal(size=(M, K, 2))), bf16_bits(random.normal(size=(K, N, 2)))
        cases.append((a, b, random.normal(size=(M, N)).astype(np.float32)))
    run = run_with_amx(threads_in_turn, instructions, cases)
    for case, result in zip(cases, run.returned, strict=True):
        np.testing.assert_array_equal(result, bf16_product(*case))


def test_micro_kernel(instructions: Path, run_with_amx: RunWithAmx) -> None:
    """All eight tiles, rows of instructions among others, and registers of vectors and flags left alone."""
    random, steps = np.random.default_rng(6), 5
    a = bf16_bits(random.normal(size=(2, 16, steps, 16, 2)))
    b = bf16_bits(random.normal(size=(2, steps, 16, 16, 2)))
    c = random.normal(size=(2, 2, 16, 16)).astype(np.float32)
    expected = c.copy()
    for k, i, j in itertools.product(range(steps), range(2), range(2)):
        expected[i, j] = bf16_product(a[i, :, k], b[j, k], expected[i, j])
    flat = a.reshape(-1)[:512].reshape(16, 16, 2)  # rows of 64 bytes from its first on
    expected[0, 0] = bf16_product(flat, b[0, 0], expected[0, 0])
    run = run_with_amx(micro_kernel, instructions, a, b, c, steps)
    np.testing.assert_array_equal(run.returned, expected)
    if run.emulated:
        assert (run.products, run.rows) == (4 * steps + 1, 16 * (4 * steps + 1))


def test_the_process_gets_threads_and_variables(run_with_amx: RunWithAmx) -> None:
    run = run_with_amx(variables, ["OMP_NUM_THREADS", "OF_THE_TEST"], threads=3, environment={"OF_THE_TEST": "yes"})
    assert run.returned == ["3", "yes"] and run.products == 0


def test_a_failing_process_fails_the_test(run_with_amx: RunWithAmx) -> None:
    with pytest.raises(pytest.fail.Exception, match=r"ended with 1:[^$]*KeyError: 'NOT_THERE'"):
        run_with_amx(variables, ["NOT_THERE"])


FULL = (16, 64)
FAULTS = [
    ("zero_0", None, "TILEZERO at .*: tiles are not configured"),
    ("TDPBF16PS", None, "TDPBF16PS at .*: tiles are not configured"),
    ("load_1", config(FULL), "TILELOADD at .*: tmm1 has no rows"),
    ("load_2", config(FULL), "TILELOADDT1 at .*: tmm2 has no rows"),
    ("store_7", config(FULL), "TILESTORED at .*: tmm7 has no rows"),
    ("zero_8", config(FULL), "TILEZERO at .*: there is no tmm8"),
    ("TDPBSSD", config(FULL, FULL), "TDPBSSD at .*: tmm2 has no rows"),
    ("TDPBUSD", config(FULL, (15, 64), FULL), r"tmm0 \(the result\) has 16 rows, tmm1 \(the left factor\) 15"),
    ("TDPBSUD", config(FULL, (16, 60), FULL), r"tmm1 .* has 60 colsb, tmm2 \(the right one\) 16 rows"),
    ("TDPBUUD", config(FULL, FULL, (16, 60)), r"tmm0 .* has 64 colsb, tmm2 \(the right factor\) 60"),
    ("TDPBF16PS", config((16, 62), FULL, (16, 62)), "colsb of tmm0: 62; a multiple of 4"),
    ("TDPBF16PS_001", config(FULL, FULL), "tmm0, tmm0, tmm1: a tile occurs twice"),
    ("release", config((17, 64)), "LDTILECFG at .*: rows of tmm0: 17; at most 16"),
    ("release", config(FULL, (16, 65)), "colsb of tmm1: 65; at most 64"),
    ("release", config((16, 0)), "tmm0 has 16 rows and 0 colsb"),
    ("release", config(*[FULL] * 9), "tmm8 is configured"),
    ("release", config(FULL, start_row=3), "start_row is 3"),
    ("release", config(FULL, palette=2), "palette 2; there are 0 and 1"),
]
ILLEGAL = ["illegal", "TDPFP16PS"]


@pytest.fixture(scope="module")
def ends(
    amx_emulator: Path, instructions: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, bytes], tuple[int, str]]:
    """How the instructions of FAULTS and ILLEGAL end their processes, by name and tiles."""
    cases = [(name, tiles) for name, tiles, _ in FAULTS] + [(name, config(FULL, FULL, FULL)) for name in ILLEGAL]
    run = run_in_process(amx_emulator, tmp_path_factory.mktemp("ends"), each_in_a_fork, instructions, cases)
    return {by_bytes(*case): end for case, end in zip(cases, run.returned, strict=True)}


def by_bytes(name: str, tiles: np.ndarray | None) -> tuple[str, bytes]:
    return name, b"" if tiles is None else tiles.tobytes()


@only_emulated
@pytest.mark.parametrize(("name", "tiles", "message"), FAULTS)
def test_faults(name: str, tiles: np.ndarray | None, message: str, ends: dict[Any, tuple[int, str]]) -> None:
    signal_, stderr = ends[by_bytes(name, tiles)]
    assert signal_ == signal.SIGABRT and re.search(message, stderr), stderr


@only_emulated
@pytest.mark.parametrize("name", ILLEGAL)
def test_other_illegal_instructions_end_the_process(name: str, ends: dict[Any, tuple[int, str]]) -> None:
    signal_, stderr = ends[by_bytes(name, config(FULL, FULL, FULL))]
    assert signal_ == signal.SIGILL and "AMX" not in stderr
