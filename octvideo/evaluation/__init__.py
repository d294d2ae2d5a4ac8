"""From the logits of views to scores of videos, metrics, tables and pictures.

view_scores.py  views → chunks for a network; view logits → video scores, their best classes (torch only)
alike_views.py  videos whose views are all alike
scoring.py      which of the two ways makes scores of logits, and labels of scores (torch only)
several.py      metrics of videos with several labels, and thresholds
metrics.py      metrics of videos, and pairs; intervals; differences of arms over several runs
scores.py       the result of an evaluation: one row of scores per video, in a file
calibration.py  whether scores are what they say, and the temperature at which they are
fusion.py       the weighted mean of several runs' scores
per_class.py    class by class: precision, recall, F1 with intervals, what is mixed up
precision_recall.py  curves of precision over recall
report.py       scores → figures with intervals → tables
pictures.py     training curves and confusion matrix (imports matplotlib)
"""
