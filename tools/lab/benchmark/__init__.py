"""How fast networks are beside each other, and how much of what octave saves on paper is saved on the clock.

One run has arms (arms.py), that are built (networks.py, calls.py) and take turns (measure.py); what is found is
written down (results.py), compared (summary.py) and shown (report.py, picture.py). What loading videos costs is
measured in loading/.
"""

from lab.benchmark.arms import Arm, parse_arms

__all__ = ["Arm", "parse_arms"]
