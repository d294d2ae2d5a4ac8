"""Training in the fast ways (compiled, bf16, channels_last) through the command line: it learns, and leaves a
checkpoint that every other way can use.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from octvideo.models import frame_network

Cli = Callable[..., tuple[str, str]]
# An octave network of ten convolutions, since compiling takes its time: timm's ResNet for tests, on frames.
NETWORK = """\
base: tiny.yaml
model:
  network:
    class_path: octvideo.models.frame_network
    init_args: {network: "timm:test_resnet", alpha: {layer1: 0.5}}
"""
FAST = ("--trainer.precision", "bf16-mixed", "--model.channels_last", "true", "--model.compile", "true")
SHORT = ("--trainer.limit_train_batches", 2, "--trainer.limit_val_batches", 0, "--trainer.enable_progress_bar", "false")


def state(run: str) -> dict[str, torch.Tensor]:
    return torch.load(f"runs/{run}/checkpoints/last.ckpt", weights_only=True)["state_dict"]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Makes torch.compile trace and not generate code, and notes how often each graph ran."""
    ran: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        number = len(ran)
        ran.append(0)

        def run(*args: Any) -> Any:
            ran[number] += 1
            return graph.forward(*args)

        return run

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    return ran


def test_two_steps_compiled_in_bf16_and_channels_last(octvideo: Cli, workplace: Path, compiled: list[int]) -> None:
    Path("fast.yaml").write_text(NETWORK)
    octvideo("fit", "-c", "fast", *FAST, *SHORT, "--trainer.max_epochs", 1)
    assert compiled and sum(compiled) >= 2  # both steps ran in what was compiled
    left = state("fast")
    network = frame_network("timm:test_resnet", 3, {"layer1": 0.5})
    assert [key.removeprefix("network.") for key in left] == list(network.state_dict())
    assert {value.dtype for value in left.values() if value.is_floating_point()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_compiled_run_resumes_and_is_tested(octvideo: Cli, workplace: Path) -> None:
    torch.compiler.reset()
    octvideo("fit", "-c", "tiny", "--name", "plain")
    octvideo("fit", "-c", "tiny", *FAST, "--trainer.max_epochs", 1)
    octvideo("fit", "-c", "tiny", *FAST, "--resume")
    assert list(state("tiny")) == list(state("plain"))
    assert torch.load("runs/tiny/checkpoints/last.ckpt", weights_only=True)["epoch"] == 1
    out, _ = octvideo("test", "--name", "tiny")
    assert "5 videos, 3 classes" in out
    out, _ = octvideo("test", "--name", "plain", "--model.compile", "default")
    assert "5 videos, 3 classes" in out
