"""The routes: what a request may say, what it is answered, and one line in the log for each."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from octvideo._version import __version__
from octvideo.class_names import ClassIndex
from octvideo.errors import UserError
from octvideo.files import json_text
from octvideo.inference.segments import SegmentSettings
from octvideo.pages.serve import serve_page
from octvideo.serving.answers import (
    ErrorAnswer,
    ModelAnswer,
    PredictAnswer,
    PredictQuestion,
    StateAnswer,
    TimelineAnswer,
    TimelineQuestion,
)
from octvideo.serving.computing import Abandoned, Turn
from octvideo.serving.metrics import CONTENT_TYPE, Metrics
from octvideo.serving.service import Service
from octvideo.serving.uploads import ClientGone, Refusal, receive_upload

log = logging.getLogger("octvideo.serving")

_CLIENT_GONE = 499  # nginx's number, for the log alone
# What a page can't state itself: no other page may show it. The rest of its policy stands in it.
_PAGE_HEADERS = {
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Permissions-Policy": "camera=(self), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_BINARY = {"type": "string", "format": "binary"}
_FORM = {"type": "object", "required": ["file"], "properties": {"file": _BINARY}}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "A video: as the field 'file' of a form, or as the body itself.",
        "content": {
            "multipart/form-data": {"schema": _FORM},
            **{kind: {"schema": _BINARY} for kind in ("video/mp4", "video/webm", "application/octet-stream")},
        },
    }
}
_REASONS = {
    400: "the request is damaged",
    403: "sent by a page of another site",
    408: "the upload is too slow",
    413: "the video is too large or too long",
    415: "another content type",
    422: "a parameter that can't be meant, or a video that can't be read",
    429: "too many requests wait; Retry-After says when to try again",
    500: "a fault of the server, or scores that are not finite",
    503: "the server is stopping",
    507: "the server has no room",
}
_ERRORS: dict[int | str, Any] = {code: {"model": ErrorAnswer, "description": text} for code, text in _REASONS.items()}
Views = Annotated[
    str | None, Query(pattern="^[1-9][0-9]{0,2}x[13]$", description="clips x crops, such as 3x1 (the model's own)")
]
TopK = Annotated[int, Query(ge=1, le=10_000, description="classes, the best first")]
Length = Annotated[float, Query(ge=0, le=600, description="seconds")]


def make_app(service: Service, metrics: Metrics | None = None) -> ASGIApp:
    """The application, for any ASGI server.

    Args:
        service: that answers.
        metrics: to count in; None makes new ones.
    """
    counted = metrics or Metrics()
    api = FastAPI(
        title="octvideo",
        version=__version__,
        description="Names the actions in videos, and says what happens when.",
        docs_url=None,  # they load their program from another server
        redoc_url=None,
    )
    _add_errors(api)
    _add_state(api, service, counted)
    answerer, names = service.answerer, service.predictor.class_names
    index = ClassIndex(names)

    def check_names(request: Request) -> None:
        described = api.openapi()["paths"][request.scope["path"]]["post"]["parameters"]
        _check_query(request, {one["name"]: one["schema"] for one in described})

    how: dict[str, Any] = {"openapi_extra": _BODY, "dependencies": [Depends(check_names)]}

    @api.post("/predict", responses={200: {"model": PredictAnswer}, **_ERRORS}, **how)
    async def predict(request: Request, topk: TopK = 5, views: Views = None) -> Response:
        """The best classes of a video, as `octvideo infer` has them."""
        question = PredictQuestion(topk, answerer.views(*_clips_and_crops(views)))
        return await _answer(service, request, question)

    @api.post("/timeline", responses={200: {"model": TimelineAnswer}, **_ERRORS}, **how)
    async def timeline(
        request: Request,
        views: Views = None,
        window: Annotated[
            float | None, Query(ge=0.05, le=600, description="seconds of a window (those of the network's clip)")
        ] = None,
        stride: Annotated[
            float | None, Query(ge=0.02, le=600, description="seconds from one window to the next (half of a window)")
        ] = None,
        threshold: Annotated[float, Query(gt=0, le=1, description="score that a segment reaches")] = 0.5,
        thresholds: Annotated[
            list[str] | None, Query(max_length=100, description="the same of one class, as CLASS=0.7; may be repeated")
        ] = None,
        leave: Annotated[
            float | None, Query(gt=0, le=1, description="score at which a segment ends (0.6 of the threshold)")
        ] = None,
        classes: Annotated[
            list[str] | None, Query(max_length=1000, description="look for these alone; may be repeated")
        ] = None,
        smooth: Length = 0.0,
        shortest: Length = 0.0,
        gap: Length = 0.0,
        only_best: Annotated[bool, Query(description="each moment belongs to its best class alone")] = False,
        rows: Annotated[int, Query(ge=1, le=10_000, description="classes of the answer, at most")] = 20,
        cells: Annotated[
            int, Query(ge=1, le=20_000, description="of time, at most; of more windows each has the highest score")
        ] = 2000,
    ) -> Response:
        """What happens when in a video, as `octvideo timeline --page` shows it.

        A window's best 5 classes have their scores, and all others of 0.005 or more; the rest have 0.
        """
        wanted = [index.need(name, "classes") for name in classes or []] or None
        of_classes = dict(_class_threshold(word, index) for word in thresholds or [])
        times = {"smooth_sec": smooth, "min_sec": shortest, "join_sec": gap}
        settings = SegmentSettings(threshold, leave, of_classes, wanted, **times, only_best=only_best)
        cut = answerer.views(*_clips_and_crops(views))
        return await _answer(service, request, TimelineQuestion(cut, window, stride, settings, rows, cells))

    return ASGIApp(api, counted)


def _add_state(api: FastAPI, service: Service, metrics: Metrics) -> None:
    names, limits = service.predictor.class_names, service.limits
    page = serve_page(names, max_bytes=limits.max_bytes, max_length_sec=limits.max_length_sec)

    def state(status: str) -> StateAnswer:
        waiting, working = service.counts
        return StateAnswer(status=status, waiting=waiting, working=working)

    @api.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def show_page() -> Response:
        return HTMLResponse(page, headers=_PAGE_HEADERS)

    @api.get("/health")
    async def health() -> StateAnswer:
        """200 as long as the server runs."""
        return state("ok")

    @api.get("/ready", responses={503: {"model": StateAnswer, "description": "it takes no requests"}})
    async def ready() -> Response:
        """200 where requests are taken, 503 where the server is stopping."""
        found = state("ready" if service.is_ready else "stopping")
        return JSONResponse(found.model_dump(), 200 if service.is_ready else 503)

    @api.get("/model")
    async def model() -> ModelAnswer:
        """Classes, views and limits."""
        predictor = service.predictor
        return ModelAnswer(
            class_names=names,
            score_function=predictor.scoring.function,
            views=predictor.views.name,
            engine=predictor.engine.name,
            precision=predictor.engine.precision,
            max_bytes=limits.max_bytes,
            max_length_sec=limits.max_length_sec,
        )

    @api.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def read_metrics() -> Response:
        """Counts and times, as Prometheus reads them."""
        return Response(metrics.text(*service.counts), headers={"Content-Type": CONTENT_TYPE})


# ── a request with a video ──────────────────────────────────────────────────────────────────────────────────


async def _answer(service: Service, request: Request, question: PredictQuestion | TimelineQuestion) -> Response:
    if request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        raise Refusal(403, "this was sent by a page of another site, and is not answered")
    record: _Record = request.scope["octvideo.record"]
    record.turn = turn = Turn()
    with service.place() as upload:
        headers = {name.lower(): value for name, value in request.headers.items()}
        try:
            await receive_upload(headers, request.receive, upload, service.limits)
        finally:
            record.num_bytes = upload.num_bytes
        record.received = time.perf_counter()
        answer = await _answer_or_leave(service.submit(upload, question, turn), request.receive, turn)
        record.answered = time.perf_counter()
    content = await asyncio.to_thread(answer.model_dump_json, by_alias=True)
    return Response(content, media_type="application/json")


async def _answer_or_leave(job: Future[Any], receive: Callable[[], Awaitable[Any]], turn: Turn) -> BaseModel:
    """The answer, unless the client leaves before it; then the work for it has ended, too.

    Raises:
        ClientGone: it has left.
    """
    answer: asyncio.Future[Any] = asyncio.wrap_future(job)
    leaving = asyncio.ensure_future(_until_left(receive))
    try:
        await asyncio.wait({answer, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            turn.gone.set()
            job.cancel()  # where its turn has not come
            await asyncio.wait({answer})
            if not answer.cancelled():
                answer.exception()  # asyncio would tell of one that nobody looks at
            raise ClientGone
        result: BaseModel = answer.result()
        return result
    finally:
        turn.gone.set()
        leaving.cancel()


async def _until_left(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _check_query(request: Request, known: Mapping[str, Any]) -> None:
    """Refuses names that mean nothing here, which would be answered as if they were not there, and values given twice.

    Args:
        request: with a query.
        known: the schema of each parameter.
    """
    for name in request.query_params:
        if name not in known:
            raise UserError(f"got a parameter {_short(name)!r}, expected some of {', '.join(known)}")
        is_list = any(one.get("type") == "array" for one in known[name].get("anyOf", ()))
        if not is_list and len(request.query_params.getlist(name)) > 1:
            raise UserError(f"{name}: got it more than once, expected one value")


def _clips_and_crops(views: str | None) -> tuple[int | None, int | None]:
    if views is None:
        return None, None
    clips, _, crops = views.partition("x")
    return int(clips), int(crops)


def _class_threshold(word: str, index: ClassIndex) -> tuple[int, float]:
    name, _, value = word.rpartition("=")
    if not re.fullmatch(r"[0-9]*\.?[0-9]+", value) or not 0 < float(value) <= 1:
        raise UserError(f"thresholds: got {_short(word)}, expected CLASS=SCORE, the score more than 0 and at most 1")
    return index.need(name, "thresholds"), float(value)


# ── errors ──────────────────────────────────────────────────────────────────────────────────────────────────


def _add_errors(api: FastAPI) -> None:
    @api.exception_handler(Refusal)
    async def refused(_: Request, error: Refusal) -> Response:
        headers = {} if error.retry_sec is None else {"Retry-After": str(error.retry_sec)}
        return _error(error.status, error.reason, headers)

    @api.exception_handler(ClientGone)
    async def left(_: Request, __: ClientGone) -> Response:  # nobody reads it, but each request has an answer
        return _error(_CLIENT_GONE, "the client has left")

    @api.exception_handler(Abandoned)
    async def abandoned(_: Request, __: Abandoned) -> Response:
        return _error(503, "the server is stopping", {"Retry-After": "10"})

    @api.exception_handler(Exception)
    async def failed(_: Request, __: Exception) -> Response:
        return _error(500, "the server failed at this request; its log says why")

    @api.exception_handler(UserError)
    async def can_not_be_meant(_: Request, error: UserError) -> Response:
        return _error(422, str(error))

    @api.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"][1:]) or "request"
        return _error(422, f"{name}: got {_short(first.get('input'))}; {first['msg']}")

    @api.exception_handler(HTTPException)
    async def of_http(_: Request, error: HTTPException) -> Response:
        return _error(error.status_code, str(error.detail), dict(error.headers or {}))


def _error(status: int, reason: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": " ".join(reason.split())}, status, headers=headers)


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json_text(value, default=str)
    return text if len(text) <= 60 else f"{text[:60]}..."


# ── around them ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Record:
    """What the log says of a request.

    Args:
        turn: where its time went.
        num_bytes: of its upload.
        received: when all of it had come.
        answered: when its answer was made.
    """

    turn: Turn | None = None
    num_bytes: int = 0
    received: float | None = None
    answered: float | None = None

    def parts(self) -> dict[str, float]:
        """Seconds of waiting, decoding and computing, where it came so far."""
        if self.turn is None or self.received is None or self.answered is None:
            return {}
        decoding, computing = self.turn.decoding, self.turn.computing
        waiting = max(self.answered - self.received - decoding - computing, 0.0)
        return {"waiting": waiting, "decoding": decoding, "computing": computing}


class ASGIApp:
    """The routes, with the log and the counts around them. What goes wrong in them is told here, and to nobody else.

    Args:
        api: the routes.
        metrics: that count.
    """

    def __init__(self, api: FastAPI, metrics: Metrics) -> None:
        self.api, self._metrics = api, metrics
        self._routes = {"/", "/openapi.json", *api.openapi()["paths"]}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.api(scope, receive, send)
            return
        began, status = time.perf_counter(), _CLIENT_GONE
        record = scope["octvideo.record"] = _Record()

        async def noted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.api(scope, receive, noted)
        except Exception:  # it has been answered by `failed`
            log.exception("a request failed")
        finally:
            self._tell(scope, status, time.perf_counter() - began, record)

    def _tell(self, scope: Any, status: int, seconds: float, record: _Record) -> None:
        parts = record.parts()
        route = scope["path"] if scope["path"] in self._routes else "other"
        self._metrics.add(route, status, seconds, parts, record.num_bytes)
        path = scope.get("raw_path", b"").decode("ascii", "replace")[:100] if route == "other" else route
        words = [scope["method"][:10], path, str(status), f"{1e3 * seconds:.0f} ms"]
        words += [f"{name} {1e3 * part:.0f}" for name, part in parts.items()]
        if record.num_bytes:
            words.append(f"{record.num_bytes / 1e6:.2f} MB")
        log.info("%s", " ".join(words))
