"""Resizing against PIL, crops against plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from octvideo.video import Box, crop_and_resize, evaluation_crops, resize_short_side
from octvideo.video.transforms import resize, short_side_size


def picture(height: int, width: int, num_frames: int = 2) -> Tensor:
    """Noise, the hardest picture to resize alike, uint8 (T, H, W, C)."""
    return torch.randint(256, (num_frames, height, width, 3), dtype=torch.uint8)


def by_pil(frames: Tensor, size: tuple[int, int]) -> np.ndarray:
    """The reference: PIL's bilinear, which antialiases, (T, h, w, C)."""
    images = [Image.fromarray(frame).resize(size[::-1], Image.Resampling.BILINEAR) for frame in frames.numpy()]
    return np.stack([np.asarray(image) for image in images])


def assert_like_pil(got: Tensor, frames: Tensor, size: tuple[int, int]) -> None:
    assert got.dtype == torch.uint8 and got.shape == (len(frames), 3, *size)
    difference = got.permute(0, 2, 3, 1).numpy().astype(int) - by_pil(frames, size)
    assert np.abs(difference).max() <= 1  # rounding


@pytest.mark.parametrize(
    ("height", "width", "short_side_px", "expected"),
    [
        (240, 320, 256, (256, 341)),
        (320, 240, 256, (341, 256)),
        (256, 340, 256, (256, 340)),
        (360, 640, 256, (256, 455)),
        (1080, 1920, 256, (256, 455)),
        (100, 100, 64, (64, 64)),
        (1, 1, 256, (256, 256)),
        (121, 161, 128, (128, 170)),
    ],
)
def test_short_side_sizes(height: int, width: int, short_side_px: int, expected: tuple[int, int]) -> None:
    assert short_side_size(height, width, short_side_px) == expected
    exact = short_side_px * max(height, width) / min(height, width)
    assert 0 <= exact - max(expected) < 1 and min(expected) == short_side_px  # rounded down


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48), (50, 50), (31, 77)])
@pytest.mark.parametrize("short_side_px", [16, 32, 80])
def test_resizing_is_pil_s_bilinear(height: int, width: int, short_side_px: int) -> None:
    frames = picture(height, width)
    size = short_side_size(height, width, short_side_px)
    assert_like_pil(resize_short_side(frames, short_side_px), frames, size)


def test_a_resize_to_the_same_size_is_a_view() -> None:
    frames = picture(32, 40)
    same = resize(frames, (32, 40))
    assert same.shape == (2, 3, 32, 40) and same.data_ptr() == frames.data_ptr()


def test_frames_stay_channels_last_in_memory() -> None:
    small = resize_short_side(picture(48, 64), 24)
    assert small.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("box", [Box(0, 0, 48, 64), Box(5, 7, 20, 30), Box(47, 63, 1, 1), Box(10, 0, 30, 30)])
def test_crop_and_resize_touches_no_pixel_outside(box: Box) -> None:
    frames = picture(48, 64)
    inside = frames[:, box.top : box.top + box.height, box.left : box.left + box.width].contiguous()
    assert_like_pil(crop_and_resize(frames, box, (24, 24)), inside, (24, 24))
    outside = torch.full_like(frames, 255)
    outside[:, box.top : box.top + box.height, box.left : box.left + box.width] = inside
    assert torch.equal(crop_and_resize(frames, box, (24, 24)), crop_and_resize(outside, box, (24, 24)))


@pytest.mark.parametrize("spare", [0, 1, 2, 3, 84, 85])
@pytest.mark.parametrize("upright", [False, True])
def test_three_crops_lie_left_centre_right_or_top_centre_bottom(spare: int, upright: bool) -> None:
    long, short = 32 + spare, 32
    height, width = (long, short) if upright else (short, long)
    frame = np.arange(height * width).reshape(height, width)
    crops = [
        box.of(torch.from_numpy(frame)[None, ..., None])[0, ..., 0].numpy()
        for box in evaluation_crops(height, width, num_crops=3, crop_px=32)
    ]
    along = frame if not upright else frame.T  # the reference cuts along the last side only
    middle = spare // 2
    expected = [along[:, :32], along[:, middle : middle + 32], along[:, spare:]]
    for crop, reference in zip(crops, expected, strict=True):
        np.testing.assert_array_equal(crop, reference.T if upright else reference)


@pytest.mark.parametrize(("height", "width"), [(40, 60), (60, 40), (41, 61), (32, 32)])
def test_the_single_crop_is_the_centre_and_the_middle_of_three(height: int, width: int) -> None:
    (box,) = evaluation_crops(height, width, num_crops=1, crop_px=32)
    assert (box.top, box.left, box.height, box.width) == ((height - 32) // 2, (width - 32) // 2, 32, 32)
    assert evaluation_crops(height, width, num_crops=3, crop_px=32)[1] == box


def test_a_small_crop_of_a_large_frame_is_centred_across() -> None:
    boxes = evaluation_crops(256, 340, num_crops=3, crop_px=224)
    assert [(box.top, box.left) for box in boxes] == [(16, 0), (16, 58), (16, 116)]


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"num_crops: got 2, expected 1 \(centre\) or 3"):
        evaluation_crops(32, 32, num_crops=2, crop_px=32)
    with pytest.raises(ValueError, match="crop_px: got 33, expected at most 32, the frame's short side"):
        evaluation_crops(32, 64, num_crops=3, crop_px=33)


@pytest.mark.parametrize(("height", "width", "size"), [(51, 33, (40, 25)), (20, 31, (32, 49))])
def test_resize_is_torchvisions(height: int, width: int, size: tuple[int, int]) -> None:
    frames = torch.randint(0, 256, (4, height, width, 3), dtype=torch.uint8)
    expected = TF.resize(frames.permute(0, 3, 1, 2), list(size), antialias=True)
    # torchvision 0.21 goes by way of float where CPUs have AVX-512, and rounds better.
    tolerance = 0 if tuple(map(int, torchvision.__version__.split(".")[:2])) > (0, 21) else 1
    assert (resize(frames, size).int() - expected.int()).abs().max() <= tolerance
