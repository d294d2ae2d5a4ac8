"""A video in, class names out.

checkpoint.py   where networks come from: checkpoints, exported models
engines.py      ways to run a network, one table of them: `ENGINES`
choice.py       which of them is the best here: "auto"
preparation.py  videos are decoded and cut beside the engine
predictor.py    all that scores depend on, in one object
export.py       a folder that serves by itself: behind octvideo export
standalone/     the program copied into it
"""

from octvideo.inference.predictor import Prediction, Predictor

__all__ = ["Prediction", "Predictor"]
