"""How fast networks are beside each other, and how much of what octave saves on paper is saved on the clock.

One run has arms (arms.py), that are built (networks.py, calls.py) and take turns (measure.py; processes.py in fresh
processes) on a machine (machine.py). What is found is written down and compared (results.py) and shown (report.py,
picture.py); command.py is the command line. What loading videos costs is measured in loading/.
"""

from lab.benchmark.arms import Arm, parse_arms

__all__ = ["Arm", "parse_arms"]
