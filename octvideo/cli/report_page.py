"""The page of a run: `octvideo report RUN --page [DIR]`.

DIR/index.html holds all but the thumbnails, which lie in DIR/clips/. Those that are there already are not made again.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from octvideo.data.quarantine import read_quarantine
from octvideo.data.workers import available_cpus
from octvideo.evaluation.pictures import Curve
from octvideo.evaluation.report import Pairs
from octvideo.evaluation.scores import VideoScores
from octvideo.files import one_line
from octvideo.pages.chosen import in_order_of_use
from octvideo.pages.folder import PageFolder
from octvideo.pages.report import Thumbnail, report_page
from octvideo.progress import Progress
from octvideo.video.isolated import IsolatedPool
from octvideo.video.thumbnail import make_thumbnail, thumbnail_name

MOST_THUMBNAILS = 600
_TIMEOUT_S, _MEMORY_BYTES = 60.0, 2**30


def write_report_page(
    folder: Path,
    run: Path,
    *,
    title: str,
    curves: Mapping[str, Curve] | None,
    scores: VideoScores | None,
    pairs: Pairs,
    videos: Path,
    most_thumbnails: int,
) -> Path:
    """Writes the page, thumbnails first: a stopped command goes on with those that are missing.

    Args:
        folder: of the page, made here.
        run: folder of the run.
        title: of the page.
        curves: of the training.
        scores: of the test.
        pairs: of opposite classes.
        videos: folder that relative paths of videos start from.
        most_thumbnails: that are made.

    Returns:
        The page's file.

    Raises:
        UserError: see `PageFolder`.
    """
    known, thumbnails = None if scores is None else scores.known(), {}
    with PageFolder(folder, "clips") as pages:
        if known is not None and len(known):
            chosen = in_order_of_use(known)[:most_thumbnails]
            thumbnails = _thumbnails(pages.inner, {number: videos / known.paths[number] for number in chosen})
            _say_missing(known, thumbnails)
        html = report_page(
            title=title, curves=curves, scores=scores, thumbnails=thumbnails, unreadable=_unreadable(run), pairs=pairs
        )
        return pages.write("index.html", html)


def _say_missing(scores: VideoScores, thumbnails: Mapping[int, Thumbnail]) -> None:
    missing = [number for number, one in thumbnails.items() if one.url is None]
    if not missing:
        return
    path, reason = scores.paths[missing[0]], thumbnails[missing[0]].reason
    counts = f"{len(missing)} of {len(thumbnails)} thumbnails can't be made"
    print(f"{counts}, first: {path}: {reason}", file=sys.stderr)
    if len(missing) == len(thumbnails) and Path(path).is_absolute():
        print("videos that have moved can be linked to where they were", file=sys.stderr)
    elif len(missing) == len(thumbnails):
        print("where the videos are now: --videos DIR, which their listed paths start from", file=sys.stderr)


def _thumbnails(folder: Path, sources: Mapping[int, Path]) -> dict[int, Thumbnail]:
    """Thumbnails of videos, by their numbers, made in processes that a rotten file can hold or crash."""
    found: dict[int, Thumbnail] = {}
    wanted: dict[tuple[str, str], list[int]] = {}
    for number, source in sources.items():
        try:
            name = thumbnail_name(source)
        except OSError as error:
            found[number] = Thumbnail(None, _no_file(error))
            continue
        if (folder / name).exists():
            found[number] = Thumbnail(f"clips/{name}")
        else:
            wanted.setdefault((str(source), str(folder / name)), []).append(number)
    if not wanted:
        return found
    pool: IsolatedPool[tuple[str, str]] = IsolatedPool(
        make_thumbnail, num_processes=min(available_cpus(), 8), timeout_s=_TIMEOUT_S, memory_bytes=_MEMORY_BYTES
    )
    with Progress("making thumbnails", len(wanted)) as progress, pool:
        for item, outcome in pool.run(wanted):
            url = f"clips/{Path(item[1]).name}" if outcome.ending == "returned" else None
            # The path stands beside it.
            reason = outcome.reason.removeprefix(f"VideoReadError: cannot read video '{item[0]}': ")
            found.update(dict.fromkeys(wanted[item], Thumbnail(url, reason)))
            progress.advance()
    return found


def _no_file(error: OSError) -> str:
    return "no such file" if isinstance(error, FileNotFoundError) else one_line(error)


def _unreadable(run: Path) -> Sequence[tuple[str, str]]:
    """Videos that the test of the run could not read, and why."""
    file = run / "unreadable_test.txt"
    return read_quarantine(file)[1] if file.is_file() else []
