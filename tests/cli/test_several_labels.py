"""Videos with several labels through the real commands: trained, resumed, tested, exported, named."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from octvideo.evaluation.scores import VideoScores
from octvideo.inference import Predictor

Cli = Callable[..., tuple[str, str]]
FIT = ("fit", "-c", "tiny", "--trainer.enable_progress_bar", "false")
# A first class that moves sideways, which left and right ones do.
CLASSES = ("down", "left", "right", "sideways")
RECIPE = (
    *("--model.class_weights", "inverse", "--model.mixup_alpha", 0.4, "--model.cutmix_alpha", 1.0),
    *("--model.label_smoothing", 0.05, "--data.sampler", "balanced"),
)


@pytest.fixture
def several(workplace: Path, tiny_data: Path) -> Path:
    """tiny.yaml, for lists whose videos have one label or two."""
    for name in ("train.txt", "test.txt"):
        lines = [line.rpartition(" ") for line in (tiny_data / name).read_text().splitlines()]
        labels = {"0": "down", "1": "left;sideways", "2": "sideways;right"}
        text = "".join(f"{tiny_data / path} {labels[label]}\n" for path, _, label in lines)
        (workplace / name).write_text(text)
    (workplace / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    config = (workplace / "tiny.yaml").read_text().replace(f'root: "{tiny_data}"', "root: .")
    (workplace / "tiny.yaml").write_text(config.replace("  lr: 0.01", "  lr: 0.01\n  loss: bce"))
    return workplace


def last(name: str) -> dict[str, Any]:
    return torch.load(Path("runs", name, "checkpoints", "last.ckpt"), weights_only=True)


@pytest.mark.slow
def test_a_run_from_fit_to_export(octvideo: Cli, several: Path, tiny_data: Path) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    out, _ = octvideo(*FIT, *RECIPE)
    assert "weights of positives, inverse: 0.5 (sideways, 6 videos) to 2 (" in out
    assert "balanced: an epoch has 2 clips of each of 4 classes" in out and "val/map" in out
    scoring = last("tiny")["octvideo"]["scoring"]
    assert scoring["function"] == "sigmoid" and len(scoring["thresholds"]) == 4
    assert Path("runs/tiny/checkpoints/best.ckpt").is_file()  # by val/map
    out, _ = octvideo("test", "--name", "tiny", "--ckpt", "last")
    scores = VideoScores.load("runs/tiny/scores.npz")
    assert scores.truth is not None and scores.truth.sum(1).tolist() == [1, 2, 2, 1, 2]
    expected = sklearn.average_precision_score(scores.truth, scores.scores)
    assert json.loads(Path("runs/tiny/metrics_test.json").read_text())["map"] == pytest.approx(expected, abs=1e-6)
    assert f"{100 * expected:.1f} %" in out
    assert (scores.scores.sum(1) - 1).__abs__().max() > 1e-3  # by no softmax

    # Nobody has to say it again: infer, timelines, exports and the program beside these.
    video = tiny_data / "test" / "left" / "clip 1.mp4"
    own = scores.scores[scores.paths.index(str(video))]
    checkpoint = Path("runs/tiny/checkpoints/last.ckpt")
    labels = [CLASSES[k] for k in np.argsort(-own, kind="stable") if own[k] >= scoring["thresholds"][k]]
    out, _ = octvideo("infer", video, "--ckpt", "tiny", "--json", "--engine", "eager", "--precision", "f32")
    (found,) = json.loads(out)["videos"]
    by_name = {one["name"]: one["score"] for one in found["top"]}
    np.testing.assert_allclose([by_name[name] for name in CLASSES], own, atol=1e-5)
    assert found["labels"] == labels
    out, _ = octvideo("infer", video, "--ckpt", "tiny", "--engine", "eager", "--precision", "f32")
    assert f"  labels: {', '.join(labels) or 'none'}\n" in out
    octvideo("export", "--ckpt", "tiny", "--engine", "onnx", "-o", "model")
    assert json.loads(Path("model/octvideo.json").read_text())["scoring"] == scoring
    exported = Predictor.from_export("model").predict(video, topk=4)
    assert exported.labels == labels
    np.testing.assert_allclose([dict(exported.top)[name] for name in CLASSES], own, atol=1e-5)
    command = [sys.executable, "model/classify.py", str(video), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    (alone,) = json.loads(done.stdout)["videos"]
    assert alone["labels"] == labels
    np.testing.assert_allclose([{t["name"]: t["score"] for t in alone["top"]}[n] for n in CLASSES], own, atol=0.02)
    window = next(Predictor.from_checkpoint(checkpoint, device="cpu").stream(frames()))
    logits = Predictor.from_checkpoint(checkpoint, device="cpu")
    assert abs(float(window.scores.sum()) - 1) > 1e-3 and logits.scoring.function == "sigmoid"


def frames() -> Any:
    return ((torch.full((48, 64, 3), 90, dtype=torch.uint8), n / 20) for n in range(20))


@pytest.mark.slow
def test_a_run_stopped_within_an_epoch_goes_on_bit_for_bit(
    octvideo: Cli, several: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    keeps = ("--trainer.callbacks", "stop_run.KeepRuns", "--trainer.callbacks.step", 3)
    words = (*FIT, *RECIPE)
    octvideo(*words, "--checkpoint_minutes", 0, *keeps, code=130)
    shutil.rmtree("runs")
    Path("as it was left").rename("runs")
    assert last("tiny")["global_step"] == 3
    octvideo(*words, "--resume")
    octvideo(*words, "--name", "whole")
    resumed, whole = last("tiny"), last("whole")
    assert [
        key for key, value in whole["state_dict"].items() if not torch.equal(value, resumed["state_dict"][key])
    ] == []
    assert whole["octvideo"] == resumed["octvideo"]


def test_several_labels_need_their_loss(octvideo: Cli, several: Path) -> None:
    _, err = octvideo(*FIT, "--model.loss", "cross_entropy", code=2)
    assert "got 'left;sideways' after" in err and "several, 'path label;label', are for model.loss bce" in err


@pytest.mark.slow
def test_shards_of_several_labels_train_and_score_as_files(octvideo: Cli, several: Path) -> None:
    _, err = octvideo("shards", "train.txt", "-o", "shards/train", code=2)
    assert "are for model.loss bce and octvideo shards --several_labels" in err
    for split in ("train", "test"):
        octvideo("shards", f"{split}.txt", "--several_labels", "-o", f"shards/{split}")
    for name, data in (("files", ()), ("shards", ("--data.train", "shards/train", "--data.val", "shards/test"))):
        octvideo(*FIT, "--name", name, *data)
        octvideo("test", "--name", name, "--ckpt", "last")
    files, shards = last("files"), last("shards")
    assert all(torch.equal(value, shards["state_dict"][key]) for key, value in files["state_dict"].items())
    assert files["octvideo"]["scoring"] == shards["octvideo"]["scoring"]
    ours, theirs = (VideoScores.load(f"runs/{name}/scores.npz") for name in ("shards", "files"))
    assert ours.truth is not None and theirs.truth is not None and (ours.truth == theirs.truth).all()
    assert (ours.scores == theirs.scores).all()
    _, err = octvideo(*FIT, "--model.loss", "cross_entropy", "--data.train", "shards/train", code=2)
    assert "shards/train holds videos with several labels, which are for model.loss bce" in err


@pytest.mark.slow
def test_scores_go_class_by_class_and_are_fused(octvideo: Cli, several: Path) -> None:
    for name, seed in (("one", 0), ("two", 1)):
        octvideo(*FIT, "--name", name, "--seed_everything", seed, "--trainer.max_epochs", 1)
        octvideo("test", "--name", name, "--ckpt", "last")
    out, err = octvideo("score", "one", "two", "--fuse", "--fuse_by", "one", "two", "--per_class", "-o", "fused.npz")
    assert "fused with weights" in err and "labels by their thresholds" in out and "| sideways | 3 |" in out
    fused = VideoScores.load("fused.npz")
    own = [VideoScores.load(f"runs/{name}/scores.npz") for name in ("one", "two")]
    low, high = np.minimum(own[0].scores, own[1].scores), np.maximum(own[0].scores, own[1].scores)
    assert ((low - 1e-6 <= fused.scores) & (fused.scores <= high + 1e-6)).all() and fused.truth is not None
    octvideo("report", "one", "--details")
    assert Path("runs/one/details.png").stat().st_size > 10_000 and Path("runs/one/report.png").is_file()
    _, err = octvideo("report", "one", "--page", "--thumbnails", 1)
    page = Path("runs/one/page/index.html").read_text(encoding="utf-8")
    assert "Labels by their thresholds." in page and "mAP over epochs" in page and "page: " in err
    _, err = octvideo("score", "one", "two", "--fuse_weights", 1, 2, code=2)
    assert "--fuse_weights, --fuse_by and --output are of the mean of several runs: add --fuse" in err


@pytest.mark.slow
def test_two_processes_measure_and_fit_what_one_does(
    start: Callable[..., subprocess.CompletedProcess[str]], octvideo: Cli, several: Path
) -> None:
    """mAP and thresholds are of all videos, and a balanced epoch is shared out."""
    still = ("--model.lr", 0, "--trainer.max_epochs", 1, "--data.sampler", "balanced", "--model.freeze", "norms")
    octvideo(*FIT, *still, "--name", "one")
    two = ("--trainer.devices", 2, "--trainer.strategy", "ddp", "--name", "two", "--data.batch_size", 1)
    ended = start(*FIT, *still, *two)
    assert ended.returncode == 0, ended.stderr
    one, other = last("one"), last("two")
    assert one["octvideo"]["scoring"] == other["octvideo"]["scoring"]
    found = []
    for name in ("one", "two"):
        with Path("runs", name, "metrics.csv").open(newline="") as file:
            found.append([row["val/map"] for row in csv.DictReader(file) if row["val/map"]])
    assert found[0] == found[1] and len(found[0]) == 1
