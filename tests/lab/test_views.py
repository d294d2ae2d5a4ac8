"""tools/benchmark_views.py on a small video."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from lab.views import ALONE, main, seconds, table

ARM = "i3d_small:alpha=0/.5,width=8,classes=5"


@pytest.fixture
def video(tmp_path: Path, encode: Callable[..., Path], moving: Callable[..., Tensor]) -> str:
    return str(encode(tmp_path / "moving.mp4", moving(30, 46, 62)))


def test_every_arm_is_measured_by_number_of_views(video: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [video, ARM, "--frames", "4", "--crop", "32", "--views", "1", "6", "--rounds", "2", "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)["seconds"]
    assert list(found) == ["i3d_small α 0", "i3d_small α 0.5", ALONE]
    for numbers in found.values():
        assert list(numbers) == ["1", "6"]
        assert all(len(times) == 2 and min(times) > 0 for times in numbers.values())


def test_the_table(video: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([video, ARM, "--frames", "4", "--crop", "32", "--views", "1", "3", "--rounds", "1"]) == 0
    head, _, columns, *rows = capsys.readouterr().out.splitlines()
    assert "clips a second of one core, `moving.mp4`" in head and "median of 1 rounds" in head
    assert columns == "|  | 1 view | 3 views |"
    assert [row.split(" | ")[0] for row in rows[1:4]] == ["| i3d_small α 0", "| i3d_small α 0.5", f"| {ALONE}"]


def test_a_figure_is_clips_by_seconds() -> None:
    found = {("a", 1): [0.5, 0.25, 9.0], ("a", 30): [8.0]}
    assert table(found, ["a"], [1, 30]).splitlines()[2] == "| a | 2 | 0.125 |"


def test_views_go_through_the_engine(video: str) -> None:
    """As many as asked for, of one read of the video; the clock is asked around all of it."""
    import torch

    class Counting:
        name, precision, views_per_call = "counting", "f32", None

        def __call__(self, clips: Tensor) -> Tensor:
            assert clips.shape == (1, 3, 4, 32, 32)
            seen.append(1)
            return torch.zeros(1, 2)

    seen: list[int] = []
    found = seconds(video, {"c": Counting()}, [1, 10, 12], frames=4, crop=32, rounds=2, clock=lambda: float(len(seen)))
    assert len(seen) == 2 * 23
    assert {way: times for way, times in found.items() if way[0] == "c"} == {
        ("c", 1): [1, 1], ("c", 10): [10, 10], ("c", 12): [12, 12]
    }  # fmt: skip
    assert found[ALONE, 10] == [0, 0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no.mp4", ARM], "cannot read video 'no.mp4'"),
        (["no.mp4", "i3d_small:engine=plain"], "no arm runs here"),
        (["no.mp4", "i3d_small:mode=training"], "arms: got training with layout auto, expected inference"),
        (["no.mp4", "--views", "0"], "--views: got 0, expected 1 or more"),
    ],
)
def test_mistakes_are_told(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--crop", "32", "--frames", "4"]) in (1, 2)
    assert message in capsys.readouterr().err
