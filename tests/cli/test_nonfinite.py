"""Training that diverges, and data without a figure, through the commands."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Cli = Callable[..., tuple[str, str]]
FIT = ("fit", "-c", "tiny", "--trainer.enable_progress_bar", "false", "--trainer.max_epochs")
LAST = Path("runs/tiny/checkpoints/last.ckpt")


def strict_json(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def one_error(err: str) -> str:
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    return line


def test_a_run_that_diverges_ends_with_1_and_keeps_the_last_finite_checkpoint(octvideo: Cli, workplace: Path) -> None:
    octvideo(*FIT, 1, "--data.val", "null")
    # From there on with a learning rate at which the first step makes weights of 1e28, whose products are infinite.
    diverges = ("--resume", "--model.lr", 1e30, "--model.max_nonfinite_steps", 4, "--data.val", "null")
    _, err = octvideo(*FIT, 9, *diverges, code=1)
    line = one_error(err)
    assert line.startswith("error: training has diverged: 4 steps in a row were not finite, the loss was nan (epoch 3")
    assert "Lower --model.lr (now 1e+30)" in line
    assert line.endswith("and go on from the last checkpoint, which is finite, with --resume")
    saved = torch.load(LAST, weights_only=True)
    assert all(tensor.isfinite().all() for tensor in saved["state_dict"].values())
    assert saved["global_step"] == 6
    with Path("runs/tiny/metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/nonfinite"]]
    assert [float(row["train/nonfinite"]) for row in rows] == [0, 2]


def test_a_network_that_diverges_before_a_validation_names_a_video(octvideo: Cli, workplace: Path) -> None:
    _, err = octvideo(*FIT, 2, "--model.lr", 1e30, code=1)
    line = one_error(err)
    assert line.startswith("error: training has diverged: scores of '")
    assert "clip 0.mp4' are not finite in validation (epoch 1, step 3). Lower --model.lr (now 1e+30)" in line
    assert line.endswith("and start again")
    assert not LAST.exists()


@pytest.mark.parametrize(
    "command",
    ["fit", "test", *(pytest.param(name, marks=pytest.mark.slow) for name in ("validate", "predict", "init"))],
)
@pytest.mark.usefixtures("trained")
def test_weights_that_are_not_finite_are_refused(octvideo: Cli, command: str) -> None:
    for file in LAST.parent.iterdir():
        content = torch.load(file, weights_only=True)
        content["state_dict"]["network.blocks.0.conv.weight"][0, 0, 0, 0, 0] = math.nan
        torch.save(content, file)
    words = {"fit": (*FIT, 3, "--resume"), "init": (*FIT, 1, "--name", "other", "--init", LAST)}
    _, err = octvideo(*words.get(command, (command, "-c", "tiny")), code=2)
    # Training's keys have a prefix.
    key = "blocks.0.conv.weight" if command == "init" else "network.blocks.0.conv.weight"
    assert f".ckpt are not finite, the first is {key}: take a checkpoint from before training" in one_error(err)


def test_a_test_without_labels_writes_json(octvideo: Cli, trained: Path, tiny_data: Path) -> None:
    (trained / "bare.txt").write_text("".join(f"{path}\n" for path in sorted(tiny_data.glob("test/*/*.mp4"))[:2]))
    octvideo("test", "-c", "tiny", "--data.test", trained / "bare.txt")
    metrics = strict_json(Path("runs/tiny/metrics_test.json").read_text())
    assert metrics["top1"] is metrics["loss"] is None and metrics["videos"] == 2
