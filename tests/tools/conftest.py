"""A data set small enough to train on in a test: three classes of moving bars, H.264, some lists beside it."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

CLASSES = ("down", "left", "right")


def write_video(path: Path, motion: str, seed: int) -> None:
    """20 frames of a bright bar that moves one way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 60, (48, 64, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=20, width=64, height=48, pix_fmt="yuv420p")
        for t in range(20):
            image = noise.copy()
            if motion == "down":
                image[2 * t : 2 * t + 8] = 200
            else:
                x = 2 * t if motion == "right" else 54 - 2 * t
                image[:, x : x + 8] = 200
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with train/<class>/*.mp4 (9 videos), test/<class>/*.mp4 (5), lists train.txt, test.txt, classes.txt."""
    root = tmp_path_factory.mktemp("tiny data")  # a path with a space, as users have
    for split, count in (("train", 9), ("test", 5)):
        lines = []
        for i in range(count):
            label = i % len(CLASSES)
            file = Path(split) / CLASSES[label] / f"clip {i}.mp4"
            write_video(root / file, CLASSES[label], seed=i + 100 * (split == "test"))
            lines.append(f"{file} {label}")
        (root / f"{split}.txt").write_text("\n".join(lines) + "\n")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root
