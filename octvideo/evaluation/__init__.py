"""From the logits of views to scores of videos, metrics, tables and pictures.

view_scores.py  views → chunks for a network; view logits → video scores, their best classes (torch only)
metrics.py      metrics of videos, and pairs; intervals; differences of arms over several runs
scores.py       the result of an evaluation: one row of scores per video, in a file
report.py       scores → figures with intervals → tables
pictures.py     training curves and confusion matrix (imports matplotlib, so not exported from here)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from octvideo.evaluation.metrics import VideoMetrics, pair_hits, wilson_interval
    from octvideo.evaluation.report import Figure, figures, markdown_table, metrics_table
    from octvideo.evaluation.scores import VideoScores, find_scores
    from octvideo.evaluation.view_scores import in_top_k, video_scores

__all__ = [
    "Figure",
    "VideoMetrics",
    "VideoScores",
    "figures",
    "find_scores",
    "in_top_k",
    "markdown_table",
    "metrics_table",
    "pair_hits",
    "video_scores",
    "wilson_interval",
]

_MODULES = ("view_scores", "scores", "metrics", "report")


def __getattr__(name: str) -> Any:
    """Loads a name's module when it is asked for: who only serves a network has no torchmetrics."""
    if name in __all__:
        for module in _MODULES:
            found = getattr(import_module(f"octvideo.evaluation.{module}"), name, None)
            if found is not None:
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
