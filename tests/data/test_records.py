"""VideoList: what goes in comes out, and the memory of loading processes does not grow with it."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from octvideo.data.records import VideoList, VideoRecord

RECORDS = [
    VideoRecord("a b.mp4", 3),
    VideoRecord("/größe/\udce9.mp4", -1),
    VideoRecord("", 0),
    VideoRecord("x" * 999, 5),
]


def test_it_is_a_sequence_of_its_records() -> None:
    videos = VideoList(iter(RECORDS))
    assert len(videos) == 4 and list(videos) == RECORDS and [videos[i] for i in range(-4, 4)] == RECORDS * 2
    assert list(videos[1:]) == RECORDS[1:] and list(videos[::-2]) == RECORDS[::-2]
    assert list(reversed(videos)) == RECORDS[::-1] and RECORDS[1] in videos and VideoRecord("y", 0) not in videos
    assert videos[torch.tensor(1)] == RECORDS[1]  # type: ignore[call-overload]
    assert videos.labels.tolist() == [3, -1, 0, 5]
    assert list(pickle.loads(pickle.dumps(videos))) == RECORDS
    assert repr(videos) == "VideoList(4 videos)"


@pytest.mark.parametrize("index", [4, -5])
def test_it_ends_where_it_ends(index: int) -> None:
    with pytest.raises(IndexError, match=f"video {index} of 4"):
        VideoList(RECORDS)[index]


def test_an_iteration_takes_more_than_it_holds_at_once() -> None:
    videos = list(many(3000))
    assert list(VideoList(videos)) == videos and VideoList(videos)[2999] == videos[2999]


def test_an_empty_list() -> None:
    videos = VideoList()
    assert len(videos) == 0 and list(videos) == [] and not videos and list(videos[:3]) == []


class Watched(Dataset[int]):
    """Looks at every record, as epochs do, and gives the memory of its own process that no other one shares."""

    def __init__(self, records: Sequence[VideoRecord]) -> None:
        self.records = records

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        total = sum(record.label + len(record.path) for record in self.records)
        assert total > 0
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def many(count: int) -> Iterator[VideoRecord]:
    return (VideoRecord(f"/data/kinetics400/train/{n:011d}_000010_000020.mp4", n % 400) for n in range(count))


def worker_kib(records: Sequence[VideoRecord], start_method: str) -> int:
    loader = DataLoader(Watched(records), batch_size=None, num_workers=2, multiprocessing_context=start_method)
    return max(int(kib) for kib in loader)


@pytest.mark.parametrize(
    ("start_method", "count"),
    [
        ("fork", 30_000),
        pytest.param("fork", 240_000, marks=pytest.mark.slow),
        pytest.param("spawn", 240_000, marks=pytest.mark.slow),
    ],
)
def test_the_memory_of_a_worker_does_not_grow_with_the_number_of_videos(start_method: str, count: int) -> None:
    if not Path("/proc/self/smaps_rollup").exists():
        pytest.skip("the memory of a process that no other shares is known on Linux only")
    few, lots = (worker_kib(VideoList(many(n)), start_method) for n in (1_000, count))
    as_list = worker_kib(list(many(count)), start_method)
    print(f"{start_method}: {few} KiB with 1,000 videos, {lots} with {count:,}, {as_list} as a list")
    assert lots - few < 1024
    assert as_list - few > 100 * count / 1024  # what this is for, and that it would be noticed


def test_several_labels_of_a_video_come_back_and_are_counted() -> None:
    given = [
        VideoRecord("a", 2, others=(0, 1)),
        VideoRecord("b", 1),
        VideoRecord("c", -1),
        VideoRecord("d", 0, others=(2,)),
    ]
    videos = VideoList(given)
    assert list(videos) == given and videos[3] == given[3] and list(videos[1:4]) == given[1:4]
    assert videos.has_several and not videos[1:3].has_several
    assert videos.class_counts(4).tolist() == [2, 2, 2, 0]
    assert [members.tolist() for members in videos.members(4)] == [[0, 3], [0, 1], [0, 3], []]
