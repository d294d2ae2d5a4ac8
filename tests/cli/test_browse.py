"""octvideo browse shows the very clips and mixtures that training gets."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from octvideo.cli.browse_sheet import Block, Strip, contact_sheet
from octvideo.training import VideoClassifier

Cli = Callable[..., tuple[str, str]]
KEYS = (
    *("--data.augment.flip", 0.5, "--data.augment.policy", "rand", "--data.augment.erase", 0.5),
    *("--data.flip_labels", "{left: right}", "--model.mixup_alpha", 0.8, "--model.cutmix_alpha", 1),
)


def strips_of(page: str) -> list[tuple[str, np.ndarray]]:
    """Captions and pictures."""
    found = re.findall(
        r'<figcaption[^>]*><bdi>([^<]*)</bdi></figcaption><img src="data:image/png;base64,([^"]*)"', page
    )
    return [
        (caption, np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")))
        for caption, content in found
    ]


def frames_of(strip: np.ndarray) -> np.ndarray:
    """(T, 32, 32, 3) of a strip whose frames are twice as large, with two pixels between them."""
    count = (strip.shape[1] + 2) // 66
    return np.stack([strip[::2, 66 * n : 66 * n + 64 : 2] for n in range(count)])


def test_a_page_has_what_training_gets(octvideo: Cli, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, err = octvideo("browse", "-c", "tiny", "-o", "clips.html", "--num_videos", 3, "--draws", 3, *KEYS)
    assert "3 videos and 3 mixed clips: clips.html" in err and not Path("runs").exists()
    page = Path("clips.html").read_text()
    strips = strips_of(page)
    assert len(strips) == 3 * 3 + 3 * 3
    assert [caption.partition(":")[0] for caption, _ in strips[:3]] == ["epoch 1", "epoch 2", "epoch 3"]
    assert "data.augment.policy" in page and "mixup" in page

    trained: list[Tensor] = []
    forward = VideoClassifier.forward
    monkeypatch.setattr(
        VideoClassifier, "forward", lambda self, clips: (trained.append(clips.detach()), forward(self, clips))[1]
    )
    fit: tuple[Any, ...] = ("--trainer.max_epochs", 1, "--data.val", "null", "--trainer.enable_progress_bar", "false")
    octvideo("fit", "-c", "tiny", *KEYS, *fit)
    assert len(trained) == 3
    for number, clips in enumerate(trained):
        caption, strip = strips[9 + 3 * number + 2]
        expected = clips[0].round().to(torch.uint8).permute(1, 2, 3, 0).numpy()  # (T,S,S,3)
        np.testing.assert_array_equal(frames_of(strip), expected)
        assert re.fullmatch(r"(\d\.\d\d \w+)( \+ \d\.\d\d \w+)?", caption), caption


def test_blocks_lie_in_rows_by_group() -> None:
    def block(*colours: int) -> Block:
        return Block("a video", [Strip("épée: 2", np.full((3, 64, 64, 3), colour, np.uint8)) for colour in colours])

    sheet = contact_sheet([[block(0, 50), block(100)], [block(150)]])
    tops = {colour: np.argwhere((sheet == colour).all(2)).min(0).tolist() for colour in (0, 50, 100, 150)}
    assert tops[0][0] == tops[100][0] < tops[50][0] < tops[150][0] and tops[0][1] == tops[150][1] < tops[100][1]
    for colour in (0, 50, 100, 150):
        assert (sheet == colour).all(2).sum() >= 3 * 64 * 64


@pytest.mark.slow
def test_a_contact_sheet_and_repeats(octvideo: Cli, workplace: Path) -> None:
    words = ("browse", "-c", "tiny", "--num_videos", 2, "--draws", 2, "--frames", 2, "--data.repeats", 3)
    octvideo(*words, "-o", "clips.png")
    sheet = np.asarray(Image.open("clips.png"))
    assert sheet.shape[0] > 6 * 64 and sheet.shape[1] > 2 * (2 * 64 + 2)
    octvideo(*words, "-o", "clips.html")
    captions = [caption for caption, _ in strips_of(Path("clips.html").read_text())]
    assert len(captions) == 2 * 2 * 3 and captions[2].startswith("epoch 1, repeat 3: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-o", "clips.gif"), "-o clips.gif: got .gif, expected .html or .png"),
        (("--data.augmnt.flip", 0), "no option --data.augmnt.flip (did you mean --data.augment.flip?)"),
        (("stray",), "no argument stray"),
        (("--data.augment.erase", 2), "augment.erase: got 2.0, expected 0 to 1"),
        (("--data.root", "nowhere"), "no folder nowhere"),
    ],
)
def test_mistakes_are_one_line(octvideo: Cli, workplace: Path, words: tuple[object, ...], message: str) -> None:
    _, err = octvideo("browse", "-c", "tiny", *words, code=2)
    assert message in err and len(err.strip().splitlines()) == 1


def test_a_video_that_cannot_be_read_is_named(octvideo: Cli, workplace: Path, tiny_data: Path) -> None:
    (workplace / "bad.mp4").write_text("no video")
    (workplace / "bad.txt").write_text(f"{workplace / 'bad.mp4'} 0\n")
    _, err = octvideo("browse", "-c", "tiny", "--data.train", workplace / "bad.txt", code=2)
    assert "bad.mp4" in err and "cannot read video" in err
