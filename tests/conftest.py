"""Shared fixtures: where the real clips are, and quiet, repeatable torch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_videos() -> Path:
    """Folder of real clips (OCTVIDEO_TEST_VIDEOS, default ../shared/videos beside the repository)."""
    folder = Path(os.environ.get("OCTVIDEO_TEST_VIDEOS", REPO.parent / "shared" / "videos"))
    if not folder.is_dir():
        pytest.skip(f"no real videos at {folder}; set OCTVIDEO_TEST_VIDEOS to a folder that has them")
    return folder


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the checkout, for tests that run tools and configs."""
    return REPO


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
