"""Clips of segments through the commands: trained on, resumed, tested, kept in the checkpoint and in an export."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from octvideo.evaluation.scores import VideoScores
from octvideo.inference import Predictor
from octvideo.video import ViewSettings

Cli = Callable[..., tuple[str, str]]
FIT = ("fit", "--trainer.enable_progress_bar", "false", "--checkpoint_minutes", 0)
SEGMENTS = "base: tiny.yaml\ndata: {sampling: segments, num_clips: 2, num_crops: 3}\n"


@pytest.fixture
def stoppable(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in, where KeepRuns can be given to `octvideo`."""
    (workplace / "tsm.yaml").write_text(SEGMENTS)
    monkeypatch.syspath_prepend(Path(__file__).parent)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield workplace
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_segments_are_trained_resumed_tested_and_kept(
    octvideo: Cli, stoppable: Path, tiny_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    last = stoppable / "runs/tsm/checkpoints/last.ckpt"
    octvideo(*FIT, "-c", "tsm")
    whole = torch.load(last, weights_only=True)
    octvideo(*FIT, "-c", "tiny")
    dense = torch.load(stoppable / "runs/tiny/checkpoints/last.ckpt", weights_only=True)
    assert any(not torch.equal(value, dense["state_dict"][key]) for key, value in whole["state_dict"].items())
    shutil.rmtree("runs")
    keeps = ("--trainer.callbacks", "stop_run.KeepRuns", "--trainer.callbacks.step", 5)
    octvideo(*FIT, "-c", "tsm", *keeps, code=130)
    shutil.rmtree("runs")
    Path("as it was left").rename("runs")
    octvideo(*FIT, "-c", "tsm", "--resume")
    resumed = torch.load(last, weights_only=True)
    for key, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][key]), key

    views = ViewSettings(4, 2, 2, 3, 32, 32, sampling="segments")
    assert whole["octvideo"]["views"] == views.as_dict()
    octvideo("test", "--name", "tsm")
    protocol = json.loads(Path("runs/tsm/metrics_test.json").read_text())["protocol"]
    assert protocol["views"] == views.as_dict()
    best = "runs/tsm/checkpoints/best.ckpt"
    video = str(tiny_data / "test" / "left" / "clip 1.mp4")
    predictor = Predictor.from_checkpoint(best, device="cpu")
    assert predictor.views == views
    tested = VideoScores.load(Path("runs/tsm/scores.npz"))
    row = tested.scores[tested.paths.index(video)]
    torch.testing.assert_close(predictor.scores(video), torch.as_tensor(row), atol=1e-5, rtol=0)
    expected = pytest.approx(dict(zip(tested.class_names, row.tolist(), strict=True)), abs=1e-5)
    out, _ = octvideo("infer", video, "--ckpt", best, "--engine", "eager", "--precision", "f32", "--json")
    assert {top["name"]: top["score"] for top in json.loads(out)["videos"][0]["top"]} == expected

    caplog.clear()
    octvideo("test", "--name", "tsm", "--data.sampling", "dense", "--data.frame_stride", 8)
    (said,) = [message for message in caplog.messages if "clips" in message]
    assert said.startswith("test: all clips of 5 of 5 videos show the same frames, as these are too short for several")

    octvideo("export", "--ckpt", best, "--engine", "onnx", "-o", "exported")
    assert json.loads(Path("exported/octvideo.json").read_text())["views"] == views.as_dict()
    command = [sys.executable, "-I", "exported/classify.py", video, "--json"]
    alone = subprocess.run(command, capture_output=True, text=True, check=True)
    # Resized pixels may differ by one level of 256.
    told = {top["name"]: top["score"] for top in json.loads(alone.stdout)["videos"][0]["top"]}
    assert told == pytest.approx(expected.expected, abs=5e-3)
