"""Videos of the quarantine list are left out and counted, however their paths are written; nothing else is."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from octvideo.data import VideoList, VideoRecord
from octvideo.data.datamodule import VideoDataModule
from octvideo.data.quarantine import Quarantine, printable, read_quarantine, write_quarantine
from octvideo.data.shard_writer import write_shards
from octvideo.errors import UserError

NAMES = ["a b.mp4", "tab\there.mp4", "line\nbreak.mp4", "back\\slash.mp4", "#first.mp4", "caf\udce9.mp4", "\u2028.mp4"]


def records(root: Path, *names: str) -> VideoList:
    return VideoList(VideoRecord(str(root / name), 0) for name in names)


def paths(kept: VideoList) -> list[str]:
    return [Path(record.path).name for record in kept]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "set").mkdir()
    for name in "abc":
        (tmp_path / "set" / f"{name}.mp4").touch()
    return tmp_path / "set"


def test_what_is_written_is_read(tmp_path: Path) -> None:
    entries = [(name, "two\nlines\tand a tab") for name in NAMES] + [("back\\new.mp4", "")]
    assert write_quarantine(tmp_path / "q.txt", "/data/caf\udce9", entries) == len(entries)
    assert read_quarantine(tmp_path / "q.txt") == ("/data/caf\udce9", sorted(entries))
    whole = (tmp_path / "q.txt").read_bytes()
    write_quarantine(tmp_path / "q.txt", "/data/caf\udce9", reversed(entries))  # whichever process was first
    assert (tmp_path / "q.txt").read_bytes() == whole
    assert write_quarantine(tmp_path / "q.txt", "/data", entries[:1]) == 1  # its own file it may replace
    assert sorted(file.name for file in tmp_path.iterdir()) == ["q.txt"]


def test_a_file_of_the_users_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("my notes\n")
    with pytest.raises(UserError, match="was not written by this tool"):
        write_quarantine(tmp_path / "q.txt", "/", [])
    assert (tmp_path / "q.txt").read_text() == "my notes\n"


@pytest.mark.parametrize("written", ["{root}/b.mp4", "b.mp4", "sub/../b.mp4", "# {root}", "../link/b.mp4"])
def test_a_video_is_found_however_its_path_is_written(root: Path, tmp_path: Path, written: str) -> None:
    (tmp_path / "link").symlink_to(root)
    line = "# paths start from " + str(root) + "\nb.mp4" if written.startswith("#") else written.format(root=root)
    (tmp_path / "q.txt").write_text(f"{line}\tbroken\n\n# a.mp4\n")
    for opened_as in (root, tmp_path / "link"):
        quarantine = Quarantine(tmp_path / "q.txt", root=opened_as if not written.startswith("#") else tmp_path)
        assert paths(quarantine.leave_out(records(opened_as, "a.mp4", "b.mp4", "c.mp4"), "l")) == ["a.mp4", "c.mp4"]


def test_data_that_moved(root: Path, tmp_path: Path) -> None:
    write_quarantine(tmp_path / "q.txt", "/where/it/was", [("b.mp4", "broken")])
    quarantine = Quarantine(tmp_path / "q.txt", root=root)
    assert paths(quarantine.leave_out(records(root, "a.mp4", "b.mp4"), "list")) == ["a.mp4"]


def test_how_many_are_left_out_is_said(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "q.txt").write_text("b.mp4\r\nc.mp4\twhy\r\n")
    quarantine = Quarantine(tmp_path / "q.txt", root=root)
    quarantine.leave_out(records(root, "a.mp4", "b.mp4", "c.mp4"), "train.txt")
    quarantine.warn_of_strangers()
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"train.txt: 2 of its 3 videos are left out, as {tmp_path / 'q.txt'} says"]
    with pytest.raises(UserError, match="all of its 1 videos are in the quarantine list"):
        quarantine.leave_out(records(root, "b.mp4"), "test.txt")


def test_entries_that_name_no_file_are_worth_a_warning(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "q.txt").write_text("a.mp4\nwrong/a.mp4\tbroken\ngone.mp4\tno such file\n")
    Quarantine(tmp_path / "q.txt", root=root).warn_of_strangers()
    (said,) = [record.getMessage() for record in caplog.records]
    assert "1 of its 3 entries name no file, the first 'wrong/a.mp4'" in said


def test_names_can_be_shown() -> None:
    shown = [printable(name) for name in NAMES]
    assert shown[1:3] == ["tab\\there.mp4", "line\\nbreak.mp4"] and shown[5:] == ["caf\\udce9.mp4", "\\u2028.mp4"]
    assert all(name.isprintable() and name.encode() for name in shown)


# ── in the data module ──────────────────────────────────────────────────────────────────────────────────────


CSV = "label,youtube_id,time_start,time_end,split\n"


@pytest.fixture
def data_set(tmp_path: Path, encode: Callable[..., Path], moving: Callable[..., Tensor]) -> Path:
    """The same three videos as class folders, in a list, and in a csv; one of them is in quarantine."""
    names = ["abcdefghij1_000000_000010", "abcdefghij2_000000_000010", "abcdefghij3_000000_000010"]
    for label, name in zip(("sit", "sit", "wave"), names, strict=True):
        encode(tmp_path / "train" / label / f"{name}.mp4", moving(4, 32, 32))
    (tmp_path / "list.txt").write_text(
        "".join(
            f"train/{label}/{name}.mp4,{label}\n" for label, name in zip(("sit", "sit", "wave"), names, strict=True)
        )
    )
    rows = [f"{label},{name[:11]},0,10,train\n" for label, name in zip(("sit", "sit", "wave"), names, strict=True)]
    (tmp_path / "train.csv").write_text(CSV + "".join(rows))
    (tmp_path / "classes.txt").write_text("sit\nwave\n")
    write_quarantine(tmp_path / "quarantine.txt", str(tmp_path), [(f"train/sit/{names[1]}.mp4", "it holds no frames")])
    return tmp_path


@pytest.mark.parametrize("source", ["train", "list.txt", "train.csv", "shards"])
def test_the_data_module_leaves_them_out_of_every_role(
    data_set: Path, source: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "octvideo.data")
    if source == "shards":
        listed = VideoDataModule(str(data_set), train="list.txt").videos("train")
        write_shards(listed, data_set / source, root=data_set, class_names=["sit", "wave"])
    roles = {"train": source, "val": source, "test": source, "predict": source}
    module = VideoDataModule(str(data_set), **roles, quarantine="quarantine.txt", num_workers=0)  # type: ignore[arg-type]
    for stage in ("fit", "test", "predict"):
        module.setup(stage)
    for role in roles:
        names = [Path(record.path).stem[:11] for record in module.records[role]]
        assert names == ["abcdefghij1", "abcdefghij3"]
    said = {record.getMessage() for record in caplog.records}
    assert said == {
        f"{data_set / source}: 1 of its 3 videos are left out, as {data_set / 'quarantine.txt'} says",
    }
    whole = VideoDataModule(str(data_set), train=source, num_workers=0)
    whole.setup("fit")
    assert len(whole.records["train"]) == 3


def test_a_quarantine_list_that_is_not_there(data_set: Path) -> None:
    module = VideoDataModule(str(data_set), train="train", quarantine="none.txt", num_workers=0)
    with pytest.raises(
        UserError, match=r"no data for data.quarantine 'none.txt': .* octvideo check writes such a list"
    ):
        module.setup("fit")
