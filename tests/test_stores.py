"""Files behind addresses: each trouble of a network has its line, and what passes is tried again."""

from __future__ import annotations

import errno
import functools
import io
import operator
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from octvideo import stores
from octvideo.errors import UserError
from octvideo.parts import Part, names_of_part
from octvideo.stores import (
    StoredFile,
    StoreError,
    is_remote,
    joined,
    open_file,
    put_file,
    read_range,
    shown,
    sizes_of,
    staged,
)
from octvideo.stores.requests import tried
from tests.file_server import FileServer, file_server, s3_bucket

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr("octvideo.stores.requests.FIRST_WAIT_SEC", 0.0)
    with file_server() as server:
        server.contents["a.mp4"] = CONTENT
        yield server


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files above 4 kB are large, and come in blocks of 1 kB."""
    monkeypatch.setattr("octvideo.stores.reading.WHOLE_BYTES", 4096)
    monkeypatch.setattr("octvideo.stores.reading.BLOCK_BYTES", 1024)


def test_names() -> None:
    assert [is_remote(name) for name in ("s3://b/a", "HTTPS://h/a", "a/b.mp4", "a:b.mp4", "/x", Path("s3://b/a"))] == [
        *(True, True, False, False, False, False)
    ]
    assert joined("s3://b/k/", "./a b.mp4") == "s3://b/k/a b.mp4" and joined(Path("k"), "a.mp4") == "k/a.mp4"
    assert joined("k", "/x/a.mp4") == "/x/a.mp4" and joined("s3://b", "http://h/a.mp4") == "http://h/a.mp4"
    assert joined("s3://b", "/x/a.mp4") == "/x/a.mp4"
    assert stores.file_name("s3://b/what?.mp4") == "what?.mp4"


@pytest.mark.parametrize(
    "secret",
    [
        "https://me:pw@host/a.mp4",
        "https://host/a.mp4?X-Amz-Credential=AKIA%2F2030&X-Amz-Date=20300101T000000Z&X-Amz-Signature=0badcafe&id=7",
        "https://host/a.mp4?X-Goog-Signature=0badcafe&X-Goog-Date=20300101&id=7",
        "https://host/a.mp4?Expires=1893456000&Signature=0badcafe&Key-Pair-Id=AKIA",
        "https://host/a.mp4?sv=2030&sig=0badcafe",
        "s3://AKIA:pw@bucket/a.mp4",
    ],
)
def test_secrets_are_not_shown(secret: str) -> None:
    words = ("me", ":pw", "AKIA", "0badcafe", "2030010", "1893456000")
    assert not [word for word in words if word in shown(secret)[8:]]
    assert ("id=7" in secret) == ("id=7" in shown(secret))
    assert stores.by_shown([secret, secret]) == {shown(secret): secret}


def test_two_videos_that_differ_in_a_secret_alone_are_not_taken_for_one() -> None:
    names = ["https://host/get?key=a", "https://host/get?key=b"]
    with pytest.raises(UserError, match=r"^https://host/get\?key=\*\*\* is given twice, with other secrets"):
        stores.by_shown(names)


def test_a_command_without_addresses_loads_no_library_of_stores(repo: Path) -> None:
    code = "import sys, octvideo.cli.arguments as _; sys.exit('fsspec' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=repo).returncode == 0


def test_a_small_file_takes_one_request(server: FileServer) -> None:
    assert open_file(server.url("a.mp4")) == CONTENT and len(server.asked) == 1
    server.contents.update({"empty": b"", "a b é%.mp4": b"x"})
    assert open_file(server.url("empty")) == b"" and open_file(server.url("a b é%25.mp4")) == b"x"


def test_a_large_file_comes_block_by_block(server: FileServer, small_blocks: None) -> None:
    file = open_file(server.url("a.mp4"))
    assert isinstance(file, StoredFile) and file.size == len(CONTENT)
    server.asked.clear()
    first, second = file.reader(), file.reader()
    assert first.read(10) == CONTENT[:10] and second.read(1030) == CONTENT[:1030] and first.read(5) == CONTENT[10:15]
    assert [asked.range for asked in server.asked] == ["bytes=0-1023", "bytes=1024-2047"]
    assert (first.seek(-3, io.SEEK_END), first.read(), first.read(1)) == (len(CONTENT) - 3, CONTENT[-3:], b"")
    buffer = bytearray(2000)
    assert (second.seek(500), second.readinto(buffer)) == (500, 2000) and bytes(buffer) == CONTENT[500:2500]
    assert file.reader().read() == CONTENT
    assert file._cache.cache_info().currsize <= 8  # blocks that are held


@pytest.mark.parametrize("way", ["no ranges", "no length"])
@pytest.mark.parametrize("is_large", [False, True])
def test_servers_without_ranges_or_sizes(
    server: FileServer, way: str, is_large: bool, request: pytest.FixtureRequest
) -> None:
    if is_large:
        request.getfixturevalue("small_blocks")
    server.ways["a.mp4"] = way
    file = open_file(server.url("a.mp4"))
    assert isinstance(file, StoredFile) == is_large
    assert (file.reader().read() if isinstance(file, StoredFile) else file) == CONTENT
    assert len(server.asked) == 1
    with pytest.raises(StoreError, match="its server gives no ranges of bytes"):
        read_range(server.url("a.mp4"), 5, 10)


@pytest.mark.parametrize("way", ["", "no ranges", "no length", "endless"])
def test_no_more_is_read_than_may_be(server: FileServer, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server.ways["a.mp4"] = way
    monkeypatch.setenv("OCTVIDEO_REMOTE_LIMIT_GB", "0.000001")
    with pytest.raises(StoreError, match=r"got a file of .*10,?7?3? ?.* \(OCTVIDEO_REMOTE_LIMIT_GB\)|1,073 bytes"):
        open_file(server.url("a.mp4"))
    assert server.num_sent < 50 * 2**20
    monkeypatch.setenv("OCTVIDEO_REMOTE_LIMIT_GB", "-1")
    with pytest.raises(UserError, match="OCTVIDEO_REMOTE_LIMIT_GB: got -1, expected a number above 0"):
        open_file(server.url("a.mp4"))


@pytest.mark.parametrize("fault", ["503", "429", "cut"])
def test_what_may_pass_is_tried_again(server: FileServer, fault: str, caplog: pytest.LogCaptureFixture) -> None:
    server.faults["a.mp4"] = [fault, fault]
    assert open_file(server.url("a.mp4", "me:pw@")) == CONTENT and len(server.asked) == 3
    assert [record.getMessage().partition(": ")[0] for record in caplog.records] == [server.url("a.mp4", "***@")] * 2
    server.faults["a.mp4"] = [fault] * 9
    with pytest.raises(StoreError, match="the connection was cut" if fault == "cut" else fault) as caught:
        read_range(server.url("a.mp4"), 0, 100)
    assert caught.value.may_pass and len(server.asked) == 7
    assert pickle.loads(pickle.dumps(caught.value)).may_pass


def test_a_server_that_says_nothing(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTVIDEO_REMOTE_TIMEOUT", "0.2")
    server.faults["a.mp4"] = ["silent"]
    assert open_file(server.url("a.mp4")) == CONTENT
    server.faults["a.mp4"] = ["silent"] * 4
    with pytest.raises(StoreError, match=r"no answer for 0\.2 s"):
        open_file(server.url("a.mp4"))


def test_what_is_refused_is_not_tried_again(server: FileServer) -> None:
    server.ways["a.mp4"] = "403"
    with pytest.raises(StoreError, match=r"not allowed \(403\)") as refused:
        open_file(server.url("a.mp4"))
    with pytest.raises(StoreError, match="no such file") as missing:
        open_file(server.url("no.mp4"))
    assert (refused.value.may_pass, missing.value.may_pass, missing.value.is_missing) == (False, False, True)
    assert len(server.asked) == 2


def test_a_host_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octvideo.stores.requests.FIRST_WAIT_SEC", 0.0)
    monkeypatch.setenv("OCTVIDEO_REMOTE_TRIES", "2")
    with file_server() as gone:
        pass
    with pytest.raises(StoreError, match=r"Connect call failed|Cannot connect") as caught:
        open_file(gone.url("a.mp4", "me:pw@"))
    assert caught.value.may_pass and "pw" not in str(caught.value)


def test_a_file_that_changes_while_it_is_read(server: FileServer, small_blocks: None) -> None:
    file = open_file(server.url("a.mp4"))
    assert isinstance(file, StoredFile)
    assert file.reader().read(10) == CONTENT[:10]
    server.contents["a.mp4"] += b"more"
    reader = file.reader()
    reader.seek(5000)
    with pytest.raises(StoreError, match=r"it changed while it was read: it had 10,240 bytes, and has 10,244"):
        reader.read(10)
    reader.seek(0)
    with pytest.raises(StoreError, match="it changed"):  # for good: no reader may take a gap for an end
        reader.read(1)


def test_stores_that_there_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^nosuch://x/a: got nosuch://, expected https://, s3:// or gs://"):
        open_file("nosuch://x/a")
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as where it is not installed
    with pytest.raises(stores.StoreSetupError, match=r"^gs:// needs a library .*pip install 'octvideo\[gcs\]'"):
        stores.videos_at("gs://bucket/a.mp4")


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("capped", r"its server sends 1,000 of the 10,240 bytes that it was asked for"),
        ("later", r"its server sends other bytes than it was asked for"),
        ("nameless", r"its server sends other bytes than it was asked for, or does not say which"),
        ("416", r"the server answers 416"),
        ("redirects", r"its server redirects without end"),
    ],
)
def test_wrong_answers_are_no_files(server: FileServer, way: str, said: str) -> None:
    """A video that lacks its end would have other frames, and nobody would know."""
    server.ways["a.mp4"] = way
    for read in (open_file, functools.partial(read_range, start=0, stop=len(CONTENT))):
        with pytest.raises(StoreError, match=said) as caught:
            read(server.url("a.mp4"))
        assert not caught.value.may_pass


def test_a_disk_without_room_for_a_temporary_file_may_have_it_later() -> None:
    def request() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("octvideo.stores.requests.FIRST_WAIT_SEC", 0.0)
        with pytest.raises(StoreError, match="No space left on device") as caught:
            tried("http://host/a.mp4", request)
    assert caught.value.may_pass


def test_sizes_and_parts(server: FileServer) -> None:
    names = []
    for number in range(20):
        server.contents[f"{number}.mp4"] = b"x" * (100 + 7 * number)
        names.append(server.url(f"{number}.mp4"))
    server.ways["3.mp4"] = "no length"
    sizes = sizes_of([*names, server.url("gone.mp4")])
    assert sizes[:3] == [100, 107, 114] and sizes[3] is None and sizes[-1] is None
    parts = [names_of_part(names, Part(number, 3)) for number in (1, 2, 3)]
    assert sorted(functools.reduce(operator.iadd, parts, [])) == sorted(names) and max(map(len, parts)) <= 7
    server.faults["5.mp4"] = ["503"] * 99
    with pytest.raises(UserError, match=r"no size of http://.*/5\.mp4: .*503"):  # or machines would part otherwise
        names_of_part(names, Part(1, 3))


def test_http_has_listings_where_its_server_gives_pages(server: FileServer) -> None:
    with pytest.raises(UserError, match=r"can't list http://.*/folder/: no such file"):
        stores.videos_at(server.url("folder/"))
    server.contents["folder/"] = b"<a href='b10.mp4'>b10</a> <a href='b2.mp4'>b</a> <a href='notes.txt'>n</a>"
    server.contents |= {"folder/b10.mp4": b"", "folder/b2.mp4": b"", "folder/notes.txt": b""}
    assert stores.videos_at(server.url("folder/")) == [server.url("folder/b2.mp4"), server.url("folder/b10.mp4")]
    assert stores.videos_at(server.url("any?id=5")) == [server.url("any?id=5")]


def test_pages_that_lead_around_end(server: FileServer) -> None:
    for depth in range(20):
        server.contents["a/" * depth] = server.contents["/".join("a" * depth)] = (
            b"<a href='a/'>a</a> <a href='b.mp4'>b</a>"
        )
    with pytest.raises(UserError, match=r"folders are more than 12 deep, or its links lead around, as to http.*/a/a/"):
        stores.videos_at(server.url(""))
    assert max(asked.name.count("/") for asked in server.asked) < 16


def test_threads_share_nothing_that_breaks(server: FileServer) -> None:
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(lambda n: open_file(server.url("a.mp4")), range(40))) == {CONTENT}


def test_a_bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("octvideo.stores.requests.FIRST_WAIT_SEC", 0.0)
    monkeypatch.setenv("OCTVIDEO_REMOTE_TRIES", "2")
    with s3_bucket(monkeypatch) as bucket:
        for name in ("k/b10.mp4", "k/b2.mp4", "k/sub/a.webm", "k/.hidden.mp4", "k/notes.txt", "other/x.mp4"):
            bucket.pipe_file(f"bucket/{name}", name.encode())
        videos = ["s3://bucket/k/b2.mp4", "s3://bucket/k/b10.mp4", "s3://bucket/k/sub/a.webm"]
        assert stores.videos_at("s3://bucket/k/") == stores.videos_at("s3://bucket/k") == videos
        assert stores.videos_at(videos[0]) == [videos[0]] and open_file(videos[0]) == b"k/b2.mp4"
        assert read_range(videos[0], 2, 5) == b"b2."
        assert sizes_of([*videos, "s3://bucket/no.mp4"]) == [8, 9, 12, None]
        monkeypatch.setattr("octvideo.stores.folders._LISTED_FROM", 2)
        assert sizes_of([*videos, "s3://bucket/k/no.mp4"]) == [8, 9, 12, None]
        with pytest.raises(StoreError, match=r"^no such file$"):
            open_file("s3://bucket/no.mp4")
        with pytest.raises(UserError, match="no video below s3://bucket/none/: looked for"):
            stores.videos_at("s3://bucket/none/")
        (tmp_path / "file").write_bytes(b"new")
        put_file(tmp_path / "file", "s3://bucket/out/file")
        assert bucket.cat_file("bucket/out/file") == b"new"
        with pytest.raises(
            UserError, match=r"^https://\*\*\*@h/x: nothing can be written there; expected a path, s3://"
        ):
            put_file(tmp_path / "file", "https://me:pw@h/x")
        with pytest.raises(StoreError, match="no such file"):
            put_file(tmp_path / "file", "s3://nobucket/file")


def test_what_is_on_its_way_does_not_stay_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("octvideo.stores.copies.cache_folder", lambda: tmp_path)
    left, used = tmp_path / "outputs/staged-gone/whole.mp4", tmp_path / "outputs/staged-used/whole.mp4"
    for file in (left, used):
        file.parent.mkdir(parents=True)
        file.touch()
    with s3_bucket(monkeypatch) as bucket, FileLock(used.with_name(".lock")):
        with staged("s3://bucket/a/b.mp4") as file:
            assert not left.parent.exists() and used.exists()
            file.write_bytes(b"b")
            assert not bucket.exists("bucket/a/b.mp4")
        assert bucket.cat_file("bucket/a/b.mp4") == b"b" and not file.parent.exists()
        with pytest.raises(ValueError, match=r"^x$"), staged("s3://bucket/a/c.mp4") as file:
            file.write_bytes(b"half")
            raise ValueError("x")
        assert not bucket.exists("bucket/a/c.mp4") and not file.parent.exists() and used.exists()
