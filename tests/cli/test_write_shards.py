"""A data set in archives trains and scores as its files do, from the command line on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from octvideo.evaluation.scores import VideoScores

Cli = Callable[..., tuple[str, str]]
FIT = ("fit", "-c", "tiny", "--trainer.enable_progress_bar", "false", "--trainer.max_epochs", 1)
TEST = ("test", "-c", "tiny")


def test_shards_train_and_score_as_files(octvideo: Cli, workplace: Path, tiny_data: Path) -> None:
    for split in ("train", "test"):
        words = (f"{split}.txt", "--root", tiny_data, "-o", workplace / "shards" / split, "--shuffle", 3)
        out, _ = octvideo("shards", *words)
        assert f"train with --data.train {workplace / 'shards' / split}" in out
    octvideo(*FIT, "--name", "files")
    octvideo(*TEST, "--name", "files")
    shards = ("--data.root", ".", "--data.train", "shards/train", "--data.val", "shards/test")
    octvideo(*FIT, "--name", "shards", *shards)
    octvideo(*TEST, "--name", "shards", *shards)
    weights = [torch.load(f"runs/{run}/checkpoints/last.ckpt", weights_only=True) for run in ("files", "shards")]
    for key, value in weights[0]["state_dict"].items():
        assert torch.equal(value, weights[1]["state_dict"][key]), key
    assert weights[0]["octvideo"]["class_names"] == weights[1]["octvideo"]["class_names"]
    scores = [VideoScores.load(Path("runs", run, "scores.npz")) for run in ("files", "shards")]
    assert (scores[0].scores == scores[1].scores).all()
    assert [str(tiny_data / path) for path in scores[1].paths] == scores[0].paths


def test_mistakes_are_one_line(octvideo: Cli, workplace: Path, tiny_data: Path) -> None:
    for words, message in (
        ((), "give a source and a folder for the archives"),
        (("nothing.txt", "-o", "out"), "no data for data.train 'nothing.txt'"),
        (("train.txt", "--root", tiny_data, "-o", tiny_data), "is there and holds no shards: give a new folder"),
        (("train.txt", "--root", tiny_data, "-o", "out", "--shard_mb", 0), "--shard_mb: got 0, expected 1 or more"),
        (("--index", workplace), "no archives in"),
    ):
        _, err = octvideo("shards", *words, code=2)
        assert err.count("\n") == 1, err
        assert err.startswith("error: ") and message in err
    octvideo("shards", "train.txt", "--root", tiny_data, "-o", workplace / "shards")
    (workplace / "other.txt").write_text("down\nleft\nup\n")
    _, err = octvideo(*FIT, "--data.train", workplace / "shards", "--data.classes", workplace / "other.txt", code=2)
    assert "was written for other classes than data.classes gives" in err
