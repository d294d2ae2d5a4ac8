"""Counts and times since the start, as Prometheus reads them (text format 0.0.4)."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BOUNDS_SEC = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Counts requests; any thread may.

    `text` gives them all.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._in_bucket: Counter[tuple[str, int]] = Counter()
        self._seconds: Counter[tuple[str, str]] = Counter()
        self._num_bytes = 0

    def add(self, route: str, status: int, seconds: float, parts: Mapping[str, float], num_bytes: int) -> None:
        """Counts a request that has ended.

        Args:
            route: one of few names.
            status: of HTTP; 499 where the client went away.
            seconds: from its first byte to the last of its answer.
            parts: where they went.
            num_bytes: of its upload.
        """
        with self._lock:
            self._requests[route, status] += 1
            self._in_bucket[route, bisect_left(_BOUNDS_SEC, seconds)] += 1
            self._seconds[route, "all"] += seconds  # type: ignore[assignment]
            for name, part in parts.items():
                self._seconds[route, name] += part  # type: ignore[assignment]
            self._num_bytes += num_bytes

    def text(self, waiting: int, working: int) -> str:
        """All of it.

        Args:
            waiting: requests that wait now.
            working: requests that are worked on now.
        """
        with self._lock:
            lines = _head("octvideo_requests_total", "counter", "Requests that have ended.")
            for (route, status), count in sorted(self._requests.items()):
                lines.append(f'octvideo_requests_total{{route="{route}",status="{status}"}} {count}')
            lines += _head("octvideo_request_seconds", "histogram", "From the first byte to the end of the answer.")
            for route in sorted({route for route, _ in self._requests}):
                total = 0
                for n, bound in enumerate((*map(str, _BOUNDS_SEC), "+Inf")):
                    total += self._in_bucket[route, n]
                    lines.append(f'octvideo_request_seconds_bucket{{route="{route}",le="{bound}"}} {total}')
                lines.append(f'octvideo_request_seconds_sum{{route="{route}"}} {self._seconds[route, "all"]:.6f}')
                lines.append(f'octvideo_request_seconds_count{{route="{route}"}} {total}')
            lines += _head("octvideo_part_seconds_total", "counter", "Where the time of requests went.")
            for (route, part), seconds in sorted(self._seconds.items()):
                if part != "all":
                    lines.append(f'octvideo_part_seconds_total{{route="{route}",part="{part}"}} {seconds:.6f}')
            lines += _head("octvideo_upload_bytes_total", "counter", "Bytes of uploaded videos.")
            lines.append(f"octvideo_upload_bytes_total {self._num_bytes}")
        lines += _head("octvideo_waiting", "gauge", "Requests that wait.")
        lines.append(f"octvideo_waiting {waiting}")
        lines += _head("octvideo_working", "gauge", "Requests that are worked on.")
        lines.append(f"octvideo_working {working}")
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
