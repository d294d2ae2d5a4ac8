"""From the logits of views to scores of videos, metrics, tables and pictures.

metrics.py   view logits → video scores; top-1, top-5, mean class, pairs; intervals
scores.py    what an evaluation leaves behind: one row of scores per video, in a file
report.py    scores → figures with intervals → tables
pictures.py  training curves and confusion matrix (imports matplotlib, so not imported from here)
"""

from octvideo.evaluation.metrics import VideoMetrics, in_top_k, pair_hits, video_scores, wilson_interval
from octvideo.evaluation.report import Figure, figures, markdown_table, metrics_table
from octvideo.evaluation.scores import VideoScores, find_scores

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
