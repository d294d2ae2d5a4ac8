"""RandAugment and TrivialAugment are torchvision's: the same draws of the same seed, the same pixels."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor
from torchvision.transforms import v2

from octvideo.data import policies
from octvideo.data.policies import Operation, Policy, apply_operations, draw_operations


def planes(frames: int, size: int) -> Tensor:
    """(T, C, S, S) of noise, dark noise, and one colour, as the augmentation has them in memory."""
    clip = torch.randint(256, (3, frames, size, size), dtype=torch.uint8, generator=Generator().manual_seed(size))
    clip[:, 1:2] //= 3
    clip[:, 2:] = 7
    return clip.transpose(0, 1)


@pytest.mark.parametrize("size", [32, 65])
@pytest.mark.parametrize("policy", ["rand", "trivial"])
def test_they_are_those_of_torchvision(policy: Policy, size: int) -> None:
    clip, seen = planes(3, size), set()
    for seed in range(62):
        magnitude = seed % 31
        theirs = v2.RandAugment(3, magnitude) if policy == "rand" else v2.TrivialAugmentWide()
        torch.manual_seed(seed)
        expected = theirs(clip.contiguous())
        generator = Generator().manual_seed(seed)
        operations = draw_operations(policy, num_ops=3, magnitude=magnitude, size_px=size, generator=generator)
        assert torch.equal(apply_operations(clip, operations), expected), operations
        seen |= {operation.name for operation in operations}
    assert len(seen) == 14


def test_frames_in_chunks_are_as_frames_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = planes(7, 24)
    operations = [Operation(name, 0.4) for name in ("Color", "Contrast", "Sharpness")]
    at_once = apply_operations(clip, operations)
    monkeypatch.setattr(policies, "_CHUNK_BYTES", 2 * 3 * 24 * 24)
    assert torch.equal(apply_operations(clip, operations), at_once)


def test_all_frames_go_through_the_same() -> None:
    still = planes(1, 32).expand(5, -1, -1, -1)
    for seed in range(20):
        operations = draw_operations(
            "rand", num_ops=2, magnitude=20, size_px=32, generator=Generator().manual_seed(seed)
        )
        changed = apply_operations(still, operations)
        assert torch.equal(changed, changed[:1].expand_as(changed)), operations


def test_the_given_frames_stay() -> None:
    clip = planes(3, 16)
    before = clip.clone()
    for name in ("ShearX", "TranslateY", "Rotate", "Posterize", "Solarize", "AutoContrast", "Equalize", "Brightness"):
        apply_operations(clip, [Operation(name, 1.0)])
    assert torch.equal(clip, before)


def test_a_shift_out_of_the_picture_is_black() -> None:
    assert apply_operations(planes(2, 16), [Operation("TranslateX", 16)]).max() == 0
