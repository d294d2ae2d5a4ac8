"""The benchmark of timelines runs, and says what it measured."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from lab.timeline import main


def test_arms_take_turns_on_a_video(
    tmp_path: Path, encode: Callable[..., Path], moving: Callable[..., Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    video = encode(tmp_path / "video.mp4", moving(70))
    assert main([str(video), "--builder", "c2d_small", "--rounds", "1", "--crop_px", "32", "--stride", "0.08"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("c2d_small, 1 x 1 views: 70 frames, 5 windows\n")
    for name in ("timeline", "decoding once", "engine alone", "windows apart"):
        assert re.search(rf"^  {name} +\d+\.\d\d s of CPU$", out, re.MULTILINE)
    assert main(["none.mp4", "--builder", "no_such"]) == 2
    assert "--builder: got no_such, expected c2d_r50, " in capsys.readouterr().err
