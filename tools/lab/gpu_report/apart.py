"""An arm in a process of its own: `python -m lab.gpu_report.apart ARM SETTINGS`.

Several compile at the same time, which takes most of a report's time, and take turns when all are ready. So none is
compiled twice.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from lab.benchmark.arms import Arm
from lab.benchmark.machine import synchronize
from lab.benchmark.measure import build_calls, turn_of
from lab.benchmark.networks import WeightStore
from lab.gpu_report.child import Message, serve
from lab.gpu_report.kernels import profiled
from lab.gpu_report.work import Settings
from octvideo.errors import UserError
from octvideo.progress import Progress


def main(arm: Arm, settings: Settings) -> None:
    """Builds the arm and says that it is ready; then answers "turn" with seconds, and "profile" with kernels."""
    device = settings.torch_device
    made: dict[str, Any] = {}

    def build() -> None:
        options: dict[str, Any] = {"threads": torch.get_num_threads(), "device": device, "progress": Progress()}
        calls, left_out = build_calls({"arm": arm}, WeightStore(as_built=True), **options)
        if left_out:
            raise UserError(left_out["arm"])
        made["call"], made["turn"] = calls["arm"], turn_of(calls["arm"].once, device)
        synchronize(device)

    def answer(asked: Message, send: Callable[[Message], None]) -> bool:
        if asked["do"] == "turn":
            memory = made["call"].memory
            send({"seconds": made["turn"](), "memory": None if memory is None else memory.peak})
        else:
            send({"kernels": [asdict(kernel) for kernel in profiled(made["call"].once, device)]})
        return True

    serve(answer, build)


if __name__ == "__main__":
    settings = Settings.from_json(sys.argv[2])
    settings.prepare()
    main(Arm.from_dict(json.loads(sys.argv[1])), settings)
