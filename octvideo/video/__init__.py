"""From a video file to clips: no labels, no networks.

reader.py      file → distinct frames: one interface to the libraries that decode, each in its NAME_reader.py
frames.py      what a reader reads and gives, and how frames become small while others are decoded
packets.py     how many frames a file shows and when, and which readers would get them right
bitstream.py   what the first bits of a packet say
av1.py         which coded frames of AV1 another one needs
sampling.py    which frames: integer maths only
transforms.py  resize, crops, flip on uint8 frames
views.py       file → all views of one evaluation item, cut when they are wanted
isolated.py    work in processes that can be killed
checking.py    whether a file can be read to its end
ffmpeg_libraries.py  PyAV's FFmpeg, lent to torchcodec
"""

from octvideo.video.frames import Frames, Resize, Source, VideoBytes, VideoReadError
from octvideo.video.reader import Decoder, read_frames
from octvideo.video.sampling import Clock, ShortVideo, clip_span, random_clip, uniform_clips
from octvideo.video.transforms import Box, crop_and_resize, evaluation_crops, resize_short_side
from octvideo.video.views import VideoViews, ViewSettings, decode_views, read_views

__all__ = [
    "Box",
    "Clock",
    "Decoder",
    "Frames",
    "Resize",
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
    "read_views",
    "resize_short_side",
    "uniform_clips",
]
