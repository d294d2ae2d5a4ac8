"""The queue in front of the network: how many may wait, whose turn it is, and how it ends."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from octvideo.inference.predictor import Predictor
from octvideo.serving.answers import Answerer, PredictQuestion, TimelineQuestion
from octvideo.serving.computing import Computing, Turn, liked_batch
from octvideo.serving.decoding import Decoders
from octvideo.serving.limits import Limits
from octvideo.serving.uploads import Refusal, Upload

_RETRY_SEC = 2  # where nothing is known yet of how long requests take


@dataclass(eq=False)
class _Job:
    upload: Upload
    question: PredictQuestion | TimelineQuestion
    turn: Turn
    arrived: float = field(default_factory=time.perf_counter)
    answer: Future[Any] = field(default_factory=Future)


class Service:
    """Takes uploads in, and answers them with threads of its own. To be closed, by `with`.

    Args:
        predictor: network and engine.
        limits: of the server.

    `is_stopping`: nothing new is taken.
    """

    def __init__(self, predictor: Predictor, limits: Limits) -> None:
        self.predictor, self.limits, self.is_stopping = predictor, limits, False
        self._temporary = tempfile.TemporaryDirectory(prefix="octvideo-serve-")
        self.folder = Path(self._temporary.name)
        self._computing = Computing(limits.batch or liked_batch(predictor))
        self.answerer = Answerer(predictor, self._computing, limits)
        self._lock = threading.Lock()
        self._num_taken = self._num_working = 0
        self._mean_sec = 0.0
        self._turns: set[Turn] = set()  # of what was submitted and has not ended
        self._jobs: dict[type, SimpleQueue[_Job | None]] = {}
        self._decoders: list[Decoders] = []
        self._threads: list[threading.Thread] = []
        self._add_lane(PredictQuestion, self.answerer.predict, limits.predict_threads, limits.workers)
        lane = limits.timeline_threads
        self._add_lane(TimelineQuestion, self.answerer.timeline, lane, lane)

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _add_lane(self, kind: type, answer: Callable[..., Any], num_threads: int, num_decoders: int) -> None:
        jobs: SimpleQueue[_Job | None] = SimpleQueue()
        decoders = Decoders(num_decoders, self.folder, self.limits)
        self._jobs[kind] = jobs
        self._decoders.append(decoders)
        decoders.start()
        for _ in range(num_threads):
            # Daemons: a second Ctrl-C ends the server whatever they do.
            thread = threading.Thread(
                target=self._work, args=(jobs, answer, decoders), name="octvideo-answering", daemon=True
            )
            thread.start()
            self._threads.append(thread)

    # ── for the event loop ──────────────────────────────────────────────────────────────────────────────────────

    @property
    def is_ready(self) -> bool:
        """Whether a request would be taken, but for the queue."""
        return not self.is_stopping and self._computing.is_alive

    @property
    def counts(self) -> tuple[int, int]:
        """Requests that wait, and those that are worked on."""
        with self._lock:
            return self._num_taken - self._num_working, self._num_working

    @contextlib.contextmanager
    def place(self) -> Iterator[Upload]:
        """A place for a request, from before its upload to its end, and a file for the upload.

        Raises:
            Refusal: 429 where all are taken, 503 where the server stops.
        """
        with self._lock:
            if self.is_stopping:
                raise Refusal(503, "the server is stopping", retry_sec=10)
            if self._num_taken >= self.limits.places:
                raise Refusal(429, "too many requests wait already: try again later", retry_sec=self._retry_sec())
            self._num_taken += 1
        try:
            with Upload(self.folder) as upload:
                yield upload
        finally:
            with self._lock:
                self._num_taken -= 1

    def submit(self, upload: Upload, question: PredictQuestion | TimelineQuestion, turn: Turn) -> Future[Any]:
        """The answer to come: of a place's upload, which must stay until then. It can be cancelled before its turn.

        Its exceptions are a Refusal, Abandoned where `turn.gone` was set, and any other of ours.

        Raises:
            Refusal: 503 where the server stops.
        """
        if self.is_stopping:
            raise Refusal(503, "the server is stopping", retry_sec=10)
        job = _Job(upload, question, turn)
        self._turns.add(turn)
        job.answer.add_done_callback(lambda _: self._turns.discard(turn))
        self._jobs[type(question)].put(job)
        return job.answer

    def abandon(self) -> None:
        """Ends the work on what was submitted: its exception is Abandoned."""
        for turn in list(self._turns):
            turn.gone.set()

    def _retry_sec(self) -> int:
        """When a place may be free: what those before take with all threads, within reason."""
        if not self._mean_sec:
            return _RETRY_SEC
        return min(max(round(self._mean_sec * self._num_taken / self.limits.predict_threads), 1), 60)

    # ── in the threads ──────────────────────────────────────────────────────────────────────────────────────────

    def _work(self, jobs: SimpleQueue[_Job | None], answer: Callable[..., Any], decoders: Decoders) -> None:
        while (job := jobs.get()) is not None:
            if not job.answer.set_running_or_notify_cancel():
                continue
            began = time.perf_counter()
            with self._lock:
                self._num_working += 1
            made: Any = None
            error: BaseException | None = None
            try:
                made = answer(job.upload.path, job.question, decoders, job.turn, job.arrived)
            except BaseException as raised:  # told to the request
                error = raised
            with self._lock:
                self._num_working -= 1
                if error is None:
                    took = time.perf_counter() - began
                    self._mean_sec = took if not self._mean_sec else 0.9 * self._mean_sec + 0.1 * took
            if error is None:
                job.answer.set_result(made)
            else:
                job.answer.set_exception(error)
            del job, made, error

    def close(self) -> None:
        """Ends threads and processes, after what they do, and removes the folder."""
        self.is_stopping = True
        for jobs in self._jobs.values():
            for _ in self._threads:
                jobs.put(None)
        for thread in self._threads:
            thread.join(timeout=self.limits.stop_sec)
        self._computing.close()
        for decoders in self._decoders:
            decoders.close()
        self._temporary.cleanup()
