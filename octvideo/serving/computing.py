"""One thread runs the network for all requests: on few cores two at once would only take each other's caches.

A request asks for some clips at a time, so requests take turns. Where the engine gains by more clips in a call than the
next request has, it takes those of the requests behind it along.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from octvideo.inference.engine import Engine
from octvideo.inference.frame_units import FrameUnits
from octvideo.inference.predictor import Predictor, choose_views_per_call
from octvideo.video import VideoReadError, ViewSettings

log = logging.getLogger("octvideo.serving")
# Whatever number an engine likes divides it.
_ENDLESS_VIEWS = 5040


@dataclass(eq=False)
class Turn:
    """Where the time of a request goes, in seconds, and whether it is still wanted.

    Args:
        decoding: from the file to frames; for a timeline not told apart from the waiting for it.
        computing: in the engine; of a call for several requests, its part.
        gone: nobody waits for the answer.
    """

    decoding: float = 0.0
    computing: float = 0.0
    gone: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Goes on where somebody waits.

        Raises:
            Abandoned: nobody does.
        """
        if self.gone.is_set():
            raise Abandoned


class Abandoned(Exception):  # noqa: N818 (it is what the client did)
    """Nobody waits for this any longer."""


@dataclass(eq=False)
class _Call:
    engine: Engine
    clips: Tensor
    turn: Turn
    done: threading.Event = field(default_factory=threading.Event)
    result: Tensor | Exception | None = None

    def end(self, result: Tensor | Exception) -> None:
        self.result = result
        self.done.set()


class Computing:
    """The thread, and what waits for it.

    Args:
        most_clips: that calls of several requests are joined up to.
    """

    def __init__(self, most_clips: int) -> None:
        self._most_clips = most_clips
        self._calls: deque[_Call] = deque()
        self._changed, self._is_closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name="octvideo-computing", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it computes."""
        return self._thread.is_alive()

    @property
    def num_waiting(self) -> int:
        """Calls whose turn has not come."""
        return len(self._calls)

    def run(self, engine: Engine, clips: Tensor, turn: Turn) -> Tensor:
        """Logits float32 (N, K), on the CPU, of clips (N, 3, T, H, W), when their turn has come.

        Raises:
            Abandoned: nobody waits for them, or the server ends.
            Exception: what the engine raised.
        """
        call = _Call(engine, clips, turn)
        with self._changed:
            if self._is_closed:
                raise Abandoned
            self._calls.append(call)
            self._changed.notify()
        call.done.wait()
        if isinstance(call.result, Exception):
            raise call.result
        assert call.result is not None
        return call.result

    def close(self) -> None:
        """Ends the thread after what it computes; what waits is abandoned."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()
        for call in self._calls:
            call.end(Abandoned())

    def _work(self) -> None:
        with torch.inference_mode():
            while calls := self._next():
                began = time.perf_counter()
                clips = calls[0].clips if len(calls) == 1 else torch.cat([call.clips for call in calls])
                try:
                    logits = calls[0].engine(clips).float().cpu()
                except Exception as error:
                    log.exception("the engine failed")
                    for call in calls:
                        call.end(error)
                    continue
                took = time.perf_counter() - began
                parts = logits.split([len(call.clips) for call in calls])
                for call, part in zip(calls, parts, strict=True):
                    call.turn.computing += took * len(part) / len(logits)
                    call.end(part)
                del calls, clips, logits, parts

    def _next(self) -> list[_Call]:
        """Calls to compute as one; none at the end."""
        with self._changed:
            while True:
                for call in [call for call in self._calls if call.turn.gone.is_set()]:
                    self._calls.remove(call)
                    call.end(Abandoned())
                if self._is_closed:
                    return []
                if self._calls:
                    break
                self._changed.wait()
            first = self._calls.popleft()
            joined, room = [first], self._most_clips - len(first.clips)
            for call in list(self._calls):
                same = call.engine is first.engine and call.clips.shape[1:] == first.clips.shape[1:]
                if same and len(call.clips) <= room:
                    self._calls.remove(call)
                    joined.append(call)
                    room -= len(call.clips)
            return joined


def liked_batch(predictor: Predictor) -> int:
    """Clips with which a call of the engine is the fastest, as far as it is known."""
    if predictor.engine.views_per_call:
        return predictor.engine.views_per_call
    many = replace(predictor.views, num_clips=_ENDLESS_VIEWS, num_crops=1)
    return choose_views_per_call(many, predictor.device, torch.get_num_threads())


class TurnedEngine:
    """An engine whose calls wait for their turn; see `Engine`."""

    def __init__(self, engine: Engine, computing: Computing, turn: Turn) -> None:
        self.name, self.precision, self.views_per_call = engine.name, engine.precision, engine.views_per_call
        self._engine, self._computing, self._turn = engine, computing, turn

    def __call__(self, clips: Tensor) -> Tensor:
        return self._computing.run(self._engine, clips, self._turn)


class UnitEngines:
    """The engines for single frames of a predictor, each made once.

    Args:
        predictor: whose they are.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor, self._lock = predictor, threading.Lock()
        self._made: dict[int, tuple[Engine, int]] = {}

    def get(self, clips_per_call: int) -> tuple[Engine, int]:
        """See `Predictor.unit_engine`."""
        with self._lock:
            if clips_per_call not in self._made:
                self._made[clips_per_call] = self._predictor.unit_engine(clips_per_call)
            return self._made[clips_per_call]


class TurnedScorer:
    """A predictor as a `Timeline` asks for one, whose engine waits for its turn.

    Args:
        predictor: that all requests share.
        units: of it.
        computing: the thread.
        turn: of the request.
    """

    def __init__(self, predictor: Predictor, units: UnitEngines, computing: Computing, turn: Turn) -> None:
        self._predictor, self._units, self._computing, self._turn = predictor, units, computing, turn
        self.views, self.device, self.normalise = predictor.views, predictor.device, predictor.normalise
        self.scoring = predictor.scoring
        self.engine: Engine = TurnedEngine(predictor.engine, computing, turn)
        self.clips_per_call: Callable[[ViewSettings], int] = predictor.clips_per_call
        self.checked_views: Callable[[ViewSettings | None], ViewSettings] = predictor.checked_views

    @property
    def frame_units(self) -> FrameUnits | None:
        """See `Predictor`."""
        return self._predictor.frame_units

    def unit_engine(self, clips_per_call: int) -> tuple[Engine, int]:
        """See `Predictor`."""
        engine, per_call = self._units.get(clips_per_call)
        return TurnedEngine(engine, self._computing, self._turn), per_call

    def no_scores(self, name: str) -> VideoReadError:
        """See `Predictor`."""
        return self._predictor.no_scores(name)
