"""Which archives a data set is published in, and where each is unpacked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import quote, unquote, urlsplit

from octvideo.errors import UserError

KINETICS = "https://s3.amazonaws.com/kinetics"
ALL = ("train", "val", "test", "annotations", "replacement")


@dataclass(frozen=True)
class Archive:
    """A file to download.

    Args:
        url: of it.
        folder: of the data set, where its content belongs, "" for the data set's own.
        unpack: False for a file that is used as it is.
    """

    url: str
    folder: str
    unpack: bool = True

    @property
    def name(self) -> str:
        return unquote(PurePosixPath(urlsplit(self.url).path).name)


@dataclass(frozen=True)
class Publication:
    """What there is of a data set.

    Args:
        files: by what they hold.
        lists: text files of addresses, an archive a line, by what those hold.
        by_hand: what this tool can't do, in words.
    """

    files: dict[str, list[Archive]]
    lists: dict[str, str]
    by_hand: str = ""


def _kinetics(number: str, short: str, annotations: dict[str, str], *, replacement: bool = False) -> Publication:
    lists = {split: f"{KINETICS}/{number}/{split}/{short}_{split}_path.txt" for split in ("train", "val", "test")}
    tables = [Archive(f"{KINETICS}/{number}/annotations/{file}", "annotations", False) for file in annotations.values()]
    files = {"annotations": tables}
    if replacement:
        files["replacement"] = [Archive(f"{KINETICS}/{number}/replacement_for_corrupted_k400.tgz", "replacement")]
    return Publication(files, lists)


_SVCL = "http://www.svcl.ucsd.edu/projects/resound"
_CSV = {split: f"{split}.csv" for split in ("train", "val", "test")}
PUBLICATIONS: dict[str, Publication] = {
    "kinetics400": _kinetics("400", "k400", _CSV, replacement=True),
    # Its train.csv and val.csv are not complete.
    "kinetics600": _kinetics("600", "k600", {"train": "train.txt", "val": "val.txt", "test": "test.csv"}),
    "kinetics700": _kinetics("700_2020", "k700_2020", _CSV),
    "ucf101": Publication(
        {
            "train": [Archive("https://www.crcv.ucf.edu/datasets/human-actions/ucf101/UCF101.rar", "", False)],
            "annotations": [
                Archive(
                    "https://www.crcv.ucf.edu/wp-content/uploads/2019/03/UCF101TrainTestSplits-RecognitionTask.zip", ""
                )
            ],
        },
        {},
        "unpack UCF101.rar there: unrar x UCF101.rar",
    ),
    "hmdb51": Publication(
        {
            name: [Archive(f"http://serre-lab.clps.brown.edu/wp-content/uploads/2013/10/{file}", "", False)]
            for name, file in (("train", "hmdb51_org.rar"), ("annotations", "test_train_splits.rar"))
        },
        {},
        "unpack both there: unrar x hmdb51_org.rar, each class's .rar that it holds, and unrar x test_train_splits.rar",
    ),
    "diving48": Publication(
        {
            "train": [Archive(f"{_SVCL}/Diving48_rgb.tar.gz", "")],
            "annotations": [
                Archive(f"{_SVCL}/Diving48_{name}.json", "annotations", False)
                for name in ("vocab", "V2_train", "V2_test")
            ],
        },
        {},
    ),
    "charades": Publication(
        {
            name: [Archive(f"https://ai2-public-datasets.s3-us-west-2.amazonaws.com/charades/{file}", "")]
            for name, file in (("train", "Charades_v1_480.zip"), ("annotations", "Charades.zip"))
        },
        {},
    ),
    "jhmdb": Publication(
        {
            name: [Archive(f"http://files.is.tue.mpg.de/jhmdb/{file}", "")]
            for name, file in (("train", "JHMDB_video.zip"), ("annotations", "splits.zip"))
        },
        {},
    ),
}


def publication_of(dataset: str) -> Publication:
    """What there is of a data set.

    Raises:
        UserError: it can't be downloaded without an account, or is not known.
    """
    if dataset == "ssv2":
        raise UserError(
            "Something-Something v2 needs an account: get it from "
            "https://www.qualcomm.com/developer/software/something-something-v-2-dataset, unpack it, and use list"
        )
    if dataset == "jester":
        raise UserError(
            "Jester needs an account: get it from https://www.qualcomm.com/developer/software/jester-dataset, unpack "
            "it, and use list"
        )
    if dataset not in PUBLICATIONS:
        raise UserError(f"no archives of {dataset!r} are known: expected one of {', '.join(PUBLICATIONS)}")
    return PUBLICATIONS[dataset]


def listed_archives(text: str, folder: str) -> Iterable[Archive]:
    """The archives that a list of addresses names.

    Raises:
        UserError: a line is no address.
    """
    for line in text.splitlines():
        url = line.strip()
        if not url:
            continue
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise UserError(f"the list of archives holds {url[:80]!r}, expected an address")
        # Names hold spaces and brackets: "hugging (not baby).tar.gz".
        yield Archive(parts._replace(path=quote(unquote(parts.path))).geturl(), folder)
