"""A cluster of two nodes on this machine, each with a CPU and processes of its own. No process of it stays."""

from __future__ import annotations

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
    before = {process.pid for process in psutil.process_iter()}
    found = Cluster(initialize_head=True, head_node_args={**_NODE, "num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            found.add_node(**_NODE)
        yield found
    finally:
        found.shutdown()
        for process in psutil.process_iter(["pid", "name", "cmdline"]):
            if process.pid not in before and any(
                "ray" in Path(word).name for word in (process.info["cmdline"] or [])[:3]
            ):
                process.kill()


def actors_of(node: Any) -> list[psutil.Process]:
    """The processes of a node that work for us."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [child for child in raylet.children() if child.name().startswith("ray::_Process")]
