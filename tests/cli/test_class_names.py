"""Weights and data whose classes have other names, or another order, through the commands."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from octvideo.cli import main
from octvideo.evaluation.scores import VideoScores

from .conftest import one_thread

Cli = Callable[..., tuple[str, str]]
FIT = ("fit", "-c", "tiny", "--trainer.enable_progress_bar", "false")
# Folders of the tiny data, whose names do not hang on an order.
FOLDERS = ("--data.train", "train", "--data.val", "null", "--data.test", "test")
MOVED = [1, 2, 0]  # left, right, down: of each class here, its row in down, left, right


def checkpoint(name: str) -> dict:
    return torch.load(Path("runs", name, "checkpoints/last.ckpt"), weights_only=True)


def head(name: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in checkpoint(name)["state_dict"].items() if ".proj." in key}


@pytest.fixture(scope="module")
def trained_on_folders(tiny_config: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folders")
    (folder / "tiny.yaml").write_text(tiny_config)
    with pytest.MonkeyPatch.context() as patch, one_thread():
        patch.chdir(folder)
        assert main([*FIT, *FOLDERS, "--trainer.max_epochs", "1", "--model.schedule", "constant"]) == 0
    return folder


@pytest.fixture
def trained(trained_on_folders: Path, workplace: Path) -> Path:
    """A run `tiny` on down, left, right, and files of other names."""
    Path("moved.txt").write_text("left\nright\ndown\n")
    Path("other.txt").write_text("down\nleft\nup\n")
    shutil.copytree(trained_on_folders / "runs", "runs")
    return workplace


@pytest.mark.parametrize("command", ["test", pytest.param("validate", marks=pytest.mark.slow)])
def test_another_order_is_scored_by_name(
    octvideo: Cli, trained: Path, caplog: pytest.LogCaptureFixture, command: str
) -> None:
    val = (*FOLDERS, "--data.val", "test") if command == "validate" else FOLDERS
    octvideo(command, "-c", "tiny", *val)
    before = VideoScores.load("runs/tiny/scores.npz") if command == "test" else None
    octvideo(command, "-c", "tiny", *val, "--data.classes", trained / "moved.txt")
    said = "the checkpoint has the same classes in another order: its head is re-ordered by name ('left' 1 -> 0)"
    assert said in caplog.messages
    if before is not None:
        after = VideoScores.load("runs/tiny/scores.npz")
        assert after.class_names == ["left", "right", "down"] and after.paths
        for path, label, scores in zip(after.paths, after.labels, after.scores, strict=True):
            number = before.paths.index(path)
            assert MOVED[label] == before.labels[number]
            np.testing.assert_allclose(scores, before.scores[number][MOVED], rtol=1e-5)  # sums of another order


@pytest.mark.parametrize("optimizer", ["sgd", pytest.param("adamw", marks=pytest.mark.slow)])
def test_a_run_resumed_in_another_order_learns_the_same(
    octvideo: Cli, workplace: Path, caplog: pytest.LogCaptureFixture, optimizer: str
) -> None:
    Path("moved.txt").write_text("left\nright\ndown\n")
    settings = (*FIT, *FOLDERS, "--model.schedule", "constant", "--model.optimizer", optimizer)
    averaged = ("--trainer.callbacks+", "lightning.pytorch.callbacks.EMAWeightAveraging")
    octvideo(*settings, *averaged, "--trainer.max_epochs", 1)
    shutil.copytree("runs/tiny", "runs/moved")
    octvideo(*settings, *averaged, "--resume")
    order = ("--name", "moved", "--data.classes", workplace / "moved.txt")
    octvideo(*settings, *averaged, *order, "--resume")
    assert "its head is re-ordered by name" in caplog.text
    one, other = checkpoint("tiny"), checkpoint("moved")
    assert other["octvideo"]["class_names"] == ["left", "right", "down"] and one["epoch"] == other["epoch"] == 1
    moved = 0
    shapes = [value.shape for value in head("tiny").values()]
    for part in ("state_dict", "current_model_state"):
        for key, value in one[part].items():
            moved += ".proj." in key
            torch.testing.assert_close(other[part][key], value[MOVED] if ".proj." in key else value)
    states = [run["optimizer_states"][0]["state"] for run in (one, other)]
    for number, state in states[0].items():
        for what, value in state.items():
            theirs = states[1][number][what]
            is_head = value.shape in shapes
            moved += is_head
            torch.testing.assert_close(theirs, value[MOVED] if is_head else value)
    assert moved == 4 + 2 * (1 if optimizer == "sgd" else 2)


def test_other_names_are_refused_with_the_difference(octvideo: Cli, trained: Path) -> None:
    other = ("--data.classes", trained / "other.txt", *FOLDERS)
    expected = (
        "error: the checkpoint was trained on other classes than the data (with 'right', without 'up'): give its "
        "classes in data.classes, or start a new head from its weights with --init\n"
    )
    for split in ("train", "test"):  # the folder `right` is no class of these
        (trained / "data" / split).mkdir(parents=True)
        for name in ("down", "left"):
            (trained / "data" / split / name).symlink_to(Path(_root(trained)) / split / name)
    root = ("--data.root", trained / "data")
    for command in (("test", "-c", "tiny"), (*FIT, "--resume", "--trainer.max_epochs", 2)):
        _, err = octvideo(*command, *other, *root, code=2)
        assert err.endswith(expected)
    init = ("--init", "runs/tiny/checkpoints/last.ckpt", "--name", "new")
    _, err = octvideo("test", "-c", "tiny", *other, *root, *init, code=2)
    assert err.endswith(
        "was trained on other classes than the data (with 'right', without 'up'): its head is of no use here\n"
    )
    out, _ = octvideo(*FIT, *other, *root, *init, "--model.lr", 0, "--trainer.max_epochs", 1)
    assert "new head (3 -> 3 classes)\n  it has other classes than the data (with 'right', without 'up')" in out
    assert not any(torch.equal(value, head("new")[key]) for key, value in head("tiny").items())


def _root(workplace: Path) -> str:
    return (workplace / "tiny.yaml").read_text().split('root: "')[1].split('"')[0]


def test_init_moves_the_rows_of_the_same_names(octvideo: Cli, trained: Path) -> None:
    init = ("--init", "runs/tiny/checkpoints/last.ckpt", "--model.lr", 0, "--trainer.max_epochs", 1)
    out, _ = octvideo(*FIT, *FOLDERS, *init, "--name", "new", "--data.classes", trained / "moved.txt")
    assert "  it has the same classes in another order: its head is re-ordered by name ('left' 1 -> 0)" in out
    assert all(torch.equal(value[MOVED], head("new")[key]) for key, value in head("tiny").items())
    torch.save(checkpoint("tiny")["state_dict"], "bare.pth")
    out, _ = octvideo(*FIT, *FOLDERS, "--init", "bare.pth", *init[2:], "--name", "bare")
    assert "  it has no class names: its classes are taken for the data's in their order" in out


def test_predict_far_from_the_training_data_has_the_checkpoints_names(
    octvideo: Cli, trained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    video = next(Path(_root(trained)).glob("test/left/*.mp4"))
    (trained / "elsewhere" / "monday").mkdir(parents=True)
    shutil.copy(video, trained / "elsewhere/monday/a.mp4")
    octvideo("predict", "--name", "tiny", "--data.root", trained / "elsewhere", "--data.predict", ".")
    scores = VideoScores.load("runs/tiny/predict/scores.npz")
    assert scores.class_names == ["down", "left", "right"] and scores.labels.tolist() == [-1]
    # Where the data names the same classes in its own order, that is the order of its lists.
    (trained / "elsewhere/list.txt").write_text("monday/a.mp4 0\n")
    moved = ("--data.classes", trained / "moved.txt", "--data.predict", "list.txt")
    octvideo("predict", "--name", "tiny", "--data.root", trained / "elsewhere", *moved)
    ordered = VideoScores.load("runs/tiny/predict/scores.npz")
    assert ordered.class_names == ["left", "right", "down"] and ordered.labels.tolist() == [0]
    np.testing.assert_allclose(ordered.scores[0], scores.scores[0][MOVED], rtol=1e-5)
    assert not [message for message in caplog.messages if "its own are predicted" in message]
    other = ("--data.classes", trained / "other.txt", "--data.predict", "list.txt")
    octvideo("predict", "--name", "tiny", "--data.root", trained / "elsewhere", *other)
    said = (
        "the checkpoint has other classes than the data (with 'right', without 'up'): its own are predicted, and "
        "labels are read as theirs"
    )
    assert caplog.messages.count(said) == 1
    assert VideoScores.load("runs/tiny/predict/scores.npz").class_names == ["down", "left", "right"]


def test_one_class_is_refused_or_said(octvideo: Cli, workplace: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = workplace / "one"
    (root / "train").mkdir(parents=True)
    (root / "train/down").symlink_to(Path(_root(workplace)) / "train/down")
    one = ("--data.root", root, "--data.train", "train", "--data.val", "null", "--trainer.max_epochs", 1)
    _, err = octvideo(*FIT, *one, code=2)
    assert err == (
        f"error: {root}/train has one class folder, 'down', and a network nothing to tell it from: expected "
        f"{root}/train/<class>/<video> of two classes or more, or one in {root}/classes.txt\n"
    )
    (root / "classes.txt").write_text("up\ndown\n")
    octvideo(*FIT, *one)
    assert f"{root}/train: all videos have one class, 'down', and a network nothing to tell it from" in caplog.messages
