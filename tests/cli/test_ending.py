"""How programs end, mostly in processes of their own."""

from __future__ import annotations

import importlib.util
import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from octvideo.cli.ending import command
from octvideo.errors import UserError

REPO = Path(__file__).parents[2]
PROGRAM = """
from octvideo.cli.ending import end_with

def main():
    print("a line\\n" * {lines})
    return 3

end_with(main)
"""


@pytest.mark.parametrize("lines", [1, 100_000], ids=["at the end", "while it writes"])
def test_a_program_whose_reader_has_gone_ends_without_a_word(lines: int) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", PROGRAM.format(lines=lines)]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_program_ends_with_what_its_main_function_returns() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(lines=1)], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (3, "a line", "")


def test_another_pipe_that_breaks_is_an_error() -> None:
    program = (
        "from octvideo.cli.ending import end_with\ndef main(): raise BrokenPipeError('of a child')\nend_with(main)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: BrokenPipeError: of a child (<string>:2; --debug")


def test_a_program_without_an_output_ends_well() -> None:
    program = "from octvideo.cli.ending import end_with\nend_with(lambda: 0)"
    done = subprocess.run(["/bin/sh", "-c", 'exec "$0" -c "$1" >&-', sys.executable, program], stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")


@command(stopped="stopped; go on")
def failing(argv: Sequence[str]) -> int:
    """Raises what it is told."""
    errors: dict[str, BaseException] = {
        "user": UserError("no file x:\n  give another"),
        "bug": KeyError("x"),
        "path": PermissionError(13, "Permission denied", "a file"),
        "child": RuntimeError("Caught it.\nTraceback (most recent call last):\n  File x\nKeyError: 'y'"),
        "user's child": UserError("Caught it.\nTraceback (most recent call last):\n  File x\nerrors.UserError: no: x"),
        "stop": KeyboardInterrupt(),
        "stop here": KeyboardInterrupt("stopped: here"),
        "stop in C++": ImportError("initialization failed"),
    }
    errors["stop in C++"].__cause__ = KeyboardInterrupt()
    if argv[0] == "words":
        print(*argv)
        return 3
    raise errors[argv[0]]


@pytest.mark.parametrize(
    ("word", "code", "said"),
    [
        ("user", 2, "error: no file x: give another\n"),
        ("path", 2, "error: Permission denied: a file\n"),
        ("bug", 1, "error: KeyError: 'x' (PLACE; --debug shows the traceback)\n"),
        ("child", 1, "error: RuntimeError: KeyError: 'y' (PLACE; --debug shows the traceback)\n"),
        ("user's child", 2, "error: no: x\n"),
        ("stop", 130, "stopped; go on\n"),
        ("stop here", 130, "stopped: here\n"),
        ("stop in C++", 130, "stopped; go on\n"),
    ],
)
def test_an_error_is_one_line_and_a_code(word: str, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = failing.__wrapped__.__code__.co_firstlineno + 17  # type: ignore[attr-defined]
    said = said.replace("PLACE", f"tests/cli/test_ending.py:{line}")
    assert failing([word]) == code
    assert capsys.readouterr().err == said
    assert failing([word, "--debug"]) == code
    err = capsys.readouterr().err
    assert err.endswith(said.replace("; --debug shows the traceback", ""))
    assert err.startswith("Traceback (most recent call last):\n" if code != 130 else said)


def test_words_behind_two_dashes_are_another_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert failing(["words", "--debug", "a", "--", "--debug"]) == 3
    assert capsys.readouterr().out == "words a -- --debug\n"


TOOLS = [tool for tool in sorted(REPO.glob("tools/*.py")) if tool.stem not in ("train", "test", "infer")]


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_every_tool_tells_its_errors_so(
    tool: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location(f"tool_{tool.stem}", tool)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look for it
    spec.loader.exec_module(module)
    assert module.main.__code__ is failing.__code__
    with pytest.raises(SystemExit):
        module.main(["--help"])
    assert "--debug" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tool", "said"),
    [("train", "'nowhere'"), ("test", "no checkpoint at none"), ("infer", "no file or folder nowhere")],
)
def test_three_tools_are_commands(
    tool: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(REPO / "tools" / f"{tool}.py")
    monkeypatch.setattr(sys, "argv", [file, "--debug", "--ckpt", "none", "nowhere"])
    # As from any folder, and a checkout that is not installed; tests/test_files.py starts tools/train.py as a program.
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if Path(folder).resolve() != REPO])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(file, run_name="__main__")
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert sys.path[0] == str(REPO)
