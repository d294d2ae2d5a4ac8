"""Archives from a server on this machine that breaks connections, ignores ranges and answers with errors."""

from __future__ import annotations

import errno
import hashlib
import io
import re
import socket
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from octvideo import download
from octvideo.cli import main
from octvideo.data.preparation.archives import Archive, listed_archives
from octvideo.data.preparation.fetching import Downloads, UnpackingError, read_checksums, unpack
from octvideo.errors import UserError


def tar_gz(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return content.getvalue()


NOISE = b"".join(hashlib.sha256(bytes([n % 256, n // 256])).digest() for n in range(2000))  # 64 kB that stay 64 kB
PARTS = [
    tar_gz({f"./-video{n}_000001_000011.mp4": NOISE[n:], f"./video{n}b_000001_000011.mp4": b"b"}) for n in range(3)
]


class Server(ThreadingHTTPServer):
    """Serves `files`; `plans` says what goes wrong with the first requests of a path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.plans: dict[
            str, list[Any]
        ] = {}  # int < 100: send so many kB and break; int >= 400: that answer; "whole", "held"
        self.half, self.go_on = threading.Event(), threading.Event()  # of "held"
        self.asked: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked, content = self.headers["Range"], self.server.files.get(self.path)
        self.server.asked.append((self.path, asked))
        plan = self.server.plans.get(self.path, [])
        what = plan.pop(0) if plan else None
        if content is None or (isinstance(what, int) and what >= 400):
            self.send_error(404 if content is None else what)
            return
        etag, first = f'"{hashlib.md5(content).hexdigest()}"', 0
        if asked and what != "whole" and self.headers["If-Range"] == etag:
            first = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])  # type: ignore[index]
        if first >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(content) - first))
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", etag)
        self.end_headers()
        if what == "held":
            self.wfile.write(content[first : first + 5000])
            self.server.half.set()
            self.server.go_on.wait()
            self.wfile.write(content[first + 5000 :])
        else:
            self.wfile.write(content[first : first + 1000 * what] if isinstance(what, int) else content[first:])

    def version_string(self) -> str:
        return "AmazonS3"

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def kinetics(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Kinetics-400's archive in small: three parts of train, lists, replacements."""
    monkeypatch.setattr(download, "_LONGEST_WAIT_SEC", 0.01)
    names = [f"/400/train/part {n}.tar.gz".replace(" 0", "_0") for n in range(3)]  # two with a space
    for name, content in zip(names, PARTS, strict=True):
        server.files[name.replace(" ", "%20")] = content
    addresses = "\n".join(f"https://s3.amazonaws.com/kinetics{name}" for name in names)
    server.files["/400/train/k400_train_path.txt"] = f"{addresses}\n\n".encode()
    for split in ("train", "val", "test"):
        server.files[f"/400/annotations/{split}.csv"] = b"label,youtube_id,time_start,time_end,split\n"
    good = tar_gz({"replacement_for_corrupted_k400/-video0_000001_000011.mp4": b"good"})
    server.files["/400/replacement_for_corrupted_k400.tgz"] = good
    return server


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waits that a run would have made."""
    waited: list[float] = []
    monkeypatch.setattr(download.time, "sleep", waited.append)
    return waited


def run(server: Server, root: Path, *words: str) -> int:
    return main(["prepare", "download", "kinetics400", str(root), "--mirror", server.url, "--num_workers", "2", *words])


def tree(root: Path) -> list[str]:
    return sorted(
        str(file.relative_to(root)) for file in root.rglob("*") if file.is_file() and "archives" not in file.parts
    )


# ── one file ────────────────────────────────────────────────────────────────────────────────────────────────


def get(server: Server, part: Path, **settings: Any) -> tuple[str, list[str]]:
    said: list[str] = []
    return download.fetch(f"{server.url}/a.bin", part, retrying=said.append, **settings), said


def test_waits_grow_and_are_said(server: Server, tmp_path: Path, waits: list[float]) -> None:
    server.files["/a.bin"], server.plans["/a.bin"] = NOISE, [503, 10, 500, 20]
    md5, said = get(server, tmp_path / "a", attempts=6, first_wait_sec=1)
    assert (tmp_path / "a").read_bytes() == NOISE
    assert md5 == hashlib.md5(NOISE).hexdigest()
    assert [asked for _, asked in server.asked] == [None, None, "bytes=10000-", "bytes=10000-", "bytes=30000-"]
    assert waits == [1, 2, 4, 8]
    assert said[0] == f"{server.url}/a.bin: 503 Service Unavailable; try 2 of 6 in 1 s"
    assert said[1] == f"{server.url}/a.bin: the connection broke after 10000 of 64000 bytes; try 3 of 6 in 2 s"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a"]


def test_tries_that_bring_something_are_not_counted(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_BLOCK", 5_000)
    server.files["/a.bin"], server.plans["/a.bin"] = NOISE, [6] * 9
    get(server, tmp_path / "a", attempts=2)
    assert len(server.asked) == 10 and (tmp_path / "a").read_bytes() == NOISE


@pytest.mark.parametrize(("code", "tries"), [(404, 1), (403, 1), (500, 3), (429, 3)])
def test_it_gives_up(server: Server, tmp_path: Path, code: int, tries: int) -> None:
    server.files["/a.bin"], server.plans["/a.bin"] = NOISE, [code] * 9
    with pytest.raises(OSError, match=str(code)):
        get(server, tmp_path / "a", attempts=3)
    assert len(server.asked) == tries


def test_a_later_process_goes_on(server: Server, tmp_path: Path) -> None:
    server.files["/a.bin"], server.plans["/a.bin"] = NOISE, [10]
    with pytest.raises(OSError, match="the connection broke after 10000 of 64000 bytes"):
        get(server, tmp_path / "a", attempts=1, keep=True)
    get(server, tmp_path / "a", keep=True)
    assert (tmp_path / "a").read_bytes() == NOISE and server.asked[-1][1] == "bytes=10000-"


@pytest.mark.parametrize("how", ["another version", "no ranges", "nothing known of it"])
def test_a_rest_of_something_else_is_not_appended(server: Server, tmp_path: Path, how: str) -> None:
    server.files["/a.bin"], server.plans["/a.bin"] = NOISE, [10]
    with pytest.raises(OSError, match="the connection broke"):
        get(server, tmp_path / "a", attempts=1, keep=True)
    expected = NOISE
    if how == "another version":
        expected = server.files["/a.bin"] = NOISE[::-1]
    elif how == "no ranges":
        server.plans["/a.bin"] = ["whole"]
    else:
        (tmp_path / "a.version").unlink()
    get(server, tmp_path / "a", keep=True)
    assert (tmp_path / "a").read_bytes() == expected


@pytest.mark.parametrize("size", [0, 5])
def test_what_was_whole_or_too_long_already(server: Server, tmp_path: Path, size: int) -> None:
    """A run that was killed between the last byte and the rename; and a part longer than the file."""
    server.files["/a.bin"] = NOISE
    (tmp_path / "a").write_bytes(NOISE + bytes(size))
    (tmp_path / "a.version").write_text(f'"{hashlib.md5(NOISE).hexdigest()}"')
    get(server, tmp_path / "a", keep=True)
    assert (tmp_path / "a").read_bytes() == NOISE
    assert len(server.asked) == (1 if size == 0 else 2)


# ── a data set ──────────────────────────────────────────────────────────────────────────────────────────────

VIDEOS = sorted(f"train/{name}_000001_000011.mp4" for n in range(3) for name in (f"-video{n}", f"video{n}b"))


def test_a_data_set(kinetics: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kinetics.plans = {"/400/train/part_0.tar.gz": [30, 503], "/400/train/part%202.tar.gz": ["whole"]}
    splits = ("--splits", "train", "annotations", "replacement")
    assert run(kinetics, tmp_path / "k", *splits) == 0
    good = "replacement/replacement_for_corrupted_k400/-video0_000001_000011.mp4"
    tables = [f"annotations/{split}.csv" for split in ("test", "train", "val")]
    assert tree(tmp_path / "k") == [*tables, good, *VIDEOS]
    assert (tmp_path / "k" / VIDEOS[1]).read_bytes() == NOISE[1:]
    said = capsys.readouterr().out
    assert "7 files downloaded; 7 videos and lists unpacked" in said
    assert said.rstrip().endswith(f"octvideo prepare list kinetics400 {tmp_path / 'k'}")
    kinetics.asked.clear()
    assert run(kinetics, tmp_path / "k", *splits) == 0
    assert [path for path, _ in kinetics.asked] == ["/400/train/k400_train_path.txt"]
    assert "7 files of kinetics400 (train, annotations, replacement), 7 are here" in capsys.readouterr().out


def test_a_run_that_is_stopped_ends_soon_and_keeps_what_came(
    kinetics: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_BLOCK", 1000)
    kinetics.plans["/400/train/part%201.tar.gz"] = ["held"]
    downloads = Downloads(tmp_path)
    archives = [Archive(f"{kinetics.url}/400/train/part{name}.tar.gz", "train") for name in ("_0", "%201")]
    running = downloads.run(archives, workers=2, progress=lambda *_: None, said=print)
    assert next(running).archive == archives[0]
    assert kinetics.half.wait(60)  # the other has begun
    threading.Thread(target=lambda: downloads._stop.wait() and kinetics.go_on.set(), daemon=True).start()
    running.close()  # as an exception in the loop over it does
    (part,) = (tmp_path / "archives/train").glob("*.part")
    assert part.stat().st_size < len(kinetics.files["/400/train/part%201.tar.gz"])
    (arrived,) = downloads.run(archives[1:], workers=1, progress=lambda *_: None, said=print)
    assert arrived.problem == "" and arrived.unpacked is not None


def test_a_dry_run_only_says(kinetics: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(kinetics, tmp_path, "--splits", "train", "--dry_run") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1] == f"{kinetics.url}/400/train/part_0.tar.gz -> {tmp_path}/archives/train/part_0.tar.gz"
    assert said[2] == f"{kinetics.url}/400/train/part%201.tar.gz -> {tmp_path}/archives/train/part 1.tar.gz"
    assert len(said) == 4 and tree(tmp_path) == []


@pytest.mark.parametrize(("words", "tries"), [(["--dry_run"], 1), ([], 3), (["--attempts", "2"], 2)])
def test_without_a_connection(
    server: Server,
    tmp_path: Path,
    waits: list[float],
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    tries: int,
) -> None:
    """A list is asked for a few times, and for a look once: not for two minutes."""
    url = f"http://127.0.0.1:{free_port()}"
    asked = f"{url}/400/train/k400_train_path.txt"
    assert (
        main(["prepare", "download", "kinetics400", str(tmp_path), "--mirror", url, "--splits", "train", *words]) == 2
    )
    said = capsys.readouterr()
    refused = f"[Errno {errno.ECONNREFUSED}] Connection refused"
    assert said.err == f"error: the list of archives {asked} can't be downloaded ({refused}): check the connection\n"
    assert waits == [1.0, 2.0][: tries - 1] and len(said.out.splitlines()) == tries - 1


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def test_one_archive_that_fails_does_not_stop_the_others(
    kinetics: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kinetics.plans["/400/train/part%201.tar.gz"] = [20, 403]
    assert run(kinetics, tmp_path, "--splits", "train") == 1
    said = capsys.readouterr().out
    assert f"failed: {kinetics.url}/400/train/part%201.tar.gz: 403 Forbidden" in said and "1 of 3 failed" in said
    assert len(tree(tmp_path)) == 4
    kinetics.asked.clear()
    assert run(kinetics, tmp_path, "--splits", "train", "--remove_archives") == 0
    assert kinetics.asked[1:] == [("/400/train/part%201.tar.gz", "bytes=20000-")]
    assert tree(tmp_path) == VIDEOS and not (tmp_path / "archives/train/part 1.tar.gz").exists()


@pytest.mark.parametrize("where", ["the user's", "the server's"])
def test_a_damaged_archive_is_not_kept(
    kinetics: Server, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sums = tmp_path / "sums.txt"
    sums.write_text(f"{hashlib.sha256(PARTS[0]).hexdigest()}  train/part_0.tar.gz\n{'0' * 64} *part 1.tar.gz\n")
    words = ["--checksums", str(sums)] if where == "the user's" else []
    if not words:
        monkeypatch.setattr(download, "_published_md5", lambda headers: hashlib.md5(PARTS[0]).hexdigest())
    assert run(kinetics, tmp_path / "k", "--splits", "train", *words) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("failed")]
    assert len(failed) == (1 if words else 2) and all("damaged: its " in line for line in failed)
    assert not list((tmp_path / "k").rglob("part 1.tar.gz*"))


def test_what_can_not_be_had(kinetics: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(kinetics, tmp_path) == 2  # val has no list here
    assert "k400_val_path.txt can't be downloaded (404 Not Found)" in capsys.readouterr().err
    for words, message in (
        (["ssv2", "x"], "needs an account"),
        (["k400", "x"], "no archives of 'k400' are known"),
        (["ucf101", "x", "--splits", "val"], "no part 'val': there are train, annotations"),
        (["ucf101", "x", "--num_workers", "0"], "expected 1 or more"),
        (["ucf101", "x", "--checksums", "none.txt"], "can't read none.txt: No such file"),
    ):
        assert main(["prepare", "download", *words]) == 2
        assert message in capsys.readouterr().err


def test_lists_of_addresses() -> None:
    (archive,) = listed_archives("\nhttps://a.org/k/hugging (not baby).tar.gz \n", "train")
    assert archive == Archive("https://a.org/k/hugging%20%28not%20baby%29.tar.gz", "train")
    assert archive.name == "hugging (not baby).tar.gz"
    for text in ("<html>", "file:///etc/passwd", "part_0.tar.gz"):
        with pytest.raises(UserError, match="expected an address"):
            list(listed_archives(text, "train"))


def test_two_archives_of_one_name(kinetics: Server, tmp_path: Path) -> None:
    kinetics.files["/400/train/k400_train_path.txt"] = b"https://a.org/1/a.tar.gz\nhttps://a.org/2/a.tar.gz\n"
    assert run(kinetics, tmp_path, "--splits", "train") == 2


def test_a_list_of_checksums_with_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "sums").write_text("# these\nabc  a.tar.gz\n")
    with pytest.raises(UserError, match=r"sums:2: got 'abc  a\.tar\.gz', expected 'checksum  name'"):
        read_checksums(tmp_path / "sums")


# ── unpacking ───────────────────────────────────────────────────────────────────────────────────────────────


def add_link(tar: tarfile.TarFile, kind: bytes, target: str) -> None:
    info = tarfile.TarInfo("link")
    info.type, info.linkname = kind, target
    tar.addfile(info)


@pytest.mark.parametrize(
    "name", ["../out.mp4", "/tmp/octvideo_out.mp4", "a/../../out.mp4", "C:/out.mp4", "a\\..\\out.mp4"]
)
def test_names_that_lead_out(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.tar.gz").write_bytes(tar_gz({"ok.mp4": b"1", name: b"2"}))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as opened:
        info = zipfile.ZipInfo("x")
        info.filename = name
        opened.writestr(info, b"2")
    for archive in ("a.tar.gz", "a.zip"):
        with pytest.raises(UnpackingError, match="leads out of the folder"):
            unpack(tmp_path / archive, tmp_path / "in")
    assert tree(tmp_path / "in") == ["ok.mp4"] and not list(tmp_path.glob("*.mp4"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add_link(tar, kind, "/etc/passwd")
    with pytest.raises(UnpackingError, match="'link' is a link or a device"):
        unpack(tmp_path / "a.tar", tmp_path / "in")
    assert tree(tmp_path / "in") == []


def test_a_link_that_was_there_is_not_followed_out(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "a.tar.gz").write_bytes(tar_gz({"a/x.mp4": b"1"}))
    with pytest.raises(UnpackingError, match="leads out of"):
        unpack(tmp_path / "a.tar.gz", tmp_path / "in")
    assert tree(tmp_path / "elsewhere") == []


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(tar_gz({"x.mp4": b"archive", "y.mp4": b"archive", "z.mp4": b"archive"}))
    (tmp_path / "in").mkdir()
    (tmp_path / "in/x.mp4").write_bytes(b"mine")
    (tmp_path / "in/y.mp4").write_bytes(b"1234567")
    unpacked = unpack(tmp_path / "a.tar.gz", tmp_path / "in")
    assert unpacked == {"written": 1, "kept": 2, "differing": 1}
    assert (tmp_path / "in/x.mp4").read_bytes() == b"mine" and (tmp_path / "in/z.mp4").read_bytes() == b"archive"


@pytest.mark.parametrize(
    "cut", [lambda content: content[:40_000], lambda content: content[:30_000] + bytes(9000) + content[39_000:]]
)
def test_a_damaged_archive_leaves_no_half_file(tmp_path: Path, cut: Callable[[bytes], bytes]) -> None:
    (tmp_path / "a.tar.gz").write_bytes(cut(PARTS[0]))
    with pytest.raises(UnpackingError, match=r"can't be unpacked|is damaged"):
        unpack(tmp_path / "a.tar.gz", tmp_path / "in")
    assert tree(tmp_path / "in") == []


def test_another_run_at_the_same_time_is_refused(kinetics: Server, tmp_path: Path) -> None:
    from filelock import FileLock

    (tmp_path / "archives").mkdir()
    with FileLock(tmp_path / "archives/.download.lock"), pytest.raises(UserError, match="another download into"):
        list(Downloads(tmp_path).run([], workers=1, progress=lambda *_: None, said=print))
