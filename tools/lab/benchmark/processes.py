"""What fresh processes measure: the peak memory of one arm, and more rounds of a pass.

Where memory lies, and so some percent of time, is a process's luck: rounds of several processes average over it.
`python -m lab.benchmark.processes memory|rounds JSON` is such a process; it prints what it found as JSON.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lab.benchmark.arms import Arm
from lab.benchmark.calls import make_call
from lab.benchmark.measure import build_calls, run_pass
from lab.benchmark.networks import WeightStore
from lab.benchmark.results import Memory, Pass
from lab.timing import torch_threads
from octvideo.cli.allocator import keep_freed_memory
from octvideo.errors import UserError
from octvideo.inference.engines import ENGINES
from octvideo.progress import Progress

_HOW_CPU = "growth of the resident set of a fresh process, from before the network is built to the peak of a call"
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_memory(arm: Arm) -> Memory | None:
    """An arm's memory, on one thread of a CPU; None where the system does not tell (beside Linux).

    Raises:
        UserError: the process fails, with the last line that it said.
    """
    if not _RESET.exists():
        return None
    # Blocks from 64 KB on go back to the system when freed: otherwise what was needed once stays resident.
    env = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    peak, call = _in_fresh_process("memory", arm.to_dict(), f"memory of {arm.network}", env)
    return Memory(peak, call, _HOW_CPU)


def _in_fresh_process(kind: str, task: dict[str, Any], what: str, env: Mapping[str, str] | None = None) -> Any:
    """What this module prints for a task.

    Raises:
        UserError: the process fails, with the last line that it said.
    """
    words = [sys.executable, "-m", "lab.benchmark.processes", kind, json.dumps(task)]
    path = os.pathsep.join(folder for folder in sys.path if folder)
    environment = {**os.environ, "PYTHONPATH": path, **(env or {})}
    done = subprocess.run(words, env=environment, text=True, capture_output=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()
        raise UserError(f"{what}: {said[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def _memory_here(arm: Arm) -> tuple[int, int]:
    """Bytes that network, engine and a call take at their peak, and those that the call alone adds."""
    with torch_threads(1):
        # What libraries take for themselves is not the arm's: load them, and let torch start its threads.
        torch.nn.functional.conv2d(torch.zeros(1, 8, 8, 8), torch.zeros(8, 8, 1, 1))
        if arm.engine != "plain":
            importlib.import_module(ENGINES[arm.engine].library)
        _give_back()
        start = resident("VmRSS")
        call = make_call(arm, WeightStore(as_built=True), threads=1, device=torch.device("cpu"))
        for _ in range(2):
            call.once()
        _give_back()
        before = resident("VmRSS")
        _RESET.write_text("5")  # the peak starts anew
        call.once()
        peak = resident("VmHWM")
    return peak - start, peak - before


def _give_back() -> None:
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def resident(name: str) -> int:
    """Bytes of this process that lie in memory: now ("VmRSS"), or at most so far ("VmHWM").

    Raises:
        UserError: the system is not Linux.
    """
    for line in _STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise UserError(f"{_STATUS} has no {name}, expected Linux's")


def add_process(found: Pass, arms: Mapping[str, Arm], *, rounds: int, device: torch.device) -> None:
    """Measures a pass again in a process of its own, and joins its rounds to the earlier ones.

    Args:
        found: the pass; changed.
        arms: by label, all that it measured.
        rounds: of the process.
        device: to run on.

    Raises:
        UserError: the process fails, with the last line that it said.
    """
    task = {
        "arms": {label: arm.to_dict() for label, arm in arms.items()},
        "rounds": rounds,
        "device": str(device),
        "threads": found.threads,
        "clock": found.clock,
    }
    found.join(Pass(**_in_fresh_process("rounds", task, f"process {found.processes + 1} that measures")))


def _rounds_here(task: dict[str, Any]) -> Pass:
    arms = {label: Arm.from_dict(fields) for label, fields in task["arms"].items()}
    device, threads = torch.device(task["device"]), task["threads"]
    found = Pass(device.type, threads, task["clock"])
    with torch_threads(torch.get_num_threads() if device.type == "cuda" else threads):
        calls, left_out = build_calls(arms, WeightStore(), threads=threads, device=device, progress=Progress())
        if left_out:
            raise UserError("; ".join(f"{label}: {reason}" for label, reason in left_out.items()))
        run_pass(arms, calls, found, rounds=task["rounds"], device=device, progress=Progress())
    return found


if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    if sys.argv[1] == "memory":
        print(json.dumps(_memory_here(Arm.from_dict(given))))
    else:
        keep_freed_memory()
        print(json.dumps(asdict(_rounds_here(given))))
