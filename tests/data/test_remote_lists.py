"""Lists behind addresses, and lists of videos there: read without a look at each video."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from octvideo.data.checking import select
from octvideo.data.datamodule import VideoDataModule
from octvideo.data.records import VideoList, VideoRecord
from octvideo.errors import UserError
from tests.file_server import FileServer, file_server

LIST = "a/1.mp4 0\na/2.mp4,clap\n{other} 1\n# a remark\n/on/a/disk.mp4 1\n"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr("octvideo.stores.requests.FIRST_WAIT_SEC", 0.0)
    with file_server() as server:
        server.contents["data/classes.txt"] = b"wave\nclap\n"
        server.contents["data/train.txt"] = LIST.format(other=server.url("3.mp4?sig=secret")).encode()
        server.contents["data/a/1.mp4"] = b"x"
        yield server


def test_two_videos_that_look_alike_are_not_checked_as_one() -> None:
    same = "https://host/get?id=1"
    selection = select([same, same, "https://host/get?id=2"])
    assert selection.names == [same, "https://host/get?id=2"] and selection.num_twice == 1
    with pytest.raises(UserError, match=r"^https://host/get\?key=\*\*\* is given twice, with other secrets"):
        select(["https://host/get?key=a", "https://host/get?key=b"])


def test_a_root_behind_an_address(server: FileServer, caplog: pytest.LogCaptureFixture) -> None:
    server.contents["data/bad.txt"] = f"a/2.mp4\trotten\n{server.url('3.mp4?sig=another')}\tgone\n".encode()
    data = VideoDataModule(server.url("data/"), train="train.txt")
    assert data.class_names == ["wave", "clap"]
    expected = [(server.url("data/a/1.mp4"), 0), (server.url("data/a/2.mp4"), 1), (server.url("3.mp4?sig=secret"), 1)]
    assert [(record.path, record.label) for record in data.videos("train")] == [*expected, ("/on/a/disk.mp4", 1)]
    assert len([asked for asked in server.asked if asked.name.endswith(".mp4")]) <= 3  # looked for, of any number
    with caplog.at_level(logging.WARNING):
        kept = VideoDataModule(server.url("data"), train="train.txt", quarantine="bad.txt").videos("train")
    assert [record.path for record in kept] == [expected[0][0], "/on/a/disk.mp4"]
    assert "name no file" not in caplog.text  # addresses are not looked up


def test_a_list_here_of_videos_there(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(f'path,label\n{server.url("data/a/1.mp4")},wave\n"a, b.mp4",clap\n')
    (tmp_path / "classes.txt").write_text("wave\nclap\n")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.mp4").write_bytes(b"x")
    data = VideoDataModule(str(tmp_path), train="train.csv", test=server.url("data/train.txt"))
    assert [record.path for record in data.videos("train")] == [server.url("data/a/1.mp4"), str(tmp_path / "a, b.mp4")]
    assert data.videos("test")[0].path == str(tmp_path / "a" / "1.mp4")  # paths start from data.root


def test_what_cannot_be_read_is_told_before_work(server: FileServer, tmp_path: Path) -> None:
    server.contents["data/lost.txt"] = b"".join(b"gone/%d.mp4 0\n" % n for n in range(1000))
    server.contents["data/rotten.txt"] = b"a/1.mp4 2\n"
    address = server.url("data", "me:pw@")
    shown = server.url("data", r"\*\*\*@")
    server.asked.clear()
    with pytest.raises(
        UserError, match=rf"none of the videos of {shown}/lost\.txt is there: looked for \d of its 1000"
    ):
        VideoDataModule(address, train="lost.txt").videos("train")
    assert len(server.asked) < 12
    with pytest.raises(UserError, match=rf"{shown}/rotten\.txt:1: "):
        VideoDataModule(address, train="rotten.txt").videos("train")
    with pytest.raises(
        UserError, match=rf"no data for data\.train 'no\.txt': looked for {shown}/no\.txt and .*/no\.txt"
    ):
        VideoDataModule(address, train="no.txt").videos("train")
    with pytest.raises(UserError, match=rf"no index\.jsonl at {shown}/a: expected a folder of shards, .* or a list"):
        VideoDataModule(address, train=server.url("data/a", "me:pw@")).videos("train")
    with pytest.raises(UserError, match=r"data\.frame_names is for folders on this machine"):
        VideoDataModule(address, train="train.txt", frame_names="{:05d}.jpg").videos("train")
    server.ways["data/train.txt"] = "503"
    with pytest.raises(UserError, match=rf"can't reach {shown}/train\.txt: the server answers 503"):
        VideoDataModule(address, train="train.txt").videos("train")


def test_a_digest_does_not_change_with_signatures() -> None:
    lists = [VideoList([VideoRecord(f"s3://b/a.mp4?X-Amz-Signature={n}", 0), VideoRecord("b.mp4", 1)]) for n in (1, 2)]
    assert lists[0].digest("s3://b") != VideoList([VideoRecord("b.mp4", 1)]).digest("s3://b")
    assert all(lists[0].digest(root) == lists[1].digest(root) for root in ("data", "s3://b"))
