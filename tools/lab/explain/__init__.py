"""Evidence for `octvideo explain`.

clips.py      clips of the demo's test videos in which the object is seldom in the middle, and where it is
pointing.py   the pointing game: saliency's strongest point on the object, against chance
shuffled.py   how saliency changes as weights are shuffled, from the last layer on
spectra.py    what channels lose against depth, of networks with random and with trained weights
command.py    the command line of tools/explain_evidence.py
"""
