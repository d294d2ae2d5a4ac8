"""Of AV1 no coded frame is decoded that a wanted one does not refer to, and the wanted ones are as ever."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from torch import Tensor

import octvideo.video.pyav_reader as pyav_reader
from octvideo.video import read_frames, uniform_clips
from octvideo.video.av1 import Av1Frame, Av1Headers, Av1References, part_of_unit
from tests.video.reference import has_encoder, plainly, wanted

Encode = Callable[..., Path]
Moving = Callable[..., Tensor]

STRUCTURES = {
    "pyramid of 16": "hierarchical-levels=4:keyint=65",
    "pyramid of 8, groups of 20": "hierarchical-levels=3:keyint=20",
    "low delay": "pred-struct=1",
    "open groups": "irefresh-type=1:keyint=32",
    "tiles": "tile-columns=1:tile-rows=1",
}


@pytest.fixture(scope="module", params=STRUCTURES)
def structured(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, encode: Encode, moving: Moving
) -> Path:
    if not has_encoder("libsvtav1"):
        pytest.skip("no encoder of AV1")
    path = tmp_path_factory.mktemp("av1") / "structured.mp4"
    frames = moving(80, 128, 192)
    noise = torch.randint(0, 30, frames.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return encode(path, frames + noise, "libsvtav1", preset=10, svtav1_params=STRUCTURES[request.param])


def test_frames_are_those_of_plain_decoding(structured: Path, decoded: list[bytes]) -> None:
    expected = plainly(structured)
    generator = torch.Generator().manual_seed(0)
    for _ in range(25):
        count = int(torch.randint(1, 5, (), generator=generator))
        numbers = torch.randperm(80, generator=generator)[:count].sort().values
        read = read_frames(structured, lambda num_frames, numbers=numbers: numbers, decoder="pyav")  # type: ignore[misc]
        assert torch.equal(read.frames, expected[numbers]), numbers
    headers = headers_of(structured)
    assert len(decoded) > 25 and all(headers.frames(memoryview(content)) for content in decoded)


def test_a_frame_late_in_a_pyramid_needs_few(
    tmp_path: Path, encode: Encode, moving: Moving, decoded: list[bytes]
) -> None:
    if not has_encoder("libsvtav1"):
        pytest.skip("no encoder of AV1")
    path = encode(tmp_path / "long.mp4", moving(130, 64, 96), "libsvtav1", preset=12, g=130)
    expected = plainly(path)
    read = read_frames(path, wanted(127), decoder="pyav")
    assert torch.equal(read.frames, expected[[127]])
    headers = headers_of(path)
    num_coded = sum(len(headers.frames(memoryview(content))) for content in decoded)
    assert 2 <= num_coded <= 65  # of 130


def test_packets_can_be_taken_apart(structured: Path) -> None:
    headers = headers_of(structured)
    with av.open(str(structured)) as container:
        contents = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    sizes = [len(headers.frames(memoryview(content))) for content in contents]
    assert min(sizes) >= 1 and len(contents) == 80
    for content, size in zip(contents, sizes, strict=True):
        whole = memoryview(content)
        assert part_of_unit(whole, set(range(-size, 0))) == content
        parts = [part_of_unit(whole, {number}) for number in range(-size, 0)]
        common = part_of_unit(whole, set())
        assert sum(len(part) - len(common) for part in parts) + len(common) == len(content)
        assert [headers.frames(memoryview(part)) for part in parts] == [[one] for one in headers.frames(whole)]


def test_what_headers_do_not_tell_is_decoded_in_any_case(
    structured: Path, decoded: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = plainly(structured)
    read_frames(structured, wanted(70), decoder="pyav")
    num_before = len(decoded)
    monkeypatch.setattr(Av1References, "needed", lambda self, places, start: None)
    decoded.clear()
    assert torch.equal(read_frames(structured, wanted(70), decoder="pyav").frames, expected[[70]])
    assert len(decoded) >= num_before


def test_references_are_followed_through_the_slots() -> None:
    key = Av1Frame(is_shown=True, is_key=True, refreshes=0xFF, refers=0)
    hidden = Av1Frame(is_shown=False, is_key=False, refreshes=0b10, refers=0b1)
    leaf = Av1Frame(is_shown=True, is_key=False, refreshes=0, refers=0b11)
    other = Av1Frame(is_shown=True, is_key=False, refreshes=0b100, refers=0b1)
    repeat = Av1Frame(is_shown=True, is_key=False, refreshes=0xFF, refers=0b10, is_repeat=True)
    references = Av1References()
    for frames in ([key], [hidden, leaf], [other], [repeat], [leaf], [key], [leaf]):
        references.add(frames)
    assert references.needed({1}, start=0) == {0: {-1}, 1: {-2, -1}}
    assert references.needed({2}, start=0) == {0: {-1}, 2: {-1}}
    assert references.needed({3}, start=0) == {0: {-1}, 1: {-2}, 3: {-1}}
    assert references.needed({4}, start=0) == {0: {-1}, 1: {-2}, 4: {-1}}
    assert references.needed({2, 6}, start=0) == {0: {-1}, 2: {-1}, 5: {-1}, 6: {-1}}
    assert references.needed({6}, start=5) == {5: {-1}, 6: {-1}}
    assert references.needed({4}, start=1) is None  # no keyframe there


def test_behind_headers_that_are_not_understood_nothing_is_known_up_to_a_keyframe() -> None:
    key = Av1Frame(is_shown=True, is_key=True, refreshes=0xFF, refers=0)
    leaf = Av1Frame(is_shown=True, is_key=False, refreshes=0, refers=0b1)
    hidden = Av1Frame(is_shown=False, is_key=False, refreshes=1, refers=1)
    references = Av1References()
    for frames in ([leaf], [key], [leaf], [], [leaf], [key], [hidden], [leaf], [key], [leaf]):
        references.add(frames)
    known = [references.needed({place}, start=0) is not None for place in range(10)]
    assert known == [False, True, True, False, False, True, False, False, True, True]


def test_headers_of_packets_that_are_not_kept_say_the_same(structured: Path) -> None:
    kept, read_at_once = Av1References(), Av1References()
    with av.open(str(structured)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    for place, packet in enumerate(packets):
        if place == 30:
            read_at_once.keep_no_packets()
        kept.add(memoryview(packet))
        read_at_once.add(memoryview(packet))
    starts = [place for place, packet in enumerate(packets) if packet.is_keyframe]
    for place in range(80):
        start = max(start for start in starts if start <= place)
        needed = kept.needed({place}, start)
        assert needed and needed == read_at_once.needed({place}, start)


def test_of_a_long_video_of_4k_few_frames_are_decoded(real_videos: Path) -> None:
    path = real_videos / "odd/huge__long_4k_av1.mp4"
    if not path.exists():
        pytest.skip(f"no {path}")
    with pyav_reader.PyavVideo(str(path), 1) as video:
        pts, references = video.packets.pts, video.packets.references
        assert pts is not None and references is not None
        place_of = {time: place for place, time in enumerate(pts)}
        clips = uniform_clips(len(pts), num_clips=10, clip_frames=8, frame_stride=8)
        wanted_places = {place_of[video.packets.times[number]] for number in clips.flatten().tolist()}
        needed = references.needed(wanted_places, start=0)
    assert needed is not None and len(needed) < 450 and sum(map(len, needed.values())) < 800  # 80 are wanted


def headers_of(path: Path) -> Any:
    with av.open(str(path)) as container:
        return Av1Headers(container.streams.video[0].codec_context.extradata)
