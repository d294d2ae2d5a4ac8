"""The routes, in this process: right answers, clear errors, and nothing left behind."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from octvideo.evaluation.scoring import Scoring
from octvideo.inference import Predictor, Timeline
from octvideo.inference.segments import SegmentSettings, find_segments
from octvideo.inference.timeline_document import timeline_document
from octvideo.serving.answers import TimelineQuestion
from octvideo.serving.app import make_app
from octvideo.serving.limits import Limits
from octvideo.serving.metrics import Metrics
from octvideo.serving.service import Service
from octvideo.serving.uploads import Refusal
from octvideo.video import FileFrames
from tests.file_server import file_server

LIMITS = Limits(max_bytes=200_000, max_length_sec=2.5, queue=1, workers=1)
FORM = "multipart/form-data; boundary=b"


@pytest.fixture(scope="module")
def predictor(served_checkpoint: Path) -> Predictor:
    return Predictor.from_checkpoint(served_checkpoint, device="cpu")


@pytest.fixture(scope="module")
def service(predictor: Predictor) -> Iterator[Service]:
    with Service(predictor, LIMITS) as service:
        yield service


@pytest.fixture(scope="module")
def client(service: Service) -> TestClient:
    return TestClient(make_app(service), raise_server_exceptions=False)


@pytest.fixture(autouse=True)
def nothing_is_left(service: Service) -> Iterator[None]:
    yield
    assert list(service.folder.iterdir()) == []
    assert [path for path in open_files() if str(service.folder) in path] == []
    assert service.counts == (0, 0)


def open_files() -> list[str]:
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(str(link.readlink()))
    return found


def upload(client: TestClient, route: str, video: Path, name: str = "a.mp4", **query: Any) -> Any:
    answer = client.post(route, params=query, files={"file": (name, video.read_bytes(), "video/mp4")})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("query", [{}, {"topk": 2}, {"views": "3x1"}])
def test_predict_gives_what_infer_gives(
    query: dict[str, Any], client: TestClient, predictor: Predictor, clips: list[Path]
) -> None:
    own = predictor.views
    try:
        if "views" in query:
            predictor.use_views(replace(own, num_clips=3, num_crops=1))
        expected = predictor.predict(clips[1], topk=query.get("topk", 5)).top
    finally:
        predictor.use_views(own)
    got = upload(client, "/predict", clips[1], **query)
    assert [one["name"] for one in got["top"]] == [name for name, _ in expected]
    assert [one["score"] for one in got["top"]] == pytest.approx([score for _, score in expected], abs=1e-5)
    assert got["views"] == query.get("views", "2x3")
    assert got["seconds"]["decoding"] > 0 and got["seconds"]["computing"] > 0
    raw = client.post("/predict", params=query, content=clips[1].read_bytes(), headers={"Content-Type": "video/mp4"})
    assert raw.json()["top"] == got["top"]


def test_as_many_views_as_the_limit_may_be_asked_for(service: Service) -> None:
    assert service.answerer.views(40, 3).num_views == 120 == LIMITS.max_views
    with pytest.raises(Refusal, match="got 41x3, expected at most 120"):
        service.answerer.views(41, 3)


def test_timeline_gives_the_document_of_the_timeline(
    client: TestClient, predictor: Predictor, clips: list[Path]
) -> None:
    windows = list(Timeline(predictor, 0.5, 0.25).of_video(clips[1]))
    with FileFrames(clips[1], 32) as frames:
        for _ in frames:
            pass
        cuts = frames.cuts_sec
    starts, ends = [one.start_sec for one in windows], [one.end_sec for one in windows]
    scores = torch.stack([one.scores for one in windows]).numpy()
    names, threshold = predictor.class_names, float(scores.max()) - 0.02
    segments = find_segments(starts, ends, scores, SegmentSettings(threshold), cuts)
    tops = [dict(enumerate(window.scores.tolist())) for window in windows]
    expected = timeline_document(starts, ends, tops, segments, names)
    got = upload(client, "/timeline", clips[1], window=0.5, stride=0.25, threshold=threshold)
    assert len(segments) > 0 and len(windows) > 4
    for key in expected.keys() - {"scores", "segments"}:
        assert got[key] == expected[key], key
    assert torch.tensor(got["scores"]).numpy() == pytest.approx(torch.tensor(expected["scores"]).numpy(), abs=1.1e-3)
    assert [(s["class"], s["start"], s["end"]) for s in got["segments"]] == [
        (s["class"], s["start"], s["end"]) for s in expected["segments"]
    ]
    assert got["trouble"] == "" and got["cuts"] == pytest.approx(cuts)


def test_each_parameter_of_a_timeline_means_itself(
    client: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def submit(upload: Any, question: Any, turn: Any) -> None:
        asked.append(question)
        raise Refusal(503, "asked")

    monkeypatch.setattr(service, "submit", submit)
    query = {"views": "3x1", "window": 2, "stride": 0.25, "threshold": 0.4, "leave": 0.2, "only_best": True}
    query |= {"thresholds": "up=0.7", "classes": ["left", "up"], "smooth": 4, "shortest": 5, "gap": 6}
    query |= {"rows": 7, "cells": 8}
    client.post("/timeline", params=query, content=b"x", headers={"Content-Type": "video/mp4"})
    times = {"smooth_sec": 4, "min_sec": 5, "join_sec": 6}
    segments = SegmentSettings(0.4, 0.2, {2: 0.7}, [0, 2], **times, only_best=True)
    assert asked == [TimelineQuestion(service.answerer.views(3, 1), 2, 0.25, segments, 7, 8)]


def test_requests_are_counted_by_how_long_they_took() -> None:
    metrics = Metrics()
    for seconds in (0.05, 0.06, 0.1, 61.0):
        metrics.add("/predict", 200, seconds, {"decoding": 0.01}, 5)
    lines = metrics.text(1, 2).splitlines()
    counts = {bound: 3 for bound in ("0.1", "0.25", "0.5", "1.0", "2.5", "5.0", "10.0", "30.0", "60.0")}
    for bound, count in {"0.05": 1, **counts, "+Inf": 4}.items():
        assert f'octvideo_request_seconds_bucket{{route="/predict",le="{bound}"}} {count}' in lines
    assert 'octvideo_request_seconds_sum{route="/predict"} 61.210000' in lines
    assert 'octvideo_part_seconds_total{route="/predict",part="decoding"} 0.040000' in lines
    assert "octvideo_upload_bytes_total 20" in lines and "octvideo_waiting 1" in lines and "octvideo_working 2" in lines


def test_rows_and_cells_of_a_timeline_are_bounded(client: TestClient, clips: list[Path]) -> None:
    got = upload(client, "/timeline", clips[1], window=0.5, stride=0.05, rows=2, cells=7, threshold=1)
    assert len(got["classes"]) == 2 == len(got["scores"])
    assert len(got["starts"]) == len(got["ends"]) == len(got["scores"][0]) == 7
    assert got["segments"] == [] and "2 of 3 classes" in got["notes"][0] and "windows" in got["notes"][1]


def test_of_one_class_another_threshold(client: TestClient, clips: list[Path]) -> None:
    def shown(**query: Any) -> set[str]:
        got = upload(client, "/timeline", clips[0], **query)
        return {got["classes"][one["class"]] for one in got["segments"]}

    best = min(shown(threshold=0.34))
    assert best not in shown(threshold=0.34, thresholds=f"{best}=1")
    assert shown(classes=best, threshold=0.01) == {best}
    assert upload(client, "/timeline", clips[0], classes=best)["classes"] == [best]


def form(*parts: tuple[str, bytes], end: bytes = b"--b--\r\n") -> bytes:
    heads = [
        f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="v"\r\n\r\n'.encode() + data + b"\r\n"
        for name, data in parts
    ]
    return b"".join(heads) + end


PLAYLIST = b"#EXTM3U\n#EXTINF:1,\nfile://VIDEO\n#EXT-X-ENDLIST\n"
BAD: dict[str, tuple[int, str, bytes | None, str, str]] = {
    # name: status, content type, body (None: a good form), query, what the error says
    "no type": (415, "", b"x", "", "got no content type; expected multipart/form-data with a field 'file'"),
    "another type": (415, "text/html", b"x", "", "got another content type"),
    "no boundary": (400, "multipart/form-data", b"x", "", "without its boundary"),
    "long boundary": (400, FORM + 400 * "b", b"x", "", "boundary is too long"),
    "damaged form": (400, FORM, b"nothing of this kind", "", "the form is damaged"),
    "cut form": (400, FORM, form(("file", b"x"), end=b""), "", "the form is cut off"),
    "no field": (422, FORM, form(("video", b"x")), "", "no field 'file'"),
    "two fields": (422, FORM, form(("file", b"x"), ("file", b"x")), "", "several fields 'file'"),
    "empty": (422, FORM, form(("file", b"")), "", "the video is empty"),
    "empty body": (422, "video/mp4", b"", "", "the video is empty"),
    "text": (422, "video/mp4", b"no video\n" * 50, "", "it is no video in a known container"),
    "playlist": (422, "video/mp4", PLAYLIST, "", "it is no video in a known container"),
    "list": (422, "video/mp4", b"ffconcat version 1.0\nfile VIDEO\n", "", "it is no video in a known container"),
    "half a video": (422, "video/mp4", b"HALF", "", "can't read the video"),
    "large body": (413, "video/mp4", bytes(200_001), "", "larger than 0.190735 MiB"),
    "large file": (413, FORM, form(("file", bytes(200_001))), "", "larger than"),
    "large form": (413, FORM, form(("other", bytes(1_300_000))), "", "larger than"),
    "too long": (413, "video/mp4", b"LONG", "", "it lasts 3.0 s, and may last 2.5 s"),
    "no class": (422, FORM, None, "topk=0", "topk: got 0; "),
    "no number": (422, FORM, None, "topk=%0Ax", "topk: got x; "),
    "views": (422, FORM, None, "views=3x2", "views: got 3x2; "),
    "many views": (422, FORM, None, "views=900x3", "views: got 900x3, expected at most 120 in all"),
    "a typing error": (422, FORM, None, "topkk=3", "got a parameter 'topkk', expected some of topk, views"),
    "a value twice": (422, FORM, None, "topk=3&topk=4", "topk: got it more than once, expected one value"),
    "another site": (403, FORM, None, "", "a page of another site"),
    "another host": (403, FORM, None, "", "a page of another site"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_told_in_a_line(case: str, client: TestClient, clips: list[Path]) -> None:
    status, kind, body, query, text = BAD[case]
    video = str(clips[0])
    contents = {b"HALF": clips[0].read_bytes()[:700], b"LONG": clips[2].read_bytes()}
    body = form(("file", clips[0].read_bytes())) if body is None else contents.get(body, body)
    headers = {"Content-Type": kind} if kind else {}
    if site := {"another site": "cross-site", "another host": "same-site"}.get(case):
        headers["Sec-Fetch-Site"] = site
    content = body.replace(b"VIDEO", video.encode())
    answer = client.post(f"/predict?{query}", content=content, headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, text in error) == (status, True), (answer.status_code, error)
    assert "\n" not in error and "Traceback" not in error
    assert "/proc" not in error and "/tmp" not in error and str(clips[0].parent) not in error


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("classes=up&classes=lft", "classes: 'lft' is none"),
        ("thresholds=up", "expected CLASS=SCORE"),
        ("thresholds=up%3D1.5", "expected CLASS=SCORE"),
        ("threshold=0.3&leave=0.5", "leave: got 0.5, expected more than 0 and at most the threshold"),
        ("stride=0", "stride: got 0; "),
        ("window=nan", "window: got nan; "),
        ("treshold=0.3", "got a parameter 'treshold', expected some of views, window, stride, threshold,"),
        ("threshold=0.3&threshold=0.4", "threshold: got it more than once"),
    ],
)
def test_what_a_timeline_can_not_mean(query: str, text: str, client: TestClient, clips: list[Path]) -> None:
    answer = client.post(f"/timeline?{query}", content=clips[0].read_bytes(), headers={"Content-Type": "video/mp4"})
    error = answer.json()["error"]
    assert answer.status_code == 422 and (text in error or (text.startswith("classes") and "lft" in error)), error


@pytest.mark.parametrize("name", ["../../evil.mp4", "/etc/evil", "a\x00b", "..\\..\\evil", "é" * 2000, "", ".", "|sh"])
def test_what_a_client_calls_its_file_is_not_used(
    name: str, client: TestClient, service: Service, clips: list[Path]
) -> None:
    around = sorted(path.name for path in service.folder.parent.iterdir() if "evil" in path.name)
    body = form(("file", clips[0].read_bytes())).replace(b'"v"', b'"' + name.encode() + b'"')
    answer = client.post("/predict", content=body, headers={"Content-Type": FORM})
    assert answer.status_code == 200, answer.text
    assert sorted(path.name for path in service.folder.parent.iterdir() if "evil" in path.name) == around


def test_no_address_of_a_client_is_opened(client: TestClient, clips: list[Path]) -> None:
    """Neither as the name of a file, nor as its content, nor as a playlist."""
    with file_server() as server:
        server.contents["a.mp4"] = clips[0].read_bytes()
        url = server.url("a.mp4").encode()
        named = form(("file", clips[0].read_bytes())).replace(b'"v"', b'"' + url + b'"')
        assert client.post("/predict", content=named, headers={"Content-Type": FORM}).status_code == 200
        for content in (url, b"@" + url, b"#EXTM3U\n#EXTINF:1,\n" + url, b"ffconcat version 1.0\nfile " + url):
            for route in ("predict", "timeline"):
                answer = client.post(f"/{route}", content=content, headers={"Content-Type": "video/mp4"})
                assert answer.status_code == 422, answer.text
        assert server.asked == []


def test_other_routes(client: TestClient, service: Service) -> None:
    assert client.get("/health").json() == {"status": "ok", "waiting": 0, "working": 0}
    assert client.get("/ready").json()["status"] == "ready"
    assert client.get("/model").json()["class_names"] == ["left", "right", "up"]
    assert (client.get("/nothing").status_code, client.get("/nothing").json()) == (404, {"error": "Not Found"})
    refused = client.get("/predict")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    assert client.get("/docs").status_code == 404  # FastAPI's would load its program from another server
    schema = client.get("/openapi.json").json()
    assert {"/predict", "/timeline", "/health", "/ready", "/model", "/metrics"} == set(schema["paths"])
    assert "multipart/form-data" in schema["paths"]["/predict"]["post"]["requestBody"]["content"]


def test_the_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.headers["content-security-policy"] == "frame-ancestors 'none'"
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]+)">', answer.text)
    assert policy.startswith("default-src &#39;none&#39;") and "connect-src &#39;self&#39;;" in policy
    assert re.findall(r"https?://\S+", answer.text) == ['http://www.w3.org/2000/svg";']  # a name, not an address
    assert "up to 0.191 MiB and 2.5 seconds" in answer.text and "3 classes" in answer.text


def test_metrics_count(client: TestClient, clips: list[Path]) -> None:
    def value(name: str) -> float:
        (line,) = [line for line in client.get("/metrics").text.splitlines() if line.startswith(name + " ")]
        return float(line.split()[-1])

    upload(client, "/predict", clips[0])
    done, size = value('octvideo_requests_total{route="/predict",status="200"}'), value("octvideo_upload_bytes_total")
    took = value('octvideo_part_seconds_total{route="/predict",part="computing"}')
    upload(client, "/predict", clips[0])
    assert value('octvideo_requests_total{route="/predict",status="200"}') == done + 1
    assert value("octvideo_upload_bytes_total") == size + clips[0].stat().st_size
    assert value('octvideo_part_seconds_total{route="/predict",part="computing"}') > took
    assert value('octvideo_request_seconds_bucket{route="/predict",le="+Inf"}') >= done + 1


def test_too_many_are_turned_away_and_so_are_all_at_the_end(
    client: TestClient, service: Service, clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    body = form(("file", clips[0].read_bytes()))
    with contextlib.ExitStack() as taken:
        for _ in range(LIMITS.places):
            taken.enter_context(service.place())
        answer = client.post("/predict", content=body, headers={"Content-Type": FORM})
        assert answer.status_code == 429 and 1 <= int(answer.headers["retry-after"]) <= 60
        assert client.get("/health").status_code == 200
    assert client.post("/predict", content=body, headers={"Content-Type": FORM}).status_code == 200
    monkeypatch.setattr(service, "is_stopping", True)
    answer = client.post("/predict", content=body, headers={"Content-Type": FORM})
    assert (answer.status_code, answer.json()["error"]) == (503, "the server is stopping")
    assert client.get("/ready").status_code == 503 and client.get("/health").status_code == 200


def test_a_fault_of_ours_is_one_line_and_the_next_request_is_answered(
    client: TestClient, service: Service, clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(clips: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("secret of /the/server")

    with monkeypatch.context() as patch:
        fails.views_per_call = None  # type: ignore[attr-defined]
        patch.setattr(service.predictor, "engine", fails)
        answer = client.post("/predict", content=clips[0].read_bytes(), headers={"Content-Type": "video/mp4"})
        assert answer.status_code == 500
        assert answer.json() == {"error": "the server failed at this request; its log says why"}
    upload(client, "/predict", clips[0])


def test_what_is_given_up_is_told_so(
    client: TestClient, service: Service, clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = service.predictor.engine

    class GivesUp:
        name, precision, views_per_call = engine.name, engine.precision, 1

        def __call__(self, clips: torch.Tensor) -> torch.Tensor:
            service.abandon()
            return engine(clips)

    with monkeypatch.context() as patch:
        patch.setattr(service.predictor, "engine", GivesUp())
        body = {"content": clips[1].read_bytes(), "headers": {"Content-Type": "video/mp4"}}
        answer = client.post("/timeline?stride=0.1", **body)
        assert (answer.status_code, answer.json()["error"]) == (503, "the server is stopping")
    upload(client, "/timeline", clips[1], stride=0.1)


def test_each_request_has_a_line_in_the_log(
    client: TestClient, clips: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "octvideo.serving"):
        upload(client, "/predict", clips[0])
        client.get("/a%0Ab" + 200 * "c")
    first, second = (record.getMessage() for record in caplog.records if record.name == "octvideo.serving")
    assert re.fullmatch(r"POST /predict 200 \d+ ms waiting \d+ decoding \d+ computing \d+ \d+\.\d\d MB", first)
    assert second.startswith("GET /a%0Abccc") and " 404 " in second and len(second) < 150


def test_labels_of_a_video_that_may_have_several(
    client: TestClient, predictor: Predictor, clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert upload(client, "/predict", clips[1])["labels"] is None
    monkeypatch.setattr(predictor, "scoring", Scoring("sigmoid", (0.0, 1.0, 0.0)))
    expected = predictor.predict(clips[1])
    assert expected.labels is not None and len(expected.labels) == 2
    got = upload(client, "/predict", clips[1])
    assert got["labels"] == expected.labels
    assert [one["score"] for one in got["top"]] == pytest.approx([score for _, score in expected.top], abs=1e-5)
    assert client.get("/model").json()["score_function"] == "sigmoid"
    windows = [window.scores for window in Timeline(predictor, 0.5, 0.25).of_video(clips[1])]
    found = upload(client, "/timeline", clips[1], window=0.5, stride=0.25, threshold=0.99)
    by_name = dict(zip(found["classes"], found["scores"], strict=True))
    for number, name in enumerate(predictor.class_names):
        assert by_name[name] == pytest.approx([float(scores[number]) for scores in windows], abs=1e-3)
