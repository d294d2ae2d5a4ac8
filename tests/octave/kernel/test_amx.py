"""Random layers on AMX tiles, which tests/octave/kernel/amx_emulator.c computes where the processor has none."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from octvideo.octave.kernel import library
from octvideo.octave.kernel.variants import VARIANTS, compile_to, find_compiler, sources_key
from tests.octave.kernel.amx import RunWithAmx

pytest.importorskip("torch")
AMX = next(variant for variant in VARIANTS if variant.name == "amx")


@pytest.fixture(scope="session")
def kernel_with_tiles(request: pytest.FixtureRequest) -> Path:
    """The kernel for AMX, optimised as in wheels unless the test says "-O0". Later runs find it in pytest's cache."""
    if "avx512_bf16" not in {variant.name for variant in library.runnable_variants()}:
        pytest.skip("this processor has no AVX512-BF16")
    compiler = find_compiler()
    if compiler is None:
        pytest.skip("no C++ compiler")
    folder, level = request.config.cache.mkdir("kernel"), getattr(request, "param", "-O3")
    flags = (*AMX.flags, level)
    file = folder / f"tiles{level}_{sources_key(*flags, *compiler)}.so"
    if not file.is_file():
        for old in folder.glob(f"tiles{level}_*.so"):
            old.unlink(missing_ok=True)
        compile_to(file, compiler, *flags)
    return file


def fuzz_on_tiles(kernel: Path, formats: Sequence[str], first: int, count: int) -> dict[str, Any]:
    """Runs fuzz.py in a process with tiles; returns what it found."""
    library.kernel_file = lambda: kernel  # type: ignore[assignment]
    loaded = library.load_library()
    assert loaded is not None and loaded.allow_tiles(False)
    from tests.octave.kernel import fuzz  # which loads the kernel

    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        fuzz.main(["--format", *formats, "--first", str(first), "--count", str(count)])
    return dict(json.loads(text.getvalue().splitlines()[-1]))


def check(run_with_amx: RunWithAmx, kernel: Path, formats: Sequence[str], first: int, count: int) -> None:
    run = run_with_amx(fuzz_on_tiles, kernel, formats, first, count)
    assert not run.returned["failures"], "\n".join(run.returned["failures"])
    assert sum(run.returned["kinds"].values()) == count * len(formats)
    assert run.products > 100 * count or not run.emulated


# To optimise takes most of the compiler's minute; the slow test runs what is optimised.
@pytest.mark.slow
@pytest.mark.parametrize("kernel_with_tiles", ["-O0"], indirect=True)
def test_random_layers(kernel_with_tiles: Path, run_with_amx: RunWithAmx) -> None:
    check(run_with_amx, kernel_with_tiles, ["bf16", "int8"], 0, 60)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("format", ["bf16", "int8"])
def test_many_random_layers(format: str, kernel_with_tiles: Path, run_with_amx: RunWithAmx) -> None:
    for first in range(1000, 6000, 200):  # a process each, for the time that one may take
        check(run_with_amx, kernel_with_tiles, [format], first, 200)
