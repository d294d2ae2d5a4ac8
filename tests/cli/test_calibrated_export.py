"""A temperature from scores into an export, by the commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from octvideo.evaluation.calibration import fit_temperature
from octvideo.evaluation.scores import VideoScores

Cli = Callable[..., tuple[str, str]]


@pytest.mark.slow
def test_an_export_keeps_the_temperature_of_scores(octvideo: Cli, trained: Path) -> None:
    pytest.importorskip("onnxruntime")
    octvideo("test", "--name", "tiny", "--ckpt", "last")
    found = fit_temperature(VideoScores.load("runs/tiny/scores.npz"))
    out, _ = octvideo("score", "tiny", "--per_class")
    assert f"at temperature {found:.3f}, fitted on these videos" in out and "balanced accuracy: " in out
    export = ("export", "--ckpt", "tiny", "--engine", "onnx", "-o", "model")
    _, err = octvideo(*export, "--temperature", "tiny")
    assert f"temperature: {found:.4g}" in err
    held = json.loads(Path("model/octvideo.json").read_text())["scoring"]
    assert held == {"function": "softmax", "thresholds": None, "temperature": found}
    Path("runs").rename("elsewhere")
    words = ("--runs_dir", "elsewhere", "--overwrite")
    assert f"temperature: {found:.4g}" in octvideo(*export, *words, "--temperature", "tiny")[1]
    Path("elsewhere").rename("runs")
    _, err = octvideo(*export, "--overwrite", "--temperature", "-1", code=2)
    assert "expected more than 0" in err or "--temperature" in err
    octvideo("report", "tiny", "--details", "details.png")
    assert Path("details.png").stat().st_size > 10_000
