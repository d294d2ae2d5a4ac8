"""The demo data set: opposites are the same frames reversed, motion is what it is called, files are whole."""

from __future__ import annotations

import hashlib
import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import pytest
import torch
from torch import Generator, Tensor

from octvideo.data.scenes import PATTERNS, SHAPES, Motion, Scene, draw_scene
from octvideo.data.synthetic import (
    CLASS_NAMES,
    OPPOSITES,
    DemoSettings,
    boxes_of,
    frames_of,
    read_settings,
    write_demo,
    write_video,
)
from octvideo.errors import UserError

TINY = DemoSettings(2, 1, num_frames=6, width=32, height=24)


def cover(scene: Scene, *, height: int = 96, width: int = 128) -> Tensor:
    """Where the shape is, (T, H, W): what does not change between a black and a white background."""
    black, white = (on_plain(scene, value).render(height=height, width=width) for value in (0.0, 1.0))
    return 1 - (white.float() - black.float()).mean(-1) / 255


def on_plain(scene: Scene, value: float) -> Scene:
    plain = type(scene.background)("stripes", ((value,) * 3, (value,) * 3), 10.0, scene.background.waves)
    return Scene(scene.shape, scene.lobes, scene.texture, plain, scene.centre, scene.angle, scene.radius)


def scenes(motion: Motion, count: int = 6) -> list[Scene]:
    size = {"num_frames": 32, "height": 96, "width": 128}
    return [draw_scene(motion, Generator().manual_seed(seed), **size) for seed in range(count)]


def centres(mask: Tensor) -> Tensor:
    """Centre of mass of each frame as x, y, (T, 2)."""
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(128.0), indexing="ij")
    mass = mask.sum((1, 2))
    return torch.stack([(mask * x).sum((1, 2)) / mass, (mask * y).sum((1, 2)) / mass], 1)


@pytest.mark.parametrize(("motion", "axis"), [("left", 0), ("up", 1)])
def test_translation_in_any_window_of_eight_frames_by_two(motion: Motion, axis: int) -> None:
    for scene in scenes(motion):
        moved = centres(cover(scene))
        steps = moved[14:] - moved[:-14]  # from first to last frame of a window
        assert (steps[:, axis] < -10).all()
        assert (steps[:, 1 - axis].abs() < steps[:, axis].abs()).all()


def test_approaching_things_grow() -> None:
    for scene in scenes("approach"):
        area = cover(scene).sum((1, 2))
        assert (area[14:] > 1.6 * area[:-14]).all()


def test_clockwise_is_clockwise_on_the_screen() -> None:
    """The long side of a bar, by second moments: with y down, a growing angle from x is clockwise."""
    bars = [scene for scene in scenes("clockwise", 60) if scene.shape == "bar"]
    assert len(bars) >= 3
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(128.0), indexing="ij")
    for scene in bars:
        mask = cover(scene)
        middle = centres(mask)
        dx, dy = x - middle[:, 0, None, None], y - middle[:, 1, None, None]
        xx, yy, xy = ((mask * m).sum((1, 2)) for m in (dx * dx, dy * dy, dx * dy))
        angle = 0.5 * torch.atan2(2 * xy, xx - yy)
        # The long side comes round every half turn.
        turned = torch.remainder(angle[1:] - angle[:-1] + math.pi / 2, math.pi) - math.pi / 2
        assert (turned > math.radians(1.5)).all()
        # Seen at every fourth frame, the star's 72 degrees must not alias.
        assert (4 * turned < math.radians(36)).all()


def test_opposites_are_the_same_frames_reversed() -> None:
    for forward, backward in OPPOSITES:
        first, second = (frames_of(TINY, "train", name, 1) for name in (forward, backward))
        assert first.shape == (6, 24, 32, 3) and first.dtype == torch.uint8
        assert torch.equal(first, second.flip(0)) and not torch.equal(first, second)
    assert sorted(itertools.chain(*OPPOSITES)) == list(CLASS_NAMES) and len(CLASS_NAMES) >= 8


def test_every_video_is_another_one() -> None:
    seen = set()
    keys = itertools.product((0, 1), ("train", "test"), [pair[0] for pair in OPPOSITES], range(3))
    for count, (seed, split, name, index) in enumerate(keys, start=1):
        settings = DemoSettings(seed=seed, num_frames=2, width=32, height=24)
        seen.add(frames_of(settings, split, name, index).numpy().tobytes())
        assert len(seen) == count


def test_appearance_varies_within_each_motion() -> None:
    for motion in ("left", "up", "clockwise", "approach"):
        drawn = scenes(motion, 60)
        assert {scene.shape for scene in drawn} == set(SHAPES)
        assert {scene.texture.pattern for scene in drawn} == set(PATTERNS)


def test_encoding_keeps_the_frames(tmp_path: Path) -> None:
    frames = frames_of(DemoSettings(), "train", "move_up", 0)
    write_video(frames, tmp_path / "a" / "v.mp4", fps=25)
    with av.open(str(tmp_path / "a" / "v.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.average_rate == 25
        decoded = [torch.from_numpy(f.to_ndarray(format="rgb24")) for f in container.decode(stream)]
    assert len(decoded) == 32
    error = (torch.stack(decoded).float() - frames.float()).abs().mean()
    assert error < 6
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["v.mp4"]


def test_a_video_is_encoded_alike_each_time(tmp_path: Path) -> None:
    videos = [frames_of(TINY, "train", name, 0).contiguous() for name in CLASS_NAMES]  # in turns: memory changes hands

    def encoded(index: int) -> tuple[int, bytes]:
        path = tmp_path / f"{index}.mp4"
        write_video(videos[index % len(videos)], path)
        return index % len(videos), path.read_bytes()

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(encoded, range(25 * len(videos))))) == len(videos)


def test_the_written_set(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    assert write_demo(out, TINY) == 8 * 3
    assert (out / "classes.txt").read_text().splitlines() == list(CLASS_NAMES)
    for split, count in (("train", 2), ("test", 1)):
        lines = [line.split() for line in (out / f"{split}.txt").read_text().splitlines()]
        assert len(lines) == 8 * count
        assert sorted(path for path, _ in lines) == sorted(
            str(p.relative_to(out)) for p in (out / split).glob("*/*.mp4")
        )
        assert all(Path(path).parent.name == CLASS_NAMES[int(label)] for path, label in lines)


def test_written_again_only_what_is_missing_and_the_same(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    write_demo(out, TINY, workers=2)
    files = {path: hashlib.sha256(path.read_bytes()).digest() for path in out.rglob("*.*")}
    assert write_demo(out, TINY) == 0
    (out / "test" / "recede" / "000.mp4").unlink()
    (out / "train.txt").unlink()
    assert write_demo(out, TINY, workers=1) == 1
    assert {path: hashlib.sha256(path.read_bytes()).digest() for path in out.rglob("*.*")} == files


def test_other_settings_and_other_folders_are_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    write_demo(out, TINY)
    other = DemoSettings(1, 1, seed=5, num_frames=6, width=32, height=24)
    with pytest.raises(UserError, match=r"other settings \(videos_per_class is 2, asked for 1; seed is 0"):
        write_demo(out, other)
    assert write_demo(out, other, overwrite=True) == 16
    assert len(list(out.glob("train/*/*.mp4"))) == 8
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "holiday.mp4").touch()
    with pytest.raises(UserError, match=r"mine is not empty and holds no demo data \(no demo\.json\)"):
        write_demo(mine, TINY, overwrite=True)
    assert [p.name for p in mine.iterdir()] == ["holiday.mp4"]


def test_impossible_settings() -> None:
    with pytest.raises(UserError, match="videos_per_class: got 0, expected 1 or more"):
        DemoSettings(0)
    with pytest.raises(UserError, match="width: got 33, expected an even number"):
        DemoSettings(width=33)
    with pytest.raises(UserError, match="no class 'jump': expected one of approach, move_down"):
        frames_of(TINY, "train", "jump", 0)


@pytest.mark.parametrize("motion", ["left", "approach"])
def test_boxes_hold_the_shape(motion: Motion) -> None:
    for scene in scenes(motion, 4):
        for box, mask in zip(scene.boxes(height=96, width=128).tolist(), cover(scene), strict=True):
            y, x = (mask > 0.51).nonzero(as_tuple=True)
            assert box == pytest.approx([int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1], abs=1)


def test_boxes_of_opposites_are_reversed_and_settings_are_read_again(tmp_path: Path) -> None:
    boxes = boxes_of(TINY, "test", "approach", 0)
    assert boxes.shape == (6, 4) and (boxes == boxes_of(TINY, "test", "recede", 0).flip(0)).all()
    away = draw_scene("left", Generator().manual_seed(0), num_frames=2, height=24, width=32)
    away.centre[0] = -100.0
    assert away.boxes(height=24, width=32)[0].tolist() == [0, 0, 0, 0]
    write_demo(tmp_path / "demo", TINY)
    assert read_settings(tmp_path / "demo") == TINY
    with pytest.raises(UserError, match=r"no demo data in .* \(no demo.json\): octvideo demo-data -o .* writes it"):
        read_settings(tmp_path)
