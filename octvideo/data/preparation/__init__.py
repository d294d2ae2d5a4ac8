"""From what was downloaded to what `octvideo fit` trains on: behind octvideo prepare.

official.py    the official lists of a data set, whatever they look like, in one form
kinetics.py, split_files.py, something.py, folders.py   one form of lists each
published.py   how many videos each data set should have, and who says so
listing.py     both compared: lists for octvideo, what is missing, what is extra
encoding.py    one video re-encoded: short side, short GOP, no sound
reencode.py    very many of them, each in a process that may crash; goes on after an interruption
archives.py    which archives a data set is published in
fetching.py    archives downloaded in parallel, checked, unpacked; unpacking.py: nothing is written over
"""
