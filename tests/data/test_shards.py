"""Archives of videos give what the files give: same items, same order; written in one go or in several."""

from __future__ import annotations

import errno
import functools
import http.server
import json
import re
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from octvideo.batches import Failure
from octvideo.data.augment import Augmentation
from octvideo.data.datamodule import VideoDataModule
from octvideo.data.dataset import Item, TrainingClips
from octvideo.data.records import VideoRecord
from octvideo.data.shard_joining import join_shards
from octvideo.data.shard_writer import index_shards, write_shards
from octvideo.data.shards import check_archives, read_shards, source_of
from octvideo.errors import UserError
from octvideo.parts import Part
from octvideo.video import VideoBytes, VideoReadError

CLASSES = ("wave", "clap", "jump")
Write = Callable[..., Any]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, encode: Callable[..., Path], moving: Callable[..., Tensor]) -> Path:
    """Seven videos of about 4 kB in class folders; one name is no text, one has dots and spaces."""
    folder = tmp_path_factory.mktemp("videos")
    names = ["a b.c.mp4", "caf\udce9.mp4", "c.mkv", "d.mp4", "e.mp4", "f.mp4", "g.mp4"]
    for number, name in enumerate(names):
        encode(folder / CLASSES[number % 3] / name, moving(20, 48, 64 + 2 * number))
    return folder


@pytest.fixture
def records(root: Path) -> list[VideoRecord]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return [VideoRecord(str(path), CLASSES.index(path.parent.name)) for path in files]


@pytest.fixture
def write(records: list[VideoRecord], root: Path, tmp_path: Path) -> Write:
    def run(out: str = "shards", **options: Any) -> Any:
        settings = {"root": root, "class_names": CLASSES, "shard_bytes": 12_000} | options
        return write_shards(settings.pop("records", records), tmp_path / out, **settings)

    return run


def items(records: Any) -> list[Item]:
    clips = TrainingClips(
        records, Augmentation(crop_px=32, short_side_px=(32, 40)), clip_frames=4, frame_stride=2, decoder="pyav"
    )
    return [clips[(3, index)] for index in range(len(records))]  # type: ignore[misc]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_full_disk_is_named_and_keeps_no_half_of_an_archive(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "addfile", full)
        with pytest.raises(OSError, match="No space left") as raised:
            write()
    assert raised.value.filename == str(tmp_path / "shards" / "shard-000000.tar")
    assert not list((tmp_path / "shards").glob("*.part")) and write().written == 7


@pytest.mark.parametrize("shuffle", [None, 5])
def test_items_are_those_of_the_files(
    write: Write, records: list[VideoRecord], tmp_path: Path, root: Path, shuffle: int | None
) -> None:
    report = write(shuffle=shuffle)
    assert (report.written, report.kept, report.left_out) == (7, 0, [])
    assert report.num_shards == len(list((tmp_path / "shards").glob("*.tar"))) >= 3
    shards = read_shards(str(tmp_path / "shards"))
    assert [f"{root}/{record.path}" for record in shards] == [record.path for record in records]
    assert list(shards[1:3]) == [shards[1], shards[2]] and shards[-1] == shards[6]
    for ours, theirs in zip(items(shards), items(records), strict=True):
        assert torch.equal(ours.video, theirs.video) and (ours.label, ours.index) == (theirs.label, theirs.index)


def test_webdatasets_own_reader_reads_them(write: Write, records: list[VideoRecord], tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="the reference reader is in the dev extra")
    write()
    urls = sorted(str(path) for path in (tmp_path / "shards").glob("*.tar"))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"{n:09d}" for n in range(7)]
    for sample, record in zip(samples, records, strict=True):
        file = Path(record.path)
        assert sample[file.suffix[1:]] == file.read_bytes()
        assert int(sample["cls"]) == record.label
        assert json.loads(sample["json"])["name"] == f"{file.parent.name}/{file.name}"


def test_archives_of_webdatasets_own_writer_are_indexed(records: list[VideoRecord], tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="the reference writer is in the dev extra")
    readable = [record for record in records if Path(record.path).suffix == ".mp4"]
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    for shard, label in (("a", "cls"), ("b", "json")):
        with webdataset.TarWriter(str(tmp_path / f"{shard}.tar")) as tar:
            for number, record in enumerate(readable):
                name = CLASSES[record.label]
                described = {"cls": name} if label == "cls" else {"json": {"label": name, "fps": 20}}
                tar.write({"__key__": f"{shard}/{number:04d}", "mp4": Path(record.path).read_bytes(), **described})
    assert index_shards(tmp_path) == 2 * len(readable)
    shards = read_shards(str(tmp_path))
    assert [record.label for record in shards] == 2 * [record.label for record in readable]
    for ours, theirs in zip(shards, 2 * readable, strict=True):
        source = source_of(ours)
        assert isinstance(source, VideoBytes) and source.content == Path(theirs.path).read_bytes()
    with pytest.raises(UserError, match=r"index\.jsonl is there"):
        index_shards(tmp_path)


def test_a_label_that_is_no_class_is_named(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="the reference writer is in the dev extra")
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as tar:
        tar.write({"__key__": "0001", "mp4": b"x", "cls": "wawe"})
    with pytest.raises(UserError, match=r"a\.tar:0001\.cls: the label is a name, 'wawe': .*classes\.txt is missing"):
        index_shards(tmp_path)
    (tmp_path / "classes.txt").write_text("sit\nwave\n")
    with pytest.raises(UserError, match=r"a\.tar:0001\.cls: 'wawe' is no known class, did you mean 'wave'"):
        index_shards(tmp_path)


def test_numbers_in_cls_are_ids_or_names_of_all(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="the reference writer is in the dev extra")

    def indexed(*described: dict[str, Any]) -> list[int]:
        (tmp_path / "index.jsonl").unlink(missing_ok=True)
        with webdataset.TarWriter(str(tmp_path / "a.tar")) as tar:
            for number, content in enumerate(described):
                tar.write({"__key__": f"{number:04d}", "mp4": b"x", **content})
        index_shards(tmp_path)
        return [record.label for record in read_shards(str(tmp_path), labelled=False)]

    (tmp_path / "classes.txt").write_text("1\n2\n3\n")
    assert indexed({"cls": "1"}, {"cls": "3"}) == [0, 2]
    assert indexed({"cls": "1"}, {"cls": "0"}) == [1, 0]
    with pytest.raises(
        UserError, match=r"a\.tar:0000\.cls: the label 1 is the class called '1' \(id 0\) if it is a name"
    ):
        indexed({"cls": "1"}, {"cls": "2"})
    # JSON tells numbers from text.
    assert indexed({"json": {"label": 1}}, {"json": {"label": "1"}}, {"cls": "2", "json": {"label": 1}}) == [1, 0, 1]
    with pytest.raises(UserError, match=r"a\.tar:0000\.json: label 7, expected 0 to 2 \(ids start at 0\)"):
        indexed({"json": {"label": 7}})


@pytest.mark.parametrize("stop", range(1, 8))
def test_a_stopped_run_goes_on_to_the_same_bytes(write: Write, tmp_path: Path, stop: int) -> None:
    write("whole", shuffle=1)
    calls = iter(range(1, 100))

    def interrupt() -> None:
        if next(calls) == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write("stopped", shuffle=1, advance=interrupt)
    with pytest.raises(UserError, match=r"are not complete: run the command that writes them once more|no index"):
        read_shards(str(tmp_path / "stopped"))
    report = write("stopped", shuffle=1)
    assert report.written + report.kept == 7
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def several(records: list[VideoRecord]) -> list[VideoRecord]:
    """Each second video has all other classes besides."""
    others = [tuple(n for n in range(len(CLASSES)) if n != record.label) for record in records]
    return [replace(record, others=others[n] if n % 2 else ()) for n, record in enumerate(records)]


def labels_of(videos: Iterable[VideoRecord]) -> list[tuple[int, ...]]:
    return [(record.label, *record.others) for record in videos]


def test_several_labels_are_kept(write: Write, records: list[VideoRecord], root: Path, tmp_path: Path) -> None:
    videos = several(records)
    calls = iter(range(1, 100))

    def interrupt() -> None:
        if next(calls) == 5:
            raise KeyboardInterrupt

    write("whole", records=videos)
    with pytest.raises(KeyboardInterrupt):
        write("stopped", records=videos, advance=interrupt)
    write("stopped", records=videos)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")
    there = read_shards(str(tmp_path / "whole"))
    assert labels_of(there) == labels_of(videos) and there.has_several
    # Parts that are joined, and archives whose index is lost, have them too.
    parts = [tmp_path / "parts" / str(number) for number in (1, 2)]
    for number in (1, 2):
        write(f"parts/{number}", records=videos, part=Part(number, 2))
    join_shards(parts, tmp_path / "parts")
    assert labels_of(read_shards(str(tmp_path / "parts"))) == labels_of(videos)
    (tmp_path / "whole" / "index.jsonl").unlink()
    index_shards(tmp_path / "whole")
    assert labels_of(read_shards(str(tmp_path / "whole"))) == labels_of(videos)
    with tarfile.open(tmp_path / "whole" / "shard-000000.tar") as archive:
        names = archive.getnames()
        described = json.loads(archive.extractfile("000000001.json").read())  # type: ignore[union-attr]
    assert not [name for name in names if name.endswith(".cls")] and described["labels"] == list(labels_of(videos)[1])
    # A stopped command that goes on with other labels would mix them.
    with pytest.raises(UserError, match=r"labels of .* were \[\d, \d, \d\], now \[\d, \d\]"):
        write("stopped", records=[replace(record, others=record.others[:1]) for record in videos])
    with pytest.raises(UserError, match=r"labels of .* were \[\d, \d, \d\], now \[\d\]"):
        write("stopped")
    write("one")
    with pytest.raises(UserError, match="several_labels was None, now True"):
        write("one", records=videos)
    # As in lists, a loss for one label does not take them; ids are checked, whatever place they have.
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    for classes, takes, message in (
        (CLASSES, False, "holds videos with several labels, which are for model.loss bce"),
        (CLASSES[:2], True, "has the label 2, expected 0 to 1"),
    ):
        (tmp_path / "stopped" / "classes.txt").unlink(missing_ok=True)
        (tmp_path / "classes.txt").write_text("\n".join(classes))
        data = VideoDataModule(
            str(tmp_path), train=str(tmp_path / "stopped"), classes=str(tmp_path / "classes.txt"), several_labels=takes
        )
        with pytest.raises(UserError, match=message):
            data.videos("train")


def test_an_index_that_a_kill_cut_is_mended(write: Write, tmp_path: Path) -> None:
    write("whole")
    write("cut")
    index = tmp_path / "cut" / "index.jsonl"
    text = index.read_bytes()
    line = text.rstrip().rindex(b"\n") + 1
    for length in (len(text) - 5, line, 10, 0):  # within a line, between two of an archive, within the first, empty
        index.write_bytes(text[:length])
        write("cut")
        assert contents(tmp_path / "cut") == contents(tmp_path / "whole"), length


def test_what_cannot_be_read_is_left_out_named_and_tried_again(
    write: Write, records: list[VideoRecord], tmp_path: Path, root: Path
) -> None:
    late = VideoRecord(str(tmp_path / "late.mp4"), 0)
    report = write(records=[*records, late])
    assert report.left_out == [(str(tmp_path / "late.mp4"), "No such file or directory")]
    assert (tmp_path / "shards" / "left_out.tsv").read_text().endswith("late.mp4\tNo such file or directory\n")
    assert len(read_shards(str(tmp_path / "shards"))) == 7
    (tmp_path / "late.mp4").write_bytes(Path(records[0].path).read_bytes())
    report = write(records=[*records, late])
    assert (report.written, report.kept, report.left_out) == (1, 7, [])
    assert (tmp_path / "shards" / "left_out.tsv").read_text() == ""
    assert read_shards(str(tmp_path / "shards"))[7].path == str(tmp_path / "late.mp4")


def test_other_videos_or_settings_are_refused(write: Write, records: list[VideoRecord], tmp_path: Path) -> None:
    write()
    before = contents(tmp_path / "shards")
    for options, difference in (
        ({"shuffle": 1}, "shuffle was None, now 1"),
        ({"class_names": ("a", "b", "c")}, "classes was ['wave'"),
        ({"records": records[:-1]}, "videos was 7, now 6"),
        ({"records": records[::-1]}, "video 0 there is"),
    ):
        with pytest.raises(UserError, match="holds shards of other videos or settings") as error:
            write(**options)
        assert difference in str(error.value)
    assert contents(tmp_path / "shards") == before
    assert len(read_shards(str(tmp_path / "shards"))) == 7
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("mine")
    with pytest.raises(UserError, match="is there and holds no shards"):
        write("mine")


def test_archives_that_are_not_as_the_index_says(write: Write, tmp_path: Path) -> None:
    write()
    shards, archive = read_shards(str(tmp_path / "shards")), tmp_path / "shards" / "shard-000001.tar"
    check_archives(shards)
    content = archive.read_bytes()
    archive.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"shard-000001\.tar has \d+ bytes, its index says \d+: copy it again"):
        check_archives(shards)
    reasons = [item.reason for item in items(shards) if isinstance(item, Failure)]
    assert reasons and all(re.search(r"shard-000001\.tar holds only \d+ of its \d+ bytes", r) for r in reasons)
    archive.unlink()
    with pytest.raises(UserError, match=r"no shard at .*shard-000001\.tar"):
        check_archives(shards)
    index = tmp_path / "shards" / "index.jsonl"
    index.write_text(index.read_text() + '{"index": 9}\n')
    with pytest.raises(UserError, match=r"index\.jsonl:8: got '\{\"index\": 9\}', expected JSON with index, name"):
        read_shards(str(tmp_path / "shards"))


# ── an object store ─────────────────────────────────────────────────────────────────────────────────────────


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Serves files with ranges, as object stores do; the first request for each path of `fails` is refused."""

    fails: ClassVar[set[str]] = set()
    asked: ClassVar[list[str]] = []

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.asked.append(f"{self.path} {self.headers.get('Range')}")
        if self.path in self.fails:
            self.fails.discard(self.path)
            self.send_error(503)
            return
        path, wanted = Path(self.translate_path(self.path)), self.headers.get("Range")
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        if wanted is None:
            self.send_response(200)
        else:
            first, last = (int(n) for n in wanted.removeprefix("bytes=").split("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            content = content[first : last + 1]
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """Address of tmp_path."""
    Ranges.fails, Ranges.asked = set(), []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Ranges, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_shards_behind_an_address(
    write: Write, records: list[VideoRecord], served: str, caplog: pytest.LogCaptureFixture
) -> None:
    write()
    shards = read_shards(f"{served}/shards")
    check_archives(shards)
    Ranges.fails = {"/shards/shard-000001.tar"}
    Ranges.asked.clear()
    for ours, theirs in zip(items(shards), items(records), strict=True):
        assert torch.equal(ours.video, theirs.video)
    assert len(Ranges.asked) == 8 and all(" bytes=" in request for request in Ranges.asked)  # one each, and one again
    assert ["503 Service Unavailable; try 2 of 4" in record.getMessage() for record in caplog.records] == [True]


def test_workers_read_from_an_address(write: Write, records: list[VideoRecord], served: str) -> None:
    """The parent has read the index: its connections, and the thread behind them, stay out of the children."""
    write()
    shards = read_shards(f"{served}/shards")
    clips = TrainingClips(shards, Augmentation(crop_px=32, short_side_px=(32, 40)), clip_frames=4, frame_stride=2)
    keys = [(3, index) for index in range(7)]
    loaded = list(DataLoader(clips, sampler=keys, batch_size=None, num_workers=2, timeout=60))  # type: ignore[arg-type]
    assert all(torch.equal(a.video, b.video) for a, b in zip(loaded, items(records), strict=True))


def test_what_an_address_lacks_is_said(write: Write, served: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no index\.jsonl at http://.*/shards: expected a folder of shards"):
        read_shards(f"{served}/shards")
    write()
    shards = read_shards(f"{served}/shards")
    (tmp_path / "shards" / "shard-000000.tar").unlink()
    with pytest.raises(UserError, match=r"no shard at http://"):
        check_archives(shards)
    with pytest.raises(VideoReadError, match=r"no access to http://.*shard-000000\.tar"):
        source_of(shards[0])
    with pytest.raises(UserError, match=r"nosuch://place/shards\.json: got nosuch://, expected https://"):
        read_shards("nosuch://place")


def test_another_store(write: Write, records: list[VideoRecord], tmp_path: Path) -> None:
    write()
    store = fsspec.filesystem("memory")
    store.put(str(tmp_path / "shards") + "/", "/bucket/shards/", recursive=True)
    shards = read_shards("memory://bucket/shards")
    check_archives(shards)
    assert all(torch.equal(a.video, b.video) for a, b in zip(items(shards), items(records), strict=True))
