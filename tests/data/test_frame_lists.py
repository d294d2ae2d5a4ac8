"""Lists of extracted frames, as TSN and mmaction2 write them: read, trained on, sharded, checked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from octvideo.class_names import ClassIndex
from octvideo.data import Augmentation, Failure, VideoList, read_records
from octvideo.data.checking import Journal, check_all, select
from octvideo.data.datamodule import VideoDataModule
from octvideo.data.dataset import Item, TrainingClips
from octvideo.data.records import FrameRange
from octvideo.data.shard_writer import write_shards
from octvideo.data.shards import read_shards
from octvideo.errors import UserError
from octvideo.video import FrameNames
from tests.conftest import moving_frames
from tests.video.test_image_frames import NAMES, write_images

CLASSES = ClassIndex(["clap", "wave", "jump high"])


def read(tmp_path: Path, *lines: str, labelled: bool = True) -> list[tuple[str, int, int, int]]:
    """Folder, start, count, label of each record."""
    (tmp_path / "list.txt").write_text("\n".join(lines) + "\n")
    how = {"labelled": labelled, "frames": NAMES, "fps": 12.0}
    records = read_records(tmp_path / "list.txt", root=Path("d"), classes=CLASSES, **how)  # type: ignore[arg-type]
    ranges = [record.frames for record in records]
    assert all(frames and (frames.names, frames.fps) == (NAMES, 12.0) for frames in ranges)
    assert list(records.take(range(len(records)))) == list(records)
    return [(r.path, r.frames.start, r.frames.count, r.label) for r in records if r.frames]


def test_lines_of_the_field(tmp_path: Path) -> None:
    got = read(
        tmp_path, "# a remark", "a/b 120 1", "", "17 30 2", "my clip 7 0", "c,40,2", "d\t50\t1", "e 9,wave", "f 9 clap",
        "g 12,jump high", "h 30 120 1",
    )  # fmt: skip
    assert got == [
        ("d/a/b", 0, 120, 1), ("d/17", 0, 30, 2), ("d/my clip", 0, 7, 0), ("d/c", 0, 40, 2), ("d/d", 0, 50, 1),
        ("d/e", 0, 9, 1), ("d/f", 0, 9, 0), ("d/g", 0, 12, 2), ("d/h", 30, 120, 1),
    ]  # fmt: skip


def test_a_folder_may_end_with_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("d/take 3").mkdir(parents=True)
    assert read(tmp_path, "take 3 120 1", "take 4 120 1") == [("d/take 3", 0, 120, 1), ("d/take", 4, 120, 1)]


def test_several_labels_need_their_loss(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"list.txt:2: got 'wave;clap' after b, expected one label.* model.loss bce"):
        read(tmp_path, "a 5,wave", "b 5,wave;clap")
    lists = {"labelled": True, "several": True, "frames": NAMES, "fps": 12.0}
    (record, other) = read_records(tmp_path / "list.txt", root=Path("d"), classes=CLASSES, **lists)  # type: ignore[arg-type]
    assert (record.label, record.others, other.label, other.others) == (1, (), 1, (0,))


def test_lists_without_labels(tmp_path: Path) -> None:
    assert read(tmp_path, "a/b 120", labelled=False) == [("d/a/b", 0, 120, -1)]
    with pytest.raises(UserError, match=r"list.txt:1: got 'a/b 120', expected 'folder num_frames label'"):
        read(tmp_path, "a/b 120")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("clip.mp4", r"list.txt:1: got 'clip.mp4', expected 'folder num_frames label', as data.frame_names is given"),
        ("a 0 1", r"list.txt:1: got 0 frames of a, expected 1 or more"),
        ("a 5 jupm", r"list.txt:1: 'jupm' is no known class"),
        ("a 5 3", r"list.txt:1: .*3"),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, line)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set of three folders of 14 frames, with list.txt and classes.txt."""
    for n in range(3):
        write_images(tmp_path / f"clip {n}", moving_frames(14 + n))
    (tmp_path / "list.txt").write_text("".join(f"clip {n} {14 + n} {n}\n" for n in range(3)))
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    return tmp_path


def videos_of(root: Path, **how: object) -> VideoList:
    return VideoDataModule(str(root), train="list.txt", frame_names=NAMES.template, **how).videos("train")  # type: ignore[arg-type]


def clips(records: VideoList) -> TrainingClips:
    augment = Augmentation(crop_px=32, short_side_px=(32, 40))
    return TrainingClips(records, augment, clip_frames=4, frame_stride=2, sampling="segments", seed=3)


def test_shards_of_folders_hold_the_same_images(data: Path, tmp_path: Path) -> None:
    records = videos_of(data, frame_fps=12.0)
    how = {"root": data, "class_names": ["a", "b", "c"], "shard_bytes": 20_000}
    report = write_shards(records, tmp_path / "out", **how)  # type: ignore[arg-type]
    assert report.written == 3 and report.num_shards > 1 and not report.left_out
    sharded = read_shards(str(tmp_path / "out"))
    assert [record.frames for record in sharded] == [FrameRange(0, 14 + n, None, 12.0) for n in range(3)]
    for index in range(3):
        one, other = clips(records)[2, index], clips(sharded)[2, index]
        assert isinstance(one, Item) and isinstance(other, Item)
        assert torch.equal(one.video, other.video) and one.label == other.label  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"fps was 12.0, now 25"):
        write_shards(videos_of(data, frame_fps=25.0), tmp_path / "out", **how)  # type: ignore[arg-type]


def test_a_folder_that_lacks_an_image_is_left_out_of_shards(data: Path, tmp_path: Path) -> None:
    (data / "clip 1" / "img_00015.png").unlink()
    records = videos_of(data)
    report = write_shards(records, tmp_path / "out", root=data, class_names=["a", "b", "c"])
    assert report.left_out == [("clip 1", "its frame img_00015.png: No such file or directory")]
    assert [record.path for record in read_shards(str(tmp_path / "out"))] == ["clip 0", "clip 2"]


def test_a_broken_image_is_a_failure_and_so_is_a_cut_archive(data: Path) -> None:
    for image in (data / "clip 1").iterdir():
        image.write_bytes(b"none")
    failure = clips(videos_of(data))[0, 1]
    assert isinstance(failure, Failure)
    assert failure.path == str(data / "clip 1") and failure.reason.startswith("its frame img_000")


@pytest.mark.slow  # checks run in processes
def test_a_check_reads_all_images_of_the_list(data: Path, tmp_path: Path) -> None:
    (data / "clip 1" / "img_00015.png").unlink()
    (data / "clip 2" / "img_00003.png").write_bytes(b"none")
    (data / "clip 2" / "img_00099.png").write_bytes(b"in no list")
    selection = select([data / "list.txt"], frames=NAMES)
    assert selection.names == ["clip 0", "clip 1", "clip 2"]
    with Journal(tmp_path / "out", root=selection.root, decoder="auto") as journal:
        how = {"decoder": "auto", "num_processes": 1, "timeout_s": 60.0, "memory_bytes": 2**31}
        summary = check_all(selection, journal, **how)  # type: ignore[arg-type]
        assert summary.verdicts == {"ok": 1, "unreadable": 2}
        reasons = {name: entry["reason"] for name, entry in journal.not_ok().items()}
        assert reasons["clip 1"] == "its frame img_00015.png: no such file"
        assert reasons["clip 2"].startswith("its frame img_00003.png: ")
        again = check_all(selection, journal, **how)  # type: ignore[arg-type]
        assert again.num_known == 3
    lines = [json.loads(line) for line in (tmp_path / "out" / "journal.jsonl").read_text().splitlines()]
    assert [line["frames"] for line in lines if line.get("path") == "clip 0"] == [14]


def test_settings_that_can_not_be_meant(data: Path) -> None:
    with pytest.raises(UserError, match=r"data.frame_fps: got none with a target_fps of 10"):
        videos_of(data, target_fps=10.0)
    with pytest.raises(UserError, match=r"data.frame_fps: got -1"):
        videos_of(data, frame_fps=-1.0)
    with pytest.raises(UserError, match=r"expected a list of lines 'folder num_frames label'"):
        read_records(data, root=data, classes=CLASSES, frames=FrameNames("{}.jpg"))
    with pytest.raises(UserError, match=r"none of the videos of .*list.txt is there"):
        for n in range(3):
            (data / f"clip {n}").rename(data / f"{n}")
        videos_of(data)
