"""The driver of `octvideo infer --on ray` alone: the command itself on a list of so many names, with a stand-in for Ray
whose processes answer at once.

Each command runs in a process of its own. Seconds are of its CPU, so that others on the machine change them little.
Memory is its peak, less what it had after its imports.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import pickle
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lab.benchmark.processes import resident
from octvideo.cli import main as octvideo
from octvideo.cli.arguments import Parser, positive
from octvideo.cli.ending import command
from octvideo.cli.tables import print_table
from octvideo.errors import UserError
from octvideo.inference.predictor import Prediction
from octvideo.progress import Progress

_DESCRIPTION = """Time and memory of the driver of `octvideo infer --on ray`, without a cluster.

  tools/simulate_driver.py --names 1000000 10000000 --computed 100000000 --markdown

Names are read, parted (--part 1/16), given to processes that answer at once, and their results written; then the same
command goes on with all of them done. Seconds are of the CPU: waiting for disks is not in them, nor what Ray takes."""
_STRIDE = 2**31 - 1  # a prime: names are in no order
_IN_A_FOLDER = 1000
_TOP = [("playing guitar", 0.8123456789), ("playing bass guitar", 0.1), ("tapping guitar", 0.05), ("singing", 0.02)]
_TOP = [*_TOP, ("strumming guitar", 0.0123456789)]
_HOW = ["--engine", "eager", "--precision", "f32", "--on", "ray"]


class StandIn:
    """In place of the module `ray`: one node, whose processes answer at once. Answers are pickled, as Ray's are.

    Args:
        processes: that the node has room for.
        is_stopped: Ctrl-C comes when the driver would begin.
    """

    def __init__(self, processes: int, *, is_stopped: bool) -> None:
        kinds = ("RayActorError", "ActorUnschedulableError", "RayTaskError")
        self.exceptions = SimpleNamespace(**{name: type(name, (Exception,), {}) for name in kinds})
        self.util = SimpleNamespace(
            scheduling_strategies=SimpleNamespace(NodeAffinitySchedulingStrategy=lambda node, soft: node)
        )
        self._node: dict[str, Any] = {
            "Alive": True,
            "NodeID": "1",
            "NodeManagerHostname": "here",
            "Resources": {"CPU": processes},
        }
        self._is_stopped = is_stopped
        self.connected_at = (0.0, 0)  # when, and the most memory until then

    def init(self, **_: Any) -> None:
        """The list is read, and its part chosen."""
        self.connected_at = (time.process_time(), resident("VmHWM"))
        if self._is_stopped:
            raise KeyboardInterrupt

    def shutdown(self) -> None:
        """Nothing runs."""

    def nodes(self) -> list[dict[str, Any]]:
        """The one."""
        return [self._node]

    def cluster_resources(self) -> dict[str, float]:
        """Those of the one."""
        found: dict[str, float] = self._node["Resources"]
        return found

    def remote(self, _: type) -> Any:
        """An actor's class, as the pool uses it."""
        made_by = {"weights": "w", "engine": "eager", "precision": "f32"}
        about = {"made_by": made_by, "views": "10x3", "has_own_views": True, "said": ()}

        def start(*_: Any) -> Any:
            work = SimpleNamespace(remote=lambda videos: iter([_answers(videos)]))
            return SimpleNamespace(
                begin=SimpleNamespace(remote=lambda: pickle.dumps(about)),
                work=SimpleNamespace(options=lambda **_: work),
            )

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=start))

    def get(self, answer: bytes) -> Any:
        """What an actor has answered."""
        return pickle.loads(answer)

    def wait(self, answers: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        """All are there."""
        return answers, []

    def kill(self, _: Any) -> None:
        """Nothing runs."""


def _answers(videos: Sequence[str]) -> bytes:
    return pickle.dumps([Prediction(video, _TOP) for video in videos])


def run_driver(words: Sequence[str], processes: int, is_stopped: bool) -> dict[str, float]:
    """Runs `octvideo infer` in this process, with a stand-in for Ray.

    Returns:
        Seconds of the CPU and peak bytes: when the list was read and parted ("begun", "begun_bytes"), and at the end
        ("ended", "ended_bytes").

    Raises:
        UserError: it has failed.
    """
    ray = StandIn(processes, is_stopped=is_stopped)
    sys.modules["ray"] = ray  # type: ignore[assignment]
    said, before, started = io.StringIO(), resident("VmRSS"), time.process_time()
    with contextlib.redirect_stderr(said):
        code = octvideo(["infer", *words, *_HOW])
    if code != (130 if is_stopped else 0):
        raise UserError(f"exit code {code} of octvideo infer {' '.join(words)}: {said.getvalue()[-1000:]}")
    begun, bytes_then = ray.connected_at
    return {
        "begun": begun - started,
        "begun_bytes": bytes_then - before,
        "ended": time.process_time() - started,
        "ended_bytes": resident("VmHWM") - before,
    }


def _in_fresh_process(words: Sequence[str], processes: int, *, is_stopped: bool = False) -> dict[str, float]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        try:
            return fresh.submit(run_driver, words, processes, is_stopped).result()
        except BrokenProcessPool as error:
            raise UserError(f"octvideo infer {' '.join(words)} was killed: give fewer --names") from error


def names_of(count: int, folder: str = "/data/videos/train") -> Iterator[str]:
    """So many names of videos, in no order."""
    for n in range(count):
        number = n * _STRIDE % count
        yield f"{folder}/class {number // _IN_A_FOLDER:06d}/video {number:09d}_000010.mp4"


def make_files(folder: Path, count: int) -> None:
    """Makes the files of `names_of`, of many sizes, and without content."""
    for number in range(0, count, _IN_A_FOLDER):
        (folder / f"class {number // _IN_A_FOLDER:06d}").mkdir(parents=True)
    draw = random.Random(1)
    for name in names_of(count, str(folder)):
        with open(name, "wb") as file:  # noqa: PTH123 (a Path for each of 1,000,000 names is slow)
            file.truncate(int(draw.lognormvariate(14, 1)))


def measure(count: int, folder: Path, args: Any) -> dict[str, float]:
    """A row: seconds of the CPU and bytes by column, for those that are measured.

    Args:
        count: of names.
        folder: for files; it is empty.
        args: of the program.
    """
    names, out, row = folder / "names.txt", str(folder / "results.jsonl"), dict[str, float]()
    videos = str(folder / "videos")
    make_files(Path(videos), count if args.files else 1)  # of a list one name must be there
    with names.open("w", encoding="utf-8") as file:
        file.writelines(f"{name}\n" for name in names_of(count, videos))
    given, part = f"@{names}", ["--part", "1/16", "--output", out]
    for column, words in {"read": [given, "--output", out], "part": [given, *part]}.items():
        found = _in_fresh_process(words, args.processes, is_stopped=True)
        row |= {column: found["begun"], f"{column}_bytes": found["begun_bytes"]}
    if args.files:
        found = _in_fresh_process([videos, *part], args.processes, is_stopped=True)
        row |= {"folder": found["begun"], "folder_bytes": found["begun_bytes"]}
    if count <= args.results:
        for column in ("write", "resume"):
            found = _in_fresh_process([given, "--output", out], args.processes)
            row |= {column: found["ended"] - found["begun"], f"{column}_bytes": found["ended_bytes"]}
    return row


def table(rows: dict[int, dict[str, float]], *, computed: Sequence[int] = ()) -> tuple[list[str], list[list[str]]]:
    """Header and cells. What was not measured comes from the longest list where it was, and is marked by ≈.

    Args:
        rows: what was measured, by the number of names.
        computed: numbers of names for which nothing was.
    """
    columns = [name for name in _COLUMNS if any(name in row for row in rows.values())]
    cells = []
    for count in sorted({*rows, *computed}):
        line = [f"{count:,}"]
        for name in columns:
            longest = max(number for number, row in rows.items() if name in row)
            value = rows.get(count, {}).get(name)
            mark, value = ("", value) if value is not None else ("≈ ", rows[longest][name] * count / longest)
            line.append(mark + (f"{value / 1e9:.2f}" if name.endswith("_bytes") else f"{value:.1f}"))
        cells.append(line)
    return ["names", *(_COLUMNS[name] for name in columns)], cells


_COLUMNS = {
    "read": "list read, s",
    "read_bytes": "GB",
    "part": "read and parted, s",
    "part_bytes": "GB",
    "folder": "folder listed and parted, s",
    "folder_bytes": "GB",
    "write": "results written, s",
    "write_bytes": "GB",
    "resume": "all found done, s",
    "resume_bytes": "GB",
}


@command()
def main(argv: Sequence[str]) -> int:
    """Returns 0."""
    parser = Parser(description=_DESCRIPTION)
    parser.add_argument("--names", nargs="+", type=positive, default=[1_000_000], metavar="N", help="of a list (10^6)")
    parser.add_argument(
        "--results", type=positive, default=1_000_000, metavar="N", help="write those of lists up to so many (10^6)"
    )
    parser.add_argument(
        "--computed", nargs="+", type=positive, default=[], metavar="N", help="longer lists, computed from the longest"
    )
    parser.add_argument("--processes", type=positive, default=100, metavar="N", help="of the cluster (100)")
    parser.add_argument("--files", action="store_true", help="make that many files too, and list their folder")
    parser.add_argument("--folder", type=Path, metavar="FOLDER", help="for files meanwhile (the system's)")
    parser.shared("markdown")
    args = parser.parse_args(argv)
    rows = {}
    with Progress("measuring", len(args.names)) as progress:
        for count in args.names:
            progress.update(said=f"{count:,} names")
            with tempfile.TemporaryDirectory(dir=args.folder) as folder:
                rows[count] = measure(count, Path(folder), args)
            progress.advance()
    print_table(*table(rows, computed=args.computed), as_markdown=args.markdown)
    return 0
