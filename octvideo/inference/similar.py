"""The windows in a folder of features that are most like given ones: cosine similarity, by plain matrix products.

Files are read one after the other, in blocks, so that memory is bounded whatever their number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from octvideo.errors import UserError
from octvideo.inference.feature_files import FeatureFolder, read_entry

_BLOCK_BYTES = 32 * 2**20  # of float32 rows


@dataclass(frozen=True)
class Match:
    """Some seconds of a video that are like some of the query.

    Args:
        video: its path.
        start_sec: of the window.
        end_sec: excluded.
        similarity: cosine, -1 to 1.
        query: index of the query's vector that it is most like.
    """

    video: str
    start_sec: float
    end_sec: float
    similarity: float
    query: int


def nearest(
    folder: FeatureFolder,
    queries: np.ndarray,
    *,
    k: int = 10,
    per_video: bool = False,
    leave_out: str | None = None,
) -> list[Match]:
    """The vectors of a folder that are most like any of the queries.

    Args:
        folder: of features.
        queries: (Q, D), one or several windows of one video.
        k: how many, at most.
        per_video: of each video the best one alone.
        leave_out: path of a video that is not searched, such as the query's own.

    Returns:
        Best first; of equal ones that which comes first by path and time.

    Raises:
        UserError: queries of another width, or that are not finite.
    """
    queries = np.asarray(queries, np.float64)
    if queries.ndim != 2 or not len(queries) or not np.isfinite(queries).all():
        raise UserError(f"queries: got {queries.shape}, expected finite vectors (Q, D), Q of 1 or more")
    directions = (queries / _lengths(queries)[:, None]).astype(np.float32).T  # (D,Q)
    # Of the best so far: similarity, number of the file, row in it, query.
    best: list[np.ndarray] = [np.empty(0, np.float32), *(np.empty(0, np.int64) for _ in range(3))]
    files: list[str] = []
    for block, numbers, rows in _blocks(folder, files, directions.shape[0], leave_out):
        with np.errstate(invalid="ignore", over="ignore"):
            products = block @ directions  # (B,Q)
            query = products.argmax(1)
            similarity = products[np.arange(len(block)), query] / _lengths(block)
        similarity[~np.isfinite(similarity)] = -1  # of rows that others wrote; NaN would push out the best
        found = [np.concatenate(pair) for pair in zip(best, (similarity, numbers, rows, query), strict=True)]
        if not per_video and len(found[0]) > 4 * k:  # no need to sort all
            least = np.partition(found[0], -k)[-k]
            found = [of[found[0] >= least] for of in found]
        order = np.lexsort((found[2], found[1], -found[0]))
        if per_video:
            first_of_each = np.unique(found[1][order], return_index=True)[1]
            order = order[np.sort(first_of_each)]
        best = [of[order[:k]] for of in found]
    return [_match(files[n], int(row), float(s), int(q)) for s, n, row, q in zip(*best, strict=True)]


def _match(file: str, row: int, similarity: float, query: int) -> Match:
    entry = read_entry(Path(file))
    if entry is None:
        raise UserError(f"{file} was taken away or changed during the search")
    start, end = float(entry.array("start_sec")[row]), float(entry.array("end_sec")[row])
    return Match(entry.video, start, end, min(max(similarity, -1.0), 1.0), query)  # rounded a little further


def _blocks(
    folder: FeatureFolder, files: list[str], width: int, leave_out: str | None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows of all files, float32 (B, D), in memory that is used again; of each its file's number and its place there.

    Args:
        files: gets those that were read.
    """
    size = max(1, _BLOCK_BYTES // (4 * width))
    block = np.empty((size, width), np.float32)
    numbers, rows = np.empty(size, np.int64), np.empty(size, np.int64)
    filled = 0
    left_out = None if leave_out is None else folder.file_of(leave_out)
    for entry in folder.entries():
        if entry.file == left_out:
            continue
        if entry.shape[1] != width:
            raise UserError(f"the query has {width} features, those in {entry.file} are {entry.shape[1]}")
        files.append(str(entry.file))
        start, count = 0, entry.shape[0]
        while start < count:
            stop = min(count, start + size - filled)
            here = slice(filled, filled + stop - start)
            block[here], numbers[here], rows[here] = entry.rows(start, stop), len(files) - 1, np.arange(start, stop)
            filled, start = here.stop, stop
            if filled == size:
                yield block, numbers, rows
                filled = 0
    if filled:
        yield block[:filled], numbers[:filled], rows[:filled]


def _lengths(rows: np.ndarray) -> np.ndarray:
    """Of each row, (B,); 1 of a row of zeros, which is like nothing."""
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    return np.where(lengths > 0, lengths, 1).astype(lengths.dtype)
