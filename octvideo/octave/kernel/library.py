"""Finds this folder's C++ code in compiled form, and loads it.

A wheel brings it compiled for several kinds of processor (variants.py). Where none fits, and in a checkout, the
machine's compiler makes it at first use, in some ten seconds. The result stays in the user's `cache_folder`,
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

import torch

from octvideo.files import cache_folder
from octvideo.octave.kernel.variants import MACHINE, NATIVE, VARIANTS, compile_to, find_compiler, sources_key

log = logging.getLogger("octvideo.octave")


@functools.cache
def load_library() -> ctypes.CDLL | None:
    """The library, or None where it can't be had; a log line says why.

    It has num_registers, packed_size, pack, run_sequence, pack_and_run_layer and weight_gradient.
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
    library.num_registers.restype = ctypes.c_int64
    library.packed_size.argtypes, library.packed_size.restype = [ctypes.c_int64] * 2, ctypes.c_int64
    library.pack.argtypes, library.pack.restype = [ctypes.c_void_p, *[ctypes.c_int64] * 2, ctypes.c_void_p], None
    library.run_sequence.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64]
    library.pack_and_run_layer.argtypes = [*[ctypes.c_void_p] * 3, ctypes.c_int64]
    library.run_sequence.restype = library.pack_and_run_layer.restype = None
    library.weight_gradient.argtypes = [*[ctypes.c_void_p] * 3, *[ctypes.c_int64] * 11]
    library.weight_gradient.restype = None
    return library


def kernel_file() -> Path | None:
    """The compiled library that this processor runs, made if need be; None where it is switched off or can't be made.

    Raises:
        subprocess.SubprocessError: the compiler fails.
        OSError: it can't be run, or no folder can be written to.
    """
    if os.environ.get("OCTVIDEO_FUSED", "1") == "0":
        return None
    features = {word for line in cpu_lines() if line.startswith("flags") for word in line.split()}
    for variant in VARIANTS:
        if variant.machine == MACHINE and variant.features.issubset(features) and variant.file.is_file():
            return variant.file
    compiler = find_compiler()
    if compiler is None:
        wanted = os.environ.get("CXX") or "C++ compiler"
        log.info("no %s: convolutions run by oneDNN; octave ones are faster where there is one", wanted)
        return None
    return _compiled(compiler)


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
    for folder in (cache_folder(), None):
        try:
            # The second is of this process alone: nobody else could have put a library there.
            file = (folder or Path(tempfile.mkdtemp(prefix="octvideo-"))) / f"octave_{key}.so"
            if not file.is_file():
                compile_to(file, compiler, NATIVE)
            return file
        except OSError as error:
            log.debug("%s can't hold the compiled convolutions (%s)", folder, error)
    raise OSError("no folder to compile in")


def cpu_lines() -> list[str]:
    """What Linux says of the kind of processor, each line once; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    return sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
