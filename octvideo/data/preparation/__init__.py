"""From what was downloaded to what `octvideo fit` trains on: behind octvideo prepare.

official.py    the official lists of each data set in one form, and how many videos it should have
official_more.py  of Diving48, Jester and Charades
folders.py     class folders of the user's own, split
listing.py     lists and files compared: lists for octvideo, missing videos, extra videos
encoding.py    one video re-encoded: short side, short GOP, no sound
reencode.py    very many of them, each in a process that may crash; resumes after an interruption
archives.py    which archives a data set is published in
fetching.py    archives downloaded in parallel, checked, unpacked
"""
