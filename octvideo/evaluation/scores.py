"""The scores of an evaluation, one row per video, as files that later tools recompute metrics from."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from octvideo.errors import UserError
from octvideo.evaluation.several import hits_of_several
from octvideo.evaluation.view_scores import best_classes, in_top_k

_FORMAT = 2  # with "truth"; without it files have format 1, which older versions read
_FIELDS = ("format", "paths", "labels", "scores", "class_names")


@dataclass(frozen=True, eq=False)
class VideoScores:
    """Scores and truth of some videos, in data set order.

    Args:
        paths: of the N videos, as listed.
        labels: int64 (N,), -1 where the truth is unknown.
        scores: float32 (N, K).
        class_names: K of them.
        truth: which labels videos have that may have several, bool (N, K); `labels` are then the first of each. None
            where each has one.
        thresholds: from which on a video has a class, (K,), where it may have several and they are known.

    Raises:
        ValueError: they do not fit each other.
    """

    paths: list[str]
    labels: np.ndarray
    scores: np.ndarray
    class_names: list[str]
    truth: np.ndarray | None = None
    thresholds: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "paths", [str(path) for path in self.paths])
        object.__setattr__(self, "labels", np.asarray(self.labels, dtype=np.int64))
        object.__setattr__(self, "scores", np.asarray(self.scores, dtype=np.float32))
        object.__setattr__(self, "class_names", [str(name) for name in self.class_names])
        n, k = len(self.paths), len(self.class_names)
        if self.labels.shape != (n,) or self.scores.shape != (n, k):
            raise ValueError(
                f"got labels {self.labels.shape} and scores {self.scores.shape}, "
                f"expected ({n},) and ({n}, {k}): {n} paths, {k} class names"
            )
        if self.truth is not None:
            object.__setattr__(self, "truth", np.asarray(self.truth, dtype=bool))
            if self.truth.shape != (n, k):
                raise ValueError(f"got truth {self.truth.shape}, expected ({n}, {k})")
        if n and not -1 <= self.labels.min() <= self.labels.max() < k:
            raise ValueError(
                f"labels: got {self.labels.min()} to {self.labels.max()}, expected -1 (unknown) to {k - 1}"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def known(self) -> VideoScores:
        """The videos whose truth is known."""
        kept = self.labels >= 0
        paths = [path for path, keep in zip(self.paths, kept, strict=True) if keep]
        truth = None if self.truth is None else self.truth[kept]
        return VideoScores(paths, self.labels[kept], self.scores[kept], self.class_names, truth, self.thresholds)

    def hits(self, k: int = 1) -> np.ndarray:
        """Which videos have their true class, or one of several, among the k best, bool (N,); all must be known."""
        if self.truth is not None:
            return hits_of_several(torch.from_numpy(self.scores), torch.from_numpy(self.truth), k).numpy()
        return in_top_k(torch.from_numpy(self.scores), torch.from_numpy(self.labels), k).numpy()

    def predicted(self) -> np.ndarray:
        """The class that each video is taken for, int64 (N,); -1 where its scores are not finite."""
        if not len(self):
            return np.zeros(0, np.int64)
        return np.where(np.isfinite(self.scores).all(1), self.scores.argmax(1), -1)

    @classmethod
    def concat(cls, parts: Sequence[VideoScores]) -> VideoScores:
        """All parts' videos one after another, none dropped.

        Raises:
            UserError: the parts have other classes, several labels and one, or there is none.
        """
        if not parts:
            raise UserError("no scores to join")
        for part in parts[1:]:
            if part.class_names != parts[0].class_names:
                names = f"{_short(parts[0].class_names)} and {_short(part.class_names)}"
                raise UserError(f"the parts have different classes: {names}")
        truths = [part.truth for part in parts if part.truth is not None]
        if len(truths) not in (0, len(parts)):
            raise UserError("some parts have several labels a video and others one: they can't be joined")
        return cls(
            [path for part in parts for path in part.paths],
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.scores for part in parts]),
            parts[0].class_names,
            np.concatenate(truths) if truths else None,
            _common_thresholds(parts),
        )

    def save(self, path: str | Path) -> None:
        """Writes an .npz of plain arrays (no pickle): paths, labels, scores, class_names; truth where there is one."""
        truth: dict[str, Any] = {} if self.truth is None else {"truth": self.truth}
        if truth and self.thresholds is not None:
            truth["thresholds"] = self.thresholds
        with Path(path).open("wb") as file:  # given a name, numpy would append .npz to it
            np.savez_compressed(
                file,
                format=np.array(_FORMAT if truth else 1),
                paths=np.array(self.paths, dtype=np.str_),
                labels=self.labels,
                scores=self.scores,
                class_names=np.array(self.class_names, dtype=np.str_),
                **truth,
            )

    @classmethod
    def load(cls, path: str | Path) -> VideoScores:
        """Reads what `save` wrote.

        Raises:
            UserError: there is no such file, or it is something else.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                content = {name: file[name] for name in _FIELDS}
                truth, thresholds = (file[name] if name in file.files else None for name in ("truth", "thresholds"))
        except FileNotFoundError:
            text = f"no scores at {path}: octvideo test writes scores.npz into the run folder"
            raise UserError(text) from None
        # An array alone is no context manager: AttributeError in Python 3.10, TypeError since.
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, TypeError, AttributeError) as error:
            raise UserError(f"{path} holds no octvideo scores ({error})") from error
        if int(content["format"]) > _FORMAT:
            raise UserError(f"{path}: got format {content['format']}, expected {_FORMAT} or less: update octvideo")
        names = content["class_names"].tolist()
        return cls(content["paths"].tolist(), content["labels"], content["scores"], names, truth, thresholds)

    def save_csv(self, path: str | Path, *, top: int = 5) -> None:
        """Writes one line per video for people and spreadsheets: path, label, right or not, the best classes.

        Args:
            path: of the file.
            top: how many classes to name.
        """
        top = min(top, len(self.class_names))
        order = best_classes(torch.from_numpy(self.scores), top).numpy()  # (N,top)
        known = self.labels >= 0
        right = np.full(len(self), "", dtype=object)
        right[known] = np.where(self.known().hits(), "yes", "no")
        columns = [f"{what}{i + 1}" for i in range(top) for what in ("class", "score")]
        with Path(path).open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "label", "right", *columns])
            rows = zip(self.paths, self.labels, self.scores, order, right, strict=True)
            for row, (name, label, scores, best, is_right) in enumerate(rows):
                truth = self.class_names[label] if label >= 0 else ""
                if label >= 0 and self.truth is not None:
                    truth = ";".join(self.class_names[number] for number in np.flatnonzero(self.truth[row]))
                named = [text for c in best for text in (self.class_names[c], f"{scores[c]:.4f}")]
                writer.writerow([name, truth, is_right, *named])


def find_scores(path: str | Path) -> list[Path]:
    """The score files meant by a file or a run folder: scores.npz first, then scores_*.npz by name.

    Raises:
        UserError: there is none.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"no file or folder {path}")
    main = [path / "scores.npz"] if (path / "scores.npz").is_file() else []
    found = main + sorted(path.glob("scores_*.npz"))
    if not found:
        raise UserError(f"no scores.npz in {path}: test the run first (octvideo test)")
    return found


def _common_thresholds(parts: Sequence[VideoScores]) -> np.ndarray | None:
    """Those of all parts; None where they differ, as of several networks."""
    first = parts[0].thresholds
    is_common = all(
        part.thresholds is not None and first is not None and np.array_equal(part.thresholds, first) for part in parts
    )
    return first if is_common else None


def _short(names: Sequence[str]) -> str:
    return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
