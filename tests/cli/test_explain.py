"""octvideo explain: pictures and videos of a trained network, and mistakes in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

Cli = Callable[..., tuple[str, str]]


def test_a_clip_and_a_video(trained: Path, tiny_data: Path, octvideo: Cli) -> None:
    video = tiny_data / "test" / "left" / "clip 1.mp4"
    out, err = octvideo("explain", video, "--ckpt", "tiny", "-o", "seen.png")
    assert out == "" and "looked at: blocks.4.res_blocks.1.activation, for " in err
    assert (trained / "seen.png").read_bytes().startswith(b"\x89PNG")
    _, err = octvideo("explain", video, "--ckpt", "tiny", "--class", "right", "-o", "seen.mp4")
    assert "for right (" in err and "the video is seen.mp4, 20 frames" in err
    with av.open("seen.mp4") as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 20 and frames[0].shape == (48, 64, 3)
    colour = max(int(np.ptp(frame[40:].astype(int), axis=2).max()) for frame in frames)
    assert colour > 20  # over grey frames


@pytest.mark.slow
def test_gradients_and_spectra(trained: Path, tiny_data: Path, octvideo: Cli) -> None:
    video = tiny_data / "test" / "left" / "clip 1.mp4"
    octvideo("explain", video, "--ckpt", "tiny", "--method", "gradients", "-o", "seen.png")
    assert (trained / "seen.png").read_bytes().startswith(b"\x89PNG")
    words = ("--num_clips", 3, "--ckpt", "tiny", "--beside", "tiny", "-o", "s.png")
    _, err = octvideo("explain", "--spectrum", tiny_data / "test", *words)
    assert err.endswith("the picture is s.png\n") and (trained / "s.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--class", "lft", "-o", "a.png"), "error: --class: 'lft' is no known class, did you mean 'left'?"),
        (("--layer", "blocks.4.res", "-o", "a.png"), "error: no layer 'blocks.4.res' in this network: did you mean "),
        (("-o", "a.gif"), "error: -o a.gif: got .gif, expected .png, .mp4, .m4v, .mov, .mkv"),
        (("-o", "nowhere/a.mp4"), "error: overlay nowhere/a.mp4: no folder nowhere"),
        (("--beside", "tiny", "-o", "a.png"), "error: --beside is for --spectrum: give both, or none"),
        (
            ("--spectrum", "--class", "left", "-o", "a.png"),
            "error: --class says what a class is seen by, and --spectrum has no class: leave one of them out",
        ),
    ],
)
def test_mistakes_are_told_in_a_line(
    words: tuple[str, ...], message: str, trained: Path, tiny_data: Path, octvideo: Cli
) -> None:
    video = tiny_data / "test" / "left" / "clip 1.mp4"
    _, err = octvideo("explain", video, "--ckpt", "tiny", *words, code=2)
    assert err.startswith(message) and err.count("\n") == 1
    assert not list(trained.glob("a.*"))


def test_an_exported_model_is_refused(trained: Path, tiny_data: Path, octvideo: Cli) -> None:
    (trained / "exported").mkdir()
    (trained / "exported" / "octvideo.json").write_text("{}")
    video = tiny_data / "test" / "left" / "clip 1.mp4"
    _, err = octvideo("explain", video, "--ckpt", "exported", "-o", "a.png", code=2)
    assert err == (
        "error: exported is an exported model, which holds no layers: give the run or checkpoint it was made of\n"
    )
