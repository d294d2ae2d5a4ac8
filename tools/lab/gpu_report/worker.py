"""The process that does the steps. It reads which from stdin, a JSON line each, and writes records to stdout.

`python -m lab.gpu_report.worker SETTINGS` does steps; with `compile` and an arm before the settings, it compiles that.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from lab.gpu_report.work import Settings, Work
from octvideo.files import one_line


def compile_by(backend: str) -> None:
    """Lets torch.compile in this process use another backend than its own."""
    if backend != "inductor":
        torch.compile = functools.partial(torch.compile, backend=backend)  # type: ignore[assignment]


def is_broken(device: torch.device) -> bool:
    """Whether the device does nothing more for this process, as after an illegal memory access."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
        return False
    except RuntimeError:
        return True


def _steps(settings: Settings) -> None:
    records = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no record
    from lab.gpu_report.checks import CHECKS
    from lab.gpu_report.speed import MEASUREMENTS

    functions = {**CHECKS, **MEASUREMENTS}
    for line in sys.stdin:
        asked = json.loads(line)

        def hear(record: dict[str, Any], step: str = asked["step"]) -> None:
            print(json.dumps({"step": step, **record}), file=records)

        error, leaves = None, False
        print(f"== {asked['step']} ==", file=sys.stderr, flush=True)
        try:
            functions[asked["step"]](Work(settings, asked["seconds"], hear))
        except Exception as raised:
            error = f"{type(raised).__name__}: {one_line(raised)}"
            sys.excepthook(type(raised), raised, raised.__traceback__)  # the whole of it is in the log
            leaves = is_broken(settings.torch_device)
        hear({"end": error, "leaves": leaves})
        if leaves:
            return


def _compile(arm: dict[str, Any], settings: Settings) -> None:
    from lab.benchmark.arms import Arm
    from lab.benchmark.calls import make_call
    from lab.benchmark.networks import WeightStore

    make_call(Arm.from_dict(arm), WeightStore(as_built=True), threads=None, device=settings.torch_device).once()
    if settings.torch_device.type == "cuda":
        torch.cuda.synchronize(settings.torch_device)


if __name__ == "__main__":
    *kind, given = sys.argv[1:]
    own = Settings.from_json(given)
    Path(own.cache).mkdir(parents=True, exist_ok=True)
    compile_by(own.backend)
    if kind:
        _compile(json.loads(kind[1]), own)
    else:
        _steps(own)
