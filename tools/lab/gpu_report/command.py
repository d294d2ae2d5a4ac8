"""The command line of tools/gpu_report.py: steps in the order of their value, within a time.

This process touches no device. A worker does the steps; one that crashes, hangs or breaks its device costs its step.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.gpu_report.child import Child, EndedError
from lab.gpu_report.report import Record, Report
from lab.gpu_report.speed import read_predictions
from lab.gpu_report.work import Settings
from octvideo.cli.arguments import Parser, above_zero
from octvideo.cli.ending import command
from octvideo.errors import UserError
from octvideo.inference.device import AUTO_DEVICE, devices_here

_DESCRIPTION = """Whether octvideo is right on a GPU, and whether octave pays there, in eight minutes:

  tools/gpu_report.py --out runs/gpu-report

Results are in report.md and results.jsonl at once, the most valuable first: networks on the device against the CPU, the
kernels' tests, a training step of I3D-50 in bf16 at several alphas with a profile, inference, layouts, the same
compiled, cuDNN's search. A step that fails, hangs or does not fit is a line, and the next one follows. It needs torch
and octvideo's dependencies; the kernels' tests need pytest. --device cpu tries the report itself on tiny networks."""


@dataclass(frozen=True)
class Step:
    """A part of the report.

    Args:
        title: of its section.
        least: seconds without which it is not begun.
        most: seconds after which it is ended.
    """

    title: str
    least: float
    most: float


STEPS = {
    "machine": Step("the machine: versions, copies, products", 10, 45),  # with the start of the process
    "networks": Step("networks on the device against the CPU", 10, 50),
    "tests": Step("tests of kernels", 10, 50),
    "predictor": Step("one video: device names, engines", 8, 25),
    "training": Step("training, eager, channels last", 20, 100),
    "inference": Step("inference, eager", 15, 40),
    "layouts": Step("contiguous against channels last", 15, 40),
    "compile": Step("compiling the arms of training, nothing timed", 45, 170),
    "compiled": Step("training, compiled", 15, 60),
    "rest": Step("cuDNN's search, forms for CUDA, compiled inference", 15, 120),
}
WORKER = "lab.gpu_report.worker"  # the module of the process that does them
_AFTER = 15.0  # seconds that ending a step may take, and the page
_TINY = 20  # so much faster are tiny networks


@command(stopped="stopped; the report holds what there is")
def main(argv: Sequence[str]) -> int:
    """Runs the tool.

    Returns:
        0, or 1 where a step failed; 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        UserError: a file of --roofline, or the device, is not there: each would fail many steps, after minutes. Or
            --out can't be written.
    """
    args = _parser().parse_args(argv)
    _check_device(args.device)
    read_predictions(args.roofline)  # now: a file that is none would cost the step that compares with it
    ends = time.monotonic() + 60 * args.minutes
    tiny = args.device == "cpu" if args.tiny is None else args.tiny
    backend = args.backend or ("eager" if tiny else "inductor")
    words = shlex.join(["tools/gpu_report.py", *argv])
    try:
        report = Report(args.out, {name: step.title for name, step in STEPS.items()}, f"`{words}`")
    except OSError as error:
        raise UserError(f"--out: can't write into {args.out}: {error.strerror or error}") from error
    with contextlib.ExitStack() as stack:
        cache = args.cache or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="octvideo-report-")))
        settings = Settings(
            args.device, str(args.out), str(cache.resolve()), tiny, backend, tuple(args.tests), tuple(args.roofline)
        )
        worker = stack.enter_context(contextlib.closing(Worker(settings, args.out / "log.txt")))
        stopped = stack.enter_context(_signals())
        try:
            for name, step in STEPS.items():
                if args.steps is None or name in args.steps:
                    _do(name, step, worker, report, left=ends - time.monotonic() - _AFTER, scale=_TINY if tiny else 1)
        except KeyboardInterrupt:
            running = [name for name in STEPS if report.state(name) == "running"]
            for name in running:
                report.add({"step": name, "state": "stopped"})
            print(f"stopped; {report.page} holds what there is", file=sys.stderr)
            return 128 + stopped[-1] if stopped else 130
    print(report.page)
    return 1 if any(report.state(name) == "failed" for name in STEPS) else 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=_DESCRIPTION)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-report"), metavar="DIR", help="(runs/gpu-report)")
    parser.add_argument("--minutes", type=above_zero, default=8, metavar="M", help="in all (8)")
    parser.add_argument("--device", default="cuda", metavar="D", help="cuda, cuda:1, cpu (cuda)")
    parser.add_argument("--steps", nargs="+", choices=STEPS, metavar="STEP", help=f"of {', '.join(STEPS)} (all)")
    parser.add_argument(
        "--tests", nargs="+", default=[], metavar="PATH", help="for pytest -m gpu (all that have such tests)"
    )
    parser.add_argument(
        "--roofline", nargs="+", default=[], metavar="FILE", help="of tools/roofline.py --json, to compare with"
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", help="of torch's compiler (a temporary one)")
    parser.add_argument("--backend", metavar="NAME", help="of torch.compile (inductor; tiny: eager)")
    parser.add_argument("--tiny", action="store_true", default=None, help="small networks (for --device cpu)")
    return parser


def _check_device(name: str) -> None:
    """That there is one of this name, without touching it: each step would begin a process to find out.

    Raises:
        UserError: there is none.
    """
    here = [found for found in devices_here() if found != AUTO_DEVICE]
    if name not in here and not (name == "cuda" and "cuda:0" in here):
        raise UserError(f"--device: got {name!r}, which can't be used here; expected {', '.join(here)}")


def _do(name: str, step: Step, worker: Worker, report: Report, *, left: float, scale: float) -> None:
    if left < step.least / scale:
        said = f"{max(left, 0):.0f} s are left, it needs {step.least / scale:.0f}"
        report.add({"step": name, "state": "skipped", "said": said})
        return
    print(f"{step.title} ...", file=sys.stderr)
    report.add({"step": name, "state": "running"})
    started = time.monotonic()
    end, reason = worker.do(name, min(step.most, left), report.add)
    outcome: Record = {"step": name, "state": end, "seconds": round(time.monotonic() - started, 1)}
    report.add(outcome if reason is None else {**outcome, "said": reason})


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """SIGTERM is a KeyboardInterrupt too; gives the list in which it will be."""
    came: list[int] = []

    def stop(number: int, frame: object) -> None:
        came.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, before)


class Worker:
    """The process that does the steps, begun again where it has ended.

    Args:
        settings: of all steps.
        log: file for what it says beside its results.
    """

    def __init__(self, settings: Settings, log: Path) -> None:
        self._settings, self._log = settings, log
        self._child: Child | None = None
        log.write_text("", encoding="utf-8")

    def do(self, step: str, seconds: float, hear: Callable[[Record], None]) -> tuple[str, str | None]:
        """Does a step.

        Args:
            step: its name.
            seconds: after which its process is ended.
            hear: gets each result.

        Returns:
            Its state, "done", "skipped" or "failed"; and why, in a line, where it is not done.
        """
        ends = time.monotonic() + seconds
        if self._child is None:
            cache = {"TORCHINDUCTOR_CACHE_DIR": str(Path(self._settings.cache) / "inductor")}
            self._child = Child(WORKER, [self._settings.to_json()], self._log, cache)
        self._child.tell({"step": step, "seconds": seconds})
        try:
            while "end" not in (message := self._child.hear(ends - time.monotonic())):
                hear(message)
        except TimeoutError:
            self.close()
            return "failed", f"ended after {seconds:.0f} s, all that it may take"
        except EndedError as error:
            self.close()
            return "failed", str(error)
        if message["leaves"]:
            self.close()
        return message["end"], message["said"]

    def close(self) -> None:
        """Ends the process."""
        if self._child is not None:
            self._child.close()
        self._child = None
