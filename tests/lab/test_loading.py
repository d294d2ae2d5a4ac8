"""tools/benchmark_loading.py on small videos: every way and stage is measured, and each way does its work."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lab.loading import command, ways
from lab.loading.command import main, need_line
from lab.loading.loaders import Rate, need
from lab.loading.ways import FLOOR, Recipe, look_at
from octvideo.data import Augmentation
from octvideo.video import ViewSettings, read_frames
from octvideo.video.decord_reader import decord

SMALL = Recipe(
    ViewSettings(frame_stride=2, num_clips=2, short_side_px=32, crop_px=32),
    Augmentation(crop_px=32, short_side_px=(32, 40)),
)
STAGES = ["open, look through packets", "decode", "crop, resize", "flip, copy", "collate, transport"]


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, encode: Callable[..., Path], moving: Callable[..., Tensor]
) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    encode(folder / "a video.mp4", moving(20, 48, 64), g=8)
    encode(folder / "b.avi", moving(20, 48, 64), "mpeg4", g=8)  # decord does not get AVI
    return folder


@pytest.fixture(autouse=True)
def _native_bridge() -> Iterator[None]:
    yield
    decord.bridge.set_bridge("native")  # pytorchvideo sets another when it is imported


def test_the_protocol_of_kinetics() -> None:
    assert Recipe().views == ViewSettings() and Recipe().augment == Augmentation()


@pytest.mark.slow
def test_everything_is_measured(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    code = main([str(folder), "--rounds", "1", "--num_workers", "1", "--repeats", "1", "--json"], recipe=SMALL)
    out, err = capfd.readouterr()
    assert code == 0, err
    assert torch.get_num_threads() == threads
    found = json.loads(out)
    assert [video["video"]["decoder"] for video in found["videos"]] == ["decord", "pyav"]
    assert ["octvideo (decord)" in video["videos"] for video in found["videos"]] == [True, False]
    for video in found["videos"]:
        assert (video["video"]["width"], video["video"]["height"], video["video"]["num_frames"]) == (64, 48, 20)
        for kind, others in (("clips", set()), ("videos", {"an open per view"})):
            assert {"octvideo", FLOOR} | others <= set(video[kind])
            assert all(len(times) == 1 and times[0] > 0 for times in video[kind].values())
            stages = video[f"{kind}_stages"]
            assert list(stages) == STAGES and all(times[0] >= 0 for times in stages.values())
            # The stages are all of it, and the item is most of them (transport is not in it).
            assert sum(times[0] for times in stages.values()) > 0.4 * video[kind]["octvideo"][0]
        for name in ("pytorchvideo (decord)", "pytorchvideo (pyav)"):
            assert name in video["videos"] or f"left out: {name}" in err
    for kind in ("clips", "videos"):
        (rate,) = found["loaders"][kind]["octvideo"]
        assert rate["items"] == 2 and rate["seconds"] > 0 and rate["cpu_seconds"] > 0
    assert "octvideo (decord)" not in found["loaders"]["clips"]  # it does not read all of them
    assert found["needs"]["clips"]["wanted"] == 400
    assert found["needs"]["videos"]["wanted"] == pytest.approx(400 / 6)


def test_the_tables(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorchvideo.data", None)  # as if it could not be imported
    options = ["--rounds", "1", "--num_workers", "0", "--repeats", "1", "--clips-per-second", "1e9"]
    assert main([str(folder / "a video.mp4"), *options], recipe=SMALL) == 0
    said = capsys.readouterr()
    assert "One training clip" in said.out and "a video.mp4 64x48" in said.out and FLOOR in said.out
    assert "Stages of one video with all its views" in said.out and "DataLoader with 0 workers, clips" in said.out
    assert "Training at 1e+09 clips/s: the GPU STARVES" in said.out
    assert "pytorchvideo" not in said.out
    assert said.out.count("octvideo (decord)") == 3  # in the tables of clips, of videos, and of loaders
    assert "left out: pytorchvideo (decord)" in said.err and "ModuleNotFoundError" in said.err


def test_what_is_measured_when_it_is_stopped_is_shown(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    options = ["--rounds", "1", "--num_workers", "0", "--no-peers"]
    monkeypatch.setattr(command, "loaders", stop)
    assert main([str(folder / "a video.mp4"), *options], recipe=SMALL) == 130
    assert "One training clip" in capsys.readouterr().out
    monkeypatch.setattr(command, "usable", stop)
    assert main([str(folder / "a video.mp4"), *options], recipe=SMALL) == 130
    said = capsys.readouterr()
    assert (said.out, said.err.strip()) == ("", "stopped")


def test_whether_a_gpu_waits() -> None:
    rates = [Rate(items=40, seconds=9.0, cpu_seconds=8.0), Rate(items=40, seconds=5.0, cpu_seconds=4.0)]
    enough, short = need(50, rates, available=8), need(400, rates, available=8)
    assert enough == {"wanted": 50, "cpus": 5.0, "available": 8}
    assert short == {"wanted": 400, "cpus": 40.0, "available": 8}
    assert "the GPU is fed" in need_line("clips", enough, 30)
    assert need_line("clips", short, 30) == (
        "Training at 400 clips/s: the GPU STARVES: loading keeps 40.0 CPUs busy (data.num_workers 40), "
        "this process has 8, enough for 20 %"
    )
    tests = need_line("videos", need(50 / 30, rates, available=8), 30)
    assert tests.startswith("Tests at 50 views/s (1.7 videos/s): the GPU is fed: loading keeps 0.2 CPUs busy")


@pytest.mark.parametrize("name", ["a video.mp4", "b.avi"])
def test_the_bare_decoder_decodes_what_we_do(folder: Path, name: str) -> None:
    video, numbers = look_at(str(folder / name)), torch.tensor([[3, 9], [9, 17]])
    expected = read_frames(folder / name, lambda num_frames: numbers).frames
    assert torch.equal(ways.bare_frames(video, numbers), expected)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no videos given: name files or folders, such as clips of Kinetics"),
        (["{}/missing.mp4"], "cannot read video '{}/missing.mp4': no such file"),
        (["{}", "--rounds", "0"], "--rounds: got 0, expected 1 or more"),
        (["{}", "--clips-per-second", "0"], "--clips_per_second: got 0, expected more than 0"),
        (["{}/empty"], "no videos in folder '{}/empty'"),
    ],
)
def test_mistakes_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    (folder / "empty").mkdir(exist_ok=True)
    code = main([word.format(folder) for word in words])
    said = capsys.readouterr()
    assert (code, said.out, said.err) == (2, "", f"error: {message.format(folder, folder)}\n")


def test_augmentations_are_measured(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--rounds", "2", "--augmentations", "--clip", "4x2x16"]
    assert main([str(folder), *options], recipe=SMALL) == 0
    out = capsys.readouterr().out
    assert "Training clips of 4 frames, every 2, 16 pixels" in out and "2 videos" in out
    assert main([str(folder), *options, "--json"], recipe=SMALL) == 0
    costs = json.loads(capsys.readouterr().out)["costs"]
    for name in (
        "plain",
        "RandAugment",
        "hue",
        "modern: RandAugment, erasing, data.repeats 2",
        "plain, data.repeats 4",
    ):
        assert name in out and len(costs[name]) == 2 and min(costs[name]) > 0
    assert main([str(folder), "--clip", "8x8"], recipe=SMALL) == 2
    assert "got 8x8, expected frames x stride x pixels, such as 8x8x224" in capsys.readouterr().err
