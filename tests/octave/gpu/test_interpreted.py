"""Triton's kernels on the CPU: test_norm.py in a process of its own, whose Triton interprets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


def run_interpreted(*args: str) -> None:
    folder = Path(__file__).parent
    options = ["-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, str(folder / "test_norm.py")]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([*command, *args], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def test_kernels_in_the_interpreter() -> None:
    run_interpreted("-k", "not plain")


@pytest.mark.slow
def test_random_forms_in_the_interpreter() -> None:
    run_interpreted("-m", "slow and not gpu")
