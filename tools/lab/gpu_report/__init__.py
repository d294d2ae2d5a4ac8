"""Is octvideo right on a GPU, and does octave pay there? An answer for a machine that is lent for minutes.

command.py    the steps in the order of their value, each within its time; a process does them (worker.py)
report.py     what has been found, as JSON lines and as a page that is whole after every result
work.py       what a step is told, and how it tells what it finds
child.py      processes that are told and answer lines; one may crash or hang without an end to the report
worker.py     the one that does the steps
apart.py      one for each arm that is compiled
checks.py     step 0: the device's own rates; networks on it against the CPU; tests of kernels; a video's scores
speed.py      steps 1 to 6: arms in turns, profiles, compiling
kernels.py    which kind of work a kernel does, by its name
"""
