"""How many loading processes: affinity, cgroups of both versions, torchrun, SLURM, small shared memory."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from octvideo.data import EvaluationVideos, VideoRecord, workers
from octvideo.data.workers import available_cpus, default_num_workers, worker_settings
from octvideo.video import Decoder, ViewSettings


@pytest.fixture(autouse=True)
def _many_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(24)), raising=False)


@pytest.mark.parametrize(
    ("own", "files", "cpus"),
    [
        ("0::/\n", {}, 24),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 24),
        ("0::/\n", {"cpu.max": "400000 100000\n"}, 4),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),  # half a CPU is one process
        ("0::/\n", {"cpu.max": "9900000 100000\n"}, 24),
        ("0::/job/step\n", {"job/step/cpu.max": "max 100000", "job/cpu.max": "600000 100000"}, 6),  # the parent's
        ("0::/docker/abc\n", {"cpu.max": "300000 100000"}, 3),  # the host's path, seen from inside
        ("4:m:/x\n3:cpu,cpuacct:/x\n", {"cpu/x/cpu.cfs_quota_us": "250000", "cpu/x/cpu.cfs_period_us": "100000"}, 2),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 24),
        ("3:cpuset:/\n", {"cpuset/cpu.cfs_quota_us": "100000", "cpuset/cpu.cfs_period_us": "100000"}, 24),
    ],
)  # fmt: skip
def test_cpus_of_affinity_and_quota(tmp_path: Path, own: str, files: dict[str, str], cpus: int) -> None:
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        (tmp_path / "cg" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cg" / name).write_text(text)
    assert available_cpus(tmp_path / "cg", tmp_path / "own") == cpus


def test_a_system_without_cgroups(tmp_path: Path) -> None:
    assert available_cpus(tmp_path / "cg", tmp_path / "own") == 24


def test_cpus_are_counted_in_one_place(repo: Path) -> None:
    """Elsewhere a container's quota would be forgotten."""
    files = [*(repo / "octvideo").rglob("*.py"), *(repo / "tools").glob("*.py")]
    counts = re.compile(r"cpu_count|sched_getaffinity")
    assert [file.name for file in files if counts.search(file.read_text(encoding="utf-8"))] == ["workers.py"]


@pytest.mark.parametrize(
    ("threads", "environ", "expected"), [(64, {}, 3), (2, {}, 2), (64, {"OMP_NUM_THREADS": "64"}, 64)]
)
def test_threads_of_torch_keep_to_the_quota(
    monkeypatch: pytest.MonkeyPatch, threads: int, environ: dict[str, str], expected: int
) -> None:
    given = [threads]
    monkeypatch.setattr(workers, "available_cpus", lambda: 3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: given[-1])
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    workers.keep_to_cpus()
    assert given[-1] == expected


@pytest.mark.parametrize(
    ("cpus", "local_processes", "environ", "expected"),
    [
        (1, 1, {}, 1),
        (2, 1, {}, 1),
        (8, 1, {}, 7),
        (96, 1, {}, 16),
        (32, 4, {}, 7),
        (4, 8, {}, 1),
        (32, 1, {"LOCAL_WORLD_SIZE": "8"}, 3),  # torchrun, whatever the trainer says
        (12, 4, {"SLURM_NTASKS": "8", "SLURM_CPUS_PER_TASK": "12"}, 11),  # srun: these 12 are this task's alone
        (96, 4, {"SLURM_NTASKS": "8", "SLURM_CPUS_PER_TASK": "12"}, 11),  # and without binding
        (32, 4, {"SLURM_NTASKS": "1", "SLURM_CPUS_PER_TASK": "32"}, 7),  # one task that starts 4 processes itself
        (32, 1, {"SLURM_NTASKS": "2", "SLURM_CPUS_PER_TASK": "32", "LOCAL_WORLD_SIZE": "4"}, 7),  # torchrun in SLURM
    ],
)
def test_each_training_process_takes_its_share(
    cpus: int, local_processes: int, environ: dict[str, str], expected: int
) -> None:
    assert default_num_workers(cpus, local_processes, environ) == expected


def settings(shared: int, monkeypatch: pytest.MonkeyPatch, num_workers: int | None, batch: int, **more: int) -> Any:
    monkeypatch.setattr(workers, "_shared_memory_bytes", lambda: shared)
    monkeypatch.setattr(workers, "available_cpus", lambda: 24)
    for name in ("LOCAL_WORLD_SIZE", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    return worker_settings(num_workers, batch_bytes=batch, **more)


def test_what_waits_is_bounded_by_shared_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    roomy = settings(64 << 30, monkeypatch, None, 28_000_000)
    assert (roomy["num_workers"], roomy["prefetch_factor"], roomy["persistent_workers"]) == (16, 2, True)
    assert settings(64 << 30, monkeypatch, None, 100_000_000)["prefetch_factor"] == 1  # 3.2 GB would wait
    docker = settings(64 << 20, monkeypatch, None, 10_000_000)
    assert (docker["num_workers"], docker["prefetch_factor"]) == (3, 1)
    assert settings(64 << 30, monkeypatch, None, 100_000_000, local_processes=8)["num_workers"] == 2
    assert not caplog.records
    with caplog.at_level(logging.WARNING, "octvideo.data"):
        asked = settings(64 << 20, monkeypatch, 8, 10_000_000)
    assert asked["num_workers"] == 8  # as the user wants
    (said,) = [record.getMessage() for record in caplog.records]
    assert "8 loading processes with a batch of 10 MB" in said and "data.num_workers 3 or fewer" in said


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_loader_takes_the_settings(monkeypatch: pytest.MonkeyPatch, num_workers: int) -> None:
    assert DataLoader([1, 2], **settings(1 << 30, monkeypatch, num_workers, 100)).num_workers == num_workers


class Threads(Dataset[tuple[int, int]]):
    """Reads a video in a loading process and counts the threads meanwhile: of torch, and beside the first."""

    def __init__(self, path: Path, decoder: Decoder) -> None:
        self.path, self.decoder = path, decoder

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> tuple[int, int]:
        most, done = [0], threading.Event()

        def count() -> None:
            while not done.is_set():
                most[0] = max(most[0], sum(1 for _ in Path("/proc/self/task").iterdir()) - 2)
                time.sleep(0.001)

        counter = threading.Thread(target=count)
        counter.start()
        try:
            EvaluationVideos([VideoRecord(str(self.path), 0)], ViewSettings(), decoder=self.decoder)[0]
        finally:
            done.set()
            counter.join()
        return torch.get_num_threads(), most[0]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in Linux's /proc")
@pytest.mark.parametrize(("decoder", "own"), [("decord", 2), ("pyav", 0)])
def test_a_loading_process_has_one_thread(
    tmp_path: Path, encode: Callable[..., Path], moving: Callable[..., Tensor], decoder: Decoder, own: int
) -> None:
    """decord decodes in a thread of its own, for which another waits, which the first one watches."""
    video = encode(tmp_path / "a.mp4", moving(40, 240, 320), g=8)
    ((of_torch, beside),) = DataLoader(Threads(video, decoder), batch_size=None, num_workers=1)
    assert of_torch == 1 and beside <= own
