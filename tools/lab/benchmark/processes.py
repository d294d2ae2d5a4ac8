"""More rounds of a pass, from fresh processes: where memory lies, and so some percent of time, is a process's luck.

`python -m lab.benchmark.processes JSON` is such a process; it prints its pass as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict

import torch

from lab.benchmark.arms import Arm
from lab.benchmark.calls import torch_threads
from lab.benchmark.measure import build_calls, run_pass
from lab.benchmark.networks import WeightStore
from lab.benchmark.results import Pass
from octvideo.cli.allocator import keep_freed_memory
from octvideo.errors import UserError
from octvideo.progress import Progress


def add_process(found: Pass, arms: Mapping[str, Arm], *, rounds: int, device: torch.device) -> None:
    """Measures a pass again in a process of its own, and joins its rounds to those that there are.

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
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    words = [sys.executable, "-m", "lab.benchmark.processes", json.dumps(task)]
    done = subprocess.run(words, env=env, text=True, capture_output=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()
        raise UserError(f"process {found.processes + 1} that measures: {said[-1]}")
    found.join(Pass(**json.loads(done.stdout.splitlines()[-1])))


def _measure(task: dict[str, object]) -> Pass:
    arms = {label: Arm.from_dict(fields) for label, fields in task["arms"].items()}  # type: ignore[attr-defined]
    device, threads = torch.device(str(task["device"])), int(task["threads"])  # type: ignore[call-overload]
    found = Pass(device.type, threads, task["clock"])  # type: ignore[arg-type]
    with torch_threads(torch.get_num_threads() if device.type == "cuda" else threads):
        calls, left_out = build_calls(arms, WeightStore(), threads=threads, device=device, progress=Progress())
        if left_out:
            raise UserError("; ".join(f"{label}: {reason}" for label, reason in left_out.items()))
        rounds = int(task["rounds"])  # type: ignore[call-overload]
        run_pass(arms, calls, found, rounds=rounds, device=device, progress=Progress())
    return found


if __name__ == "__main__":
    keep_freed_memory()
    print(json.dumps(asdict(_measure(json.loads(sys.argv[1])))))
