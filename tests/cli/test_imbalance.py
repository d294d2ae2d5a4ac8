"""Recipes for classes of unequal size through the real command."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Cli = Callable[..., tuple[str, str]]
FIT = ("fit", "-c", "tiny", "--trainer.enable_progress_bar", "false", "--data.train", "few.txt")
BALANCED = ("--data.sampler", "balanced", "--model.focal_gamma", 1.5, "--model.mixup_alpha", 0.4)


@pytest.fixture
def few(workplace: Path, tiny_data: Path) -> Path:
    """few.txt: three videos of down, three of left, one of right."""
    lines = [f"{tiny_data / line}" for line in (tiny_data / "train.txt").read_text().splitlines()]
    kept = [line for line in lines if not line.endswith("2")] + [line for line in lines if line.endswith("2")][:1]
    (workplace / "few.txt").write_text("\n".join(kept) + "\n")
    return workplace


def last(name: str) -> dict[str, Any]:
    return torch.load(Path("runs", name, "checkpoints", "last.ckpt"), weights_only=True)


@pytest.mark.slow
def test_a_balanced_run_stopped_within_an_epoch_goes_on_bit_for_bit(
    octvideo: Cli, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    words = (*FIT, *BALANCED, "--data.batch_size", 2)
    out, _ = octvideo(*words, "--name", "whole")
    assert "balanced: an epoch has 2 clips of each of 3 classes (of videos right has 1, down has 3)\n" in out
    keeps = ("--trainer.callbacks", "stop_run.KeepRuns", "--trainer.callbacks.step", 4)
    octvideo(*words, "--checkpoint_minutes", 0, *keeps, code=130)
    shutil.rmtree("runs/tiny", ignore_errors=True)
    shutil.move("as it was left/tiny", "runs/tiny")
    assert last("tiny")["global_step"] == 4
    octvideo(*words, "--resume")
    resumed, whole = last("tiny")["state_dict"], last("whole")["state_dict"]
    assert [key for key, value in whole.items() if not torch.equal(value, resumed[key])] == []


SLOW = [pytest.param(text, marks=pytest.mark.slow) for text in ("effective", "[1, 1, 5]", "{right: 5}")]


@pytest.mark.parametrize("weights", ["inverse", *SLOW])
def test_weights_are_said(octvideo: Cli, few: Path, weights: str) -> None:
    words = ("--trainer.max_steps", 1, "--model.class_weights", weights, "--data.val", "null")
    out, _ = octvideo(*FIT, *words, "--model.class_weights_beta", 0.5)
    (line,) = re.findall(r"^class weights, .*$", out, re.MULTILINE)
    expected = {
        "inverse": "class weights, inverse: 0.778 (down, 3 videos) to 2.33 (right, 1 videos)",
        # beta .5: three videos have the effective number 1.75, one has 1: 7 / (2 * 3 / 1.75 + 1) is 1.58.
        "effective": "class weights, effective: 0.903 (down, 3 videos) to 1.58 (right, 1 videos)",
    }
    assert line == expected.get(weights, "class weights, given: 1 (down) to 5 (right)")


@pytest.mark.slow
def test_what_cant_be_meant_is_said(octvideo: Cli, few: Path) -> None:
    _, err = octvideo(*FIT, "--model.class_weights", "[1, 2]", code=2)
    assert "model.class_weights: got 2 weights for 3 classes" in err
    _, err = octvideo(*FIT, "--model.class_weights", "{rigth: 2}", code=2)
    assert "model.class_weights: 'rigth' is no known class, did you mean 'right'?" in err
    _, err = octvideo(*FIT, "--model.class_weights", "often", code=2)
    assert "class_weights" in err and "often" in err
