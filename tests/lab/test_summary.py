"""Medians, quartiles and ratios, against a computation by hand; results as JSON; the table and the picture of them."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

from lab.benchmark.arms import labels, parse_arms
from lab.benchmark.picture import draw
from lab.benchmark.report import remarks, sheets
from lab.benchmark.results import Agreement, ArmResult, Memory, Pass, Run, summarise
from octvideo.errors import UserError

# Seconds of a call in five rounds; the machine was slow in the third.
SECONDS = {
    "α 0 plain": [2.0, 2.2, 6.0, 2.1, 1.9],
    "α 0 eager contiguous": [1.0, 1.1, 3.0, 1.2, 1.0],
    "α 0 eager channels_last": [0.9, 1.0, 2.5, 1.0, 0.8],
    "α 0.5 eager channels_last": [0.6, 0.7, 1.4, 0.65, 0.6],
}


def made_up_run(**changes: Any) -> Run:
    """Four arms with the seconds above: pytorchvideo's way, our ordinary network in two layouts, and an octave one."""
    arms = parse_arms(
        [
            "i3d_r50:engine=plain,batch=2",
            "i3d_r50:layout=contiguous/channels_last,batch=2",
            "i3d_r50:alpha=.5,layout=channels_last,batch=2",
        ]
    )
    assert labels(arms) == list(SECONDS)
    adds, traffic, memory = (4000, 4000, 4000, 3000), (800, 800, 800, 500), (1000, 900, 500, 400)
    results = [
        ArmResult(label, arm, a, t, 7, Memory(m, m // 2, "by hand"))
        for label, arm, a, t, m in zip(SECONDS, arms, adds, traffic, memory, strict=True)
    ]
    results[1].agreement = Agreement("α 0 plain", 1e-6, 2.5, 4, 4)
    found = Pass(
        "cpu",
        1,
        "cpu",
        {label: {"cpu": times, "wall": [2 * t for t in times]} for label, times in SECONDS.items()},
        {"f32": [9000.0, 10000.0, 4000.0]},
        {"f32": "512 x 512, torch.mm"},
    )
    facts = {"cpu": "Some CPU", "cores": "4", "flags": "avx2", "torch": "2.9"}
    return Run(facts, "tools/benchmark.py ...", results, [found], "α 0 plain", **changes)


def by_hand(a: str, b: str) -> list[float]:
    return [x / y for x, y in zip(SECONDS[a], SECONDS[b], strict=True)]


def test_ratios_are_of_rounds_and_the_twin_is_the_faster_ordinary_layout() -> None:
    plain, _, fast, octave = SECONDS
    run = made_up_run()
    rows = {row.result.label: row for row in summarise(run, run.passes[0])}
    assert list(rows) == list(SECONDS)
    for label, row in rows.items():
        low, median, high = statistics.quantiles(SECONDS[label], n=4, method="inclusive")
        assert (row.seconds.low, row.seconds.median, row.seconds.high) == pytest.approx((low, median, high))
        assert row.clips_per_sec == pytest.approx(2 / median)
        assert row.faster == pytest.approx(statistics.median(by_hand(plain, label)))
        assert row.of_peak == pytest.approx(row.result.multiply_adds / median / 10000)
        assert (row.twin is None) == (label != octave)
    row = rows[octave]
    assert row.twin == fast and row.to_twin is not None
    low, median, high = statistics.quantiles(by_hand(octave, fast), n=4, method="inclusive")
    assert (row.to_twin.low, row.to_twin.median, row.to_twin.high) == pytest.approx((low, median, high))
    assert row.faster_engine == pytest.approx(statistics.median(by_hand(plain, fast)))
    assert row.faster_octave == pytest.approx(statistics.median(by_hand(fast, octave)))
    assert (row.flop_ratio, row.traffic_ratio, row.memory_ratio) == (0.75, 0.625, 0.8)
    assert row.to_ideal == pytest.approx(median / 0.75)


def test_passes_of_several_processes_are_one() -> None:
    found, other = made_up_run().passes[0], made_up_run().passes[0]
    for clocks in other.seconds.values():
        clocks["cpu"] = [2 * seconds for seconds in clocks["cpu"]]
    found.join(other)
    assert found.processes == 2 and found.rounds == 10 and len(found.peak["f32"]) == 2 * len(other.peak["f32"])
    run = made_up_run()
    run.passes = [found]
    octave = summarise(run, found)[3]
    assert octave.seconds.median == pytest.approx(
        statistics.median([0.6, 0.7, 1.4, 0.65, 0.6, 1.2, 1.4, 2.8, 1.3, 1.2])
    )
    assert octave.to_twin == summarise(made_up_run(), made_up_run().passes[0])[3].to_twin  # both were slowed
    assert "2 processes, 10 rounds in turns" in next(sheets(run)).title


def test_another_reference_and_another_clock() -> None:
    plain, slow, *_ = SECONDS
    run = made_up_run()
    run.reference = slow
    rows = {row.result.label: row for row in summarise(run, run.passes[0])}
    assert rows[slow].faster == 1 and rows[plain].faster == pytest.approx(statistics.median(by_hand(slow, plain)))
    run.passes[0].clock = "wall"
    assert summarise(run, run.passes[0])[0].seconds.median == 2 * statistics.median(SECONDS[plain])


def test_without_bf16_units_the_peak_is_that_of_f32() -> None:
    run = made_up_run()
    run.arms[0].arm = replace(run.arms[0].arm, precision="bf16")
    [row, *_] = summarise(run, run.passes[0])
    assert row.of_peak is None
    run.passes[0].peak["bf16"] = [500.0]
    [row, *_] = summarise(run, run.passes[0])
    assert row.of_peak == pytest.approx(4000 / row.seconds.median / 10000)
    run.passes[0].peak["bf16"] = [500.0, 20000.0]
    assert summarise(run, run.passes[0])[0].of_peak == pytest.approx(row.of_peak / 2)


def test_json_gives_the_run_again(tmp_path: Path) -> None:
    run = made_up_run(left_out={"α 0 onnx": "not installed"}, interrupted=True, preset="cpu-eager")
    run.save(tmp_path / "new" / "a.json")
    assert Run.load(tmp_path / "new" / "a.json") == run
    content = json.loads((tmp_path / "new" / "a.json").read_text())
    assert content["format"] == 1 and content["arms"][3]["arm"]["alpha"] == 0.5


def test_json_of_a_run_has_null_for_what_is_no_number(tmp_path: Path) -> None:
    run = made_up_run()
    run.arms[1].agreement = replace(run.arms[1].agreement, difference=float("nan"))
    run.save(tmp_path / "a.json")
    assert '"difference": null' in (tmp_path / "a.json").read_text()
    agreement = Run.load(tmp_path / "a.json").arms[1].agreement
    assert agreement is not None and math.isnan(agreement.difference)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no results at .*: tools/benchmark.py --json writes them"),
        ("{", "is not JSON"),
        ("[]", "holds something else, expected what tools/benchmark.py --json writes"),
        ('{"format": 2}', "holds something else"),
    ],
)
def test_files_that_are_no_results(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=message):
        Run.load(tmp_path / "a.json")


def test_tables_have_a_line_for_each_arm_and_say_what_was_left_out() -> None:
    run = made_up_run(left_out={"α 0 onnx": "not installed"}, interrupted=True)
    times, counted = sheets(run)
    assert (
        times.title == "process CPU time, one thread, 5 rounds in turns: i3d_r50, inference, f32, input 2x3x8x224x224"
    )
    assert [line[0] for line in times.lines] == [line[0] for line in counted.lines] == list(SECONDS)
    cells = dict(zip(times.header, times.lines[3], strict=True))
    assert cells["ms a call (quartiles)"] == "650.0 (600.0–700.0)" and cells["clips/s"] == "3.08"
    assert cells["time ratio (quartiles)"] == "0.667 (0.650–0.700)" and cells["FLOP ratio"] == "0.750"
    assert cells["time / FLOP"] == "0.89" and cells["of peak"] == "46 %" and cells["× faster"] == "3.23"
    assert counted.lines[1][-3:] == ("1.0e-06 (σ 2.5)", "α 0 plain", "4 of 4")
    header, marks, *lines = times.markdown().splitlines()[2:]
    assert header.count("|") == marks.count("|") == lines[0].count("|") and len(lines) == 4
    told = remarks(run)
    assert told[0] == "Some CPU, 4 threads, avx2, torch 2.9"
    assert told[1] == "left out: α 0 onnx: not installed" and told[2].startswith("stopped before its end")


def test_the_picture_has_a_panel_for_each_kind_of_pass(tmp_path: Path) -> None:
    one, both = made_up_run(), made_up_run(preset="resnet50-table2")
    second = Pass("cpu", 4, "wall", both.passes[0].seconds, both.passes[0].peak, both.passes[0].peak_how)
    both.passes.append(second)
    draw(tmp_path / "one.png", [one])
    draw(tmp_path / "both.png", [one, both])
    small, large = (matplotlib.image.imread(tmp_path / f"{name}.png") for name in ("one", "both"))
    assert small.shape[0] == large.shape[0] and large.shape[1] > 1.7 * small.shape[1]
    assert small.std() > 0.05  # something is drawn
    one.arms = one.arms[:3]
    with pytest.raises(UserError, match="picture: no octave arm beside its ordinary twin"):
        draw(tmp_path / "none.png", [one])
