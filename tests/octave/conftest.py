"""What several tests of the compiled library need."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from octvideo.octave.kernel import library as compiled_library
from octvideo.octave.kernel.library import load_library


@pytest.fixture(params=["x86-64", "haswell"], ids=["4 lanes", "8 lanes"])
def narrower_vectors(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The library as compiled for processors with fewer and narrower vectors than this one's."""
    if "x86" not in compiled_library.platform.machine():
        pytest.skip("other processors have other flags")
    if load_library() is None:
        pytest.skip("no C++ compiler")
    flags = [f"-march={request.param}" if flag == "-march=native" else flag for flag in compiled_library._FLAGS]
    monkeypatch.setattr(compiled_library, "_FLAGS", tuple(flags))
    monkeypatch.setenv("OCTVIDEO_CACHE", str(tmp_path))
    load_library.cache_clear()
    yield
    load_library.cache_clear()
