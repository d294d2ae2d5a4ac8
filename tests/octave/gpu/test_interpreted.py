"""Triton's kernels on the CPU: the tests of norms and of weights in a process of their own, whose Triton interprets."""

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
    files = [str(folder / name) for name in ("test_norm.py", "test_weight_blocks.py")]
    command = [sys.executable, "-m", "pytest", *options, *files]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([*command, *args], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.timeout(1200)  # on a busy machine
def test_kernels_in_the_interpreter() -> None:
    run_interpreted("-k", "not plain")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_random_forms_in_the_interpreter() -> None:
    run_interpreted("-m", "slow and not gpu")
