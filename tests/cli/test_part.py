"""`--part`: the outputs of all parts, joined, are what one command writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from octvideo.cli import main
from octvideo.data.datamodule import VideoDataModule
from octvideo.data.shards import read_shards, source_of
from octvideo.models import i3d_small
from octvideo.training.checkpoint_block import make_block
from octvideo.video import ViewSettings

VIEWS = ViewSettings(clip_frames=4, frame_stride=2, num_clips=1, num_crops=1, short_side_px=32, crop_px=32)
NAMES = ["down", "left", "right"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    network = i3d_small(num_classes=3, alpha=0.25)
    path = tmp_path_factory.mktemp("weights") / "last.ckpt"
    block = make_block(network, NAMES, views=VIEWS, mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2))
    weights = {f"network.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": weights, "octvideo": block}, path)
    return path


@pytest.fixture(scope="module")
def names(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of the nine videos of tiny_data/train, one that is broken and one that is not there."""
    folder = tmp_path_factory.mktemp("list")
    (folder / "broken.mp4").write_bytes(b"not a video")
    videos = [*sorted((tiny_data / "train").rglob("*.mp4")), folder / "broken.mp4", folder / "not there.mp4"]
    (folder / "list.txt").write_text("".join(f"{video}\n" for video in videos))
    return folder / "list.txt"


def lines(file: Path) -> list[dict[str, Any]]:
    """Without the times, which differ from run to run, and the part."""
    read = [json.loads(line) for line in file.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("seconds", "part")} for line in read]


@pytest.mark.parametrize("command", ["infer", pytest.param("timeline", marks=pytest.mark.slow)])
def test_joined_parts_are_the_output_of_one_command(
    command: str, checkpoint: Path, names: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [command, f"@{names}", "--ckpt", str(checkpoint), "--device", "cpu"]
    words += ["--engine", "eager", "--precision", "f32"]
    assert main([*words, "-o", str(tmp_path / "one.jsonl")]) == 1
    codes = [main([*words, "-o", str(tmp_path / f"{n}.jsonl"), "--part", f"{n}/3"]) for n in (1, 2, 3)]
    assert 1 in codes and not {*codes} - {0, 1}
    parts = [str(tmp_path / f"{n}.jsonl") for n in (1, 2, 3)]
    assert main(["join", *parts, "-o", str(tmp_path / "all.jsonl"), "--list", f"@{names}"]) == 0
    assert lines(tmp_path / "all.jsonl") == lines(tmp_path / "one.jsonl")
    capsys.readouterr()
    # The joined file is continued as any other; that of a part only as that part.
    assert main([*words, "-o", str(tmp_path / "all.jsonl")]) in (0, 1)
    assert main([*words, "-o", parts[0]]) == 2 and "(part: '1/3', now None)" in capsys.readouterr().err


def test_more_parts_than_videos(checkpoint: Path, tiny_data: Path, tmp_path: Path) -> None:
    video = str(next((tiny_data / "test").rglob("*.mp4")))
    words = [video, "--ckpt", str(checkpoint), "--engine", "eager", "--precision", "f32", "--part", "2/2"]
    for command in ("infer", "timeline"):
        assert main([command, *words, "-o", str(tmp_path / command)]) == 0
        assert len(lines(tmp_path / command)) == 1
    assert main(["features", *words, "-o", str(tmp_path / "features")]) == 0


@pytest.mark.slow
def test_features_of_parts_share_a_folder(checkpoint: Path, names: Path, tmp_path: Path) -> None:
    words = ["features", f"@{names}", "--ckpt", str(checkpoint), "--engine", "eager", "--precision", "f32"]
    assert main([*words, "-o", str(tmp_path / "one")]) == 1
    for n in (1, 2):
        main([*words, "-o", str(tmp_path / "parts"), "--part", f"{n}/2"])
    files = {file.relative_to(tmp_path / "one"): file.read_bytes() for file in (tmp_path / "one").rglob("*.*")}
    assert len(files) >= 11 and b"not there.mp4" in files[Path("index.csv")]
    assert files == {f.relative_to(tmp_path / "parts"): f.read_bytes() for f in (tmp_path / "parts").rglob("*.*")}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["infer", "--part", "1/2"], "--part 1/2 without --engine and --precision: parts that choose for themselves"),
        (["features", "-o", "f", "--part", "1/2", "--engine", "eager"], "--part 1/2 without --engine and --precision"),
        (["infer", "--part", "1/2", "--budget", "1s"], "--budget with --part 1/2: other parts might take other views"),
        (["infer", "--part", "3/2"], "--part: got 3/2, expected a part and the number of parts: 1/16 to 16/16"),
        (["check", "--part", "1/2"], "--part 1/2 without -o/--output: each part needs a folder of its own"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main([words[0], str(tiny_data / "test"), *words[1:]]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_checks_of_parts_join(tiny_data: Path, tmp_path: Path) -> None:
    words = ["check", str(tiny_data / "test"), "--num_workers", "1"]
    assert main([*words, "-o", str(tmp_path / "one")]) == 0
    for n in (1, 2):
        assert main([*words, "-o", str(tmp_path / str(n)), "--part", f"{n}/2"]) == 0
    (tmp_path / "all").mkdir()
    journals = [str(tmp_path / str(n) / "journal.jsonl") for n in (1, 2)]
    assert main(["join", *journals, "-o", str(tmp_path / "all" / "journal.jsonl")]) == 0
    assert main([*words, "-o", str(tmp_path / "all")]) == 0  # all is known
    both = [tmp_path / name / "journal.jsonl" for name in ("all", "one")]
    assert sorted(map(str, lines(both[0]))) == sorted(map(str, lines(both[1])))


def test_shards_of_parts_join(tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "shards"
    words = ["shards", "train.txt", "--root", str(tiny_data), "-o", str(out)]
    for n in (1, 2, 3):
        assert main([*words, "--part", f"{n}/3"]) == 0
    parts = [str(out / f"part-{n}-of-3") for n in (1, 2, 3)]
    assert main(["join", *parts[:2], "-o", str(out)]) == 1
    assert "videos are in no part: were all parts given?" in capsys.readouterr().err
    assert main(["join", *parts, "-o", str(out)]) == 0
    written = read_shards(str(out))
    files = VideoDataModule(str(tiny_data), train="train.txt").videos("train")
    assert [str(tiny_data / video.path) for video in written] == [video.path for video in files]
    assert [video.label for video in written] == [video.label for video in files]
    for video, file in zip(written, files, strict=True):
        assert source_of(video).content == Path(file.path).read_bytes()  # type: ignore[union-attr]
    assert main([*words[:-1], parts[0]]) == 2 and "(part was 1/3, now None)" in capsys.readouterr().err
    assert main(["join", parts[0], parts[0] + "/", "-o", str(tmp_path)]) == 1  # the same folder, once
    assert main(["join", parts[0], "-o", str(tmp_path / "elsewhere")]) == 2
    assert "lies outside of" in capsys.readouterr().err


@pytest.mark.slow
def test_copies_of_parts_share_a_folder(
    tmp_path: Path, encode: Callable[..., Path], moving: Callable[..., torch.Tensor],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    source = tmp_path / "videos"
    for n in range(6):
        encode(source / f"class {n % 2}" / f"{n}.mkv", moving(8 + n, 48, 64))
    (source / "class 0" / "0.webm").write_bytes(b"another one of that name")
    (source / "broken.mp4").write_bytes(b"")
    words = ["prepare", "reencode", str(source), "OUT", "--short_side", "32", "--num_workers", "1"]
    assert main([str(tmp_path / "one") if word == "OUT" else word for word in words]) == 1
    words[3] = str(tmp_path / "parts")
    assert 1 in [main([*words, "--part", f"{n}/3"]) for n in (1, 2, 3)]
    assert main(words) == 1 and "0 videos encoded, 6 were there, 2 failed" in capsys.readouterr().out
    for file in (tmp_path / "one").rglob("*.mp4"):
        assert file.read_bytes() == (tmp_path / "parts" / file.relative_to(tmp_path / "one")).read_bytes()
