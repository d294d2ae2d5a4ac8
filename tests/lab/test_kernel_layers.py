"""The table of layers: every multiply-add of a network is in it once, and what the kernel does not run is an error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab.benchmark.arms import parse_arms
from lab.benchmark.networks import count
from lab.kernel_layers import groups_of, main
from octvideo.octave.kernel.library import load_library

pytestmark = pytest.mark.skipif(load_library() is None, reason="the kernel is not here")

CLASSES = 10


@pytest.mark.parametrize(("network", "features"), [("torchvision:mobilenet_v2", 1280), ("i3d_small", 512)])
@pytest.mark.parametrize("alpha", ["0", ".25"])
@pytest.mark.slow
def test_all_multiply_adds_are_counted_once(network: str, features: int, alpha: str) -> None:
    [arm] = parse_arms([f"{network}:alpha={alpha},frames=2,batch=2,crop=64,classes={CLASSES},engine=eager"])
    groups, whole = groups_of(arm, rounds=1)
    head = 2 * features * CLASSES * (2 if ":" in network else 1)  # torch's; an image network's is on each frame
    assert sum(group.multiply_adds for group in groups) == count(arm).multiply_adds - head
    assert all(group.seconds > 0 and group.num_bytes > 0 for group in groups) and whole > 0


def test_equal_groups_are_one_row_and_numbers_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "layers.json"
    words = f"torchvision:mobilenet_v2:frames=1,crop=32,classes={CLASSES} --rounds 1 --markdown --json {file}"
    assert main(words.split()) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| conv")]
    alike = "conv 1x1x1 160 to 960 at 1x1, depthwise 1x3x3 960 at 1x1, conv 1x1x1 960 to 160 at 1x1"
    assert [row[1] for row in rows if row[0] == f"| {alike}"] == ["2"]
    [arm] = json.loads(file.read_text())["arms"]
    assert len(arm["groups"]) > len(rows)


def test_a_network_that_the_kernel_does_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["i3d_small:frames=4,crop=32,engine=plain"]) == 2
    assert "i3d_small: no layer of it runs by the kernel (engine plain, f32)" in capsys.readouterr().err
