"""The part of `octvideo timeline` for streams and cameras, which have no end: lines as they come, and a last one."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from datetime import datetime, time, timedelta, timezone
from types import FrameType
from typing import Any, TextIO

from octvideo.cli.arguments import Parser, above_zero
from octvideo.cli.segment_file import SegmentFile
from octvideo.errors import UserError
from octvideo.inference.live import LiveCounts, LiveWindow, live_windows
from octvideo.inference.live_segments import LiveSegments
from octvideo.inference.segment_files import segments_csv
from octvideo.inference.segments import Segment, SegmentSettings
from octvideo.inference.timeline import Timeline
from octvideo.inference.window_lines import TopClasses
from octvideo.json_lines import JsonLines, Words
from octvideo.progress import Progress
from octvideo.stores import shown
from octvideo.video import FileFrames, LiveFrames, VideoReadError
from octvideo.video.addresses import has_no_end, is_address, is_live, open_address

_RESULTS = "octvideo timeline, live 1"
_WORDS = Words("file of window scores of a stream", "another model, or of other settings", "name another file")
_STOPPED = "stopped: all windows and segments until now are written"
_SIGTERM = 143  # what a shell says of a program that ended by it


class _Terminated(KeyboardInterrupt):
    """SIGTERM."""


def live_arguments(parser: Parser) -> None:
    """Options for streams, cameras, and files on the net."""
    group = parser.add_argument_group(
        "streams (rtsp://, http://, rtmp://, srt://, udp://) and cameras (camera, camera:1, /dev/video0)"
    )
    add = group.add_argument
    add("--live", action="store_true", default=None, help="an http:// address is a stream (it has no duration or size)")
    add("--no_live", dest="live", action="store_false", help="it is a file, to be read from front to back")
    add("--for", dest="for_sec", type=above_zero, metavar="S", help="end so many seconds after the first frame")
    add("--until", type=_moment, metavar="TIME", help="end at 18:30, or 2030-12-31T18:30, in local time")
    add("--transport", choices=("tcp", "udp"), default="tcp", help="of RTSP (tcp)")
    parser.shared("timeout", group=group, default=10.0, help="a connection is cut that gives nothing for so long (10)")
    add("--reconnect_max", type=above_zero, default=30.0, metavar="S", help="longest wait between attempts (30)")
    add("--give_up_after", type=above_zero, default=300.0, metavar="S", help="end when cut for so long (300)")


def live_source(args: argparse.Namespace, videos: Sequence[str]) -> str | None:
    """The stream or camera among the videos, if it is one; looks into files on the net to see that they are.

    Raises:
        UserError: there are other videos beside it.
        VideoReadError: the one video there is can't be opened.
    """
    for name in filter(is_address, videos):
        if _has_no_end(args, name, is_alone=len(videos) == 1):
            if len(videos) > 1:
                raise UserError(
                    f"{shown(name)} has no end: give a command of its own to it (--no_live if it is a file)"
                )
            return name
    return None


def _has_no_end(args: argparse.Namespace, name: str, *, is_alone: bool) -> bool:
    if has_no_end(name):
        return True
    if args.live is not None:
        return bool(args.live)
    try:
        with contextlib.closing(open_address(name, timeout_sec=args.timeout)) as container:
            return is_live(name, container)
    except VideoReadError:
        if is_alone:
            raise
        return False  # told when its turn has come


def address_frames(args: argparse.Namespace, name: str, short_side_px: int) -> FileFrames:
    """The frames of a file on the net.

    Raises:
        VideoReadError: see `FileFrames`.
    """
    container = open_address(name, timeout_sec=args.timeout, as_file_sec=args.give_up_after)
    return FileFrames(shown(name), short_side_px, container=container)


def score_live(
    args: argparse.Namespace,
    name: str,
    timeline: Timeline,
    names: Sequence[str],
    settings: SegmentSettings,
    made_by: dict[str, Any],
    files: Sequence[SegmentFile],
) -> int:
    """Scores a stream until it is over; returns 0, 1 where it was cut for good, 143 after SIGTERM.

    Raises:
        VideoReadError: it can't be read.
        KeyboardInterrupt: after Ctrl-C, when everything is written.
    """
    counts, segments = LiveCounts(), LiveSegments(settings, len(names))
    until = None if args.until is None else args.until.timestamp()
    ended = ""
    with (
        _Output(args, shown(name), names, settings, made_by, files) as output,
        _sigterm_raises(),
        Progress("scoring") as progress,
    ):
        progress.begin(f"scoring {shown(name)}, windows")
        live = LiveFrames(
            name,
            timeline.views.short_side_px,
            transport=args.transport,
            timeout_sec=args.timeout,
            longest_wait_sec=args.reconnect_max,
            give_up_sec=args.give_up_after,
            for_sec=args.for_sec,
            until_wall=until,
            keep_sec=max(10.0, 2 * (args.window or 0.0)),
            say=progress.print,
        )
        try:
            with live, contextlib.closing(live_windows(timeline, live, counts)) as windows:
                for window in windows:
                    scores, span = window.scores.scores, (window.scores.start_sec, window.scores.end_sec)
                    output.add_window(window)
                    for segment in segments.add(*span, scores.numpy(), after_gap=window.begins):
                        with progress.hidden() if sys.stdout.isatty() else contextlib.nullcontext():
                            output.add_segment(segment)
                    said = f"latency {window.latency_sec:.2f} s, {counts.skipped} skipped"
                    progress.update(counts.windows, said=said)
            ended = str(live.error or "")
        except KeyboardInterrupt as error:
            ended = "stopped"
            if isinstance(error, _Terminated):
                print(_STOPPED, file=sys.stderr)
                return _SIGTERM
            raise KeyboardInterrupt(_STOPPED) from None
        except Exception as error:
            ended = str(error)
            raise
        finally:
            for segment in segments.close():
                output.add_segment(segment)
            output.end(counts, live, ended)
    if live.error is not None:
        print(f"error: {live.error}", file=sys.stderr)
    return 0 if live.error is None else 1


class _Output:
    """What is printed and written of a stream.

    Raises:
        UserError: a file that can't be written so.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        path: str,
        names: Sequence[str],
        settings: SegmentSettings,
        made_by: dict[str, Any],
        files: Sequence[SegmentFile],
    ) -> None:
        self._path, self._names = path, names
        self._top = TopClasses(names, args.topk, settings.classes)
        self._first_wall: float | None = None  # of time 0
        # A table grows line by line. All else is written at the end, and needs all segments.
        self._tables: list[TextIO] = []
        self._files = [file for file in files if not file.is_table]
        self._segments: list[Segment] = []
        self._lines = None if args.output is None else JsonLines(args.output, {"results": _RESULTS, **made_by}, _WORDS)
        for file in files:
            if file.is_table:
                self._tables.append(file.path.open("w", encoding="utf-8", newline=""))
        self._write(segments_csv({}, names))
        self._add({"started": in_utc(datetime.now(timezone.utc).timestamp())})

    def __enter__(self) -> _Output:
        print(self._path, flush=True)
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._tables:
            file.close()
        if self._lines is not None:
            self._lines.close()

    def add_window(self, window: LiveWindow) -> None:
        """Writes its line."""
        scores = window.scores
        self._first_wall = window.wall - scores.start_sec
        self._add(
            {
                "start": round(scores.start_sec, 6),
                "end": round(scores.end_sec, 6),
                "at": in_utc(window.wall),
                "latency_sec": round(window.latency_sec, 3),
                "skipped": window.num_skipped,
                "after_gap": window.begins,
                "top": self._top.listed(self._top.of(scores.scores)),
            }
        )

    def add_segment(self, segment: Segment) -> None:
        """Prints and writes one that is over."""
        name, at = self._names[segment.class_index], in_utc((self._first_wall or 0.0) + segment.start_sec)
        seconds = segment.end_sec - segment.start_sec
        print(f"  {at}  {seconds:7.1f} s  {100 * segment.score:5.1f} %  {name}", flush=True)
        self._write(segments_csv({self._path: [segment]}, self._names).split("\r\n", 1)[1])
        if self._files:
            self._segments.append(segment)
        times = {"start": round(segment.start_sec, 3), "end": round(segment.end_sec, 3), "at": at}
        self._add({"segment": {**times, "class": name, "score": round(segment.score, 6)}})

    def end(self, counts: LiveCounts, live: LiveFrames, trouble: str) -> None:
        """Says what has become of it, and writes the files that wait for it."""
        mean = counts.latency_sum / counts.windows if counts.windows else None
        self._add(
            {
                "ended": in_utc(live.watch.wall()),
                "windows": counts.windows,
                "skipped": counts.skipped,
                "frames": live.num_frames,
                "dropped": live.queue.num_dropped,
                "disconnects": live.num_disconnects,
                "latency_sec": None if mean is None else round(mean, 3),
                "longest_latency_sec": round(counts.latency_most, 3),
                "trouble": trouble,
            }
        )
        if live.num_frames:
            print(counts.in_words(live), file=sys.stderr)
        segments = sorted(self._segments, key=lambda one: (one.start_sec, one.class_index))
        for file in self._files:
            file.add(self._path, segments, self._names)
            file.write({self._path: segments}, self._names)

    def _add(self, entry: dict[str, Any]) -> None:
        if self._lines is not None:
            self._lines.add({"path": self._path, **entry})

    def _write(self, text: str) -> None:
        for file in self._tables:
            file.write(text)
            file.flush()


def in_utc(wall: float) -> str:
    """2030-12-31T18:30:00.250Z, of seconds since 1970."""
    return datetime.fromtimestamp(wall, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _moment(text: str) -> datetime:
    """A time of day, the next one, or a date with it."""
    now = datetime.now().astimezone()
    try:
        with contextlib.suppress(ValueError):
            moment = datetime.combine(now, time.fromisoformat(text)).astimezone()
            return moment if moment > now else moment + timedelta(days=1)
        moment = datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone()
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text}, expected 18:30 or 2030-12-31T18:30") from None
    if moment <= now:
        raise argparse.ArgumentTypeError(f"got {text}, which has been")
    return moment


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Lets SIGTERM end a program as Ctrl-C does."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():  # where no signal comes
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
