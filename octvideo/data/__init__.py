"""Labels and batches: from lists, folders and Kinetics' csv to batches of uint8 clips.

records.py      VideoRecord, and VideoList: very many of them in shared memory
manifest.py     every layout of a data set → VideoList; errors name file and line
kinetics.py     one of them: the official lists with either folder layout, and the files that are there, by name
quarantine.py   videos to leave out
shards.py       videos in tar archives, near or far (shard_writer.py: how they are written)
preparation/    lists of the published data sets, re-encoding, downloading
checking.py     which videos can be read
augment.py      random training views: parameters sampled apart from being applied
policies.py     RandAugment and TrivialAugment among them
flips.py        classes that a flip makes of each other
dataset.py      training clips; all views of one video as one item
balance.py      an order in which classes come equally often
workers.py      how many loading processes suit the machine
loading.py      orders, batches, and a loader that resumes in the middle of an epoch
datamodule.py   all of it for Lightning, whose import is slow, so not exported from here
synthetic.py    the demo data set (pictures: scenes.py)
"""

from octvideo.batches import Failure
from octvideo.class_names import read_class_names
from octvideo.data.augment import Augmentation
from octvideo.data.dataset import EvaluationVideos, TrainingClips
from octvideo.data.manifest import read_records
from octvideo.data.records import VideoList, VideoRecord

__all__ = [
    "Augmentation",
    "EvaluationVideos",
    "Failure",
    "TrainingClips",
    "VideoList",
    "VideoRecord",
    "read_class_names",
    "read_records",
]
