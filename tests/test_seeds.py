"""One rule for seeds, and nobody in data/ and training/ who has another."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

import pytest

from octvideo.data.dataset import item_generator
from octvideo.seeds import digest_of, seed_of

PACKAGE = Path(__file__).resolve().parents[1] / "octvideo"


def test_a_seed_is_sha256_over_what_it_is_for() -> None:
    assert seed_of(3, 1, 20, "clip") == int.from_bytes(hashlib.sha256(b"3/1/20/clip").digest()[:7], "little")
    assert digest_of(3, "wave/a\udcff.mp4") == hashlib.sha256(b"3/wave/a?.mp4").digest()  # a name that is no text
    assert item_generator(3, 1, 20).initial_seed() == seed_of(3, 1, 20, "clip")


@pytest.mark.parametrize("folder", ["data", "training"])
def test_every_generator_is_seeded_by_it(folder: str) -> None:
    calls = {
        f"{path.name}:{node.lineno}": ast.unparse(node.args[0])
        for path in sorted((PACKAGE / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "manual_seed"
    }
    assert {place: seed for place, seed in calls.items() if not seed.startswith("seed_of(")} == {}
    assert calls
