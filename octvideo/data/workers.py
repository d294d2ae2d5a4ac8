"""How many loading processes suit the machine: its CPUs, the other processes of the run, its shared memory."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger("octvideo.data")

_MOST_WORKERS = 16
# Batches wait in shared memory; torch's default of two for each worker is 0.7 GB of evaluation items with 16 workers.
_MOST_WAITING_BYTES = 2 << 30
_SHARED_MEMORY = Path("/dev/shm")


def available_cpus(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """CPUs that this process may use: by its affinity (taskset, SLURM) and by the quota of its cgroup (containers).

    Args:
        cgroups: where they are mounted.
        own: says in which ones this process is.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = min(_quotas(cgroups, own), default=float(cpus))
    return max(min(cpus, int(quota)), 1)


def _quotas(cgroups: Path, own: Path) -> list[float]:
    """CPUs granted by each cgroup on the way to this process's own, of version 2 and 1."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, names = cgroups, ["cpu.max"]
        elif "cpu" in controllers.split(","):
            mount, names = cgroups / "cpu", ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        else:
            continue
        # In a container the path is often the host's, and its own cgroup is what is mounted: both are looked at.
        inside = mount / path.lstrip("/")
        for folder in {mount, inside, *(parent for parent in inside.parents if mount in parent.parents)}:
            try:
                words = " ".join((folder / name).read_text(encoding="utf-8") for name in names).split()
            except OSError:
                continue
            if len(words) == 2 and words[0] not in ("max", "-1"):
                found.append(int(words[0]) / int(words[1]))
    return found


def keep_to_cpus() -> None:
    """Gives torch no more threads than this process has CPUs: torch knows its affinity, but not a container's quota,
    and 64 threads on 4 CPUs wait for each other.
    """
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > (cpus := available_cpus()):
        torch.set_num_threads(cpus)


def default_num_workers(cpus: int, local_processes: int, environ: Mapping[str, str] = os.environ) -> int:
    """Loading processes of one training process: its share of the CPUs without one for itself, 1 to 16.

    Args:
        cpus: that this process may use.
        local_processes: of the run on this machine, as the trainer knows them.
        environ: of this process; torchrun and SLURM say there how the machine is shared.

    Example:
        >>> default_num_workers(32, 4, {})
        7
    """
    per_task = environ.get("SLURM_CPUS_PER_TASK", "")
    if "LOCAL_WORLD_SIZE" in environ:  # torchrun: all its processes have the same CPUs
        share = cpus // int(environ["LOCAL_WORLD_SIZE"])
    elif per_task.isdigit() and environ.get("SLURM_NTASKS", "1") != "1":  # srun: each process is a task with its own
        share = min(cpus, int(per_task))
    else:
        share = cpus // local_processes
    return max(min(share - 1, _MOST_WORKERS), 1)


def worker_settings(num_workers: int | None, *, batch_bytes: int, local_processes: int = 1) -> dict[str, Any]:
    """Arguments of a DataLoader whose waiting batches fit into memory.

    Threads need no setting: torch gives a worker one, and the readers decode with one.

    Args:
        num_workers: that the user wants; None takes `default_num_workers`, and fewer where shared memory is small.
        batch_bytes: of one batch, about.
        local_processes: of the run on this machine.
    """
    room = min(_MOST_WAITING_BYTES, _shared_memory_bytes() // 2 // local_processes)
    batches = max(room // max(batch_bytes, 1), 1)
    if num_workers is None:
        num_workers = min(default_num_workers(available_cpus(), local_processes), batches)
    # Without pinned memory the module's non_blocking copies to a GPU block.
    pin_memory = torch.cuda.is_available()
    if num_workers == 0:
        return {"num_workers": 0, "pin_memory": pin_memory}
    if num_workers > batches:
        need = f"{num_workers} loading processes with a batch of {batch_bytes / 1e6:.0f} MB each"
        advice = f"give data.num_workers {batches} or fewer, or more shared memory (docker run --shm-size=8g)"
        log.warning("%s need more than half of the shared memory (%s): %s", need, _SHARED_MEMORY, advice)
    return {
        "num_workers": num_workers,
        "persistent_workers": True,
        "prefetch_factor": 2 if 2 * num_workers <= batches else 1,
        "pin_memory": pin_memory,
    }


def _shared_memory_bytes() -> int:
    """Size of the shared memory that batches cross processes in; docker gives 64 MB unless told otherwise."""
    try:
        return shutil.disk_usage(_SHARED_MEMORY).total
    except OSError:  # macOS has no such folder, nor that bound
        return 2 * _MOST_WAITING_BYTES
