"""The file of results: what is done already, and what is counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from octvideo.cli.infer_output import ResultFile
from octvideo.inference.predictor import Prediction
from octvideo.video import VideoReadError

MADE_BY = {"weights": "w"}
ADDRESS = "https://host/{}.mp4?token={}"


def passing(name: str) -> VideoReadError:
    return VideoReadError(name, "no answer", may_pass=True)


def test_what_is_done_is_left_out_and_counted_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = ResultFile(tmp_path / "out.jsonl", MADE_BY)
    assert file.left(["a", "b", "a", "c"]) == ["a", "b", "c"]
    file.add(Prediction("a", [("run", 0.5)]))
    file.add(VideoReadError("b", "broken"))
    file.add(passing("c"))
    file.add(passing(ADDRESS.format("d", "***")))
    file.end()
    assert "4 results are in" in capsys.readouterr().err

    videos = ["b", ADDRESS.format("d", "new"), "e", "c", "a", "a"]
    file = ResultFile(tmp_path / "out.jsonl", MADE_BY)
    assert file.left(videos) == [ADDRESS.format("d", "new"), "e", "c"]
    assert f"2 of 5 videos are in {tmp_path / 'out.jsonl'} already" in capsys.readouterr().err
    file.add(Prediction(ADDRESS.format("d", "***"), [("run", 0.5)]))
    file.add(passing("c"))
    file.add(Prediction("e", [("run", 0.5)]))
    file.end()
    assert (
        f"5 results are in {tmp_path / 'out.jsonl'}, 2 of them of videos that can't be read" in capsys.readouterr().err
    )

    file = ResultFile(tmp_path / "out.jsonl", MADE_BY)
    assert file.left([]) == []  # what is in the file counts, listed or not
    file.end()
    assert "5 results are in" in capsys.readouterr().err
