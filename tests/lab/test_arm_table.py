"""The table of arms from run folders, and the time of a training step."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from lab import timing
from lab.arms.runs import ArmRun, ArmSettings, plan_runs
from lab.arms.table import (
    HEADER,
    check_networks,
    compare,
    drawn_table,
    markdown_table,
    ratio_range,
)
from lab.timing import step_seconds
from octvideo.errors import UserError
from octvideo.evaluation.metrics import wilson_interval
from octvideo.evaluation.scores import VideoScores
from octvideo.models import frame_network, i3d_small
from octvideo.octave import count_cost

K = 6
CONFIG: dict[str, Any] = {
    "model": {"network": {"init_args": {"num_classes": K, "width": 8}}, "lr": 0.1, "channels_last": True},
    "data": {
        "clip_frames": 4, "crop_px": 32, "augment": {"crop_px": 32}, "batch_size": 2, "num_clips": 10, "num_crops": 3,
        "num_workers": 0,
    },
    "trainer": {"max_epochs": 12},
}  # fmt: skip


@pytest.fixture
def settings(tmp_path: Path) -> ArmSettings:
    return ArmSettings(None, tmp_path, Path("tools"))


def leave_tested(
    run: ArmRun, settings: ArmSettings, right: str, *, clips: int = 3, changes: dict[str, Any] | None = None
):
    """The folder of a run that has these videos right ("1101"), its config with some keys of `data` changed."""
    config = copy.deepcopy(CONFIG)
    config["seed_everything"] = run.seed
    network = config["model"]["network"]
    network["class_path"] = run.network.class_path
    network["init_args"].update(run.init_args)
    if run.network.image_network:
        del network["init_args"]["width"]
    config["data"].update(changes or {})
    folder = settings.runs_dir / run.name
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    config["data"]["num_clips"] = clips
    (folder / "config_test.yaml").write_text(yaml.safe_dump(config))
    labels = np.arange(len(right)) % K
    values = np.zeros((len(right), K))
    best = np.where(np.array(list(right)) == "1", labels, (labels + 1) % K)
    values[np.arange(len(right)), best] = 1
    names = [f"class {k}" for k in range(K)]
    VideoScores([f"{i}.mp4" for i in range(len(right))], labels, values, names).save(folder / "scores.npz")


def test_rows_by_hand(settings: ArmSettings) -> None:
    runs = plan_runs(["i3d_small"], [0, 1], alpha=0.5)
    for run, right in zip(runs, ["11000000", "11100000", "11111000", "00000000", "11000000", "00111000"], strict=True):
        leave_tested(run, settings, right)
    rows, notes = compare(runs, settings, rounds=0)
    ordinary, pool, octave = rows
    assert [row[1] for row in rows] == ["ordinary", "ordinary + pool", "octave, alpha 0.5"]
    adds = [
        count_cost(i3d_small(K, alpha, width=8, downsample=downsample), (1, 3, 4, 32, 32)).multiply_adds
        for alpha, downsample in ((0, "stride"), (0, "pool"), (0.5, "pool"))
    ]
    shares = ["", "", f" ({100 * adds[2] / adds[0]:.0f} %)"]
    assert [row[2] for row in rows] == [f"{count / 1e6:.1f}{share}" for count, share in zip(adds, shares, strict=True)]
    assert {row[3] for row in rows} == {""} and {row[4] for row in rows} == {"0 1"}
    assert [row[5].split(" (")[0] for row in rows] == ["12.5", "31.2", "50.0"]
    assert ordinary[7:] == ("", "") and pool[8] == ""
    assert octave[7].startswith("+37.5 (+")
    assert octave[8].splitlines()[1:] == ["s0 2:0 p 0.5", "s1 3:2 p 1"]
    assert "i3d_small: 12 epochs, clips of 3x4x32x32, batches of 2, tested on 8 videos with 3 x 3 views" in notes


def test_what_is_not_there_yet_is_said(settings: ArmSettings) -> None:
    runs = plan_runs(["i3d_small", "timm:mobilenetv2_050"], [0, 1], alpha=0.25)
    leave_tested(runs[2], settings, "1100")  # i3d's octave arm, seed 0
    leave_tested(runs[3 + 3], settings, "1110")  # i3d's ordinary arm, seed 1
    rows, notes = compare(runs, settings, rounds=0)
    ordinary, pool, octave = rows  # nothing is known of the other network
    low, high = wilson_interval(3, 4)
    assert ordinary[5] == f"75.0 ({100 * low:.1f}–{100 * high:.1f})"
    assert pool[2].split()[0] == ordinary[2] and pool[4:] == ("–", "–", "–", "", "")
    assert octave[7:] == ("", "")  # no seed in common
    assert notes[-1] == (
        "Not tested yet: i3d_small ordinary s0, i3d_small pool s0 s1, mobilenetv2_050 ordinary s0 s1, "
        "mobilenetv2_050 pool s0 s1, mobilenetv2_050 oct s0 s1, i3d_small oct s1"
    )


@pytest.mark.slow
def test_a_frame_network_is_compared_too_and_timed(settings: ArmSettings) -> None:
    runs = plan_runs(["torchvision:resnet18"], [0], alpha=0.25)
    for run in runs:
        leave_tested(run, settings, "1010")
    rows, _ = compare(runs, settings, rounds=1)
    network = frame_network("torchvision:resnet18", K, 0.25)
    assert rows[2][2].split()[0] == f"{count_cost(network, (1, 3, 4, 32, 32)).multiply_adds / 1e6:.1f}"
    assert rows[0][3] == "1" and all(float(row[3].split()[0]) > 0 for row in rows)


def test_both_tables_hold_every_row() -> None:
    labels = ("ordinary", "ordinary + pool", "octave, alpha 0.25")
    rows = [("i3d_small", label, *"abcdef", "one\ntwo") for label in labels]
    lines = markdown_table(rows, ["a note"]).splitlines()
    assert lines[0] == "| " + " | ".join(HEADER) + " |" and lines[1].count("---") == len(HEADER)
    assert [line.split(" | ")[1] for line in lines[2:5]] == ["ordinary", "ordinary + pool", "octave, alpha 0.25"]
    assert len({line.count("|") for line in lines[:5]}) == 1 and lines[6:] == ["a note"] and "one<br>two" in lines[2]
    drawn = drawn_table(rows)
    assert drawn.row_count == 3 and [column.header for column in drawn.columns] == list(HEADER)


# ── what is no comparison ───────────────────────────────────────────────────────────────────────────────────


def test_no_run_and_other_runs_are_refused(settings: ArmSettings) -> None:
    runs = plan_runs(["i3d_small"], [0], alpha=0.25)
    with pytest.raises(UserError, match=r"no tested run in .*: looked for arms_i3d_small_ordinary_s0, .*--only_table"):
        compare(runs, settings, rounds=0)
    leave_tested(plan_runs(["i3d_small"], [0], alpha=0.5)[2], settings, "11")
    with pytest.raises(UserError, match=r"was trained with alpha 0.5, asked for is 0.25"):
        compare(runs, settings, rounds=0)


def test_other_recipes_are_refused(settings: ArmSettings) -> None:
    runs = plan_runs(["i3d_small"], [0], alpha=0.25)
    leave_tested(runs[0], settings, "11")
    leave_tested(runs[1], settings, "11", changes={"batch_size": 4, "num_workers": 2})
    with pytest.raises(
        UserError, match=r"pool_s0 and arms_i3d_small_ordinary_s0 were trained with data.batch_size 4 and 2"
    ):
        compare(runs, settings, rounds=0)


def test_other_views_are_refused(settings: ArmSettings) -> None:
    runs = plan_runs(["i3d_small"], [0], alpha=0.25)
    leave_tested(runs[0], settings, "11")
    leave_tested(runs[1], settings, "11", clips=10)
    with pytest.raises(UserError, match="were tested with 10 x 3 clips x crops and 3 x 3: test one of them again"):
        compare(runs, settings, rounds=0)
    asked = dataclasses.replace(settings, num_clips=3)
    with pytest.raises(UserError, match="was tested with 10 clips of a video, asked for are 3: test it again with"):
        compare(runs, asked, rounds=0)


def test_a_wrong_image_network_is_found_before_training() -> None:
    with pytest.raises(UserError, match="timm has no network 'mobilenetv2_05'"):
        check_networks(plan_runs(["timm:mobilenetv2_05"], [0], alpha=0.25))
    check_networks(plan_runs(["i3d_small"], [0, 1], alpha=0.25))


# ── time ────────────────────────────────────────────────────────────────────────────────────────────────────


class Busy(nn.Module):
    """Works for some CPU time in each forward pass, on a clock of the test's own; `log` is the order of all calls."""

    def __init__(self, name: str, log: list[str], clock: list[float], work_sec: float) -> None:
        super().__init__()
        self.name, self.log, self.clock, self.work_sec = name, log, clock, work_sec
        self.head = nn.Linear(3, K)

    def forward(self, x: Tensor) -> Tensor:
        assert self.training and torch.get_num_threads() == 1
        self.log.append(self.name)
        self.clock[0] += self.work_sec
        return self.head(x.mean((2, 3, 4)))


def test_networks_take_turns_and_waiting_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no clock but that of the process's own CPU time."""
    log, clock = list[str](), [0.0]
    monkeypatch.setattr(timing, "time", SimpleNamespace(process_time=lambda: clock[0]))
    slow, fast, waits = Busy("slow", log, clock, 0.5), Busy("fast", log, clock, 0.25), Busy("waits", log, clock, 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    seconds = step_seconds({"slow": slow, "fast": fast, "waits": waits}, (2, 3, 2, 4, 4), rounds=3)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    assert seconds == {"slow": [0.5] * 3, "fast": [0.25] * 3, "waits": [0.0] * 3}
    rounds = [log[start : start + 3] for start in range(0, 12, 3)]
    assert rounds[0] == ["slow", "fast", "waits"] and rounds[1] == ["fast", "waits", "slow"] and len(log) == 12
    assert slow.head.weight.grad is not None
    with pytest.raises(ValueError, match="rounds: got 0, expected 1 or more"):
        step_seconds({"fast": fast}, (2, 3, 2, 4, 4), rounds=0)


def test_ratios_are_a_median_and_a_range() -> None:
    assert ratio_range([0.9, 1.5, 0.8]) == "0.90 (0.80–1.50)"
    assert ratio_range([1.0, 1.0]) == "1" and ratio_range([]) == ""
