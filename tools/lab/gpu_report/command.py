"""The command line of tools/gpu_report.py: steps in the order of their value, within a time.

This process touches no device. A worker does the steps; one that crashes, hangs or breaks its device costs its step.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.gpu_report.report import Record, Report
from lab.gpu_report.work import Settings
from octvideo.cli.arguments import Parser, above_zero
from octvideo.cli.ending import command

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
    "networks": Step("networks on the device against the CPU", 10, 70),
    "tests": Step("tests of kernels", 10, 60),
    "predictor": Step("one video: device names, engines", 8, 40),
    "training": Step("training, eager, channels last", 20, 90),
    "inference": Step("inference, eager", 15, 50),
    "layouts": Step("contiguous against channels last", 15, 50),
    "compile": Step("compiling the arms of training, nothing timed", 45, 200),
    "compiled": Step("training, compiled", 20, 90),
    "rest": Step("cuDNN's search, forms for CUDA, compiled inference", 15, 120),
}
_AFTER = 15.0  # seconds that ending a step may take, and the page
_TINY = 20  # so much faster are tiny networks


@command(stopped="stopped; the report holds what there is")
def main(argv: Sequence[str]) -> int:
    """Runs the tool.

    Returns:
        0, or 1 where a step failed; 130 after Ctrl-C, 143 after SIGTERM.
    """
    args = _parser().parse_args(argv)
    ends = time.monotonic() + 60 * args.minutes
    tiny = args.device == "cpu" if args.tiny is None else args.tiny
    backend = args.backend or ("eager" if tiny else "inductor")
    words = shlex.join(["tools/gpu_report.py", *argv])
    report = Report(args.out, {name: step.title for name, step in STEPS.items()}, f"`{words}`")
    with contextlib.ExitStack() as stack:
        cache = args.cache or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="octvideo-report-")))
        settings = Settings(
            args.device, str(args.out), str(cache.resolve()), tiny, backend, tuple(args.tests), str(args.roofline or "")
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
    parser.add_argument("--tests", nargs="+", default=["tests"], metavar="PATH", help="for pytest -m gpu (tests)")
    parser.add_argument("--roofline", type=Path, metavar="FILE", help="of tools/roofline.py --json, to compare with")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="of torch's compiler (a temporary one)")
    parser.add_argument("--backend", metavar="NAME", help="of torch.compile (inductor; tiny: eager)")
    parser.add_argument("--tiny", action="store_true", default=None, help="small networks (for --device cpu)")
    return parser


def _do(name: str, step: Step, worker: Worker, report: Report, *, left: float, scale: float) -> None:
    if left < step.least / scale:
        said = f"{max(left, 0):.0f} s are left, it needs {step.least / scale:.0f}"
        report.add({"step": name, "state": "skipped", "said": said})
        return
    print(f"{step.title} ...", file=sys.stderr)
    report.add({"step": name, "state": "running"})
    started = time.monotonic()
    error = worker.do(name, min(step.most, left), report.add)
    outcome: Record = {"step": name, "state": "done" if error is None else "failed"}
    outcome |= {"seconds": round(time.monotonic() - started, 1), **({} if error is None else {"said": error})}
    report.add(outcome)


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
        log: file for what it says beside its records.
    """

    def __init__(self, settings: Settings, log: Path) -> None:
        self._settings, self._log = settings, log
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()
        log.write_text("", encoding="utf-8")

    def do(self, step: str, seconds: float, hear: Callable[[Record], None]) -> str | None:
        """Does a step.

        Args:
            step: its name.
            seconds: after which its process is ended.
            hear: gets each result.

        Returns:
            What went wrong, in a line, or None.
        """
        process = self._begun()
        assert process.stdin is not None
        ends = time.monotonic() + seconds
        process.stdin.write(json.dumps({"step": step, "seconds": seconds}) + "\n")
        process.stdin.flush()
        while True:
            try:
                line = self._lines.get(timeout=max(0, ends - time.monotonic()))
            except queue.Empty:
                self.close()
                return f"ended after {seconds:.0f} s, all that it may take"
            if line is None:
                code = process.wait()
                self.close()
                return f"its process ended with code {code}: {self._last_line()}"
            record = json.loads(line)
            if "end" not in record:
                hear(record)
                continue
            if record["leaves"]:
                self.close()
            return record["end"]

    def close(self) -> None:
        """Ends the process, and those that it began."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):
                    stream.close()  # type: ignore[union-attr]
        self._process = None

    def _begun(self) -> subprocess.Popen[str]:
        if self._process is not None:
            return self._process
        words = [sys.executable, "-m", "lab.gpu_report.worker", self._settings.to_json()]
        environment: dict[str, Any] = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(folder for folder in sys.path if folder),
            "TORCHINDUCTOR_CACHE_DIR": str(Path(self._settings.cache) / "inductor"),
            "PYTHONUNBUFFERED": "1",
        }
        with self._log.open("a", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                start_new_session=True,  # Ctrl-C is for the report; and its own processes end with it
            )  # fmt: skip
        self._lines = queue.Queue()
        threading.Thread(target=_pass_on, args=(self._process.stdout, self._lines), daemon=True).start()
        return self._process

    def _last_line(self) -> str:
        lines = [line for line in self._log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else "it said nothing"


def _pass_on(stream: Any, lines: queue.Queue[str | None]) -> None:
    with contextlib.suppress(ValueError):  # closed
        for line in stream:
            lines.put(line)
    lines.put(None)
