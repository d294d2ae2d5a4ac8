"""A pool on a cluster of two nodes: every item has one result, whatever ends."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from octvideo.cli import main
from octvideo.cluster.connection import connected
from octvideo.cluster.pool import Lost, RayPool
from octvideo.errors import UserError
from tests.cluster.conftest import REPO, actors_of


@dataclass
class Squares:
    """Squares numbers; 13, 26, ... end the process, 17 and 34 hang."""

    seconds: float = 0.0
    is_sound: bool = True

    def begin(self) -> int:
        if not self.is_sound:
            raise UserError("no weights here")
        return os.getpid()

    def work(self, items: Sequence[int]) -> Iterator[Any]:
        for item in items:
            time.sleep(self.seconds)
            if item and item % 13 == 0:
                os.kill(os.getpid(), signal.SIGSEGV)
            if item and item % 17 == 0:
                time.sleep(1000)
            yield item * item


def test_without_ray_it_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    (tmp_path / "a.mp4").write_bytes(b"")
    assert main(["infer", str(tmp_path / "a.mp4"), "--on", "ray"]) == 2
    assert "--on ray needs Ray, which is not installed: pip install 'octvideo[ray]'" in capsys.readouterr().err
    assert main(["infer", str(tmp_path / "a.mp4"), "--on", "spark"]) == 2
    assert "--on: got spark, expected ray, or ray://HOST:PORT" in capsys.readouterr().err


def test_a_head_that_does_not_answer_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"  # and nobody listens
        said = rf"nothing answers at {place} \(connection refused\): is 'ray start --head' running there\?"
        with pytest.raises(UserError, match=said), connected(f"ray://{place}", cpus=1, tell=print):
            pass
        monkeypatch.setenv("RAY_ADDRESS", place)
        with pytest.raises(UserError, match=said), connected("ray", cpus=1, tell=print):
            pass
    for wrong in ("ray://host:10001", "nonsense"):
        monkeypatch.setenv("RAY_ADDRESS", wrong)
        said = f"RAY_ADDRESS: got {wrong}, expected HOST:PORT"
        with pytest.raises(UserError, match=said), connected("ray", cpus=1, tell=print):
            pass


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_what_ends_its_process_costs_itself_alone(cluster: Any) -> None:
    said: list[str] = []
    with (
        connected(f"ray://{cluster.address}", cpus=1, tell=print),
        RayPool[int](Squares(), timeout_s=4, tell=said.append) as pool,
    ):
        assert pool.begin() > 0
        results = list(pool.run(range(40), 40))
        assert sorted(item for item, _ in results) == list(range(40))
        lost = {item: result.reason for item, result in results if isinstance(result, Lost)}
        assert sorted(lost) == [13, 17, 26, 34, 39]
        assert lost[17] == "timeout: no sign of life for 4 s" and lost[13] == "killed or crashed"
        assert all(result == item * item for item, result in results if item not in lost)
        assert any("done again, one by one" in line for line in said)
        assert list(pool.run([], 0)) == []


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_processes_and_nodes_that_are_killed_cost_nothing(cluster: Any) -> None:
    items = [n for n in range(400) if n % 13 and n % 17]
    first, second = cluster.worker_nodes
    with connected(f"ray://{cluster.address}", cpus=1, tell=print), RayPool[int](Squares(0.1)) as pool:
        pool.begin()
        results = []
        for number, found in enumerate(pool.run(items, len(items))):
            results.append(found)
            if number == 40:
                assert actors_of(first)
                for process in actors_of(first):
                    process.kill()
            if number == 120:
                cluster.remove_node(second, allow_graceful=False)
            if number == 200:
                cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    assert sorted(results) == [(item, item * item) for item in items]


@dataclass
class SlowToBegin(Squares):
    """Takes a while to load."""

    def begin(self) -> int:
        time.sleep(3)
        return os.getpid()


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_a_node_that_goes_while_processes_begin_costs_nothing(cluster: Any) -> None:
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    large = cluster.add_node(num_cpus=4, object_store_memory=100 * 2**20)
    killer = threading.Timer(2.0, psutil.Process(large.all_processes["raylet"][0].process.pid).kill)
    with connected(f"ray://{cluster.address}", cpus=1, tell=print), RayPool[int](SlowToBegin()) as pool:
        killer.start()
        results = list(pool.run([1, 2, 3], 3))
    assert sorted(results) == [(1, 1), (2, 4), (3, 9)]


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_processes_that_can_not_begin_end_the_run(cluster: Any) -> None:
    with connected(f"ray://{cluster.address}", cpus=1, tell=print):
        with RayPool[int](Squares(is_sound=False)) as pool, pytest.raises(UserError, match="no weights here"):
            pool.begin()
        with (
            RayPool[int](Squares(), cpus=3) as pool,
            pytest.raises(UserError, match="no node of the cluster has 3 CPUs"),
        ):
            pool.begin()


@dataclass
class Writes:
    """Gives the node of each item; of those in `full` the disk is full after 5 items."""

    full: tuple[str, ...]
    _count: int = 0

    def begin(self) -> None:
        import ray

        self._node = ray.get_runtime_context().get_node_id()

    def work(self, items: Sequence[int]) -> Iterator[str]:
        for _ in items:
            time.sleep(0.05)
            if self._node in self.full and self._count == 5:
                raise OSError(errno.ENOSPC, "No space left on device", "a.npz")
            self._count += 1
            yield self._node


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_a_node_with_a_full_disk_costs_nothing(cluster: Any) -> None:
    first, second = (node.node_id for node in cluster.worker_nodes)
    said: list[str] = []
    with connected(f"ray://{cluster.address}", cpus=1, tell=print):
        with RayPool[int](Writes((first,)), tell=said.append) as pool:
            pool.begin()
            found = dict(pool.run(range(200), 200))
        assert sorted(found) == list(range(200))
        assert [list(found.values()).count(node) for node in (first, second)] == [5, 195]
        assert len(said) == 1 and "gets nothing for 60 s: No space left on device: a.npz" in said[0]
        with RayPool[int](Writes((first, second))) as pool:
            pool.begin()
            given = []
            with pytest.raises(
                UserError, match=r"no machine of the cluster has room: No space left on device: a.npz; make some"
            ):
                given.extend(pool.run(range(200), 200))
            assert len(given) == 10


_DRIVER = """
import sys
from octvideo.cluster.connection import connected
from octvideo.cluster.pool import RayPool
from octvideo.errors import UserError
from tests.cluster.test_pool import Squares

try:
    with connected("ray://" + sys.argv[1], cpus=1, tell=print) as cluster, RayPool(Squares()) as pool:
        print(cluster, 'begun' if pool.begin() else '')
except UserError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.timeout(280)
@pytest.mark.parametrize("mode", ["token", "disabled"])
def test_a_token_is_given_to_a_head_that_asks_for_one(mode: str, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0123456789abcdef" * 4)
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    env |= {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(REPO)}
    own = {**env, "HOME": str(tmp_path)}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["start", "--head", "--block", "--port", str(port), "--num-cpus", "1", "--include-dashboard", "false"]
    how: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # sockets need a short path
        command = [sys.executable, "-m", "ray.scripts.scripts", *words, "--temp-dir", folder]
        head = subprocess.Popen(command, env={**own, "RAY_AUTH_MODE": mode}, start_new_session=True, **how)
        try:
            for line in head.stdout or ():
                if "Ray runtime started" in line:
                    break

            def said(env: dict[str, str]) -> str:
                driver = [sys.executable, "-c", _DRIVER, f"127.0.0.1:{port}"]
                return subprocess.run(driver, env=env, timeout=120, check=False, **how).stdout

            assert f"127.0.0.1:{port}, 1 node, 1 CPU begun" in said(own)
            if mode == "token":
                said_without = said({**env, "HOME": str(tmp_path / "elsewhere")})
                assert "asks for a token: copy ~/.ray/auth_token of its head to this machine\n" in said_without
        finally:
            head.terminate()
            head.communicate(timeout=60)
