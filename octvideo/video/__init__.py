"""From a video file to clips: no labels, no networks.

source.py      a file, or its content in memory
reader.py      file → distinct frames, with decord or PyAV
resized.py     file → distinct frames in the size that is wanted
packets.py     how many frames a file shows, and whether decord would get them right
sampling.py    which frames: integer maths only
transforms.py  resize, crops, flip on uint8 frames
views.py       file → all views of one evaluation item, cut when they are wanted
"""

from octvideo.video.reader import Decoder, Frames, VideoReadError, read_frames
from octvideo.video.resized import read_resized
from octvideo.video.sampling import ShortVideo, clip_span, random_clip, uniform_clips
from octvideo.video.source import VIDEO_SUFFIXES, Source, VideoBytes
from octvideo.video.transforms import Box, crop_and_resize, evaluation_crops, resize_short_side
from octvideo.video.views import VideoViews, ViewSettings, decode_views, read_views

__all__ = [
    "VIDEO_SUFFIXES",
    "Box",
    "Decoder",
    "Frames",
    "ShortVideo",
    "Source",
    "VideoBytes",
    "VideoReadError",
    "VideoViews",
    "ViewSettings",
    "clip_span",
    "crop_and_resize",
    "decode_views",
    "evaluation_crops",
    "random_clip",
    "read_frames",
    "read_resized",
    "read_views",
    "resize_short_side",
    "uniform_clips",
]
