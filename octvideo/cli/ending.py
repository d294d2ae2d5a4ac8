"""How programs end, `octvideo` and those in tools/: an error is one line and a code; --debug adds its traceback."""

from __future__ import annotations

import errno
import functools
import os
import select
import sys
import sysconfig
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from octvideo.cli.arguments import with_underscores
from octvideo.cli.mistakes import joined_lines
from octvideo.errors import UserError
from octvideo.files import print_any_text

_NOBODY_READS = 141  # what a shell says of a program that ended by SIGPIPE
_OF_PATHS = (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError)
_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def command(stopped: str = "stopped") -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Decorates a program's main function, so that it returns an exit code whatever it raises, told in one line.

    The codes are 2 for a mistake of the user's, 1 for any other error (and training that has diverged), 130 after
    Ctrl-C. The function gets its words without --debug, and flags with underscores; where it is called without any
    words, they are the process's own.

    Args:
        stopped: said after Ctrl-C where the KeyboardInterrupt says nothing.
    """

    def decorate(main: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(main)
        def told(argv: Sequence[str] | None = None, **settings: Any) -> int:
            words = list(sys.argv[1:] if argv is None else argv)
            end = words.index("--") if "--" in words else len(words)  # what follows is another program's
            try:
                own = with_underscores([word for word in words[:end] if word != "--debug"])
                return main(own + words[end:], **settings)
            except BrokenPipeError:
                raise
            except KeyboardInterrupt as error:
                print(str(error) or stopped, file=sys.stderr)
                return 130
            except Exception as error:
                if isinstance(error, ImportError) and isinstance(error.__cause__, KeyboardInterrupt):
                    print(stopped, file=sys.stderr)  # a library of C++ was just being loaded
                    return 130
                return _tell(error, debug="--debug" in words[:end])

        return told

    return decorate


def end_with(main: Callable[[], int]) -> NoReturn:
    """Ends this process with what `main` returns; quietly where its reader has gone, as in `octvideo cost | head`."""
    print_any_text()
    try:
        code = main()
        if sys.stdout is not None:  # it was not closed from the start
            sys.stdout.flush()
    except BrokenPipeError as error:
        if _reader_has_gone():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still writes at its end
            code = _NOBODY_READS
        else:  # another pipe
            code = _tell(error, debug="--debug" in sys.argv)
    raise SystemExit(code)


def _tell(error: Exception, *, debug: bool) -> int:
    """Prints the error and returns the exit code."""
    if debug:
        traceback.print_exception(error)
    text = str(error)
    if "Traceback (most recent call last)" in text:  # of another process: its last line is the error
        text = text.strip().splitlines()[-1]
        text = text.partition(": ")[2] if isinstance(error, UserError) else text
    if isinstance(error, UserError):
        print(f"error: {joined_lines(text)}", file=sys.stderr)
        return error.exit_code
    if isinstance(error, OSError) and (error.errno in _OF_DISKS or (isinstance(error, _OF_PATHS) and error.filename)):
        print(f"error: {error.strerror}" + (f": {error.filename}" if error.filename else ""), file=sys.stderr)
        return 2
    hint = "" if debug else "; --debug shows the traceback"
    print(f"error: {type(error).__name__}: {joined_lines(text)} ({_place(error)}{hint})", file=sys.stderr)
    return 1


def _place(error: Exception) -> str:
    """`octvideo/cli/fit.py:12`, the last line that the error came through of octvideo or of a program that uses it."""
    ours = str(Path(__file__).parents[1])
    libraries = sysconfig.get_path("stdlib")  # where site-packages are too
    frames = traceback.extract_tb(error.__traceback__)
    own = (f for f in reversed(frames) if f.filename.startswith(ours) or not f.filename.startswith(libraries))
    frame = next((f for f in own if "site-packages" not in f.filename.removeprefix(ours)), frames[-1])
    return f"{frame.filename.removeprefix(ours.removesuffix('octvideo'))}:{frame.lineno}"


def _reader_has_gone() -> bool:
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
