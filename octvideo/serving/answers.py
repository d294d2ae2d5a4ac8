"""What a request asks for, what it gets, and the way between: `octvideo infer` and `timeline` for one upload."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, replace

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from octvideo.errors import UserError
from octvideo.evaluation.view_scores import best_classes
from octvideo.inference.predictor import Predictor
from octvideo.inference.preparation import made_beside, on_device
from octvideo.inference.segments import SegmentSettings, segments_of_top
from octvideo.inference.timeline import Timeline
from octvideo.inference.timeline_document import timeline_document
from octvideo.inference.window_lines import TopClasses
from octvideo.serving.computing import Computing, Turn, TurnedScorer, UnitEngines
from octvideo.serving.decoding import Decoders
from octvideo.serving.limits import Limits
from octvideo.serving.uploads import Refusal
from octvideo.video import VideoReadError, VideoViews, ViewSettings

_TOPK = 5  # classes of a window that are kept whatever their scores

# ── what the JSON holds ─────────────────────────────────────────────────────────────────────────────────────


class Score(BaseModel):
    """A class and its score."""

    name: str
    score: float


class Seconds(BaseModel):
    """Where the time of a request went."""

    waiting: float = Field(description="for its turn: for a decoder, and for the engine")
    decoding: float = Field(description="from the file to frames")
    computing: float = Field(description="in the network")


class PredictAnswer(BaseModel):
    """The best classes of a video; the scores of all classes sum to 1 where a video has one label."""

    top: list[Score] = Field(description="from best to worst")
    labels: list[str] | None = Field(
        description="all that the video has by their thresholds; null where there are none"
    )
    views: str = Field(description="clips x crops that the scores are the mean of")
    seconds: Seconds


class SegmentAnswer(BaseModel):
    """From when to when a video shows a class."""

    start: float
    end: float
    row: int = Field(alias="class", description="place in `classes`")
    score: float = Field(description="mean over the segment")


class TimelineAnswer(BaseModel):
    """What happens when, in seconds: the document that `octvideo.inference.timeline_document` describes, and more."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="null")

    title: str = Field(description="empty: what a client calls its file is not used")
    video: str | None = Field(description="null: the client has it")
    duration: float = Field(description="seconds that the windows reach to")
    classes: list[str] = Field(description="names of the rows: those with segments first, then the highest scores")
    starts: list[float] = Field(description="of the cells of time: when each window begins to speak, in order")
    ends: list[float] = Field(description="of the cells, excluded; there may be gaps")
    scores: list[list[float | None]] = Field(description="for each of `classes` one for each cell; null in a gap")
    segments: list[SegmentAnswer]
    notes: list[str] = Field(description="for the reader: what is left out, and the trouble")
    cuts: list[float] = Field(description="where shots begin")
    trouble: str = Field(description="why not all of the video could be read; empty where it could")
    seconds: Seconds


class ModelAnswer(BaseModel):
    """What the server computes with."""

    class_names: list[str]
    score_function: str = Field(description="softmax: a video has one label; sigmoid: any number of them")
    views: str = Field(description="clips x crops of a video, unless a request asks for others")
    engine: str
    precision: str
    max_bytes: int
    max_length_sec: float


class StateAnswer(BaseModel):
    """How the server is."""

    status: str
    waiting: int = Field(description="requests that wait")
    working: int = Field(description="requests that are worked on")


class ErrorAnswer(BaseModel):
    """Why there is no answer, in one line."""

    error: str


# ── what a request asks for ─────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class PredictQuestion:
    """The classes of a whole video.

    Args:
        topk: of them.
        views: how clips are cut.
    """

    topk: int
    views: ViewSettings


@dataclass(frozen=True)
class TimelineQuestion:
    """What happens when in a video; see `Timeline`, `SegmentSettings` and `timeline_document`."""

    views: ViewSettings
    window_sec: float | None
    stride_sec: float | None
    segments: SegmentSettings
    most_rows: int
    most_cells: int


class Answerer:
    """Answers questions about uploads.

    Args:
        predictor: network and engine.
        computing: the thread that runs it.
        limits: of the server.
    """

    def __init__(self, predictor: Predictor, computing: Computing, limits: Limits) -> None:
        self._predictor, self._computing, self._limits = predictor, computing, limits
        self._units = UnitEngines(predictor)

    def views(self, clips: int | None, crops: int | None) -> ViewSettings:
        """The predictor's views, with other numbers of clips and crops.

        Raises:
            Refusal: more than a request may ask for.
        """
        own = self._predictor.views
        asked = replace(own, num_clips=clips or own.num_clips, num_crops=crops or own.num_crops)
        if asked != own and asked.num_views > self._limits.max_views:
            raise Refusal(422, f"views: got {asked.name}, expected at most {self._limits.max_views} in all")
        return asked

    def predict(
        self, path: str, question: PredictQuestion, decoders: Decoders, turn: Turn, arrived: float
    ) -> PredictAnswer:
        """The best classes of an upload.

        Raises:
            Refusal: it can't be read.
            Abandoned: nobody waits for it.
        """
        began = time.perf_counter()
        views = decoders.views(path, question.views, turn.check)
        turn.decoding = time.perf_counter() - began
        views = on_device(views, self._predictor.device)
        scores = self._scores(views, question.views, turn)  # (K,)
        best = best_classes(scores, question.topk).tolist()
        top = [Score(name=self._predictor.class_names[k], score=float(scores[k])) for k in best]
        found = self._predictor.scoring.labels_of(scores)
        labels = None if found is None else [self._predictor.class_names[k] for k in found]
        return PredictAnswer(top=top, labels=labels, views=question.views.name, seconds=_seconds(turn, arrived))

    def _scores(self, views: VideoViews, settings: ViewSettings, turn: Turn) -> Tensor:
        predictor = self._predictor
        size = predictor.clips_per_call(settings)
        starts = range(0, views.num_views, size)
        cut = (predictor.normalise(views.cut(n, min(n + size, views.num_views))) for n in starts)
        with contextlib.closing(made_beside(cut, most=1) if len(starts) > 1 else cut) as chunks:
            logits = [self._computing.run(predictor.engine, clips, turn) for clips in chunks]
        scores = predictor.scoring.of_views(torch.cat(logits), views.num_views)[0]
        if not scores.isfinite().all():
            raise Refusal(500, "the network's scores of this video are not finite")
        return scores

    def timeline(
        self, path: str, question: TimelineQuestion, decoders: Decoders, turn: Turn, arrived: float
    ) -> TimelineAnswer:
        """The timeline of an upload.

        Raises:
            Refusal: it can't be read.
            Abandoned: nobody waits for it.
        """
        names = self._predictor.class_names
        scorer = TurnedScorer(self._predictor, self._units, self._computing, turn)
        how = (question.window_sec, question.stride_sec)
        try:
            timeline = Timeline(scorer, *how, views=question.views)
        except UserError as error:
            raise Refusal(422, str(error)) from error
        classes = question.segments.classes
        kept = TopClasses(names, _TOPK, classes)
        starts, ends, tops = list[float](), list[float](), list[dict[int, float]]()
        with decoders.windows(path, question.views, *how, turn.check) as incoming:
            try:
                with contextlib.closing(timeline.of_windows(iter(incoming), "the video")) as scored:
                    for window in scored:
                        turn.check()
                        starts.append(round(window.start_sec, 6))
                        ends.append(round(window.end_sec, 6))
                        tops.append(kept.of(window.scores))
            except VideoReadError as error:
                raise Refusal(500, "the network's scores of this video are not finite") from error
            end = incoming.end
        assert end is not None
        turn.decoding = timeline.timing.decode
        document = timeline_document(
            starts,
            ends,
            tops,
            segments_of_top(starts, ends, tops, question.segments, end.cuts_sec),
            names,
            classes=classes,
            notes=[f"Not all of the video could be read: {end.trouble}"] if end.trouble else [],
            most_rows=question.most_rows,
            most_cells=question.most_cells,
        )
        return TimelineAnswer(**document, cuts=end.cuts_sec, trouble=end.trouble, seconds=_seconds(turn, arrived))


def _seconds(turn: Turn, arrived: float) -> Seconds:
    waiting = max(time.perf_counter() - arrived - turn.decoding - turn.computing, 0.0)
    return Seconds(waiting=round(waiting, 4), decoding=round(turn.decoding, 4), computing=round(turn.computing, 4))
