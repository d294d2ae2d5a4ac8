"""Evidence for saliency: where the object is in clips, how games are counted, and what is drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lab.explain.clips import Demo, DemoClip, demo_clips
from lab.explain.pointing import Game, game_table, play
from lab.explain.shuffled import compare, correlation_table
from lab.explain.spectra import draw_lines
from octvideo.data.synthetic import CLASS_NAMES, DemoSettings, write_demo
from octvideo.explain import LayerSpectrum, Saliency
from octvideo.models import i3d_small
from octvideo.video import ViewSettings


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """A test video of each class, and two networks that have learnt nothing."""
    root = tmp_path_factory.mktemp("data") / "demo"
    write_demo(root, DemoSettings(1, 1, num_frames=12, width=64, height=48))
    networks = {
        name: i3d_small(num_classes=8, alpha=alpha, width=8).eval() for name, alpha in (("oct", 0.25), ("o", 0))
    }
    views = ViewSettings(4, 2, num_clips=10, num_crops=3, short_side_px=32, crop_px=32)
    return Demo(root, networks, views, (0.5,) * 3, (0.25,) * 3)


def test_boxes_hold_the_object_in_each_crop(demo: Demo) -> None:
    clips = list(demo_clips(demo))
    assert len(clips) == 8 * 3 * 4
    assert [clip.label for clip in clips[::12]] == list(range(8))
    assert {clip.scene for clip in clips if CLASS_NAMES[clip.label] in ("approach", "recede")} == {(3, 0)}
    outside = inside = 0.0
    for clip in clips:
        # A still background: what changes over the clip is the object, or has it been.
        change = clip.pixels.std(1).sum(0)  # (S,S)
        left, top = np.clip(clip.boxes[:, :2].min(0).round().astype(int) - 1, 0, 32)
        right, bottom = np.clip(clip.boxes[:, 2:].max(0).round().astype(int) + 1, 0, 32)
        within = torch.zeros(32, 32, dtype=torch.bool)
        within[top:bottom, left:right] = True
        inside += float(change[within].sum())
        outside += float(change[~within].sum())
    assert outside < 0.1 * inside
    assert not torch.equal(clips[0].pixels, clips[1].pixels)


def test_games_count_hits_and_resample_scenes() -> None:
    maps = np.zeros((1, 2, 2), np.float32)
    maps[0, 0, 0] = 1
    saliency = Saliency({"both": maps}, "layer", 0, 0.0, "gradcam", (2, 32, 32))
    hit, miss = np.array([[0, 0, 16, 16]] * 2), np.array([[16, 0, 32, 32]] * 2)
    game = Game()
    for scene in range(10):
        for _ in range(3):
            game.add(saliency, "both", DemoClip(torch.zeros(()), 0, (0, scene), miss if scene % 5 else hit, 0))
    low, high = game.interval()
    assert low == 0 and 0.4 <= high <= 0.6  # as of ten trials, not of thirty
    row = game.row()
    assert row[0] == "30" and row[1].startswith("20.0 (0.0–") and row[2:4] == ("45.0", "0.4")
    assert row[4] == "80.0" and row[5] == "100.0 of 6"  # the middle lies in the boxes of `miss`
    game.add(
        Saliency({"both": 0 * maps}, "l", 0, 0.0, "gradcam", (2, 32, 32)),
        "both",
        DemoClip(torch.zeros(()), 0, (0, 0), hit, 0),
    )
    assert game.hits[-1] is False and game.chances[-1] == 0.25


@pytest.mark.slow
def test_tables_have_every_arm(demo: Demo) -> None:
    clips = list(demo_clips(demo))[::16]
    table = game_table(play(demo, clips))
    for words in (
        "| oct | blocks.4.res_blocks.1.activation | gradcam | low |",
        "| o, weights shuffled |",
        "| gradients |",
    ):
        assert words in table
    table = correlation_table(compare(demo, clips[:2], ["gradcam"]))
    assert "blocks.6 on | blocks.5 on | blocks.4 on" in table and "| o | gradcam | both |" in table


def test_lines_are_drawn(tmp_path: Path) -> None:
    spectra = {str(n): LayerSpectrum(np.linspace(0, 1, 8), np.zeros(8, bool), (56 >> n, 56 >> n)) for n in range(3)}
    draw_lines({"a": {"random weights": spectra}, "b": {"x": spectra, "y": spectra}}, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
