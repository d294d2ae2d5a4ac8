"""Classes that a flip makes of each other, and labels that follow it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from octvideo.data import Augmentation
from octvideo.data.datamodule import VideoDataModule
from octvideo.data.dataset import Item
from octvideo.data.flips import flipped_classes, sided_classes, warning_of_sides
from octvideo.errors import UserError

NAMES = [
    "jump",
    "move_left",
    "move_right",
    "Pushing [something] from left to right",
    "Pushing [something] from right to left",
]


def test_pairs_count_both_ways() -> None:
    swaps = {"move right": "move_left", NAMES[3]: NAMES[4], NAMES[4]: NAMES[3]}
    assert flipped_classes(swaps, NAMES) == [0, 2, 1, 4, 3]
    assert flipped_classes({}, NAMES) == [0, 1, 2, 3, 4]


def test_mistakes_are_told() -> None:
    with pytest.raises(UserError, match=r"data\.flip_labels: 'move_lift' is no known class.*did you mean 'move_left'"):
        flipped_classes({"move_lift": "move_right"}, NAMES)
    with pytest.raises(UserError, match=r"'move_left' has two partners, 'move_right' and 'jump': expected one"):
        flipped_classes({"move_left": "move_right", "jump": "move_left"}, NAMES)


def test_classes_with_sides_are_found() -> None:
    assert sided_classes(NAMES) == {"move_left": "move_right", NAMES[3]: NAMES[4]}
    assert sided_classes(["turn Left", "turn Right"]) == {"turn Left": "turn Right"}
    assert sided_classes(["bright", "leftover", "move left"]) == {}
    turns = ["Turning Hand Clockwise", "Turning Hand Counterclockwise", "clockwise"]
    assert sided_classes(turns) == {turns[0]: turns[1]}
    assert "'move_left / move_right'" in warning_of_sides(NAMES) and warning_of_sides(["jump"]) == ""


@pytest.fixture
def data(tmp_path: Path, encode: Callable[..., Path], moving: Callable[..., torch.Tensor]) -> Callable[..., Any]:
    """A data module of one lossless video of the class "left"; flips are certain unless said."""
    encode(tmp_path / "a.mkv", moving(4, 16, 16), "ffv1", pix_fmt="bgr0")
    (tmp_path / "classes.txt").write_text("left\nright\nstay\n")
    (tmp_path / "train.txt").write_text("a.mkv,left\n")

    def make(**settings: Any) -> VideoDataModule:
        augment = Augmentation(crop_px=16, short_side_px=(16, 16), flip=settings.pop("flip", 1.0))
        return VideoDataModule(
            str(tmp_path), train="train.txt", clip_frames=4, frame_stride=1, augment=augment, **settings
        )

    return make


def test_a_label_follows_its_flip(data: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "swaps.yaml").write_text("left: right\n")
    for given in ({"left": "right"}, "swaps.yaml"):
        module = data(flip=0.5, flip_labels=given)
        clips = module.training_clips()
        items = [clips[epoch, 0] for epoch in range(12)]
        plain = data(flip=0.0).training_clips()[0, 0]
        assert isinstance(plain, Item) and plain.label == 0
        found = set()
        for item in items:
            assert isinstance(item, Item)
            is_flipped = not torch.equal(item.video, plain.video)
            assert torch.equal(item.video, plain.video.flip(-1) if is_flipped else plain.video)
            assert item.label == is_flipped
            found.add(is_flipped)
        assert found == {True, False}


def test_each_of_several_labels_follows(data: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a.mkv stay;left\n")
    item = data(flip_labels={"left": "right"}, several_labels=True).training_clips()[0, 0]
    assert isinstance(item, Item) and (item.label, item.others) == (2, (1,))


def test_a_flip_of_sides_without_pairs_is_said(data: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "octvideo.data"):
        data(flip=0.0).setup("fit")
        data(flip_labels={"left": "right"}).setup("fit")
        data().videos("train")  # as octvideo shards reads them
        assert "mirror" not in caplog.text
        data().setup("fit")
    assert "their labels stay: give the pairs in data.flip_labels, or --data.augment.flip 0" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- left\n", r"swaps\.yaml: got other YAML than pairs of classes"),
        ("left: [\n", r"swaps\.yaml can't be read as YAML"),
        ("left: rihgt\n", r"data\.flip_labels: 'rihgt' is no known class"),
        (None, r"no data for data\.flip_labels 'swaps\.yaml'.*It is a YAML file"),
    ],
)
def test_a_file_that_cannot_be_meant(
    data: Callable[..., Any], tmp_path: Path, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "swaps.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        data(flip_labels="swaps.yaml").setup("fit")
