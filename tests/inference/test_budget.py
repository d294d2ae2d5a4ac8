"""`--views` and `--budget` of `octvideo infer`: views by name, and by the time that they take. No test takes times."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from octvideo.cli import main
from octvideo.cli.arguments import duration
from octvideo.cli.infer import views_of_results
from octvideo.inference import Predictor, ViewsChoice, predictor
from octvideo.inference.budget import choose_views, kept_in_words, ladder, measured_video
from octvideo.inference.preparation import Timing
from octvideo.models import i3d_small
from octvideo.training.checkpoint_block import make_block
from octvideo.video import VideoArray, VideoReadError, ViewSettings

OWN = ViewSettings(clip_frames=4, frame_stride=2, num_clips=10, num_crops=3, short_side_px=32, crop_px=32)


class Costs:
    """A measurement by a formula, in place of one by a clock.

    Args:
        decode: seconds of decoding so many clips.
        network: seconds of so many views.
    """

    def __init__(self, decode: Callable[[int], float], network: Callable[[int], float]) -> None:
        self.decode, self.network, self.seen = decode, network, list[str]()

    def __call__(self, views: ViewSettings) -> Timing:
        self.seen.append(views.name)
        decode, network = self.decode(views.num_clips), self.network(views.num_views)
        return Timing(decode, 0.0, network, decode + network)


CPU = Costs(lambda clips: 0.05 + 0.005 * clips, lambda views: 0.03 * views)
GPU = Costs(lambda clips: 0.05 + 0.005 * clips, lambda views: 0.02 + 0.001 * views)


def test_the_ladder_goes_up_by_clips_and_then_by_crops() -> None:
    names = [step.name for step in ladder(OWN)]
    assert names[:3] == ["1x1", "2x1", "3x1"] and names[9:12] == ["10x1", "4x3", "5x3"] and names[-1] == "10x3"
    numbers = [step.num_views for step in ladder(OWN)]
    assert numbers == sorted(set(numbers))
    assert [step.name for step in ladder(replace(OWN, num_clips=1))] == ["1x1", "1x3"]
    assert [step.name for step in ladder(replace(OWN, num_clips=2, num_crops=1))] == ["1x1", "2x1"]


@pytest.mark.parametrize("costs", [CPU, GPU])
@pytest.mark.parametrize("budget", [0.01, 0.095, 0.1, 0.2, 0.3, 0.5, 0.9, 5.0])
def test_the_most_views_that_fit_are_chosen(costs: Costs, budget: float) -> None:
    costs.seen.clear()
    views, timing = choose_views(OWN, budget, costs)
    fitting = [step for step in ladder(OWN) if costs(step).total <= 0.9 * budget]
    assert views == (fitting or ladder(OWN))[-1 if fitting else 0]
    assert timing == costs(views)


def test_few_views_are_measured() -> None:
    costs = Costs(CPU.decode, CPU.network)
    assert choose_views(OWN, 0.5, costs)[0].name == "4x3"  # .43 s of .45
    assert costs.seen == ["1x1", "4x3", "5x3"]
    costs.seen.clear()
    assert choose_views(OWN, 0.01, costs)[0].name == "1x1" and costs.seen == ["1x1"]
    costs.seen.clear()
    assert choose_views(OWN, 99.0, costs)[0] == OWN and costs.seen == ["1x1", "10x3"]


def test_a_choice_in_words() -> None:
    three = replace(OWN, num_clips=3, num_crops=1)
    fits = ViewsChoice(three, Timing(0.057, 0.003, 0.09, 0.15), 0.2, "openvino f32")
    parts = "about 150 ms a video (decoding 57, cutting 3, network 30 a view)"
    assert str(fits) == f"budget 200 ms: 3x1 views by openvino f32, {parts}" and fits.keeps
    over = replace(fits, budget_sec=0.1)
    assert str(over) == f"budget 100 ms is not kept: even 3x1 views by openvino f32 take {parts}. They are used"
    assert not over.keeps


def test_how_long_videos_took() -> None:
    assert kept_in_words([0.1, 0.3, 0.15], 0.2) == (
        "budget 200 ms: 3 videos took 150 ms each (median), 1 of them over it (33 %)"
    )
    assert kept_in_words([0.0042], 0.2) == "budget 200 ms: 1 video took 4.2 ms each (median), none over it"


@pytest.mark.parametrize(("text", "seconds"), [("200ms", 0.2), ("0.2s", 0.2), ("2 s", 2.0), (".5 ms", 0.0005)])
def test_a_time_with_its_unit(text: str, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds)


class Stepping:
    """A clock and an engine that moves it: by .001 s at each look, by 1 s for each clip."""

    name, precision, views_per_call = "stepping", "f32", None

    def __init__(self, first_turn: float = 0.0) -> None:
        self.now, self.first_turn, self.calls = 0.0, first_turn, list[int]()

    def clock(self) -> float:
        self.now += 0.001
        return self.now

    def __call__(self, clips: Tensor) -> Tensor:
        self.now += len(clips) + self.first_turn * (not self.calls)
        self.calls.append(len(clips))
        return torch.zeros(len(clips), 3)


def test_a_video_is_measured_part_by_part() -> None:
    """By the shorter of two turns, so many views in a call as there will be."""
    engine = Stepping(first_turn=7.0)
    video = VideoArray(torch.zeros(20, 40, 50, 3, dtype=torch.uint8), 10.0)
    how: dict[str, Any] = {"views_per_chunk": 2, "device": torch.device("cpu"), "clock": engine.clock}
    timing = measured_video(video, replace(OWN, num_clips=3, num_crops=1), lambda x: x.float(), engine, **how)
    assert engine.calls == [2, 1, 2, 1]
    assert timing.decode == pytest.approx(0.001) and timing.prepare == pytest.approx(0.002)
    assert timing.engine == pytest.approx(3.003) and timing.total == pytest.approx(3.006)


# ── the command ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = i3d_small(num_classes=3, alpha=0.0, width=8)
    block = make_block(network, ["a", "b", "c"], views=OWN, mean=(0.4,) * 3, std=(0.2,) * 3)
    weights = {f"network.{key}": value for key, value in network.state_dict().items()}
    path = tmp_path_factory.mktemp("budget") / "some.ckpt"
    torch.save({"state_dict": weights, "octvideo": block}, path)
    return path


@pytest.fixture
def words(checkpoint: Path, tiny_video: Path, tmp_path: Path) -> list[str]:
    """Of a command for two videos, of which the first is broken."""
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"not a video")
    shutil.copy(tiny_video, tmp_path / "videos" / "b.mp4")
    how = ["--engine", "eager", "--precision", "f32", "--device", "cpu"]
    return ["infer", str(tmp_path / "videos"), "--ckpt", str(checkpoint), *how]


@pytest.fixture
def by_formula(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Videos take what `CPU` says; the names of the views that are measured."""
    costs = Costs(CPU.decode, CPU.network)

    def measured(video: str, views: ViewSettings, *_: Any, **how: Any) -> Timing:
        if "a.mp4" in video:
            raise VideoReadError(video, "it is broken")
        assert how["views_per_chunk"] >= 1
        return costs(views)

    monkeypatch.setattr(predictor, "measured_video", measured)
    return costs.seen


def test_views_by_name(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "results.jsonl"
    assert main([*words, "-o", str(file), "--views", "2x3"]) == 1  # of the broken one
    assert "views: 2x3" in capsys.readouterr().err
    assert json.loads(file.read_text().splitlines()[0])["views"] == "2x3"
    assert main([*words, "-o", str(file), "--num_clips", "2"]) == 1  # crops are the model's own three
    assert main([*words, "-o", str(file), "--views", "2x1"]) == 2
    assert "(views: '2x3', now '2x1')" in capsys.readouterr().err
    assert main([*words, "-o", str(file)]) == 2
    assert "(views: '2x3', now '10x3')" in capsys.readouterr().err


def test_a_budget_chooses_views_and_says_so(
    words: list[str], by_formula: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--budget", "200 ms", "--json"]) == 1
    out, err = capsys.readouterr()
    told = "budget 200 ms: 3x1 views by eager f32, about 155 ms a video (decoding 65, cutting 0, network 30 a view)"
    assert told in err.splitlines()
    assert [line.split(":")[1][:14] for line in err.splitlines() if "(median)" in line] == [" 1 video took "]
    assert json.loads(out)["views"] == "3x1"
    assert by_formula[:2] == ["1x1", "1x1"]  # the first loads what is loaded once
    assert main([*words, "--budget", "50ms"]) == 1
    assert "budget 50 ms is not kept: even 1x1 views by eager f32 take about 85 ms" in capsys.readouterr().err


def test_a_resumed_run_keeps_its_views(
    words: list[str], by_formula: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.jsonl"
    words += ["-o", str(file)]
    assert main([*words, "--budget", "0.2s"]) == 1
    measured = len(by_formula)
    capsys.readouterr()
    assert main([*words, "--budget", "9s"]) == 1
    assert f"views: 3x1 (as the results in {file} so far)" in capsys.readouterr().err
    assert len(by_formula) == measured and views_of_results(file) == {"num_clips": 3, "num_crops": 1}


def test_a_file_of_the_models_own_views_keeps_them(words: list[str], by_formula: list[str], tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    assert main([*words, "-o", str(file), "--views", "10x3"]) == 1
    assert "views" not in json.loads(file.read_text().splitlines()[0])  # as in files of older versions
    assert main([*words, "-o", str(file), "--budget", "0.2s"]) == 1 and by_formula == []
    assert views_of_results(file) == {} and views_of_results(tmp_path / "none.jsonl") is None
    file.write_text('{"results": "octvideo infer 1", "views": 7}\n')
    assert views_of_results(file) is None


def test_without_a_readable_video_nothing_is_chosen(
    words: list[str], by_formula: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words[1] = str(tmp_path / "videos" / "a.mp4")
    assert main([*words, "--budget", "0.2s"]) == 1
    err = capsys.readouterr().err
    assert "cannot read video" in err and "\nbudget" not in err
    predictor = Predictor.from_checkpoint(words[3], device="cpu", views_per_chunk=1)
    with pytest.raises(ValueError, match="got none to measure"):
        predictor.choose_views(0.2, [])
    with pytest.raises(VideoReadError, match="it is broken"):
        predictor.choose_views(0.2, [words[1]])
    assert predictor.views == OWN


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--views 3x2", "--views: got 3x2, expected clips x crops, of which there are 1 or 3: 1x1, 3x1, 10x3, ..."),
        ("--views 0x1", "--views: got 0x1, expected clips x crops"),
        ("--views 3x1 --num_crops 1", "--views 3x1 with --num_crops 1: both say how many views; leave one of them out"),
        ("--budget 1s --views 3x1", "--budget chooses the views, and --views, --num_clips or --num_crops name them"),
        ("--budget 1s --num_clips 3", "--budget chooses the views, and --views, --num_clips or --num_crops name them"),
        ("--budget 200", "--budget: got 200, expected a time with its unit, such as 200ms or 0.2s"),
        ("--budget 0s", "--budget: got 0s, expected a time with its unit"),
    ],
)
def test_mistakes_are_told(given: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.mp4").touch()
    assert main(["infer", str(tmp_path / "a.mp4"), *given.split()]) == 2
    assert message in capsys.readouterr().err
