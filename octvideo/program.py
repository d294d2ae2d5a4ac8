"""How the programs end: those in tools/, and `octvideo`."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable
from typing import NoReturn

from octvideo.files import print_any_text

_NOBODY_READS = 141  # what a shell says of a program that ended by SIGPIPE


def end_with(main: Callable[[], int]) -> NoReturn:
    """Ends this process with what `main` returns; quietly where its reader has gone, as in `tools/cost.py | head`."""
    print_any_text()
    try:
        code = main()
        if sys.stdout is not None:  # it was not closed from the start
            sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_has_gone():  # another pipe
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still writes at its end
        code = _NOBODY_READS
    raise SystemExit(code)


def _reader_has_gone() -> bool:
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
