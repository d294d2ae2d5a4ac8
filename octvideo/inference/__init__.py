"""A video in, class names out.

checkpoint.py   where networks come from: checkpoints, shared networks, exported models
device.py       devices by name
engine.py       what an engine, a way to run a network, is
torch_engines.py, model_files.py   all engines: of networks in memory, and of models that are files
engines.py      the table of them, `ENGINES`, and the way from a network to one
choice.py       which of them is the best here: "auto"
budget.py       how many views a time allows
preparation.py  videos are decoded and cut beside the engine
timeline.py     scores of one window after the other along a video of any length
frame_units.py  networks whose clips fall into frames, which are then computed once
live.py         the same of the newest windows of a stream; live_segments.py: segments as they close
timeline_picture.py   scores and segments over time, as PNG or SVG; score_rows.py: which classes it shows
timeline_document.py  the same as JSON, which the pages of octvideo.pages show
window_lines.py  how the scores of a window are written
captions.py     the best classes of each moment, painted onto frames
feature_network.py  a network that ends at one of its layers
features.py     what such a layer gives for each window of a video
feature_files.py  a folder of features, a file for each video
similar.py      the windows in such a folder that are most like others
predictor.py    all that scores depend on, in one object
pretrained.py   the same out of a shared network: `octvideo.from_pretrained`
engine_times.py what a network takes by each engine here: for model cards
export.py       a folder that serves by itself: behind octvideo export
standalone/     the program copied into it
"""

from octvideo.inference.budget import ViewsChoice
from octvideo.inference.features import WindowFeatures
from octvideo.inference.predictor import Prediction, Predictor
from octvideo.inference.pretrained import from_pretrained
from octvideo.inference.timeline import Timeline, WindowScores

__all__ = ["Prediction", "Predictor", "Timeline", "ViewsChoice", "WindowFeatures", "WindowScores", "from_pretrained"]
