"""How the programs in tools/ end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn

_NOBODY_READS = 141  # what a shell says of a program that ended by SIGPIPE


def end_with(main: Callable[[], int]) -> NoReturn:
    """Ends this process with what `main` returns; quietly where its reader has gone, as in `tools/cost.py | head`."""
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still writes at its end
        code = _NOBODY_READS
    raise SystemExit(code)
