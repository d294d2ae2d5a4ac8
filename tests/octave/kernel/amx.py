"""Runs functions in processes of their own that have AMX tiles: the processor's, or else those of amx_emulator.c.

    from tests.octave.kernel.amx import RunWithAmx

    def product(a: Tensor) -> Tensor: ...  # of a module, so that the other process can import it

    def test_product(run_with_amx: RunWithAmx) -> None:  # the fixture is in conftest.py
        run = run_with_amx(product, torch.ones(3, 5), threads=2)
        assert run.returned.shape == (3, 3) and (run.products > 0 or not run.emulated)

Run as a program, it is that other process. The handler of SIGILL belongs to a whole process, hence one for each run.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).with_name("amx_emulator.c")


@dataclass(frozen=True)
class AmxRun:
    """What a run came to.

    Args:
        returncode: of the process; negative: the signal that ended it.
        stderr: all that it wrote there.
        returned: by the function; None where the process failed, as are the following.
        emulated: whether tiles were emulated; where not, the counts are 0.
        products: TDP* instructions.
        rows: of their results; a full product has 16.
        multiply_adds: in them; a full product has 8192 (bfloat16) or 16384 (int8).
    """

    returncode: int
    stderr: str
    returned: Any = None
    emulated: bool = False
    products: int = 0
    rows: int = 0
    multiply_adds: int = 0


RunWithAmx = Callable[..., AmxRun]


def compile_emulator(folder: Path, compiler: list[str]) -> Path:
    """Compiles amx_emulator.c into the folder; returns the library's path."""
    library = folder / "amx_emulator.so"
    # No contraction: the sum of a product and the accumulator is an FMA only where the source says so.
    flags = [
        "-x",
        "c",
        "-std=gnu11",
        "-O3",
        "-march=native",
        "-fno-math-errno",
        "-ffp-contract=off",
        "-shared",
        "-fPIC",
    ]
    subprocess.run([*compiler, *flags, str(SOURCE), "-o", str(library), "-ldl"], check=True)
    return library


def run_in_process(
    emulator: Path,
    folder: Path,
    function: Callable[..., Any],
    *arguments: Any,
    threads: int = 1,
    environment: Mapping[str, str] | None = None,
    check: bool = True,
) -> AmxRun:
    """Calls a function of a module in a fresh process that has AMX tiles.

    Args:
        emulator: from `compile_emulator`.
        folder: for the files that carry arguments and results.
        function: pickled by its name, as are the arguments by value.
        threads: OMP_NUM_THREADS.
        environment: variables of that process, beside this one's.
        check: whether the test fails where the process does; else the result tells.
    """
    given, made = folder / "arguments.pickle", folder / "result.pickle"
    given.write_bytes(pickle.dumps((function, arguments)))
    made.unlink(missing_ok=True)
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OMP_NUM_THREADS": str(threads),
        **(environment or {}),
    }
    command = [sys.executable, "-m", __name__, str(emulator), str(given), str(made)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=250, check=False)
    if done.returncode or not made.exists():
        if check:
            pytest.fail(f"the process with AMX ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return AmxRun(done.returncode, done.stderr)
    return AmxRun(done.returncode, done.stderr, *pickle.loads(made.read_bytes()))


def _main() -> None:
    emulator, given, made = sys.argv[1:]
    library = ctypes.CDLL(emulator)
    installed = library.install()
    if installed < 0:
        sys.exit("this process can't have AMX tiles")
    function, arguments = pickle.loads(Path(given).read_bytes())
    returned = function(*arguments)
    counters = [library.tile_products, library.tile_rows, library.tile_multiply_adds]
    for counter in counters:
        counter.restype = ctypes.c_longlong
    counts = [counter() for counter in counters]
    Path(made).write_bytes(pickle.dumps((returned, installed == 0, *counts)))


if __name__ == "__main__":
    _main()
