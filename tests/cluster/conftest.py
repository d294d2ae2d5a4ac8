"""A cluster of two nodes on this machine, each with a CPU and processes of its own. No process of it stays."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

REPO = Path(__file__).resolve().parents[2]
_NODE = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 100 * 2**20}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """`ray.cluster_utils.Cluster`, whose head has no CPU for us, so that both nodes with one can be killed."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", f"{REPO}{os.pathsep}{REPO / 'tools'}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    before = set(psutil.Process().children(recursive=True))
    found = Cluster(initialize_head=True, head_node_args={**_NODE, "num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            found.add_node(**_NODE)
        yield found
    finally:
        own = set(psutil.Process().children(recursive=True)) - before
        found.shutdown()
        psutil.wait_procs(own, timeout=5)
        for process in own:
            with contextlib.suppress(psutil.NoSuchProcess):  # which looks whether it is the same process
                process.kill()


def actors_of(node: Any) -> list[psutil.Process]:
    """The processes of a node that work for us."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [child for child in raylet.children() if child.name().startswith("ray::_Process")]
