"""A folder of videos re-encoded into another one, many at once, each in a process that may crash.

A video is done when its file has its name, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from octvideo.data.preparation import encoding
from octvideo.data.preparation.encoding import Encoded, EncodingSettings, part_of
from octvideo.errors import UserError
from octvideo.files import walk_videos

SETTINGS_FILE, FAILED_FILE, DAMAGED_FILE = "reencode.json", "reencode_failed.txt", "reencode_damaged.txt"


@dataclass(frozen=True)
class Outcome:
    """What became of one video.

    Args:
        path: relative to the source folder.
        encoded: None where it failed.
        reason: of the failure.
    """

    path: str
    encoded: Encoded | None
    reason: str = ""


@dataclass
class Summary:
    """What became of all of them."""

    done: int = 0
    there: int = 0
    failed: int = 0
    damaged: int = 0
    source_bytes: int = 0
    bytes: int = 0


def reencode(
    source: Path,
    out: Path,
    settings: EncodingSettings,
    *,
    workers: int,
    timeout_sec: float,
    progress: Callable[[int, int, Summary], None],
) -> Summary:
    """Re-encodes every video under `source` to the same name under `out`, with the suffix .mp4.

    Written beside the videos: reencode.json (the settings), reencode_failed.txt and reencode_damaged.txt
    (path, tab, reason).

    Args:
        source: folder of videos; nothing in it is touched.
        out: folder to write, neither in `source` nor around it.
        settings: how.
        workers: videos at once.
        timeout_sec: longest time for one video.
        progress: is told videos done, videos in all, and the summary so far.

    Raises:
        UserError: the folders overlap, `out` holds videos of other settings, or another run writes to it.
    """
    _check_folders(source, out)
    videos = list(walk_videos(source))
    if not videos:
        raise UserError(f"{source} holds no videos")
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / ".reencode.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"another reencode writes to {out}: wait for it, or choose another folder") from None
    try:
        _claim(out, settings)
        return _run(source, out, settings, videos, workers, timeout_sec, progress)
    finally:
        lock.release()


def _run(
    source: Path,
    out: Path,
    settings: EncodingSettings,
    videos: list[str],
    workers: int,
    timeout_sec: float,
    progress: Callable[[int, int, Summary], None],
) -> Summary:
    summary = Summary()
    outcomes: queue.Queue[Outcome | BaseException | None] = queue.Queue(maxsize=1000)
    jobs, taking, stop = _jobs(source, out, videos, summary, outcomes), threading.Lock(), threading.Event()

    def work() -> None:
        try:
            with Encoder(timeout_sec) as encoder:
                while not stop.is_set():
                    with taking:
                        job = next(jobs, None)
                    if job is None:
                        break
                    path, target = job
                    outcomes.put(encoder.run(source, path, target, settings))
        except BaseException as error:
            outcomes.put(error)
        finally:
            outcomes.put(None)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    running = workers
    # What failed is tried again by each run; damaged videos are done, and stay named.
    with (
        (out / FAILED_FILE).open("w", errors="surrogateescape") as failed,
        (out / DAMAGED_FILE).open("a", errors="surrogateescape") as damaged,
    ):
        try:
            while running:
                outcome = outcomes.get()
                if outcome is None:
                    running -= 1
                elif isinstance(outcome, BaseException):
                    raise outcome
                else:
                    _count(outcome, summary, failed, damaged)
                progress(summary.done + summary.failed + summary.there, len(videos), summary)
        finally:
            stop.set()
            Encoder.end_all()
    return summary


def _count(outcome: Outcome, summary: Summary, failed, damaged) -> None:  # type: ignore[no-untyped-def]
    if outcome.encoded is None:
        summary.failed += 1
        print(f"{outcome.path}\t{outcome.reason}", file=failed, flush=True)
        return
    summary.done += 1
    summary.source_bytes += outcome.encoded.source_bytes
    summary.bytes += outcome.encoded.bytes
    if outcome.encoded.damage:
        summary.damaged += 1
        print(f"{outcome.path}\t{outcome.encoded.frames} frames; {outcome.encoded.damage}", file=damaged, flush=True)


def _jobs(
    source: Path, out: Path, videos: list[str], summary: Summary, outcomes: queue.Queue[Outcome | BaseException | None]
) -> Iterator[tuple[str, Path]]:
    """Videos that are still to do, with their targets; others are counted."""
    folder, taken = "", dict[str, str]()  # targets in one folder
    inside = source.resolve()
    for path in videos:
        head, _, name = path.rpartition(os.sep)
        target = out / head / f"{name.rpartition('.')[0]}.mp4"
        if head != folder or not taken:
            folder, taken = head, {}
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.parent.resolve().is_relative_to(inside):
                raise UserError(f"{target.parent} is a link into {source}, which is not written to")
        if target.name in taken:
            outcomes.put(Outcome(path, None, f"{taken[target.name]} has the same name without suffix"))
            continue
        taken[target.name] = name
        if target.exists():
            summary.there += 1
        else:
            yield path, target


class Encoder:
    """A process that encodes videos one by one, replaced when one of them kills it.

    Args:
        timeout_sec: longest time for one video.
    """

    _all: set[subprocess.Popen[str]] = set()  # noqa: RUF012 (of all threads, to end them with the run)

    def __init__(self, timeout_sec: float) -> None:
        self._timeout_sec = timeout_sec
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Encoder:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    @classmethod
    def end_all(cls) -> None:
        """Kills what runs; half-written files have another name than whole ones."""
        for process in list(cls._all):
            process.kill()

    def run(self, source: Path, path: str, target: Path, settings: EncodingSettings) -> Outcome:
        """Encodes one video."""
        process = self._started()
        assert process.stdin is not None and process.stdout is not None
        # Names of files may be any bytes.
        names = {"source": os.fsencode(source / path).hex(), "target": os.fsencode(target).hex()}
        late = threading.Timer(self._timeout_sec, process.kill)
        late.start()
        try:
            process.stdin.write(json.dumps({**names, "settings": asdict(settings)}) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            in_time = late.is_alive()
            late.cancel()
        if not answer:
            code = process.wait()
            self._end()
            part_of(target).unlink(missing_ok=True)
            crashed = f"the encoding process crashed ({f'signal {-code}' if code < 0 else f'exit code {code}'})"
            return Outcome(path, None, crashed if in_time else f"not done after {self._timeout_sec:g} s")
        result = json.loads(answer)
        return Outcome(path, None, result["error"]) if "error" in result else Outcome(path, Encoded(**result))

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            # A session of its own: Ctrl-C is for this process, which then ends that one.
            self._process = subprocess.Popen(
                [sys.executable, encoding.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )
            self._all.add(self._process)
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._all.discard(self._process)
            self._process = None


def _check_folders(source: Path, out: Path) -> None:
    if not source.is_dir():
        raise UserError(f"no folder {source}")
    here, there = source.resolve(), out.resolve()
    if there.is_relative_to(here) or here.is_relative_to(there):
        raise UserError(
            f"the folders overlap ({source} and {out}): give a folder beside the source, which stays as it is"
        )


def _claim(out: Path, settings: EncodingSettings) -> None:
    """One folder holds videos of one kind."""
    file = out / SETTINGS_FILE
    wanted = asdict(settings)
    if file.exists():
        held = json.loads(file.read_text())
        if held != wanted:
            differing = ", ".join(
                f"{key} {held.get(key)}, not {wanted[key]}" for key in wanted if held.get(key) != wanted[key]
            )
            raise UserError(f"{out} holds videos of other settings ({differing}): choose another folder")
    elif next(walk_videos(out), None) is not None:
        raise UserError(f"{out} holds videos that this tool did not write: choose another folder")
    file.write_text(json.dumps(wanted, indent=2) + "\n")
