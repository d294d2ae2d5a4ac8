"""Where an arm's time goes, operation by operation: torch's profiler on one call of each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from lab.benchmark.calls import Call

_OPERATIONS = 25


def write_profile(path: str | Path, calls: Mapping[str, Call], device: torch.device) -> None:
    """Writes the operations that take most time, a table for each arm.

    Engines beside torch's (onnx, openvino) are one call to it, and have an empty table.

    Args:
        path: of a text file.
        calls: by the arm's label; warmed up.
        device: that they run on.
    """
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    order = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    tables = []
    for label, call in calls.items():
        with profile(activities=activities) as found:
            call.once()
            if on_gpu:
                torch.cuda.synchronize(device)
        table = found.key_averages().table(sort_by=order, row_limit=_OPERATIONS, max_name_column_width=60)
        tables.append(f"== {label} ==\n{table}")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("\n".join(tables), encoding="utf-8")
