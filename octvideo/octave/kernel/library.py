"""Finds this folder's C++ code in compiled form, and loads it.

A wheel brings it compiled for several kinds of processor (variants.py). Where none fits, and in a checkout, the
machine's compiler makes it at first use, in less than a minute. The result stays in the user's `cache_folder`,
under a name that sources, compiler and processor decide. Where there is no compiler either, or where OCTVIDEO_FUSED is
0, layers run by oneDNN.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import platform
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from octvideo.files import cache_folder
from octvideo.octave.kernel.variants import MACHINE, NATIVE, VARIANTS, Variant, compile_to, find_compiler, sources_key

log = logging.getLogger("octvideo.octave")


@functools.cache
def load_library() -> ctypes.CDLL | None:
    """The library, or None where it can't be had; a log line says why.

    It has the functions that the C++ files declare `extern "C"`.
    """
    try:
        file = kernel_file()
        library = None if file is None else ctypes.CDLL(str(file))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        log.warning("can't compile or load the kernel (%s): convolutions run by oneDNN", said.strip()[:300])
        return None
    if library is None:
        return None
    log.debug("the kernel is %s", file)
    _share_threads(library)
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    functions: tuple[tuple[str, Any, list[Any]], ...] = (
        ("num_registers", size, []),
        ("num_lanes", size, []),
        ("allow_tiles", ctypes.c_bool, [ctypes.c_bool]),
        ("tiles_are_used", ctypes.c_bool, []),
        ("joins_maps", ctypes.c_bool, [pointer]),
        ("has_format", ctypes.c_bool, [size]),
        ("product_rate", ctypes.c_double, [size]),
        ("packed_words", size, [pointer, size]),
        ("pack", None, [pointer, size, pointer, pointer]),
        ("run_sequence", None, [pointer, size, pointer, *[size] * 5]),
        ("convert_to", None, [size, pointer, pointer, size, ctypes.c_float, size, size]),
        ("convert_from", None, [size, pointer, pointer, size, ctypes.c_float, size, size]),
        ("pack_and_run_layer", None, [pointer, pointer, pointer, size]),
        ("weight_gradient", None, [*[pointer] * 4, size]),
    )
    for name, result, arguments in functions:
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, result
    library.allow_tiles(True)
    return library


def product_rates() -> tuple[float, ...]:
    """Multiply-adds a second of a core in float32, bfloat16 and int8, with operands in registers, measured now.

    0.0 where there is no kernel, or not in that format. It takes some milliseconds.
    """
    library = load_library()
    return (0.0, 0.0, 0.0) if library is None else tuple(library.product_rate(format) for format in range(3))


@functools.cache
def bf16_pays() -> bool:
    """Whether the kernel has bfloat16 and multiplies faster in it than in float32.

    Some processors have the instructions and are slower by them: an Intel Xeon whose AMX a virtual machine hides.
    """
    f32, bf16, _ = product_rates()
    return bf16 > 1.1 * f32


def kernel_file() -> Path | None:
    """The compiled library that this processor runs, made if need be; None where it is switched off or can't be made.

    Raises:
        subprocess.SubprocessError: the compiler fails.
        OSError: it can't be run, or no folder can be written to.
    """
    if os.environ.get("OCTVIDEO_FUSED", "1") == "0":
        return None
    for variant in runnable_variants():
        if variant.file.is_file():
            return variant.file
    compiler = find_compiler()
    if compiler is None:
        wanted = os.environ.get("CXX") or "C++ compiler"
        log.info("no %s: convolutions run by oneDNN; octave ones are faster where there is one", wanted)
        return None
    return _compiled(compiler)


def runnable_variants() -> list[Variant]:
    """Those that this processor runs, the best one first, whether or not they are compiled."""
    features = {word for line in cpu_lines() if line.startswith("flags") for word in line.split()}
    return [variant for variant in VARIANTS if variant.machine == MACHINE and variant.features <= features]


def _share_threads(library: ctypes.CDLL) -> None:
    """Gives the library the entry of the OpenMP runtime that torch is linked to, whatever that file is called."""
    try:
        start = ctypes.CDLL(torch._C.__file__).GOMP_parallel
    except (OSError, AttributeError):
        log.warning("torch has no OpenMP runtime: the kernel runs on one thread")
    else:
        ctypes.c_void_p.in_dll(library, "gomp_parallel").value = ctypes.cast(start, ctypes.c_void_p).value


def _compiled(compiler: list[str]) -> Path:
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True).stdout
    # The processor too: a home folder may be shared by machines of several kinds.
    processor = cpu_lines() or [platform.processor(), platform.node()]
    key = sources_key(NATIVE, version, MACHINE, *processor)
    name = f"octave_{key}.so"
    try:
        return _compiled_as(cache_folder() / name, compiler)
    except (OSError, NotImplementedError) as error:  # the latter of file systems without locks
        log.warning("the kernel is compiled anew in every process (%s): set OCTVIDEO_CACHE to a folder for it", error)
    # Of this process alone: nobody else could have put a library there.
    return _compiled_as(Path(tempfile.mkdtemp(prefix="octvideo-")) / name, compiler)


def _compiled_as(file: Path, compiler: list[str]) -> Path:
    if file.is_file():
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    # Processes that start together, ranks or test workers, would compile it together: one does, others wait.
    with FileLock(file.with_suffix(".lock")):
        if not file.is_file():
            compile_to(file, compiler, NATIVE)
    return file


def cpu_lines() -> list[str]:
    """What Linux says of the kind of processor, each line once; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    return sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
