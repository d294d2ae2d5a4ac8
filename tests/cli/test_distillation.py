"""A run that learns from another: found by its name, with labels or without, in one process or two."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from octvideo.models import i3d_small
from octvideo.training.checkpoint_block import make_block

Cli = Callable[..., tuple[str, str]]
FIT = ("fit", "-c", "tiny", "--trainer.enable_progress_bar", "false", "--trainer.max_epochs", 1)
TAUGHT = ("--name", "small", "--model.teacher", "wide", "--model.distill_features", 1)


@pytest.fixture(autouse=True)
def wide(workplace: Path) -> Path:
    """The checkpoint of a run called wide, of an ordinary network with more channels."""
    network = i3d_small(3, 0.0, width=16)
    block = make_block(network, ["down", "left", "right"], views=None, mean=[0.45] * 3, std=[0.225] * 3)
    place = workplace / "runs/wide/checkpoints/last.ckpt"
    place.parent.mkdir(parents=True)
    state = {f"network.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": state, "octvideo": block}, place)
    return place


@pytest.fixture
def bare_list(workplace: Path, tiny_data: Path) -> Path:
    """A list of training videos, some with labels that no class has."""
    videos = sorted((tiny_data / "train").glob("*/*.mp4"))
    list_ = workplace / "bare.txt"
    list_.write_text("".join(f"{video}{',jumping' if n % 2 else ''}\n" for n, video in enumerate(videos)))
    return list_


def test_a_run_teaches_another_without_labels(octvideo: Cli, workplace: Path, bare_list: Path, wide: Path) -> None:
    given = ("--model.distill_logits", 1, "--data.train", bare_list, "--model.precise_bn", 2)
    # Its classes are the teacher's: the data has no names of its own.
    bare = ("--data.root", workplace, "--data.val", "null")
    out, _ = octvideo(*FIT, *TAUGHT, *given, *bare)
    assert "teacher: octvideo.models.i3d_small" in out and "G multiply-adds a clip; the student has 0.00" in out
    assert "the teacher takes " in out and "train/distill_loss" in out and "train/top1" not in out
    config = yaml.safe_load(Path("runs/small/config.yaml").read_text())
    assert config["model"]["teacher"] == "runs/wide/checkpoints/last.ckpt"
    content = torch.load("runs/small/checkpoints/last.ckpt", weights_only=True)
    assert content["octvideo"]["class_names"] == ["down", "left", "right"]
    # What is tested, resumed and used needs no teacher but in training.
    _, err = octvideo(*FIT, *TAUGHT, *given, *bare, "--resume", "--model.teacher", "small", code=2)
    assert "of this run itself: give the run that is to teach, or its file" in err
    wide.unlink()
    out, _ = octvideo("test", "-c", "tiny", "--name", "small", "--data.test", "test.txt")
    assert "5 videos, 3 classes" in out


@pytest.mark.slow
def test_two_processes_are_taught_alike(
    start: Callable[..., subprocess.CompletedProcess[str]], workplace: Path, tiny_data: Path
) -> None:
    """Nothing is learnt (lr 0): the first norm's statistics are those of the clips, however they are shared out."""
    (workplace / "broken.mp4").write_bytes(b"no video")
    lines = [f"{tiny_data / line}" for line in (tiny_data / "train.txt").read_text().splitlines()]
    (workplace / "train.txt").write_text("\n".join([*lines[:7], f"{workplace / 'broken.mp4'} 0"]) + "\n")
    words = (*FIT, *TAUGHT, "--data.train", workplace / "train.txt", "--model.precise_bn", 8, "--model.lr", 0)
    words = (*words, "--model.max_unreadable_fraction", 1)
    norms = []
    for name, processes in (("one", 1), ("two", 2)):
        strategy = ("--trainer.devices", processes, "--data.batch_size", 2 // processes)
        ended = start(*words, *strategy, "--trainer.strategy", "ddp" if processes > 1 else "auto", "--name", name)
        assert ended.returncode == 0, ended.stderr
        state = torch.load(f"runs/{name}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        norms.append([state[f"network.blocks.0.norm.running_{part}"] for part in ("mean", "var")])
    torch.testing.assert_close(*norms)
    # They learn, and go on.
    ended = start(*words, "--model.lr", 0.01, *strategy, "--trainer.strategy", "ddp", "--name", "learns")
    assert ended.returncode == 0, ended.stderr
    resumed = (*words, "--model.lr", 0.01, *strategy, "--trainer.strategy", "ddp", "--name", "learns", "--resume")
    ended = start(*resumed, "--trainer.max_epochs", 2)
    assert ended.returncode == 0, ended.stderr
    state = torch.load("runs/learns/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert "distillation.projection.weight" in state and all(value.isfinite().all() for value in state.values())
