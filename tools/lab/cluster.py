"""The throughput of `octvideo infer` by Ray on this machine, beside that of the plain command on the same cores.

Commands are run as users run them, in turns. A command's rate is counted in its file of results, from the first line to
the last, so that starting and ending are not in it; they are told apart.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.arms.runs import last_lines
from lab.timing import rounds_of
from octvideo.cli.arguments import Parser, positive
from octvideo.cli.ending import command
from octvideo.cli.tables import print_table
from octvideo.data.workers import available_cpus
from octvideo.errors import UserError
from octvideo.progress import Progress

_DESCRIPTION = """The throughput of `octvideo infer --on ray` on this machine, beside the plain command's.

  tools/benchmark_cluster.py @names.txt --ckpt demo --rounds 3

Give some hundred videos: a run should take longer than Ray's start. Leave the machine alone meanwhile."""
_PLAIN = "plain"
_LOOK_S = 0.05


@dataclass(frozen=True)
class Course:
    """How a command went.

    Args:
        first_s: from its start to the first result.
        last_s: to the last one.
        whole_s: to its end.
        between: results after the first one seen.
    """

    first_s: float
    last_s: float
    whole_s: float
    between: int

    @property
    def rate(self) -> float:
        """Results a second, between the first and the last."""
        return self.between / (self.last_s - self.first_s)


def course_of(seen: Sequence[tuple[float, int]], whole_s: float) -> Course:
    """A course from what was seen of its file.

    Args:
        seen: seconds since the start, and results in the file by then, whenever there were more.
        whole_s: seconds to the end.

    Raises:
        UserError: there were too few to tell a rate.
    """
    if len(seen) < 2:
        raise UserError(f"{seen[-1][1]} results came at once: give more videos")
    (first_s, few), (last_s, all_of_them) = seen[0], seen[-1]
    return Course(first_s, last_s, whole_s, all_of_them - few)


def run_watched(words: Sequence[str], out: Path) -> Course:
    """Runs a command that writes a first line and then its results into `out`, anew.

    Raises:
        UserError: it has failed, or see `course_of`.
    """
    out.unlink(missing_ok=True)
    log = out.with_suffix(".log")
    seen: list[tuple[float, int]] = []
    with log.open("wb") as said:
        started = time.monotonic()
        process = subprocess.Popen(words, stdout=said, stderr=said)
        try:
            while (code := process.poll()) is None:
                results = out.read_bytes().count(b"\n") - 1 if out.exists() else 0
                if results > (seen[-1][1] if seen else 0):
                    seen.append((time.monotonic() - started, results))
                time.sleep(_LOOK_S)
        finally:
            process.kill()
            process.wait()
    whole_s = time.monotonic() - started
    if code not in (0, 1) or not seen:  # 1: some video can't be read
        raise UserError(f"exit code {code} of {' '.join(words)}:\n{last_lines(log)}")
    return course_of(seen, whole_s)


def table(rounds: Sequence[Mapping[str, Course]]) -> list[tuple[str, ...]]:
    """A row for each way: medians, and its rate over the plain one's of the same round."""
    rows = []
    for way in rounds[0]:
        courses = [one[way] for one in rounds]
        ratios = [one[way].rate / one[_PLAIN].rate for one in rounds]
        found = (
            statistics.median(course.first_s for course in courses),
            statistics.median(course.whole_s - course.last_s for course in courses),
            statistics.median(course.rate for course in courses),
        )
        among = f" ({min(ratios):.2f}–{max(ratios):.2f})" if len(ratios) > 1 else ""
        rows.append((way, *(f"{value:.1f}" for value in found), f"{statistics.median(ratios):.2f}{among}"))
    return rows


HEADER = ("way", "first result, s", "after the last, s", "videos/s", "rate to plain")


@command()
def main(argv: Sequence[str]) -> int:
    """Returns 0."""
    parser = Parser(description=_DESCRIPTION)
    parser.add_argument("videos", nargs="+", metavar="VIDEO|FOLDER|@FILE")
    parser.shared("ckpt", "runs_dir", "markdown")
    parser.add_argument("--rounds", type=positive, default=3, metavar="R", help="each runs every way once (3)")
    args = parser.parse_args(argv)
    how = ["--engine", "eager", "--precision", "f32", "--runs_dir", str(args.runs_dir)]
    how += [] if args.ckpt is None else ["--ckpt", args.ckpt]
    cpus = available_cpus()
    ways = {_PLAIN: [], "ray, processes of 1 CPU": ["--on", "ray"]}
    if cpus > 1:
        ways[f"ray, 1 process of {cpus} CPUs"] = ["--on", "ray", "--ray_cpus", str(cpus)]
    with tempfile.TemporaryDirectory() as folder, Progress("measuring", args.rounds * len(ways)) as progress:
        out = Path(folder) / "results.jsonl"

        def turn(way: str, options: Sequence[str]) -> Callable[[], Course]:
            def run() -> Course:
                progress.update(said=way)
                words = [sys.executable, "-m", "octvideo", "infer", *args.videos, *how, *options, "--output", str(out)]
                course = run_watched(words, out)
                progress.advance()
                return course

            return run

        turns = {way: turn(way, options) for way, options in ways.items()}
        rounds = list(rounds_of(turns, rounds=args.rounds, warm_up=0))
    print_table(HEADER, table(rounds), as_markdown=args.markdown)
    return 0
