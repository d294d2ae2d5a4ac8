"""Sampled parameters keep to their ranges and are spread as said; applied, they are one for all frames."""

from __future__ import annotations

import dataclasses
import math
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from torch import Generator, Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from octvideo.data import TrainingClips, VideoRecord, dataset
from octvideo.data.augment import Augmentation, ClipTransform, apply_transform, sample_transform
from octvideo.data.dataset import Item
from octvideo.data.policies import Operation
from octvideo.errors import UserError
from octvideo.video import Box, crop_and_resize

SIZES = [(240, 320), (320, 240), (256, 256), (121, 161)]


def draw(
    augment: Augmentation, height: int, width: int, count: int, *, seed: int = 0, clip_frames: int = 1
) -> list[ClipTransform]:
    generator = Generator().manual_seed(seed)
    size = {"height": height, "width": width, "clip_frames": clip_frames}
    return [sample_transform(augment, **size, generator=generator) for _ in range(count)]


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


# ── strong augmentation ─────────────────────────────────────────────────────────────────────────────────────


def clip_like(*, frames: int = 5, size: int = 24) -> Tensor:
    """(T, C, S, S), in memory channels last, as resizing gives it."""
    noise = torch.randint(256, (frames, size, size, 3), dtype=torch.uint8, generator=Generator().manual_seed(3))
    return noise.permute(0, 3, 1, 2)


def changed(clip: Tensor, **what: Any) -> Tensor:
    """(T, C, S, S) of a transform that keeps the region."""
    return apply_transform(clip, ClipTransform(Box(0, 0, *clip.shape[-2:]), False, **what)).transpose(0, 1)


def test_hue_and_grey_are_those_of_torchvision() -> None:
    clip = clip_like()
    assert torch.equal(changed(clip, hue=0.2), TF.adjust_hue(clip, 0.2))
    assert torch.equal(changed(clip, grey=True), TF.rgb_to_grayscale(clip, 3))


@pytest.mark.parametrize("sigma", [0.1, 0.8, 2.0])
def test_blur_is_that_of_torchvision(sigma: float) -> None:
    side = 2 * max(math.ceil(3 * sigma), 1) + 1
    theirs = TF.gaussian_blur(clip_like(), [side, side], [sigma, sigma])
    assert (changed(clip_like(), blur_sigma=sigma).int() - theirs.int()).abs().max() <= 1  # rounding


def test_erasing_draws_as_torchvision() -> None:
    augment = Augmentation(crop_px=24, short_side_px=(24, 24), erase=0.7, erase_with="grey")
    theirs, black, erased = v2.RandomErasing(p=0.7, value=115), clip_like(), 0
    for seed in range(60):
        generator = Generator().manual_seed(seed)
        for _ in range(7):  # the region, the flip and the colours
            torch.rand((), generator=generator)
        torch.set_rng_state(generator.get_state())
        expected = theirs(black.contiguous())
        transform = draw(augment, 24, 24, 1, seed=seed, clip_frames=5)[0]
        transform = dataclasses.replace(transform, flip=False)
        assert torch.equal(apply_transform(black, transform).transpose(0, 1), expected)
        erased += transform.erased is not None
    assert 30 < erased < 54


def test_a_cube_is_erased_in_a_row_of_frames() -> None:
    augment = Augmentation(crop_px=24, short_side_px=(24, 24), erase=1.0, erase_frames=(0.25, 0.5), flip=0.0)
    counts, firsts = set(), set()
    for transform in draw(augment, 24, 24, 200, clip_frames=8):
        cube = transform.erased
        assert cube is not None and 0 <= cube.first <= cube.last < 8
        counts.add(cube.last - cube.first + 1)
        firsts.add(cube.first)
    assert counts == {2, 3, 4} and firsts == set(range(7))
    clip = clip_like(frames=8)
    out = apply_transform(clip, transform).transpose(0, 1)
    outside = torch.ones_like(out, dtype=torch.bool)
    box = cube.box
    region = (slice(None), slice(box.top, box.top + box.height), slice(box.left, box.left + box.width))
    for t in range(cube.first, cube.last + 1):
        outside[(t, *region)] = False
        assert torch.equal(out[(t, *region)], out[(cube.first, *region)])  # the noise is one for all frames
    assert torch.equal(out[outside], clip[outside]) and not torch.equal(out, clip)
    assert 80 < out[(cube.first, *region)].float().mean() < 175


def test_each_frame_is_changed_once_and_shown_often() -> None:
    frames, places = clip_like(frames=3), torch.tensor([0, 1, 1, 2, 2, 2])
    transform = ClipTransform(Box(0, 0, 24, 24), True, (1.2, 0.9, 0.8), 0.1, False, 0.5, (Operation("Rotate", 9.0),))
    assert torch.equal(apply_transform(frames, transform, places), apply_transform(frames[places], transform))


def test_what_is_added_leaves_older_draws_alone() -> None:
    plain, strong = Augmentation(colour=0.3), Augmentation(colour=0.3, hue=0.1, grey=0.2, policy="rand", erase=0.5)
    for one, other in zip(*(draw(augment, 240, 320, 1, seed=5) for augment in (plain, strong)), strict=True):
        assert (one.box, one.flip, one.factors) == (other.box, other.flip, other.factors)
        assert other.operations and not one.operations


def test_probabilities_are_as_said() -> None:
    transforms = draw(Augmentation(hue=0.2, grey=0.2, blur=0.3, policy="trivial", erase=0.25), 240, 320, 1500)
    for share, has in ((0.2, "grey"), (0.3, "blur_sigma"), (0.25, "erased")):
        assert abs(sum(bool(getattr(transform, has)) for transform in transforms) / 1500 - share) < 0.035
    hues = torch.tensor([transform.hue for transform in transforms])
    assert -0.2 <= hues.min() < -0.19 and 0.19 < hues.max() <= 0.2 and abs(float(hues.mean())) < 0.01
    sigmas = torch.tensor([transform.blur_sigma for transform in transforms if transform.blur_sigma])
    assert 0.1 <= sigmas.min() < 0.13 and 1.95 < sigmas.max() <= 2
    assert len({transform.operations[0].name for transform in transforms}) == 14


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
        ({"hue": 0.7}, r"augment\.hue: got 0\.7, expected 0 to 0\.5"),
        ({"blur_sigma": (0.0, 1.0)}, r"augment\.blur_sigma: got \[0\.0, 1\.0\], expected 0 < smallest <= largest$"),
        ({"erase_frames": (0.5, 2.0)}, r"augment\.erase_frames: got \[0\.5, 2\.0\], expected .* <= 1"),
        ({"policy_magnitude": 31}, r"augment\.policy_magnitude: got 31, expected 0 to 30"),
        ({"policy_ops": 0}, r"augment\.policy_ops: got 0, expected 1 or more"),
        ({"colour": -0.1}, r"augment\.colour: got -0\.1, expected 0 to 1"),
    ],
)
def test_settings_that_cannot_be_meant(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Augmentation(**change)  # type: ignore[arg-type]


def test_the_short_side_does_not_matter_to_inception_crops() -> None:
    assert Augmentation(crop_px=384, area=(0.3, 1.0)).crop_px == 384
