"""The one rule by which seeds are made, so that a draw depends on what it is for and on nothing else."""

from __future__ import annotations

import hashlib


def digest_of(*what: object) -> bytes:
    """SHA-256 over numbers and words, the same on every machine and with every Python."""
    return hashlib.sha256("/".join(map(str, what)).encode(errors="replace")).digest()


def seed_of(*what: object) -> int:
    """A seed for torch: numbers that follow each other give unrelated ones.

    Args:
        what: the run's seed, the epoch, the index and the purpose, as far as a draw has them.
    """
    return int.from_bytes(digest_of(*what)[:7], "little")
