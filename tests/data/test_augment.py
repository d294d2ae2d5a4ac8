"""Sampled parameters keep to their ranges and are spread as said; applied, they are one for all frames."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from torch import Generator, Tensor

from octvideo.data import TrainingClips, VideoRecord, dataset
from octvideo.data.augment import Augmentation, ClipTransform, sample_transform
from octvideo.data.dataset import Item
from octvideo.errors import UserError
from octvideo.video import Box, crop_and_resize

SIZES = [(240, 320), (320, 240), (256, 256), (121, 161)]


def draw(augment: Augmentation, height: int, width: int, count: int) -> list[ClipTransform]:
    generator = Generator().manual_seed(0)
    return [sample_transform(augment, height=height, width=width, generator=generator) for _ in range(count)]


# ── parameters ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("height", "width"), [*SIZES, (3, 300), (1, 1)])
@pytest.mark.parametrize(
    "augment",
    [
        Augmentation(),
        Augmentation(crop_px=64, short_side_px=(64, 64)),
        Augmentation(crop_px=112, area=(0.05, 1.0)),
        Augmentation(crop_px=112, area=(0.3, 1.0), aspect=(0.1, 10.0)),
    ],
)
def test_boxes_lie_inside_the_frame(augment: Augmentation, height: int, width: int) -> None:
    for transform in draw(augment, height, width, 300):
        box = transform.box
        assert box.height >= 1 and box.width >= 1 and box.top >= 0 and box.left >= 0
        assert box.top + box.height <= height and box.left + box.width <= width


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_crops_are_those_of_a_resized_frame(height: int, width: int) -> None:
    """Short side of the frame over side of the box = short side after resizing over crop_px."""
    boxes = [t.box for t in draw(Augmentation(), height, width, 2000)]
    assert all(box.height == box.width for box in boxes)
    short_sides = torch.tensor([224 * min(height, width) / box.height for box in boxes])
    assert 254 < short_sides.min() < 259 and 316 < short_sides.max() < 323  # rounded to pixels of the source
    # Uniform in 1 / size: half of the draws on each side of the harmonic mean.
    assert 0.46 < (short_sides < 2 / (1 / 256 + 1 / 320)).float().mean() < 0.54


def test_places_are_spread_evenly() -> None:
    boxes = [t.box for t in draw(Augmentation(crop_px=16, short_side_px=(32, 32)), 32, 48, 3300)]
    tops = torch.bincount(torch.tensor([box.top for box in boxes]))
    lefts = torch.bincount(torch.tensor([box.left for box in boxes]))
    assert len(tops) == 17 and len(lefts) == 33
    for counts in (tops, lefts):
        expected = 3300 / len(counts)
        assert ((counts - expected).abs() < 5 * expected**0.5).all()


def test_inception_crops_have_the_areas_and_aspects_asked_for() -> None:
    augment = Augmentation(crop_px=112, area=(0.25, 0.5), aspect=(0.5, 2.0))
    boxes = [t.box for t in draw(augment, 400, 400, 2000)]
    areas = torch.tensor([box.height * box.width / 400**2 for box in boxes])
    aspects = torch.tensor([box.width / box.height for box in boxes])
    assert 0.245 < areas.min() < 0.26 and 0.49 < areas.max() < 0.505
    assert abs(float(areas.mean()) - 0.375) < 0.01  # uniform
    assert 0.49 < aspects.min() < 0.53 and 1.9 < aspects.max() < 2.05
    assert abs(float(aspects.log().mean())) < 0.04  # as often wide as high


@pytest.mark.parametrize(("flip", "low", "high"), [(0.0, 0, 0), (1.0, 1, 1), (0.5, 0.46, 0.54), (0.1, 0.08, 0.12)])
def test_flips_are_as_likely_as_said(flip: float, low: float, high: float) -> None:
    flips = [t.flip for t in draw(Augmentation(flip=flip), 240, 320, 2000)]
    assert low <= sum(flips) / len(flips) <= high


def test_colour_factors() -> None:
    assert {t.factors for t in draw(Augmentation(), 240, 320, 20)} == {(1.0, 1.0, 1.0)}
    factors = torch.tensor([t.factors for t in draw(Augmentation(colour=0.4), 240, 320, 2000)])
    assert 0.6 <= factors.min() < 0.61 and 1.39 < factors.max() <= 1.4
    assert ((factors.mean(0) - 1).abs() < 0.03).all()
    assert torch.corrcoef(factors.T).fill_diagonal_(0).abs().max() < 0.08  # drawn apart


def test_the_generator_is_the_only_source() -> None:
    augment = Augmentation(colour=0.4)
    first = draw(augment, 240, 320, 5)
    torch.manual_seed(99)
    assert draw(augment, 240, 320, 5) == first


def test_every_clip_takes_equally_many_draws() -> None:
    """So that what is drawn later, or for the next clip, depends on no clamping."""
    for augment in (Augmentation(colour=0.2), Augmentation(colour=0.2, area=(0.01, 1.0), aspect=(0.1, 10.0))):
        states = set()
        for height, width in [*SIZES, (2, 500)]:
            generator = Generator().manual_seed(7)
            sample_transform(augment, height=height, width=width, generator=generator)
            states.add(tuple(generator.get_state().tolist()))
        assert len(states) == 1


# ── applied ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def clip_of(tmp_path: Path, encode: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tensor]:
    """What training gets of a lossless video of these frames, all in one clip, with this transform."""

    def load(frames: Tensor, transform: ClipTransform, *, crop_px: int) -> Tensor:
        path = encode(tmp_path / f"{uuid.uuid4()}.mkv", frames, "ffv1", pix_fmt="bgr0")
        monkeypatch.setattr(dataset, "sample_transform", lambda *_, **__: transform)
        augment = Augmentation(crop_px=crop_px, short_side_px=(crop_px, crop_px))
        item = TrainingClips([VideoRecord(str(path), 0)], augment, clip_frames=len(frames), frame_stride=1)[0, 0]
        assert isinstance(item, Item) and item.video.is_contiguous()
        return item.video

    return load


def test_one_transform_for_all_frames(clip_of: Callable[..., Tensor]) -> None:
    frame = torch.randint(256, (1, 48, 64, 3), dtype=torch.uint8)
    frames = torch.randint(256, (5, 48, 64, 3), dtype=torch.uint8)
    frames[[0, 2, 4]] = frame
    transform = ClipTransform(Box(3, 5, 30, 40), True, (1.2, 0.8, 0.7))
    clip = clip_of(frames, transform, crop_px=24)
    assert clip.shape == (3, 5, 24, 24) and clip.dtype == torch.uint8
    alone = clip_of(frame, transform, crop_px=24)[:, 0]
    assert all(torch.equal(clip[:, t], alone) for t in (0, 2, 4))  # whatever the frames beside it are


def test_crop_and_flip_against_plain_indexing(clip_of: Callable[..., Tensor]) -> None:
    frames = torch.randint(256, (3, 48, 64, 3), dtype=torch.uint8)
    box = Box(10, 20, 24, 24)  # of the size of the clip: no resizing
    plain = frames.numpy()[:, 10:34, 20:44].transpose(3, 0, 1, 2)
    np.testing.assert_array_equal(clip_of(frames, ClipTransform(box, False), crop_px=24), plain)
    np.testing.assert_array_equal(clip_of(frames, ClipTransform(box, True), crop_px=24), plain[..., ::-1])


def test_resized_crops_are_those_of_the_box(clip_of: Callable[..., Tensor]) -> None:
    frames = torch.randint(256, (3, 48, 64, 3), dtype=torch.uint8)
    box = Box(1, 2, 41, 33)
    expected = crop_and_resize(frames, box, (16, 16)).permute(1, 0, 2, 3)
    assert torch.equal(clip_of(frames, ClipTransform(box, False), crop_px=16), expected)


@pytest.mark.parametrize(
    ("place", "enhance"), [(0, ImageEnhance.Brightness), (1, ImageEnhance.Contrast), (2, ImageEnhance.Color)]
)
@pytest.mark.parametrize("factor", [0.6, 1.4])
def test_colours_against_pil(clip_of: Callable[..., Tensor], place: int, enhance: type, factor: float) -> None:
    frames = torch.randint(40, 200, (2, 16, 16, 3), dtype=torch.uint8)
    factors = [1.0, 1.0, 1.0]
    factors[place] = factor
    clip = clip_of(frames, ClipTransform(Box(0, 0, 16, 16), False, tuple(factors)), crop_px=16)  # type: ignore[arg-type]
    for t in range(2):
        expected = np.asarray(enhance(Image.fromarray(frames[t].numpy())).enhance(factor)).astype(int)
        assert np.abs(clip[:, t].permute(1, 2, 0).numpy().astype(int) - expected).max() <= 2  # roundings


# ── settings ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_px": 0}, r"augment\.crop_px: got 0, expected 1 or more"),
        (
            {"crop_px": 300},
            r"augment\.short_side_px: got \[256, 320\], expected crop_px \(300\) <= smallest <= largest",
        ),
        ({"short_side_px": (320, 256)}, r"augment\.short_side_px: got \[320, 256\]"),
        ({"area": (0.0, 1.0)}, r"augment\.area: got \[0\.0, 1\.0\], expected 0 < smallest <= largest <= 1"),
        ({"area": (0.5, 1.5)}, r"augment\.area: got \[0\.5, 1\.5\]"),
        ({"aspect": (2.0, 1.0)}, r"augment\.aspect: got \[2\.0, 1\.0\], expected 0 < smallest <= largest"),
        ({"flip": 1.5}, r"augment\.flip: got 1\.5, expected 0 to 1"),
        ({"colour": -0.1}, r"augment\.colour: got -0\.1, expected 0 to 1"),
    ],
)
def test_settings_that_cannot_be_meant(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Augmentation(**change)  # type: ignore[arg-type]


def test_the_short_side_does_not_matter_to_inception_crops() -> None:
    assert Augmentation(crop_px=384, area=(0.3, 1.0)).crop_px == 384
