"""Every --trainer.precision through the commands, on data with a video that can't be read."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from octvideo.evaluation.scores import VideoScores

# The others take the same ways; all of them meet each step of a Trainer in tests/training/test_precision.py.
PRECISIONS = [
    "bf16-true",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("64-true", "16-true", "32-true", "bf16-mixed", "16-mixed")
    ),
]


@pytest.fixture
def with_broken(workplace: Path, tiny_data: Path) -> list[str]:
    """Options of tiny.yaml by which training and tests meet a video that can't be read."""
    for split in ("train", "test"):
        (workplace / f"{split}.txt").write_text(f"broken.mp4 1\n{(tiny_data / f'{split}.txt').read_text()}")
        (workplace / split).symlink_to(tiny_data / split)
    (workplace / "classes.txt").write_text((tiny_data / "classes.txt").read_text())
    (workplace / "broken.mp4").write_bytes(b"no video")
    options = ["--data.root", ".", "--model.max_unreadable_fraction", "1", "--model.on_unreadable", "count"]
    return ["-c", "tiny.yaml", "--trainer.max_epochs", "1", "--data.clip_frames", "8", *options]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_works_in_every_command(octvideo, with_broken: list[str], precision: str) -> None:
    words = [*with_broken, "--trainer.precision", precision]
    octvideo("fit", *words)
    for command in ("validate", "test", "predict"):
        octvideo(command, *words)
    metrics, scores = (
        json.loads(Path("runs/tiny/metrics_test.json").read_text()),
        VideoScores.load("runs/tiny/scores.npz"),
    )
    assert (metrics["videos"], metrics["unreadable"]) == (5, 1)
    loss = -np.log(scores.scores[np.arange(5), scores.labels].astype(np.float64)).mean()
    assert metrics["loss"] == pytest.approx(loss, rel=1e-6)
    predicted = VideoScores.load("runs/tiny/predict/scores.npz")
    assert np.array_equal(predicted.scores, scores.scores)
    # A checkpoint of any precision serves, in f32 or, where that is faster, in bf16.
    out, _ = octvideo("infer", scores.paths[0], "--ckpt", "tiny", "--json", "--topk", 3)
    top = {entry["name"]: entry["score"] for entry in json.loads(out)["videos"][0]["top"]}
    assert top == pytest.approx(dict(zip(scores.class_names, scores.scores[0].tolist(), strict=True)), abs=0.02)


@pytest.mark.parametrize("precision", ["transformer-engine", "transformer-engine-float16"])
def test_a_precision_that_needs_a_library_says_which(octvideo, workplace: Path, precision: str) -> None:
    if importlib.util.find_spec("transformer_engine") is not None:
        pytest.skip("transformer_engine is here")
    _, err = octvideo("fit", "-c", "tiny.yaml", "--trainer.precision", precision, code=2)
    (line,) = [line for line in err.splitlines() if "error" in line]
    assert line.startswith("error: trainer: Requirement 'transformer_engine") and "pip install" in line
    assert "Traceback" not in err
