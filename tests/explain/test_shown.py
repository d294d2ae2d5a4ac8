"""The picture of a clip, and frames that are painted over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from octvideo.errors import UserError
from octvideo.explain import Saliency
from octvideo.explain.painting import Painter
from octvideo.explain.picture import draw_clip
from octvideo.explain.video import ExplainedClip, check_no_export
from octvideo.video import Box


def clip_with(maps: dict[str, np.ndarray], start_sec: float = 0.0) -> ExplainedClip:
    """Four grey frames of 32 px, the middle of frames of 32 x 48; maps of two steps."""
    saliency = Saliency(maps, "some.layer", 1, 2.0, "gradcam", (4, 32, 32))  # type: ignore[arg-type]
    frames = np.full((4, 32, 32, 3), 100, np.uint8)
    return ExplainedClip(frames, saliency, start_sec, start_sec + 1, Box(0, 8, 32, 32), (32, 48))


def maps_at(**places: tuple[int, int, int]) -> dict[str, np.ndarray]:
    found = {}
    for name, (step, row, column) in places.items():
        found[name] = np.zeros((2, 4, 4), np.float32)
        found[name][step, row, column] = 1.0
    return found


def test_a_picture_shows_each_path_below_its_frames(tmp_path: Path) -> None:
    path = tmp_path / "seen.png"
    draw_clip(path, clip_with(maps_at(high=(0, 0, 0), low=(1, 3, 3), both=(0, 0, 0))), title="a $b$ 漢")
    image = imread(path)[..., :3]
    height, width = image.shape[:2]
    cell, gap, left, top = (round(110 * inch) for inch in (1.2, 0.05, 1.75, 0.78))
    assert width == pytest.approx(110 * (1.75 + 4 * 1.25 + 1.05), abs=2)
    assert height == pytest.approx(110 * (0.78 + 4 * 1.25 + 0.12), abs=2)

    def part(row: int, column: int, fraction: tuple[float, float]) -> float:
        y, x = top + row * (cell + gap), left + column * (cell + gap)
        return float(image[y + int(fraction[0] * cell), x + int(fraction[1] * cell)].sum())

    assert part(1, 0, (0.1, 0.1)) > 1.5 > part(1, 0, (0.9, 0.9))  # high: the corner in the first step
    assert part(1, 3, (0.1, 0.1)) == pytest.approx(part(1, 3, (0.9, 0.9)), abs=0.05)
    assert part(2, 3, (0.9, 0.9)) > 1.5 > part(2, 0, (0.9, 0.9))
    with pytest.raises(UserError, match=r"picture .*seen.gif: got .gif, expected .png"):
        draw_clip(tmp_path / "seen.gif", clip_with(maps_at(both=(0, 0, 0))), title="")


def test_paths_are_painted_in_their_colours_where_and_when_they_see() -> None:
    painter = Painter("")
    painter.add(clip_with(maps_at(high=(0, 3, 0), low=(1, 3, 3), both=(0, 3, 0))))
    painter.add(clip_with(maps_at(high=(1, 3, 0), low=(1, 0, 0), both=(0, 0, 0)), start_sec=1.0))
    seen = {}
    for time_sec in (0.1, 0.9, 1.1, 1.9, 2.5):
        seen[time_sec] = np.full((64, 96, 3), (20, 160, 90), np.uint8)
        painter(seen[time_sec], time_sec)
    red_less_blue = {time: image[:, :, 0].astype(int) - image[:, :, 2] for time, image in seen.items()}
    left, right = (60, 18), (60, 76)  # the lower corners of the crop, which is from 16 to 80 of 96 columns
    assert red_less_blue[0.1][left] > 60 and red_less_blue[0.1][right] == 0
    assert red_less_blue[0.9][left] == 0 and red_less_blue[0.9][right] < -60
    assert red_less_blue[1.9][left] > 60 and red_less_blue[1.1][left] == 0
    assert (red_less_blue[2.5][50:] == 0).all()  # nothing is known of that time: grey alone
    assert (red_less_blue[0.1][50:, :14] == 0).all()  # nor beyond the crop


def test_an_exported_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "octvideo.json").write_text("{}")
    for path in (tmp_path, tmp_path / "model.onnx"):
        with pytest.raises(UserError, match="is an exported model, which holds no layers: give the run or checkpoint"):
            check_no_export(path)
    check_no_export(tmp_path / "last.ckpt")
