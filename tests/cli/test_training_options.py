"""Options of training through the real command: a recipe that is stopped and resumed, and the page's example."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from octvideo.models.checkpoint import trained_network

Cli = Callable[..., tuple[str, str]]
FIT = ("fit", "-c", "tiny", "--trainer.enable_progress_bar", "false")
RECIPE = (
    *("--model.ema_decay", 0.9, "--model.precise_bn", 2, "--model.checkpoint_gradients", "true"),
    *("--model.layer_decay", 0.8, "--model.backbone_lr_scale", 0.5, "--model.lr_batch_size", 6),
    *("--trainer.gradient_clip_val", 1),
)


def last(name: str) -> dict[str, Any]:
    return torch.load(Path("runs", name, "checkpoints", "last.ckpt"), weights_only=True)


def unequal(one: dict[str, Any], other: dict[str, Any], part: str) -> list[str]:
    return [key for key, value in one[part].items() if not torch.equal(value, other[part][key])]


SAID = (
    "learning rate: 0.01 for 6 clips a step, so 0.005 for 3\n",
    "learning rates from the first layer to the classifier: 0.000336, 0.000419,",
    "gradient checkpoints: 9 blocks are computed again in the backward pass\n",
    "weights are averaged: decay up to 0.9, by min(decay, 1 - n^(-2/3)); the averages are evaluated and saved\n",
    "precise_bn: 29 batch norms are estimated on 2 batches before validation\n",
)


def test_a_recipe_trains_and_says_what_it_does(octvideo: Cli, workplace: Path) -> None:
    out, _ = octvideo(*FIT, *RECIPE, "--trainer.max_epochs", 1)
    assert [line for line in SAID if line not in out] == []
    left = last("tiny")
    assert left["octvideo"]["averaged"] == {"decay": 0.9, "warmup": True, "updates": 3}
    assert unequal({"x": left["state_dict"]}, {"x": left["current_model_state"]}, "x") != []


@pytest.mark.slow  # what resumes in each of them: tests/training/
def test_a_recipe_stopped_within_an_epoch_goes_on_bit_for_bit(
    octvideo: Cli, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    keeps = ("--trainer.callbacks", "stop_run.KeepRuns", "--trainer.callbacks.step", 5)
    octvideo(*FIT, *RECIPE, "--checkpoint_minutes", 0, *keeps, code=130)
    shutil.rmtree("runs")
    Path("as it was left").rename("runs")
    assert last("tiny")["global_step"] == 5
    octvideo(*FIT, *RECIPE, "--resume")
    out, _ = octvideo(*FIT, *RECIPE, "--name", "whole")
    assert [line for line in SAID if line not in out] == []
    resumed, whole = last("tiny"), last("whole")
    for part in ("state_dict", "current_model_state"):
        assert unequal(whole, resumed, part) == []
    assert unequal({"x": whole["state_dict"]}, {"x": whole["current_model_state"]}, "x") != []
    assert (
        whole["octvideo"]["averaged"] == {"decay": 0.9, "warmup": True, "updates": 6} == resumed["octvideo"]["averaged"]
    )
    momenta = ([s["momentum_buffer"] for s in c["optimizer_states"][0]["state"].values()] for c in (resumed, whole))
    assert all(torch.equal(one, other) for one, other in zip(*momenta, strict=True))
    # What is tested, shown and exported is the averages, and needs no option of the recipe.
    network, _ = trained_network("runs/whole/checkpoints/last.ckpt")
    assert all(torch.equal(value, whole["state_dict"][f"network.{key}"]) for key, value in network.state_dict().items())


@pytest.mark.slow
def test_two_processes_with_one_clip_are_one_with_both(
    start: Callable[..., subprocess.CompletedProcess[str]], workplace: Path, tiny_data: Path
) -> None:
    """Octave norms over both, blocks computed again, averages, rates by the whole batch."""
    lines = [f"{tiny_data / line}" for line in (tiny_data / "train.txt").read_text().splitlines()]
    (workplace / "train.txt").write_text("\n".join(lines[:8]) + "\n")
    # Statistics are estimated on the batches of each process by themselves.
    given = ("--data.train", workplace / "train.txt", "--model.network.init_args.dropout", 0, "--model.precise_bn", 0)
    words = (*FIT, *RECIPE, *given)
    for name, processes in (("one", 1), ("two", 2)):
        strategy = ("--trainer.devices", processes, "--trainer.strategy", "ddp" if processes > 1 else "auto")
        batch = ("--data.batch_size", 2 // processes, "--trainer.sync_batchnorm", "true", "--name", name)
        ended = start(*words, *strategy, *batch)
        assert ended.returncode == 0, ended.stderr
        assert "learning rate: 0.01 for 6 clips a step, so 0.00333333 for 2" in ended.stdout
    for part in ("state_dict", "current_model_state"):
        torch.testing.assert_close(last("two")[part], last("one")[part], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_pages_config_clips_and_stops_early(octvideo: Cli, workplace: Path, tiny_data: Path, repo: Path) -> None:
    """Nothing is learnt (lr 0), so that no validation is better than the best one for long."""
    page = (repo / "docs" / "training.md").read_text()
    (config,) = re.findall(r"```yaml\n(# stop.yaml.*?)```", page, re.DOTALL)
    content = config.replace("demo.yaml", "tiny.yaml").replace("test.txt", str(tiny_data / "test.txt"))
    (workplace / "stop.yaml").write_text(content)
    words = ("--trainer.max_epochs", 12, "--model.lr", 0, "--trainer.enable_progress_bar", "false")
    out, _ = octvideo("fit", "-c", "stop", *words)
    (epoch,) = re.findall(r"^stopped early, after epoch (\d+): val/top1 was [\d.]+ at best$", out, re.MULTILINE)
    assert 4 <= int(epoch) < 12 and f"epoch {epoch}/12" in out and f"epoch {int(epoch) + 1}/12" not in out
    assert yaml.safe_load(Path("runs/stop/config.yaml").read_text())["trainer"]["gradient_clip_val"] == 1.0


def test_a_resume_that_is_refused_leaves_the_config(octvideo: Cli, trained: Path) -> None:
    config = Path("runs/tiny/config.yaml")
    before = config.read_bytes()
    _, err = octvideo(*FIT, "--resume", "--model.loss", "bce", "--trainer.max_epochs", 3, code=2)
    assert "the checkpoint was trained with model.loss cross_entropy: give it" in err
    assert config.read_bytes() == before
    octvideo(*FIT, "--resume", "--trainer.max_epochs", 3)
    assert yaml.safe_load(config.read_text())["trainer"]["max_epochs"] == 3
