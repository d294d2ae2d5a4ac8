"""How many videos each data set should have, and who says so."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Published:
    """Counts to hold a copy of a data set against.

    Args:
        source: of the counts.
        classes: K.
        listed: videos in the official list of each split.
        files: videos in the public archive of each split, where it has fewer.
        total: files in all, where not every file is in a list.
    """

    source: str
    classes: int
    listed: dict[str, int] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    total: int | None = None


PUBLISHED: dict[str, Published] = {
    "kinetics400": Published(
        "the CVDF archive (arrange_by_classes.py of cvdfoundation/kinetics-dataset)",
        400,
        {"train": 246_534, "val": 19_906, "test": 39_805},
        {"train": 240_258, "val": 19_881, "test": 38_685},
    ),
    "kinetics600": Published(
        "the CVDF archive (as FiftyOne's page of Kinetics-600 counts it)",
        600,
        {},
        {"train": 427_549, "val": 29_793, "test": 72_924},
    ),
    "kinetics700": Published(
        "Kinetics-700-2020 and its CVDF archive (as FiftyOne's page of Kinetics-700-2020 counts them)",
        700,
        {"train": 542_352, "val": 34_125, "test": 67_433},
        {"train": 534_073, "val": 33_914, "test": 64_260},
    ),
    "ucf101": Published(
        "UCF101 and its three splits for action recognition",
        101,
        {"train1": 9_537, "test1": 3_783, "train2": 9_586, "test2": 3_734, "train3": 9_624, "test3": 3_696},
        total=13_320,
    ),
    # The paper counts 6,849 clips, the archive has 6,766; each split takes 70 and 30 of each class.
    "hmdb51": Published(
        "HMDB51 and its three splits (70 and 30 videos of each class)",
        51,
        {f"{part}{split}": count for split in (1, 2, 3) for part, count in (("train", 3_570), ("test", 1_530))},
        total=6_766,
    ),
    "jhmdb": Published("J-HMDB", 21, total=928),
    "ssv2": Published("Something-Something v2", 174, {"train": 168_913, "val": 24_777, "test": 27_157}, total=220_847),
}
