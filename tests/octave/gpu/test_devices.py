"""Where Triton's kernels run, and what happens where they cannot."""

from __future__ import annotations

import logging
from types import ModuleType

import pytest
import torch

from octvideo.octave.gpu import devices

CUDA = torch.device("cuda", 3)


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The probe's module, on a machine that says it has a GPU."""
    module = pytest.importorskip("octvideo.octave.gpu.probe_kernels", exc_type=ImportError)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    devices._launches_on.cache_clear()
    return module


def broken(_: torch.device) -> list[int]:
    raise RuntimeError("Failed to find C compiler.\nPlease specify CC")


def test_a_gpu_on_which_kernels_fail_is_told_once(
    probe: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "octvideo.octave")
    monkeypatch.setattr(probe, "counts", broken)
    assert not devices.runs_on(CUDA) and not devices.runs_on(CUDA)
    (record,) = caplog.records
    assert "cuda:3 (Failed to find C compiler.): plain torch" in record.getMessage()


@pytest.mark.parametrize(("found", "expected"), [(list(range(16)), True), ([0] * 16, False)])
def test_what_a_kernel_makes_is_looked_at(
    found: list[int], expected: bool, probe: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "counts", lambda _: found)
    assert devices.runs_on(CUDA) == expected


def test_elsewhere_nothing_is_launched(probe: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "counts", broken)
    assert devices.runs_on(torch.device("cpu")) == devices.INTERPRETED
    with torch._subclasses.FakeTensorMode():
        assert devices.runs_on(CUDA)


@pytest.mark.gpu
def test_kernels_run_on_this_gpu() -> None:
    devices._launches_on.cache_clear()
    assert devices.runs_on(torch.device("cuda"))
