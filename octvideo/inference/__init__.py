"""A video in, class names out.

checkpoint.py   where networks come from: checkpoints, exported models
device.py       devices by name
engine.py       what an engine, a way to run a network, is
torch_engines.py, model_files.py   all engines: of networks in memory, and of models that are files
engines.py      the table of them, `ENGINES`, and the way from a network to one
choice.py       which of them is the best here: "auto"
preparation.py  videos are decoded and cut beside the engine
predictor.py    all that scores depend on, in one object
export.py       a folder that serves by itself: behind octvideo export
standalone/     the program copied into it
"""

from octvideo.inference.predictor import Prediction, Predictor

__all__ = ["Prediction", "Predictor"]
