"""The check of many files: in processes that can be killed, from where an earlier run stopped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from octvideo.data.checking.journal import Journal, Known
from octvideo.data.checking.sources import Selection
from octvideo.video import Decoder
from octvideo.video.checking import Check, check_of, check_video, stamp_of
from octvideo.video.isolated import IsolatedPool, Work

_REASONS = 1000  # kinds that are counted one by one


@dataclass
class Summary:
    """What came of a check, in bounded memory.

    Args:
        verdicts: of the files of this run's selection.
        num_known: of them that an earlier run had looked at.
        reasons: of what is not ok, of those that were looked at now.
        examples: a name for each of them.
    """

    verdicts: Counter[str] = field(default_factory=Counter)
    num_known: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, check: Check) -> None:
        """One file."""
        self.verdicts[check.verdict] += 1
        if check.verdict == "ok":
            return
        reason = "fewer frames can be read than announced" if check.verdict == "partly" else check.reason
        if reason not in self.reasons and len(self.reasons) >= _REASONS:
            reason = "other reasons"
        self.reasons[reason] += 1
        self.examples.setdefault(reason, name)


def check_all(
    selection: Selection,
    journal: Journal,
    *,
    decoder: Decoder,
    num_processes: int,
    timeout_s: float,
    memory_bytes: int,
    again: bool = False,
    tell: Callable[[Summary, str], None] = lambda summary, name: None,
    tell_within: Callable[[str, int, int], None] = lambda name, done, total: None,
    work: Work = check_video,
) -> Summary:
    """Decodes what the journal does not know yet.

    Args:
        selection: of files.
        journal: that results go to, one by one.
        decoder: see `read_frames`.
        num_processes: that decode.
        timeout_s: without a new piece of a video.
        memory_bytes: that a process may grow by.
        again: looks again at what was not ok.
        tell: called after each file, with its name.
        tell_within: called now and then within one, with its name, frames read and in all.
        work: that is done on each.
    """
    known, summary = journal.known(), Summary()

    def unknown() -> Iterator[tuple[str, str, Decoder]]:
        for name in selection:
            path = selection.path(name)
            verdict = _known_verdict(known, name, path)
            if verdict is None or (again and verdict != "ok"):
                yield name, path, decoder
            else:
                summary.verdicts[verdict] += 1
                summary.num_known += 1
                tell(summary, name)

    pool: IsolatedPool[tuple[str, str, Decoder]] = IsolatedPool(
        work, num_processes=num_processes, timeout_s=timeout_s, memory_bytes=memory_bytes
    )
    with pool:
        for (name, path, _), outcome in pool.run(unknown(), lambda item, *far: tell_within(item[0], *far)):
            check = check_of(path, outcome)
            journal.add(name, check)
            summary.add(name, check)
            tell(summary, name)
    return summary


def _known_verdict(known: Known, name: str, path: str) -> str | None:
    if name not in known:  # the usual case of a first run: nothing to ask the disk
        return None
    try:
        return known.verdict(name, stamp_of(path))
    except OSError:
        return None
