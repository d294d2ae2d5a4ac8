"""A video in, class names out."""

from octvideo.inference.predictor import Prediction, Predictor

__all__ = ["Prediction", "Predictor"]
