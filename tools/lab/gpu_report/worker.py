"""The process that does the steps: `python -m lab.gpu_report.worker SETTINGS`."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

from lab.gpu_report.checks import CHECKS
from lab.gpu_report.child import Message, serve
from lab.gpu_report.speed import MEASUREMENTS
from lab.gpu_report.work import NothingToDoError, Settings, Work
from octvideo.files import one_line


def is_broken(device: torch.device) -> bool:
    """Whether the device does nothing more for this process, as after an illegal memory access."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
        return False
    except RuntimeError:
        return True


def main(settings: Settings) -> None:
    """Does steps as they are asked for; each ends with a message {"end": its state, "said": why, "leaves": ...}."""
    functions = {**CHECKS, **MEASUREMENTS}

    def answer(asked: Message, send: Callable[[Message], None]) -> bool:
        step, state, said, leaves = asked["step"], "done", None, False
        print(f"== {step} ==", file=sys.stderr, flush=True)
        try:
            functions[step](Work(settings, asked["seconds"], lambda result: send({"step": step, **result})))
        except NothingToDoError as raised:
            state, said = "skipped", str(raised)
        except Exception as raised:
            state, said = "failed", f"{type(raised).__name__}: {one_line(raised)}"
            sys.excepthook(type(raised), raised, raised.__traceback__)  # the whole of it is in the log
            leaves = is_broken(settings.torch_device)
        send({"end": state, "said": said, "leaves": leaves})
        return not leaves

    serve(answer)


if __name__ == "__main__":
    given = Settings.from_json(sys.argv[1])
    given.prepare()
    main(given)
