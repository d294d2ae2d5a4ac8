"""The variants in which this folder's C++ code is compiled for a wheel, and how it is compiled.

setup.py runs this file where there is no torch: it needs Python's standard library alone.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent
MACHINE = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine())
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC")
NATIVE = "-march=native" if MACHINE == "x86_64" else "-mcpu=native"  # what Clang takes for Arm


class Variant(NamedTuple):
    """One row of the table.

    Args:
        name: part of the file's name.
        machine: the kind of processor, as in `MACHINE`.
        flags: what the compiler gets beside `FLAGS`.
        features: what the processor must have, in the words of Linux' /proc/cpuinfo.
    """

    name: str
    machine: str
    flags: tuple[str, ...]
    features: frozenset[str]

    @property
    def file(self) -> Path:
        """Where a wheel has it. The name changes with the sources, so that no older file is ever taken for this one."""
        return FOLDER / "prebuilt" / f"octave_{self.name}_{sources_key(*self.flags)}.so"


# What -march=x86-64-v3 and -v4 stand for.
_V3 = frozenset(("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"))
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}

_BF16 = _V4 | {"avx512_bf16", "avx512_vnni"}

# Best first: the first that the processor can run is taken.
VARIANTS = (
    Variant(
        "amx",
        "x86_64",
        ("-march=x86-64-v4", "-mavx512bf16", "-mavx512vnni", "-mamx-tile", "-mamx-bf16", "-mamx-int8"),
        _BF16 | {"amx_tile", "amx_bf16", "amx_int8"},
    ),
    Variant("avx512_bf16", "x86_64", ("-march=x86-64-v4", "-mavx512bf16", "-mavx512vnni"), _BF16),
    Variant("avx512_vnni", "x86_64", ("-march=x86-64-v4", "-mavx512vnni"), _V4 | {"avx512_vnni"}),
    Variant("avx512", "x86_64", ("-march=x86-64-v4",), _V4),
    Variant("avx2", "x86_64", ("-march=x86-64-v3",), _V3),
    Variant("neon", "aarch64", ("-march=armv8-a",), frozenset()),
)


def sources() -> list[Path]:
    """The C++ files of this folder, headers too."""
    return sorted([*FOLDER.glob("*.cpp"), *FOLDER.glob("*.h")])


def sources_key(*parts: str) -> str:
    """A short word that differs where the sources, the flags for all or these parts do."""
    digest = hashlib.sha256("\0".join([*FLAGS, *parts]).encode())
    for file in sources():
        digest.update(b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def find_compiler() -> list[str] | None:
    """$CXX, which may have several words ("ccache g++"), else g++, which macOS calls Clang; None: there is none."""
    name = os.environ.get("CXX", "").strip() or "g++"
    command = [name] if shutil.which(name) else name.split()
    return command if shutil.which(command[0]) else None


# All files together: 40 seconds on two idle cores, minutes where many processes share few cores.
_COMPILER_TIMEOUT_S = 3600


def compile_to(file: Path, compiler: list[str], *flags: str) -> None:
    """Compiles all sources into one library.

    It is written under another name first, since several processes may start at once.

    Raises:
        subprocess.SubprocessError: the compiler fails; its words are in `stderr`.
        OSError: the folder can't be written to.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        made = Path(folder) / file.name
        units = [source for source in sources() if source.suffix == ".cpp"]
        objects = [Path(folder) / f"{unit.stem}.o" for unit in units]

        def run(*arguments: str | Path) -> None:
            command = [*compiler, *FLAGS, *flags, *map(str, arguments)]
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=_COMPILER_TIMEOUT_S)

        with ThreadPoolExecutor(4) as pool:  # more compilers at once would take much memory
            list(pool.map(lambda unit, made: run("-c", unit, "-o", made), units, objects))
        run("-shared", *objects, "-o", made)
        made.replace(file)
