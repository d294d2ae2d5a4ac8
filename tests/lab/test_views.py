"""tools/benchmark_views.py on a small video and a small network, by a clock of the tests' own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from torch import Tensor, nn

from lab import views
from lab.views import RECIPES, Recipe, Way, described, draw, main, make_video, table, timed
from octvideo.models import i3d_small


class Small(Recipe):
    def build(self, alpha: float) -> nn.Module:
        return i3d_small(5, alpha, width=8).eval()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Recipe:
    recipe = Small("Small", "i3d_small", 4, 2, 32, 24, 32, published={10: 50.5, 30: 51.0}, source="nobody")
    monkeypatch.setitem(RECIPES, "small", recipe)
    return recipe


@pytest.fixture
def video(tmp_path: Path, encode: Callable[..., Path], moving: Callable[..., Tensor]) -> Path:
    return encode(tmp_path / "moving.mp4", moving(30, 46, 62))


def test_rows_are_measured_once(small: Recipe, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.jsonl"
    words = ["--rows", str(file), "--video", str(video), "--networks", "small", "--alphas", "0", "--engines", "eager"]
    assert main([*words, "--rounds", "1", "--views", "1"]) == 0
    first = file.read_bytes()
    words += ["--views", "1", "10", "--table", str(tmp_path / "table.md")]
    assert main([*words, "--rounds", "1"]) == 0
    assert file.read_bytes().startswith(first)
    _, *rows = map(json.loads, file.read_text().splitlines())
    assert [(row["views"], row["alpha"], row["engine"]) for row in rows] == [(1, 0.0, "eager"), (10, 0.0, "eager")]
    assert all(row["seconds"] > 0 and len(row["rounds"]) == 1 for row in rows)
    assert "| Small | 10x1 | 50.5 |" in (tmp_path / "table.md").read_text()
    capsys.readouterr()
    assert main([*words, "--rounds", "2"]) == 2
    assert "is of another machine, video or version (rounds: 1, now 2)" in capsys.readouterr().err


def test_arms_take_turns_and_every_view_goes_through(small: Recipe, video: Path) -> None:
    calls: list[str] = []

    class Counting:
        precision, views_per_call = "f32", None

        def __init__(self, name: str) -> None:
            self.name = name

        def __call__(self, clips: Tensor) -> Tensor:
            assert clips.shape == (1, 3, 4, 32, 32)
            calls.append(self.name)
            return torch.zeros(1, 2)

    engines = {Way(0.0, name, "f32"): Counting(name) for name in "ab"}
    found = timed(engines, video, replace(small.views(30), num_clips=2), 2, clock=lambda: float(len(calls)))
    assert calls == list("a" * 12 + "b" * 6 + "b" * 6 + "a" * 6)  # the first six open the file
    assert [[timing.engine for timing in timings] for timings in found.values()] == [[6.0, 6.0]] * 2


def row(network: str, number: int, alpha: float, engine: str, seconds: float) -> dict[str, Any]:
    parts = {"decode": 0.05, "prepare": 0.01, "network": seconds - 0.06}
    what = {"network": network, "views": number, "alpha": alpha, "engine": engine, "precision": "f32"}
    return {**what, "seconds": seconds, "parts": parts}


def test_a_table_has_no_accuracy_where_none_is_published(tmp_path: Path) -> None:
    rows = [
        row("x3d_s", 10, 0.25, "eager", 0.5),
        row("x3d_s", 10, 0.0, "openvino", 0.4),
        row("x3d_s", 1, 0.0, "eager", 0.2),
    ]
    head, _, one, ten, *_ = table(rows).splitlines()
    assert head == (
        "| network | views | top-1 % | decoding and cutting, ms | eager f32 | openvino f32 | eager f32, octave α 0.25 |"
    )
    assert one == "| X3D-S | 1x1 |  | 60 | 200 |  |  |" and ten == "| X3D-S | 10x1 | 73.1 | 60 |  | 400 | 500 |"
    assert (
        "| PP-TSMv2, 8 frames | 72.45 | 243 | Xeon Gold 6148, number of threads not said, decoding included |"
        in table(rows)
    )
    assert views.top1(rows[0]) is None and views.top1(rows[1]) == 73.1 and views.top1(rows[2]) is None
    made_by = {"rows": "benchmark_views 1", "video": "a.mp4", "rounds": 3, "machine": "a Xeon, 1 thread"}
    (tmp_path / "rows").write_text(json.dumps(made_by) + "\n")
    assert "Measured on a Xeon, 1 thread." in described(tmp_path / "rows")


def test_published_figures_have_their_source_and_their_views() -> None:
    for recipe in RECIPES.values():
        assert recipe.source and set(recipe.published) <= set(views.VIEWS)
        assert recipe.views(30).name == "10x3" and recipe.views(10).name == "10x1"
    assert RECIPES["x3d_s"].views(10).crop_px == 160 and RECIPES["x3d_s"].views(30).crop_px == 182


def test_the_video_is_made_as_kinetics_has_them(tmp_path: Path) -> None:
    make_video(tmp_path / "made.mp4", seconds=1)
    with av.open(str(tmp_path / "made.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.height, stream.frames) == ("h264", 340, 256, 30)
        assert 2e5 < (tmp_path / "made.mp4").stat().st_size * 8 < 2e6  # bits of a second


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--networks", "x3d"], "--networks: got x3d, expected i3d_r50, "),
        (["--views", "2"], "--views: got 2, expected 1, 3, 10, 30"),
        (["--engines", "plain"], "--engines: got plain, expected eager"),
    ],
)
def test_mistakes_are_told(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--rows", str(tmp_path / "rows"), *words]) == 2
    assert message in capsys.readouterr().err


def test_octave_is_drawn_by_its_time_alone(tmp_path: Path) -> None:
    draw([row("x3d_s", 10, 0.25, "eager", 0.5), row("x3d_s", 10, 0.0, "openvino", 0.4)], tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
