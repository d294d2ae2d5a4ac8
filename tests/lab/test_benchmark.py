"""tools/benchmark.py as the user runs it: a tiny comparison, its files, results shown again, mistakes in one line."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import octvideo.progress
from lab.benchmark import measure
from lab.benchmark.arms import Arm
from lab.benchmark.calls import Call, make_call
from lab.benchmark.processes import add_process
from lab.benchmark.results import Pass, Run
from octvideo.errors import UserError

Tool = Callable[..., tuple[int, str, str]]
TINY = ("--frames", "4", "--crop", "32", "--rounds", "2", "--classes", "5")


@pytest.fixture
def run(repo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tool:
    """Runs the tool as __main__ in this process; returns its exit code, stdout and stderr."""

    def run_tool(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["benchmark.py", *args])
        monkeypatch.setattr(sys, "path", list(sys.path))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(repo / "tools" / "benchmark.py"), run_name="__main__")
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run_tool


def test_a_comparison_its_files_and_its_results_shown_again(
    run: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(octvideo.progress, "LINE_EVERY_S", 0.001)  # there is no terminal
    found, picture = tmp_path / "a.json", tmp_path / "a.png"
    arms = ("i3d_small:engine=plain,width=8", "i3d_small:alpha=0/.5,width=8")
    threads = torch.get_num_threads()
    files = ("--json", str(found), "--png", str(picture), "--profile", str(tmp_path / "a.txt"))
    code, out, err = run(*arms, *TINY, "--threads", "1", "--no-memory", *files)
    assert code == 0, err
    assert torch.get_num_threads() == threads
    assert "process CPU time, one thread, 2 rounds in turns: i3d_small, inference, f32, input 1x3x4x32x32" in out
    assert [line.split()[:3] for line in out.splitlines() if " α " in line and "–" in line] == [
        ["α", "0", "plain"], ["α", "0", "eager"], ["α", "0.5", "eager"],
    ]  # fmt: skip
    assert re.search(r"^building for 1 thread: [0-3] of 3, α 0\.?5? \w+ \(0:0\d:\d\d\)$", err, re.MULTILINE)
    assert re.search(r"^measuring on 1 thread: \d of 9, in turns \(0:0\d:\d\d\)$", err, re.MULTILINE)
    assert picture.stat().st_size > 10_000
    operations = (tmp_path / "a.txt").read_text()
    assert operations.count("== α ") == 3 and "convolution" in operations
    saved = Run.load(found)
    assert saved.reference == "α 0 plain" and [each.rounds for each in saved.passes] == [2]
    plain, ordinary, octave = saved.arms
    assert ordinary.multiply_adds == plain.multiply_adds > octave.multiply_adds
    assert ordinary.agreement is not None and ordinary.agreement.difference < 1e-4 and octave.agreement is None

    again = tmp_path / "b.png"
    code, out, _ = run("--from", str(found), str(found), "--markdown", "--png", str(again))
    assert code == 0 and out.count("| α 0.5 eager |") == 4 and again.exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_training_on_all_threads_with_memory(run: Tool, tmp_path: Path) -> None:
    found = tmp_path / "a.json"
    arms = ("i3d_small:alpha=0/.5,width=8,batch=2", "i3d_small:engine=compile,width=8,batch=2,precision=bf16")
    code, out, err = run(*arms, *TINY, "--mode", "training", "--optimizer", "sgd", "--json", str(found))
    assert code == 0, err
    saved = Run.load(found)
    assert len(saved.passes) == (1 if torch.get_num_threads() == 1 else 2) and "with a step of sgd" in out
    # Weights, gradients and momentum at least; less than a network of millions of parameters could take.
    for result in saved.arms:
        assert result.memory is not None and 3 * 4 * result.parameters < result.memory.peak < 3e9


@pytest.mark.slow
def test_rounds_of_several_processes(run: Tool, tmp_path: Path) -> None:
    found = tmp_path / "a.json"
    several = ("--processes", "3", "--threads", "1", "2", "--no-memory", "--json", str(found))
    code, out, err = run("i3d_small:alpha=0/.5,width=8", *TINY, *several)
    assert code == 0, err
    assert "process CPU time, one thread, 3 processes, 6 rounds in turns" in out
    assert "measuring in more processes" in err
    for each in Run.load(found).passes:
        assert each.rounds == len(each.peak["f32"]) == 6 and each.processes == 3
        assert all(len(set(times)) == 6 for clocks in each.seconds.values() for times in clocks.values())


@pytest.mark.slow
def test_a_process_that_fails_says_why() -> None:
    found = Pass("cpu", 1, "cpu")
    with pytest.raises(UserError, match=r"process 2 that measures: .*network: got 'i3d_tiny', expected one of c2d_r50"):
        add_process(found, {"a": Arm("i3d_tiny")}, rounds=1, device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["i3d_small"], "arms: got 1, expected two or more, such as i3d_r50 i3d_r50:alpha=.25, or --preset"),
        (["i3d_small:alpha=0/2"], "arm 'i3d_small:alpha=0/2': alpha: got '2', expected the share"),
        (["i3d_small:alpha=0/.5", "--engine", "tvm"], "arm 'options:"),
        (["i3d_small:alpha=0/.5", "--rounds", "0"], "rounds: got 0, expected 1 or more"),
        (["i3d_small:alpha=0/.5", "--processes", "0"], "processes: got 0, expected 1 or more"),
        (["i3d_small:alpha=0/.5", "--threads", "none"], "threads: got 'none', expected a number above 0, or all"),
        (["i3d_small:alpha=0/.5", "--reference", "c2d_small"], "reference: got 'c2d_small', expected one of the arms"),
        (["--preset", "cpu"], "preset: got 'cpu', expected one of cpu-eager, cpu-training, "),
        (["i3d_tiny:alpha=0/.5"], "network: got 'i3d_tiny', expected one of c2d_r50, "),
        (["--from", "nowhere.json"], "no results at nowhere.json"),
        (["i3d_small:alpha=0/.5", "--device", "tpu"], "device 'tpu' can't be used here"),
    ],
)
def test_mistakes_are_one_line(args: list[str], message: str, run: Tool) -> None:
    code, out, err = run(*args)
    assert code == 2 and not out
    assert err.startswith(f"error: {message}") and len(err.splitlines()) == 1, err


@pytest.mark.slow
def test_arms_are_measured_as_they_are_built_and_what_there_is_outlives_ctrl_c(
    run: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, saved = tmp_path / "a.json", []

    def build(arm: Arm, *args: Any, **kwargs: Any) -> Call:
        if arm.alpha == 0.5:
            raise KeyboardInterrupt
        call = make_call(arm, *args, **kwargs)
        saved.append([len(list(each.seconds)) for each in Run.load(found).passes] if found.exists() else None)
        return call

    monkeypatch.setattr(measure, "make_call", build)
    arms = "i3d_small:width=8,alpha=0/.125/.25/.5"
    code, out, err = run(arms, *TINY, "--threads", "1", "--as-built", "--json", str(found))
    assert code == 130, err
    assert saved == [None, [1], [2]]  # arms in the file when the next is built
    left = Run.load(found)
    assert left.interrupted and {label: len(c["cpu"]) for label, c in left.passes[0].seconds.items()} == {
        f"i3d_small α {alpha}": 2 for alpha in ("0", "0.125", "0.25")
    }
    assert "stopped before its end" in out and re.search(r"^ *i3d_small α 0.25 .*–", out, re.MULTILINE)
