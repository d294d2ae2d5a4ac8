"""From a video file to clips: no labels, no networks.

reader.py      file → distinct frames: one interface to the libraries that decode, each in its NAME_reader.py
pyav_file.py   a file open in PyAV: decoding and colours, for all that use it
image_frames.py  folders of images as videos; image_source.py: their frames from front to back
frames.py      what a reader reads and gives, and how frames become small while others are decoded
packets.py     how many frames a file shows and when, and which readers would get them right
bitstream.py   what the first bits of a packet say
av1.py         which coded frames of AV1 another one needs
sampling.py    which frames: integer maths only; segments.py: one of each part of a video
cuts.py        where one shot ends and the next begins
streaming.py   frames from front to back, of a file or from anywhere
overlay.py     a file → the same with something painted over its frames; its sound in sound.py, its encoder in h264.py
browser.py     a file → one that every browser plays; thumbnail.py: → some small seconds of it
addresses.py   streams, files on the net and cameras, opened
live.py        their newest frames, in runs without a gap
windows.py     frames → windows of some seconds, and their views
transforms.py  resize, crops, flip on uint8 frames
views.py       file → all views of one evaluation item, cut when they are wanted
isolated.py    work in processes that can be killed
untrusted.py   which files of strangers may be given to a decoder
checking.py    whether a file can be read to its end
ffmpeg_libraries.py  PyAV's FFmpeg, lent to torchcodec
"""

from octvideo.video.frames import Frames, Resize, Source, VideoArray, VideoBytes, VideoReadError
from octvideo.video.image_frames import FrameArchive, FrameFolder, FrameNames, ImageFrames
from octvideo.video.live import LiveFrames
from octvideo.video.reader import Decoder, read_frames
from octvideo.video.sampling import Clock, ShortVideo, clip_span, random_clip, uniform_clips
from octvideo.video.segments import Sampling, random_segments, segment_clips
from octvideo.video.streaming import FileFrames, FrameSource, GivenFrames, TimedFrame
from octvideo.video.transforms import Box, crop_and_resize, evaluation_crops, resize_short_side
from octvideo.video.views import VideoViews, ViewSettings, decode_views, read_views
from octvideo.video.windows import Window, frame_windows, window_views

__all__ = [
    "Box",
    "Clock",
    "Decoder",
    "FileFrames",
    "FrameArchive",
    "FrameFolder",
    "FrameNames",
    "FrameSource",
    "Frames",
    "GivenFrames",
    "ImageFrames",
    "LiveFrames",
    "Resize",
    "Sampling",
    "ShortVideo",
    "Source",
    "TimedFrame",
    "VideoArray",
    "VideoBytes",
    "VideoReadError",
    "VideoViews",
    "ViewSettings",
    "Window",
    "clip_span",
    "crop_and_resize",
    "decode_views",
    "evaluation_crops",
    "frame_windows",
    "random_clip",
    "random_segments",
    "read_frames",
    "read_views",
    "resize_short_side",
    "segment_clips",
    "uniform_clips",
    "window_views",
]
