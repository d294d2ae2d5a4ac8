"""Measures `octvideo serve` under load beside `octvideo infer` on the same videos.

    python tools/benchmark_serving.py VIDEO|FOLDER ... --ckpt RUN [--clients 50] [--seconds 120]

Both get the same engine, precision and threads. Clients upload one video after the other, and try again where they
are told to (429). Each answer is compared with that of `octvideo infer`. The ratio is videos per second of the server
over those of `infer`, each without the start of its process.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from octvideo.cli.arguments import Parser, above_zero, positive
from octvideo.cli.ending import command, end_with
from octvideo.cli.video_arguments import find_videos
from octvideo.errors import UserError

_SAME = 1e-4  # of scores, between batches of another size


@dataclass
class Load:
    """What clients saw.

    Args:
        statuses: how many answers had each status; 0 is a connection that broke.
        wrong: answers that differ from `infer`'s.
        seconds: that each good answer took, from its first try on.
        done: when each good answer was there.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    done: list[float] = field(default_factory=list)


@command()
def main(argv: list[str]) -> int:
    """Prints the figures; returns 1 where an answer was lost or wrong."""
    parser = Parser(prog="benchmark_serving.py", description=__doc__)
    parser.add_argument("videos", nargs="+", metavar="VIDEO|FOLDER|@FILE")
    parser.shared("ckpt", "runs_dir", "threads")
    parser.add_argument("--engine", default="eager")
    parser.add_argument("--precision", default="f32")
    parser.add_argument("--clients", type=positive, default=50, metavar="N")
    parser.add_argument("--seconds", type=above_zero, default=120.0, metavar="S")
    parser.add_argument("--queue", type=positive, default=32, metavar="N")
    parser.add_argument("--num_workers", type=positive, default=2, metavar="N")
    args = parser.parse_args(argv)
    videos = list(find_videos(args.videos))
    if args.ckpt is None:
        raise UserError("--ckpt not given")
    own = ["--ckpt", args.ckpt, "--runs_dir", args.runs_dir, "--engine", args.engine, "--precision", args.precision]
    own += ["--threads", str(args.threads or 1)]
    expected, before, infer_cpu = infer(videos, own, args.seconds / 4)
    load, peak_mb, rate, cpu_sec = serve(videos, own, args, expected)
    _, after, _ = infer(videos, own, args.seconds / 4)
    alone = (before + after) / 2
    load.seconds.sort()
    print(f"octvideo infer: {before:.3f} and {after:.3f} videos/s, before and after; {infer_cpu:.3f} CPU s a video")
    print(f"octvideo serve: {rate:.3f} videos/s with {args.clients} clients; ratio {rate / alone:.3f}")
    print(f"octvideo serve: {cpu_sec:.3f} CPU s a video, without the clients' own")
    print(f"answers by status: {dict(load.statuses)}; wrong: {len(load.wrong)}; peak memory {peak_mb:.0f} MB")
    if load.seconds:
        middle, late = (load.seconds[int(share * (len(load.seconds) - 1))] for share in (0.5, 0.95))
        print(f"seconds to an answer: median {middle:.2f}, 95 % {late:.2f}")
    for line in load.wrong[:5]:
        print(line)
    return int(bool(load.wrong or load.statuses.keys() - {200, 429}))


def infer(videos: list[str], own: list[str], seconds: float) -> tuple[dict[str, dict[str, float]], float, float]:
    """Scores of each video by class; videos per second, by the sum of what each took, for so long at least; and CPU
    seconds of a video: those by which more videos in one process cost more.
    """
    scores: dict[str, dict[str, float]] = {}
    num, took = 0, 0.0
    cpu: list[float] = []
    while took < seconds:
        for many in (videos, videos * 3):
            words = [sys.executable, "-m", "octvideo", "infer", *many, *own, "--topk", "10000", "--json"]
            began = sum(os.times()[2:4])
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            cpu.append(sum(os.times()[2:4]) - began)
            if done.returncode:
                raise UserError(f"octvideo infer failed: {done.stderr[-2000:]}")
            for video in json.loads(done.stdout)["videos"]:
                scores[video["path"]] = {one["name"]: one["score"] for one in video["top"]}
                took += video["seconds"]["total"]
                num += 1
    more = (sum(cpu[1::2]) - sum(cpu[::2])) / (2 * len(videos) * len(cpu[::2]))
    return scores, num / took, more


def serve(
    videos: list[str], own: list[str], args: argparse.Namespace, expected: dict[str, dict[str, float]]
) -> tuple[Load, float, float, float]:
    """What clients saw, the most memory of all processes in MB, good answers per second, CPU seconds of each."""
    with tempfile.TemporaryFile("w+") as said:
        words = [sys.executable, "-m", "octvideo", "serve", *own, "--port", "0", "--queue", str(args.queue)]
        process = subprocess.Popen([*words, "--num_workers", str(args.num_workers)], stderr=said)
        try:
            port = port_of(process, said.fileno())
            load, stop = Load(), threading.Event()
            contents = {video: Path(video).read_bytes() for video in videos}
            lock = threading.Lock()
            began, cpu = time.perf_counter(), cpu_of(process.pid)
            clients = [
                threading.Thread(target=client, args=(port, n, contents, expected, load, lock, stop))
                for n in range(args.clients)
            ]
            for thread in clients:
                thread.start()
            peak = 0
            while time.perf_counter() - began < args.seconds:
                peak = max(peak, memory(process.pid))
                time.sleep(0.5)
            stop.set()
            for thread in clients:
                thread.join()
            cpu = cpu_of(process.pid) - cpu
            inside = sum(done - began <= args.seconds for done in load.done)
            return load, peak / 2**20, inside / args.seconds, cpu / max(len(load.done), 1)
        finally:
            process.terminate()
            process.wait(60)


def port_of(process: subprocess.Popen[bytes], said: int) -> int:
    """Where the server listens, by what it says."""
    while process.poll() is None:
        text = Path(f"/proc/self/fd/{said}").read_text()
        if found := re.search(r"serving at http://127.0.0.1:(\d+)/", text):
            return int(found[1])
        time.sleep(0.2)
    raise UserError("octvideo serve ended")


def cpu_of(pid: int) -> float:
    """Seconds that a process and its children have computed."""
    times = [one.cpu_times() for one in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]]
    return sum(one.user + one.system for one in times)


def memory(pid: int) -> int:
    """Bytes in RAM of a process and its children, what they share counted once."""
    total = 0
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def client(
    port: int,
    number: int,
    contents: dict[str, bytes],
    expected: dict[str, dict[str, float]],
    load: Load,
    lock: threading.Lock,
    stop: threading.Event,
) -> None:
    """Uploads one video after the other until it is told to stop; what it has begun it ends."""
    videos = list(contents)
    turn = number
    while not stop.is_set():
        video = videos[turn % len(videos)]
        turn += 1
        began = time.perf_counter()
        while True:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
                headers = {"Content-Type": "application/octet-stream"}
                connection.request("POST", "/predict?topk=10000", contents[video], headers)
                answer = connection.getresponse()
                status, retry, text = answer.status, answer.getheader("Retry-After", "1"), answer.read()
                connection.close()
            except OSError:
                status, retry, text = 0, "1", b""
            with lock:
                load.statuses[status] += 1
            if status != 429:
                break
            if stop.wait(float(retry)):
                return
        if status == 200:
            scores = {one["name"]: one["score"] for one in json.loads(text)["top"]}
            off = max(abs(scores[name] - score) for name, score in expected[video].items())
            with lock:
                load.seconds.append(time.perf_counter() - began)
                load.done.append(time.perf_counter())
                if off > _SAME:
                    load.wrong.append(f"{video}: scores differ by {off:.2g}")


if __name__ == "__main__":
    end_with(main)
