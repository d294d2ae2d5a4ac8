"""Videos of two labels out of clips of one: what is in them, and in their list."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lab.pairs import main, partners
from octvideo.class_names import ClassIndex
from octvideo.data.manifest import read_records
from octvideo.errors import UserError
from octvideo.video import FileFrames


@pytest.fixture
def clips(tmp_path: Path, encode: Callable[..., Path]) -> Path:
    """Four clips in two classes, each of one grey and one length."""
    lines = []
    for n in range(4):
        encode(tmp_path / "clips" / f"{n}.mp4", torch.full((4 + n, 32, 48, 3), 60 * n, dtype=torch.uint8), rate=25)
        lines.append(f"{n}.mp4 {n % 2}\n")
    (tmp_path / "clips" / "train.txt").write_text("".join(lines))
    (tmp_path / "clips" / "classes.txt").write_text("sit\nwave\n")
    return tmp_path / "clips"


def test_a_pair_is_two_clips_of_two_classes_one_after_the_other(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "pairs"
    words = [str(clips), "-o", str(out), "--lists", "train.txt"]
    assert main(words) == 0
    records = list(read_records(out / "train.txt", root=out, classes=ClassIndex(["sit", "wave"]), several=True))
    assert [(record.label, record.others) for record in records] == [(0, (1,)), (1, (0,)), (0, (1,)), (1, (0,))]
    for first, record in enumerate(records):
        with FileFrames(record.path, None) as frames:
            means = torch.stack([frame.image.float().mean() for frame in frames])
        second = len(means) - (4 + first) - 4  # by its length
        assert second % 2 != first % 2 and frames.rate == 25
        expected = torch.tensor([60.0 * first] * (4 + first) + [60.0 * second] * (4 + second))
        torch.testing.assert_close(means, expected, atol=4, rtol=0)
    # Given again, what is there stays, and what is missing comes back the same.
    kept = Path(records[0].path).stat().st_mtime_ns
    lost = Path(records[1].path).read_bytes()
    Path(records[1].path).unlink()
    assert main(words) == 0
    assert Path(records[0].path).stat().st_mtime_ns == kept and Path(records[1].path).read_bytes() == lost


def test_partners_depend_on_seed_and_list_and_have_another_class() -> None:
    labels = torch.arange(60) % 3
    found = partners(labels, seed=0, name="train")
    assert found == partners(labels, seed=0, name="train")
    assert found != partners(labels, seed=1, name="train") and found != partners(labels, seed=0, name="test")
    assert bool((labels[found] != labels).all()) and len(set(found)) > 30
    with pytest.raises(UserError, match="train: all 2 clips are of one class, and a pair needs two"):
        partners(torch.zeros(2), seed=0, name="train")


def test_mistakes_are_told(
    clips: Path, tmp_path: Path, encode: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(clips), "-o", str(tmp_path / "pairs"), "--lists", "train.txt"]
    assert main(words) == 0
    assert main([*words, "--seed", "1"]) == 2
    assert "holds pairs of other settings: remove it, or name another folder" in capsys.readouterr().err
    encode(clips / "0.mp4", torch.zeros(4, 64, 64, 3, dtype=torch.uint8), rate=25)
    assert main([*words[:2], str(tmp_path / "others"), *words[3:]]) == 2
    assert "(64, 64)" in (err := capsys.readouterr().err) and "expected clips of one size" in err
