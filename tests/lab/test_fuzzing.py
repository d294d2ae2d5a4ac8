"""Damaged files end as frames or as one VideoReadError, soon, and nothing grows; what does not is kept and told."""

from __future__ import annotations

import contextlib
import importlib.util
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lab.fuzzing import KINDS, Finding, damage, fuzz
from octvideo.video import VideoReadError, read_frames
from octvideo.video.isolated import private_bytes
from tests.video.isolated_work import misbehave

Encode = Callable[..., Path]
Moving = Callable[..., Tensor]
DECODERS: tuple[str, ...] = ("auto", "pyav", "decord")
MB = 2**20


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, encode: Encode, moving: Moving) -> list[Path]:
    """Three small files: tables at the end, tables inside, and an index at the end."""
    folder = tmp_path_factory.mktemp("intact")
    return [
        encode(folder / "a.mp4", moving(24, 64, 96), g=8, bf=2),
        encode(folder / "b.mkv", moving(24, 64, 96), g=8, bf=2),
        encode(folder / "c.avi", moving(24, 64, 96), "mpeg4", g=8),
    ]


def run(videos: Sequence[Path], numbers: range, keep: Path, seed: int = 0) -> list[Finding]:
    settings = {"decoders": DECODERS, "seed": seed, "timeout_s": 10, "memory_bytes": 1024 * MB, "keep": keep}
    return list(fuzz(videos, numbers, **settings))  # type: ignore[arg-type]


def told(findings: Sequence[Finding]) -> list[str]:
    return [f"{finding.case.decoder}: {finding.what} {finding.case}" for finding in findings if finding.failed]


def test_damaged_copies_give_frames_or_one_error(clips: list[Path], tmp_path: Path) -> None:
    findings = run(clips, range(60), tmp_path / "kept")
    assert told(findings) == [] and not (tmp_path / "kept").exists()
    kinds = Counter((finding.case.decoder, finding.kind) for finding in findings)
    assert sum(kinds.values()) == 60 * len(DECODERS)
    assert kinds["pyav", "frames"] > 15 and kinds["pyav", "error"] > 5  # neither harmless nor hopeless
    assert kinds["auto", "frames"] >= kinds["pyav", "frames"]  # auto gets what PyAV gets


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["clips", "odd"])
def test_damaged_copies_of_real_videos_give_frames_or_one_error(real_videos: Path, tmp_path: Path, folder: str) -> None:
    videos = sorted(file for file in (real_videos / folder).iterdir() if file.suffix != ".tsv")
    assert told(run(videos, range(300), tmp_path / "kept", seed=7)) == []


def test_a_copy_is_told_by_its_number(clips: list[Path]) -> None:
    content, other = clips[0].read_bytes(), clips[1].read_bytes()

    def copies(seed: int) -> list[tuple[bytes, str, str]]:
        return [damage(content, other, ".mp4", seed=seed, number=number) for number in range(100)]

    assert copies(0) == copies(0) and copies(0) != copies(1)
    assert len({copy for copy, _, _ in copies(0)} - {content}) > 90
    assert any(suffix != ".mp4" for _, suffix, _ in copies(0))


@pytest.mark.parametrize("kind", dict.fromkeys(KINDS), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("content", [b"", b"a", b"abc" * 400], ids=["empty", "one byte", "1200 bytes"])
def test_every_kind_of_damage_takes_every_file(kind: Callable[..., str], content: bytes) -> None:
    changed = 0
    for number in range(20):
        copy = bytearray(content)
        assert kind(copy, random.Random(number), b"other" * 300)
        changed += copy != content
    assert changed or len(content) < 2


def test_what_must_not_be_is_kept_and_told(
    clips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lab.fuzzing.read_case", misbehave)
    spec = importlib.util.spec_from_file_location("fuzz_readers", repo / "tools" / "fuzz_readers.py")
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec.loader.exec_module(tool)
    command = ["fuzz_readers.py", str(clips[0]), "--count", "4", "--decoder", "pyav", "--keep", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    assert tool.main() == 1
    said = capsys.readouterr().out
    for what in ("KeyError: 'a bug'", "left temporary behind", "100.0 s of CPU time"):
        assert f"pyav: {what}" in said
    assert f"python tools/fuzz_readers.py {clips[0]} --seed 0 --first 1 --count 1 --decoder pyav" in said
    (kept,) = tmp_path.glob("a-0-1-pyav*")
    assert kept.read_bytes() == damage(clips[0].read_bytes(), clips[0].read_bytes(), ".mp4", seed=0, number=1)[0]
    monkeypatch.setattr(sys, "argv", ["fuzz_readers.py", str(tmp_path / "none")])
    assert tool.main() == 2 and "no file or folder" in capsys.readouterr().err


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
@pytest.mark.slow
def test_reading_again_and_again_does_not_grow(
    clips: list[Path], tmp_path: Path, decoder: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Intact, cut and rotten files, in one process: what it holds after 120 reads it still holds after 360."""
    caplog.set_level("ERROR", "octvideo.video")
    files = list(clips)
    for n, clip in enumerate(clips):
        content = bytearray(clip.read_bytes())
        (tmp_path / f"cut {clip.name}").write_bytes(content[: len(content) * 3 // 4])
        content[len(content) // 2 : len(content) // 2 + 100] = bytes(100)
        (tmp_path / f"rotten {clip.name}").write_bytes(content)
        files += [tmp_path / f"cut {clip.name}", tmp_path / f"rotten {clip.name}"]
        if n == 0:
            (tmp_path / "rubbish.mp4").write_bytes(b"rubbish" * 1000)
            files.append(tmp_path / "rubbish.mp4")

    def read_all(times: int) -> int:
        for _ in range(times):
            for file in files:
                with contextlib.suppress(VideoReadError):
                    read_frames(file, lambda count: torch.arange(count), decoder=decoder)  # type: ignore[arg-type]
        return private_bytes()

    start = read_all(12)
    # 24 x 10 reads; one frame kept of each would be 4 MB, one decoder's buffers 50 MB or more.
    assert read_all(24) - start < 8 * MB
