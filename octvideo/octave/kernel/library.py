"""Compiles this folder's C++ files with the machine's compiler, once, and loads them.

It takes some five seconds; the result stays in the user's cache folder ($OCTVIDEO_CACHE, else $XDG_CACHE_HOME/octvideo,
else ~/.cache/octvideo), under a name that the source, the compiler and the processor decide. Where there is no g++, or
where OCTVIDEO_FUSED is 0, layers run by oneDNN.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

log = logging.getLogger("octvideo.octave")

_FOLDER = Path(__file__).parent
_SOURCES = ("fused_conv.cpp", "pack_weights.cpp", "weight_gradient.cpp")
_HEADERS = ("convolution.h", "layer.h", "memory.h", "pooling.h", "strips.h", "tiles.h", "vectors.h")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")


@functools.cache
def load_library() -> ctypes.CDLL | None:
    """The library, or None where it can't be had; a log line says why.

    It has num_registers, packed_size, pack, run_layer, run_sequence, pack_and_run_layer and weight_gradient.
    """
    if os.environ.get("OCTVIDEO_FUSED", "1") == "0":
        return None
    wanted = os.environ.get("CXX") or "g++"
    compiler = [wanted] if shutil.which(wanted) else wanted.split()  # "ccache g++"
    if shutil.which(compiler[0]) is None:
        log.info("no %s: convolutions run by oneDNN; octave ones are faster where a C++ compiler is installed", wanted)
        return None
    try:
        library = ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        log.warning(
            "%s can't compile %s (%s): convolutions run by oneDNN", wanted, ", ".join(_SOURCES), said.strip()[:300]
        )
        return None
    library.num_registers.restype = ctypes.c_int64
    library.packed_size.argtypes, library.packed_size.restype = [ctypes.c_int64] * 2, ctypes.c_int64
    library.pack.argtypes, library.pack.restype = [ctypes.c_void_p, *[ctypes.c_int64] * 2, ctypes.c_void_p], None
    library.run_layer.argtypes = [*[ctypes.c_void_p] * 2, ctypes.c_int64]
    library.run_sequence.argtypes = [ctypes.c_void_p, ctypes.c_int64, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 2]
    library.pack_and_run_layer.argtypes = [*[ctypes.c_void_p] * 3, ctypes.c_int64]
    library.run_layer.restype = library.run_sequence.restype = library.pack_and_run_layer.restype = None
    library.weight_gradient.argtypes = [*[ctypes.c_void_p] * 3, *[ctypes.c_int64] * 11]
    library.weight_gradient.restype = None
    return library


def _compiled(compiler: list[str]) -> Path:
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True).stdout
    parts = [*[(_FOLDER / name).read_text() for name in (*_SOURCES, *_HEADERS)], *_FLAGS, version, _processor()]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    for folder in (_cache_folder(), None):
        try:
            if folder is None:  # of this process alone: nobody else could have put a library there
                folder = Path(tempfile.mkdtemp(prefix="octvideo-"))
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / f"octave_{key}.so"
            if not file.is_file():
                _compile(compiler, file)
            return file
        except OSError as error:
            log.debug("%s can't hold the compiled convolutions (%s)", folder, error)
    raise OSError("no folder to compile in")


def _compile(compiler: list[str], file: Path) -> None:
    """Written under another name first, since several processes may start at once."""
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        made = Path(folder) / file.name
        command = [*compiler, *_FLAGS, *[str(_FOLDER / name) for name in _SOURCES], "-o", str(made)]
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        made.replace(file)


def _cache_folder() -> Path:
    if own := os.environ.get("OCTVIDEO_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "octvideo"


def _processor() -> str:
    """What -march=native looks at: a home folder may be shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.node()}"
    wanted = ("model name", "flags", "Features", "CPU part")
    return platform.machine() + "".join(sorted({line for line in lines if line.startswith(wanted)}))
