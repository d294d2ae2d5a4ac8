"""tools/benchmark_reading.py as the user runs it, on a video that is read in no time."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import decord
import pytest
import torch
from torch import Tensor

from octvideo.video import ViewSettings

Run = Callable[..., tuple[int, str, str]]
FLOOR = "decord, each frame once"


@pytest.fixture
def run(repo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs the tool in this process, for 2 clips of 32 pixels; returns its exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("benchmark_reading", repo / "tools" / "benchmark_reading.py")
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, tool)  # its dataclass looks there
    spec.loader.exec_module(tool)
    assert ViewSettings() == tool.SETTINGS  # the protocol of Kinetics
    tool.SETTINGS = ViewSettings(frame_stride=2, num_clips=2, short_side_px=32, crop_px=32)

    def run_tool(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["benchmark_reading.py", *map(str, args)])
        capsys.readouterr()
        code = tool.main()
        said = capsys.readouterr()
        return code, said.out, said.err

    threads = torch.get_num_threads()
    yield run_tool
    torch.set_num_threads(threads)
    decord.bridge.set_bridge("native")  # pytorchvideo sets another when it is imported


@pytest.fixture
def video(tmp_path: Path, encode: Callable[..., Path], moving: Callable[..., Tensor]) -> Path:
    return encode(tmp_path / "a video.mp4", moving(20, 48, 64), g=8)


def test_every_way_is_measured_in_every_round(run: Run, video: Path) -> None:
    code, out, err = run(video, "--rounds", 1, "--json")
    assert code == 0, err
    (result,) = json.loads(out)
    assert (result["video"], result["width"], result["height"], result["num_frames"]) == (str(video), 64, 48, 20)
    arms = {arm["arm"]: arm for arm in result["arms"]}
    assert list(arms)[:3] == ["octvideo", FLOOR, "decord, an open per view"]
    assert all(
        f"left out: {name}" in err for name in ("pytorchvideo (decord)", "pytorchvideo (pyav)") if name not in arms
    )
    for arm in arms.values():
        (cpu_ms,), (to_floor,) = arm["cpu_ms"], arm["to_floor"]
        assert cpu_ms > 0 and to_floor == pytest.approx(cpu_ms / arms[FLOOR]["cpu_ms"][0])
    assert arms["octvideo"]["cpu_ms"] < arms["decord, an open per view"]["cpu_ms"]


def test_the_table(run: Run, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorchvideo.data", None)  # as if it could not be imported
    code, out, err = run(video, "--rounds", 1)
    assert code == 0
    assert "a video.mp4 (64x48, 20 frames): 6 views, 1 rounds" in out
    assert "octvideo" in out and f"to '{FLOOR}'" in out and "pytorchvideo" not in out
    assert "left out: pytorchvideo (decord): ModuleNotFoundError" in err


def test_mistakes_are_one_line(run: Run, tmp_path: Path, video: Path) -> None:
    code, out, err = run()
    assert (code, out) == (2, "") and err.startswith(
        "error: got 0 videos and 5 rounds: give video files, such as clips"
    )
    assert run(video, "--rounds", 0)[0] == 2
    code, out, err = run(tmp_path / "missing.mp4")
    assert (code, out, err) == (2, "", f"error: cannot read video '{tmp_path}/missing.mp4': no such file\n")
