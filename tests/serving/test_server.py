"""`octvideo serve` as a process: hostile and unlucky clients, load, and its end."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from torch import Tensor

from octvideo.inference import Predictor

REPO = Path(__file__).resolve().parents[2]
VIDEO = {"Content-Type": "video/mp4"}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Server:
    """A process that serves."""

    def __init__(self, folder: Path, checkpoint: Path, *options: str) -> None:
        self.log, self.temporary = folder / "log.txt", folder / "uploads"
        self.temporary.mkdir()
        env = os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "TMPDIR": str(self.temporary)}
        words = ["serve", str(checkpoint), "--engine", "eager", "--precision", "f32", "--threads", "1", "--port", "0"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "octvideo", *words, *options], cwd=folder, env=env, stderr=log
            )
        self.port = self._port()

    def _port(self) -> int:
        for _ in range(1200):
            if found := re.search(r"serving at http://127.0.0.1:(\d+)/", self.log.read_text()):
                return int(found[1])
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def ask(self, method: str, path: str, body: Any = None, headers: Any = {}) -> tuple[int, Any]:  # noqa: B006
        """Status and JSON of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            return answer.status, json.loads(content) if "json" in answer.getheader("Content-Type", "") else content

    def socket(self) -> socket.socket:
        """An open connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def rest(self) -> None:
        """Waits until nothing is worked on; then no upload is left, open or not."""
        for _ in range(600):
            if self.ask("GET", "/health")[1] == {"status": "ok", "waiting": 0, "working": 0}:
                break
            time.sleep(0.1)
        else:
            raise AssertionError(self.ask("GET", "/health"))
        files = [path for path in self.temporary.rglob("*") if path.is_file()]
        opened = [str(link.readlink()) for link in Path(f"/proc/{self.process.pid}/fd").iterdir()]
        assert files == [] and [path for path in opened if str(self.temporary) in path] == []

    def memory(self) -> int:
        """Bytes in RAM of the server's own process."""
        return psutil.Process(self.process.pid).memory_info().rss

    def stop(self) -> int:
        """Its exit code."""
        self.process.terminate()
        return self.process.wait(60)


@pytest.fixture(scope="module")
def server(served_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    limits = ("--queue", "8", "--num_workers", "2", "--max_size_mb", "20")
    server = Server(tmp_path_factory.mktemp("server"), served_checkpoint, *limits)
    yield server
    server.rest()
    assert server.stop() == 0
    assert list(server.temporary.iterdir()) == []
    assert "Traceback" not in server.log.read_text()


@pytest.fixture(scope="module")
def expected(served_checkpoint: Path, clips: list[Path]) -> list[dict[str, float]]:
    predictor = Predictor.from_checkpoint(served_checkpoint, device="cpu")
    return [dict(predictor.predict(clip).top) for clip in clips]


def scores(answer: Any) -> dict[str, float]:
    return {one["name"]: one["score"] for one in answer["top"]}


def test_fifty_clients_good_and_bad(server: Server, clips: list[Path], expected: list[dict[str, float]]) -> None:
    until = time.monotonic() + 30
    contents = [clip.read_bytes() for clip in clips]
    statuses: Counter[tuple[str, int]] = Counter()
    faults: list[str] = []
    lock = threading.Lock()

    def good(number: int) -> None:
        n = number
        while time.monotonic() < until:
            n += 1
            status, answer = 429, None
            while status == 429:
                status, answer = server.ask("POST", "/predict", contents[n % 3], VIDEO)
                if status == 429:
                    time.sleep(0.2)
            with lock:
                statuses["good", status] += 1
                if status != 200 or scores(answer) != pytest.approx(expected[n % 3], abs=1e-5):
                    faults.append(f"{status} {answer}")

    def bad(number: int) -> None:
        bodies = [b"no video" * 100, contents[0][:600], b"", bytes(2**20)]
        while time.monotonic() < until:
            status, answer = server.ask("POST", "/predict", bodies[number % 4], VIDEO)
            with lock:
                statuses["bad", status] += 1
                if status not in (422, 429):
                    faults.append(f"{status} {answer}")

    def leaving(number: int) -> None:
        while time.monotonic() < until:
            with server.socket() as connection:
                head = (
                    f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: video/mp4\r\nContent-Length: {10**6}\r\n\r\n"
                )
                connection.sendall(head.encode() + contents[2][: 1000 * (number + 1)])
                time.sleep(0.1)

    kinds: list[Callable[[int], None]] = [good] * 35 + [bad] * 10 + [leaving] * 5
    threads = [threading.Thread(target=kind, args=(n,)) for n, kind in enumerate(kinds)]
    before = server.memory()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults[:3] == []
    assert statuses["good", 200] > 35 and statuses["bad", 422] > 10, statuses
    assert server.memory() < before + 300 * 2**20
    server.rest()


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_two_gigabytes_is_refused_in_little_memory(server: Server, chunked: bool, clips: list[Path]) -> None:
    before = server.memory()
    peak = [before]
    sent = 0
    with server.socket() as connection:
        length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {2**31}"
        connection.sendall(f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: video/mp4\r\n{length}\r\n\r\n".encode())
        block = bytes(2**20)
        piece = b"%x\r\n%b\r\n" % (len(block), block) if chunked else block
        with contextlib.suppress(ConnectionError):  # the server may end it once it has answered
            while sent < 2**31:
                connection.sendall(piece)
                sent += len(block)
                peak.append(server.memory())
        status_line = b""
        with contextlib.suppress(ConnectionError):
            status_line = connection.recv(100)
    assert max(peak) < before + 60 * 2**20
    assert status_line.startswith(b"HTTP/1.1 413") or sent < 2**31
    assert "POST /predict 413" in server.log.read_text()
    assert server.ask("POST", "/predict", clips[0].read_bytes(), VIDEO)[0] == 200
    server.rest()


def test_a_client_reads_why_its_large_body_is_refused(server: Server) -> None:
    status, answer = server.ask("POST", "/predict", bytes(30 * 2**20), VIDEO)
    assert (status, answer) == (413, {"error": "the video is larger than 20 MiB"})
    server.rest()


def test_slow_clients_do_not_stay(server: Server) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: video/mp4\r\nContent-Length: 100000\r\n\r\n"
    with server.socket() as silent, server.socket() as half_a_head, server.socket() as half_a_body:
        half_a_head.sendall(b"POST /predict HTT")
        half_a_body.sendall(head + b"x")
        assert half_a_body.recv(100).startswith(b"HTTP/1.1 408")
        assert silent.recv(100) == b""
        with contextlib.suppress(ConnectionResetError):
            assert half_a_head.recv(100) == b""
    server.rest()


def test_a_killed_decoder_is_an_error_of_its_request(server: Server, moving: Any, encode: Any, tmp_path: Path) -> None:
    film = encode(tmp_path / "film.mp4", moving(1200, 96, 128)).read_bytes()
    answers: list[tuple[int, Any]] = []
    asking = threading.Thread(target=lambda: answers.append(server.ask("POST", "/timeline?stride=0.02", film, VIDEO)))
    asking.start()
    decoder = busy_decoder(server)
    decoder.send_signal(signal.SIGSEGV)
    asking.join()
    assert answers == [(422, {"error": "can't read the video: its decoder crashed"})]
    status, answer = server.ask("POST", "/timeline?stride=1", film, VIDEO)
    assert status == 200 and len(answer["starts"]) > 10
    server.rest()


def test_who_leaves_has_nothing_more_decoded(server: Server, moving: Any, encode: Any, tmp_path: Path) -> None:
    film = encode(tmp_path / "film.mp4", moving(1200, 96, 128)).read_bytes()
    head = f"POST /timeline?stride=0.02 HTTP/1.1\r\nHost: x\r\nContent-Type: video/mp4\r\nContent-Length: {len(film)}"
    with server.socket() as connection:
        connection.sendall(head.encode() + b"\r\n\r\n" + film)
        decoder = busy_decoder(server)
    server.rest()
    decoder.wait(60)  # it was killed, since nobody asked it to end
    assert "POST /timeline 499" in server.log.read_text()


def busy_decoder(server: Server) -> psutil.Process:
    """The process that reads an upload."""
    for _ in range(3000):
        for process in psutil.Process(server.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error, OSError):
                opened = [str(link.readlink()) for link in Path(f"/proc/{process.pid}/fd").iterdir()]
                if any(str(server.temporary) in path for path in opened):
                    return process
        time.sleep(0.01)
    raise AssertionError("no process decodes")


def test_the_end_waits_for_what_is_computed_and_takes_nothing_new(
    served_checkpoint: Path, moving: Callable[..., Tensor], encode: Callable[..., Path], tmp_path: Path
) -> None:
    film = encode(tmp_path / "film.mp4", moving(200)).read_bytes()
    server = Server(tmp_path, served_checkpoint)
    answers: list[tuple[int, Any]] = []
    asking = threading.Thread(target=lambda: answers.append(server.ask("POST", "/timeline?stride=0.05", film, VIDEO)))
    asking.start()
    busy_decoder(server)
    server.process.send_signal(signal.SIGINT if signal.getsignal(signal.SIGINT) else signal.SIGTERM)
    for _ in range(100):
        if server.ask("GET", "/ready")[0] == 503:
            break
        time.sleep(0.01)
    status, answer = server.ask("POST", "/predict", film, VIDEO)
    assert (status, answer) == (503, {"error": "the server is stopping"})
    asking.join()
    assert answers[0][0] == 200 and len(answers[0][1]["starts"]) > 150
    assert server.process.wait(60) == 0
    assert list(server.temporary.iterdir()) == []


def test_a_second_ctrl_c_ends_at_once_and_without_a_traceback(
    served_checkpoint: Path, moving: Callable[..., Tensor], encode: Callable[..., Path], tmp_path: Path
) -> None:
    film = encode(tmp_path / "film.mp4", moving(1200, 96, 128)).read_bytes()
    server = Server(tmp_path, served_checkpoint)

    def ask() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):  # it may be cut off
            server.ask("POST", "/timeline?stride=0.02", film, VIDEO)

    asking = threading.Thread(target=ask)
    asking.start()
    busy_decoder(server)
    server.process.send_signal(signal.SIGTERM)
    while server.ask("GET", "/ready")[0] != 503:
        time.sleep(0.01)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 130
    asking.join()
    assert "once more ends at once" in server.log.read_text() and "Traceback" not in server.log.read_text()


def test_a_thousand_malformed_requests_from_its_own_description(server: Server, tmp_path: Path) -> None:
    program = shutil.which("schemathesis", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("schemathesis is not installed")
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance"
    checks += ",response_schema_conformance,negative_data_rejection,unsupported_method"
    options = ["--checks", checks, "--phases", "examples,coverage,fuzzing", "--mode", "all", "--max-examples", "600"]
    options += ["--seed", "1", "--no-color", "--suppress-health-check", "all", "--continue-on-failure"]
    command = [program, "run", f"http://127.0.0.1:{server.port}/openapi.json", *options]
    before = requests_so_far(server)
    done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, timeout=500, check=False)
    made = requests_so_far(server) - before
    assert done.returncode == 0, done.stdout[-6000:]
    assert sum(number for status, number in made.items() if status >= 400) >= 1000, made
    assert not [status for status in made if status >= 500], made
    server.rest()


def requests_so_far(server: Server) -> Counter[int]:
    """By status."""
    text = server.ask("GET", "/metrics")[1].decode()
    found: Counter[int] = Counter()
    for status, number in re.findall(r'^octvideo_requests_total\{.*status="(\d+)"\} (\d+)', text, re.MULTILINE):
        found[int(status)] += int(number)
    return found


def test_real_clips_give_what_infer_gives(
    served_checkpoint: Path, server: Server, real_videos: Path, tmp_path: Path
) -> None:
    files = sorted(file for file in (real_videos / "clips").iterdir() if file.is_file())[:6]
    words = ["infer", *map(str, files), "--ckpt", str(served_checkpoint), "--engine", "eager", "--precision", "f32"]
    env = os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "octvideo", *words, "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=env, text=True, capture_output=True, timeout=300, check=True)
    for video in json.loads(done.stdout)["videos"]:
        status, answer = server.ask("POST", "/predict", Path(video["path"]).read_bytes(), VIDEO)
        assert status == 200 and scores(answer) == pytest.approx(scores(video), abs=1e-5)
