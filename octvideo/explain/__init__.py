"""What a network looks at, and what its channels hold: by high and by low frequency.

layers.py     which layer is looked at
saliency.py   one clip: Grad-CAM and smoothed input gradients, of the high path, of the low path, of both
video.py      a video: its class, its clips, and their saliency over time
picture.py    a row of frames, and below them high, low and both
painting.py   the same over all frames of a video, for octvideo/video/overlay.py
spectra.py    of each layer's channels, what half resolution cannot hold
checks.py     whether saliency says anything: the pointing game, and weights that are shuffled
"""

from octvideo.explain.checks import pointing_chance, pointing_trial, rank_correlation, shuffled_networks
from octvideo.explain.saliency import Method, Saliency, explain_clip
from octvideo.explain.spectra import LayerSpectrum, channel_spectra
from octvideo.explain.video import Explainer

__all__ = [
    "Explainer",
    "LayerSpectrum",
    "Method",
    "Saliency",
    "channel_spectra",
    "explain_clip",
    "pointing_chance",
    "pointing_trial",
    "rank_correlation",
    "shuffled_networks",
]
