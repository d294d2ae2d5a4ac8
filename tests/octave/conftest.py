"""What several tests of the compiled library need."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from octvideo.octave.kernel import library
from octvideo.octave.kernel.library import load_library


@pytest.fixture(params=["x86-64", "haswell"], ids=["4 lanes", "8 lanes"])
def narrower_vectors(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The library as compiled for processors with fewer and narrower vectors than this one's."""
    if library.MACHINE != "x86_64":
        pytest.skip("other processors have other flags")
    if library.find_compiler() is None:
        pytest.skip("no C++ compiler")
    monkeypatch.setattr(library, "VARIANTS", ())
    monkeypatch.setattr(library, "NATIVE", f"-march={request.param}")
    monkeypatch.setenv("OCTVIDEO_CACHE", str(tmp_path))
    load_library.cache_clear()
    yield
    load_library.cache_clear()
