"""What `octvideo serve` says before it serves."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from octvideo.cli import main

pytest.importorskip("fastapi", reason="octvideo serve needs the extra 'serve'")


def test_mistakes_are_told_before_a_network_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error(*words: object) -> str:
        assert main(["serve", *map(str, words)]) == 2
        return capsys.readouterr().err

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"can't serve at 127.0.0.1, port {port}: Address already in use" in error("x", "--port", port)
    assert "got 70000, expected a port, 0 to 65535" in error("x", "--port", 70000)
    assert "got x and --ckpt or --model: leave one of them out" in error("x", "--ckpt", "y")
    assert "--host no.such.host.invalid" in error("x", "--host", "no.such.host.invalid")
    assert "nothing" in (said := error(tmp_path / "nothing", "--port", 0)) and "Traceback" not in said
    (tmp_path / "octvideo.json").write_text("{}")  # an exported folder, and no whole one
    assert "octvideo.json" in error(tmp_path, "--port", 0)
