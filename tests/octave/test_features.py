"""Octave, partitions, pooling and upsampling."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from octvideo.octave import Octave, Partition, low_size, merge, pool_down, split, split_channels, upsample


@pytest.mark.parametrize(
    ("channels", "alpha", "low"),
    [(64, 0.1, 6), (64, 0.9, 58), (256, 0.125, 32), (5, 0.1, 1), (3, 0.5, 2), (7, 0, 0), (7, 1, 7)],
)
def test_one_rounding_rule(channels: int, alpha: float, low: int) -> None:
    assert split_channels(channels, alpha) == (channels - low, low)


def test_partition_of_groups() -> None:
    assert Partition.of(8, 0.5, groups=2).low == (2, 3, 6, 7)  # inside each group
    assert Partition.of(8, 0.25, groups=4).low == (6, 7)  # .5 channel a group: whole groups instead
    assert Partition.of(8, 0.25, groups=8).low == (6, 7)  # depthwise
    assert Partition.join([Partition.of(2, 0.5), Partition.of(3, 0)]).low == (1,)
    assert repr(Partition.of(8, 0.5, groups=2)) == "Partition(2H 2L 2H 2L)"
    with pytest.raises(ValueError, match="9 channels do not divide into 2 groups"):
        Partition.of(9, 0.5, groups=2)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_pool_and_upsample_in_both_layouts(memory_format: torch.memory_format) -> None:
    x = torch.randn(2, 3, 4, 7, 6).to(memory_format=memory_format)
    pooled = pool_down(x)
    assert pooled.shape == (2, 3, 4, 4, 3)
    want = torch.nn.functional.avg_pool3d(x, (1, 2, 2), ceil_mode=True, count_include_pad=False)
    torch.testing.assert_close(pooled, want)
    assert pooled.is_contiguous(memory_format=memory_format)
    up = upsample(pooled, (7, 6))
    torch.testing.assert_close(up, pooled.repeat_interleave(2, 3)[:, :, :, :7].repeat_interleave(2, 4))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("factor", [(2, 2, 2), (2, 1, 1), (1, 2, 1), (2, 1, 2)], ids=str)
def test_any_axes_can_be_halved(factor: tuple[int, ...], memory_format: torch.memory_format) -> None:
    for sizes in ((5, 7, 6), (4, 6, 9), (4, 6, 8)):
        x = torch.randn(2, 3, *sizes).to(memory_format=memory_format)
        pooled = pool_down(x, factor)
        assert tuple(pooled.shape[2:]) == low_size(sizes, factor)
        want = torch.nn.functional.avg_pool3d(x, factor, ceil_mode=True, count_include_pad=False)
        torch.testing.assert_close(pooled, want)
        up = pooled
        for axis, (size, f) in enumerate(zip(sizes, factor, strict=True), start=2):
            up = up.repeat_interleave(f, axis).narrow(axis, 0, size)
        assert torch.equal(upsample(pooled, sizes, factor), up)
        if all(size % f == 0 for size, f in zip(sizes, factor, strict=True)):  # else a cropped view
            assert upsample(pooled, sizes, factor).is_contiguous(memory_format=memory_format)


def test_an_empty_map_is_halved_too() -> None:
    assert pool_down(torch.zeros(2, 0, 5, 7, 6), (2, 2, 2)).shape == (2, 0, 3, 4, 3)


@pytest.mark.parametrize("factor", [(2, 2), (1, 1, 1), (1, 2, 3), ()])
def test_wrong_factor_is_named(factor: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected 3 of 1 or 2 for \(T, H, W\), at least one of them 2"):
        pool_down(torch.zeros(1, 2, 4, 4, 4), factor)


def test_split_then_merge_in_a_time_octave() -> None:
    """Odd numbers of frames round up; the last low frame is the last frame itself, a single one too."""
    x = torch.arange(5.0).reshape(1, 1, 5, 1, 1).expand(1, 2, 5, 3, 4)
    pair = split(x, 0.5, (2, 2, 2))
    assert isinstance(pair, Octave) and pair.low[0, 0, :, 0, 0].tolist() == [0.5, 2.5, 4.0]
    assert merge(pair, factor=(2, 2, 2))[0, 1, :, 0, 0].tolist() == [0.5, 0.5, 2.5, 2.5, 4.0]
    frame = torch.randn(1, 2, 1, 1, 1)
    assert torch.equal(merge(split(frame, 0.5, (2, 2, 2)), factor=(2, 2, 2)), frame)


def test_split_then_merge_keeps_constant_maps_and_order() -> None:
    x = torch.arange(6.0).reshape(1, 6, 1, 1).expand(2, 6, 5, 7)
    for partition in (Partition.of(6, 0.5), Partition((True, False) * 3), Partition((True,) * 6)):
        pair = split(x, partition)
        assert isinstance(pair, Octave) and pair.high.shape[1] == len(partition.high)
        torch.testing.assert_close(merge(pair, partition), x)
    assert split(x, 0.0) is x


def test_adding_octaves_adds_frequencies() -> None:
    a = Octave(torch.ones(1, 2, 4, 4), torch.ones(1, 2, 2, 2))
    total = a + a
    assert isinstance(total, Octave) and total.high.max() == 2 and total.low.shape == (1, 2, 2, 2)
    with pytest.raises(TypeError, match="can only be added to an Octave, got Tensor"):
        a + torch.ones(1)


def test_multiplying_an_octave_is_refused() -> None:
    """A tuple times two would be a tuple of four."""
    pair = Octave(torch.ones(1, 2, 4, 4), torch.ones(1, 2, 2, 2))
    for multiply in (lambda: pair * 2, lambda: 2 * pair):
        with pytest.raises(TypeError, match=r"an Octave cannot be multiplied: merge\(\) it first"):
            multiply()


def test_code_that_wants_a_tensor_is_told_so() -> None:
    pair = Octave(torch.ones(1, 2, 4, 4), torch.ones(1, 2, 2, 2))
    with pytest.raises(AttributeError, match=r"reached code that expects a Tensor \(it asked for .dim\)"):
        torch.nn.SyncBatchNorm(2)(pair)
    assert torch.equal(pickle.loads(pickle.dumps(pair)).low, copy.deepcopy(pair).low)
