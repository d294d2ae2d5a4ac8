"""What tests of kernels on AMX tiles need."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import pytest

from octvideo.octave.kernel.variants import MACHINE, find_compiler
from tests.octave.kernel.amx import RunWithAmx, compile_emulator, run_in_process


@pytest.fixture(scope="session")
def compiler() -> list[str]:
    """The machine's C++ compiler, where it makes programs that AMX is emulated for."""
    if MACHINE != "x86_64" or sys.platform != "linux":
        pytest.skip("AMX tiles are emulated on x86-64 Linux only")
    found = find_compiler()
    if found is None:
        pytest.skip("no C++ compiler")
    return found


@pytest.fixture(scope="session")
def amx_emulator(compiler: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The emulator, compiled."""
    return compile_emulator(tmp_path_factory.mktemp("amx"), compiler)


@pytest.fixture
def run_with_amx(amx_emulator: Path, tmp_path: Path) -> RunWithAmx:
    """run_with_amx(function, *arguments, threads=1, environment=None, check=True): see `run_in_process`."""
    return functools.partial(run_in_process, amx_emulator, tmp_path)
