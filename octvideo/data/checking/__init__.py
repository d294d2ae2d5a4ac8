"""Checking a whole data set: every file decoded, each result kept as it comes.

sources.py  files, folders, lists and csv → paths
journal.py  what is known of each file, through kills and reruns
run.py      the check itself, and what it says
"""

from octvideo.data.checking.journal import Journal
from octvideo.data.checking.run import Summary, check_all
from octvideo.data.checking.sources import Selection, select

__all__ = ["Journal", "Selection", "Summary", "check_all", "select"]
