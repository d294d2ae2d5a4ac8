"""A predictor out of a shared network: a folder that `octvideo card RUN --hub` wrote, or a repository of the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from octvideo.inference.choice import choice_device
from octvideo.inference.predictor import Predictor


def from_pretrained(
    source: str | Path,
    *,
    revision: str | None = None,
    device: str = "auto",
    engine: str = "eager",
    precision: str = "f32",
    num_threads: int | None = None,
    calibrate: Sequence[str] = (),
    expected_videos: int | None = None,
    views_per_chunk: int | None = None,
) -> Predictor:
    """A predictor with the network, classes and views of a shared network; scores are those of its checkpoint.

    Nothing in the folder runs: weights are safetensors, and the network is built by a builder of octvideo.models.
    `octvideo.models.pretrained.pretrained_network` gives the network by itself.

    Args:
        source: a folder; or hf:USER/NAME of the Hugging Face hub, downloaded once, which needs octvideo[hub].
        revision: of the hub: a branch, a tag or a commit; None is "main".
        device, engine, precision, num_threads, calibrate, expected_videos, views_per_chunk: see `Predictor`.

    Raises:
        UserError: no such folder, repository or revision; no network; a file is missing, damaged or does not fit; no
            such engine, precision or device.

    Example:
        >>> predictor = from_pretrained("hf:user/name", revision="v1")  # doctest: +SKIP
        >>> predictor.predict("video.mp4").top[0]  # doctest: +SKIP
        ('wave', 0.98)
    """
    from octvideo.models.pretrained import pretrained_folder  # here: an exported model does without such libraries

    choice_device(engine, precision, device)
    how: dict[str, Any] = {"device": device, "engine": engine, "precision": precision, "num_threads": num_threads}
    how |= {"calibrate": calibrate, "expected_videos": expected_videos, "views_per_chunk": views_per_chunk}
    return Predictor.from_checkpoint(pretrained_folder(source, revision=revision), **how)
