"""Peak memory of one arm: of the GPU's allocator, or of a process that runs nothing else.

`python -m lab.benchmark.memory JSON` is that process; it prints bytes as JSON.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from lab.benchmark.arms import Arm
from lab.benchmark.calls import make_call, torch_threads
from lab.benchmark.networks import WeightStore
from lab.benchmark.results import Memory
from octvideo.errors import UserError
from octvideo.inference.engines import ENGINES

_HOW_CPU = "growth of the resident set of a fresh process, from before the network is built to the peak of a call"
_HOW_CUDA = "torch.cuda.max_memory_allocated during a call"
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_memory(arm: Arm, device: torch.device, *, threads: int = 1) -> Memory | None:
    """Measures an arm's memory, or None where the system does not tell (CPU memory beside Linux).

    Raises:
        UserError: the process fails, with the last line that it said.
    """
    if device.type == "cuda":
        return _on_cuda(arm, device)
    if not _RESET.exists():
        return None
    words = [sys.executable, "-m", "lab.benchmark.memory", json.dumps(arm.to_dict()), str(threads)]
    # Blocks from 64 KB on go back to the system when freed: otherwise what was needed once stays resident.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    env["OMP_NUM_THREADS"] = str(threads)
    env["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(words, env=env, text=True, capture_output=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()
        raise UserError(f"memory of {arm.network}: {said[-1]}")
    peak, call = json.loads(done.stdout.splitlines()[-1])
    return Memory(peak, call, _HOW_CPU)


def _on_cuda(arm: Arm, device: torch.device) -> Memory:
    gc.collect()
    torch.cuda.empty_cache()
    before_all = torch.cuda.memory_allocated(device)
    call = make_call(arm, WeightStore(as_built=True), threads=None, device=device)
    for _ in range(2):
        call.once()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call.once()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    return Memory(peak - before_all, peak - before, _HOW_CUDA)


def _in_this_process(arm: Arm, threads: int) -> tuple[int, int]:
    """Bytes that network, engine and a call take at their peak, and those that the call alone adds."""
    with torch_threads(threads):
        # What libraries take for themselves is not the arm's: load them, and let torch start its threads.
        torch.nn.functional.conv2d(torch.zeros(1, 8, 8, 8), torch.zeros(8, 8, 1, 1))
        if arm.engine != "plain":
            importlib.import_module(ENGINES[arm.engine].library)
        _give_back()
        start = _resident("VmRSS")
        call = make_call(arm, WeightStore(as_built=True), threads=threads, device=torch.device("cpu"))
        for _ in range(2):
            call.once()
        _give_back()
        before = _resident("VmRSS")
        _RESET.write_text("5")  # the peak starts anew
        call.once()
        peak = _resident("VmHWM")
    return peak - start, peak - before


def _give_back() -> None:
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def _resident(name: str) -> int:
    for line in _STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise UserError(f"{_STATUS} has no {name}, expected Linux's")


if __name__ == "__main__":
    print(json.dumps(_in_this_process(Arm.from_dict(json.loads(sys.argv[1])), int(sys.argv[2]))))
