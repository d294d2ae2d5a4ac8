"""Official lists of each data set, written as they are published, against files on the disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from octvideo.class_names import ClassIndex, read_class_names
from octvideo.cli import main
from octvideo.data.flips import flipped_classes, read_swaps
from octvideo.data.kinetics import VideoFiles
from octvideo.data.manifest import read_records
from octvideo.data.records import FrameRange
from octvideo.video import FrameNames


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def listed(root: Path, name: str, *, labelled: bool = True, base: Path | None = None) -> list[tuple[str, int]]:
    """A written list as octvideo's own reader understands it, with the written class names."""
    classes = ClassIndex(read_class_names(root / "classes.txt"))
    records = read_records(root / name, root=base or root, classes=classes, labelled=labelled)
    assert all(Path(record.path).is_file() for record in records)
    return [(str(Path(record.path).relative_to(base or root)), record.label) for record in records]


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines()[1:]


# ── Kinetics ────────────────────────────────────────────────────────────────────────────────────────────────

HEADER = "label,youtube_id,time_start,time_end,split,is_cc\n"
TRAIN = (
    HEADER
    + '"abseiling",-abcdefghij,7,17,train,0\nzumba,_bcdefghijk,0,10,train,0\n"air drumming",cdefghijklm,1,11,train,0\n'
)
VAL = HEADER + "zumba,defghijklmn,5,15,validate,0\n"


def kinetics(root: Path) -> Path:
    (root / "annotations").mkdir(parents=True)
    (root / "annotations/train.csv").write_text(TRAIN)
    (root / "annotations/val.csv").write_text(VAL)
    return root


@pytest.mark.parametrize("layout", ["{name}.mp4", "{label}/{name}.mp4", "{label}/{id}.mkv"])
def test_kinetics_in_either_layout(tmp_path: Path, layout: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = kinetics(tmp_path / "k 400")
    here = [("abseiling", "-abcdefghij", "000007_000017"), ("zumba", "_bcdefghijk", "000000_000010")]
    names = [layout.format(name=f"{id}_{span}", id=id, label=label) for label, id, span in here]
    touch(root, *(f"train/{name}" for name in names), "val/defghijklmn_000005_000015.mp4", "train/zumba/other.mp4")
    assert main(["prepare", "list", "kinetics400", str(root)]) == 0
    assert listed(root, "train.txt") == [(f"train/{names[0]}", 0), (f"train/{names[1]}", 399)]
    assert listed(root, "val.txt") == [("val/defghijklmn_000005_000015.mp4", 399)]
    assert lines(root / "missing.txt") == ["train\tcdefghijklm_000001_000011"]
    assert lines(root / "extra.txt") == ["train/zumba/other.mp4"]
    said = capsys.readouterr().out
    assert "246,534" in said and "240,258" in said and "1 listed videos are not there" in said
    assert (
        said.splitlines()[-1]
        == f"  octvideo fit -c i3d_oct --data.root '{root}' --data.train train.txt --data.val val.txt"
    )


@pytest.mark.parametrize("outer", ["", "videos/"])
def test_a_video_of_another_split_is_not_taken_for_a_listed_one(tmp_path: Path, outer: str) -> None:
    """Named by its id alone, it may show other seconds of the same source, which would leak into the test."""
    root = kinetics(tmp_path)
    (root / "annotations/val.csv").write_text(
        HEADER + "zumba,_bcdefghijk,40,50,validate,0\nzumba,cdefghijklm,5,15,val,0\n"
    )
    here = [
        f"{outer}{name}"
        for name in ("train/zumba/_bcdefghijk.mp4", "train/x/cdefghijklm.mp4", "val/zumba/_bcdefghijk.mp4")
    ]
    touch(root, *here)
    assert main(["prepare", "list", "kinetics400", str(root)]) == 0
    assert [path for path, _ in listed(root, "train.txt")] == here[:2]
    assert [path for path, _ in listed(root, "val.txt")] == here[2:]
    assert "val\tcdefghijklm_000005_000015" in lines(root / "missing.txt")


def test_the_replacements_of_broken_videos_are_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = kinetics(tmp_path)
    good = "replacement/replacement_for_corrupted_k400/_bcdefghijk_000000_000010.mp4"
    touch(root, "train/-abcdefghij_000007_000017.mp4", "train/_bcdefghijk_000000_000010.mp4", good)
    assert main(["prepare", "list", "kinetics400", str(root)]) == 0
    assert listed(root, "train.txt") == [("train/-abcdefghij_000007_000017.mp4", 0), (good, 399)]
    assert lines(root / "extra.txt") == []
    assert "1 broken videos of the archive are taken from its replacements" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text",
    [
        HEADER + "zumba,defghijklmn,5,15,train,0\n",
        "zumba,defghijklmn,5,15,train\n\n",
        "zumba/defghijklmn_000005_000015.mp4\n",
    ],
)
def test_the_txt_of_kinetics600(tmp_path: Path, text: str) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/train.txt").write_text(text)
    (tmp_path / "annotations/train.csv").write_text(HEADER)  # not complete
    touch(tmp_path, "train/zumba/defghijklmn_000005_000015.mp4")
    assert main(["prepare", "list", "kinetics600", str(tmp_path)]) == 0
    assert listed(tmp_path, "train.txt") == [("train/zumba/defghijklmn_000005_000015.mp4", 599)]


def test_verify_writes_no_list_and_fails_where_one_is_missing(tmp_path: Path) -> None:
    root = kinetics(tmp_path)
    touch(root, "train/-abcdefghij_000007_000017.mp4")
    assert main(["prepare", "verify", "kinetics400", str(root), "-o", str(tmp_path / "report")]) == 1
    assert sorted(file.name for file in (tmp_path / "report").iterdir()) == ["extra.txt", "missing.txt"]
    assert not (root / "train.txt").exists()
    names = [
        "train/_bcdefghijk_000000_000010.mp4",
        "train/cdefghijklm_000001_000011.mp4",
        "val/defghijklmn_000005_000015.mp4",
    ]
    touch(root, *names)
    assert main(["prepare", "verify", "kinetics400", str(root), "-o", str(tmp_path / "report")]) == 0


# ── UCF101, HMDB51, J-HMDB ──────────────────────────────────────────────────────────────────────────────────


def test_ucf101(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_bytes(b"1 HandstandPushups\r\n2 Archery\r\n")  # not alphabetical
    (lists / "trainlist01.txt").write_bytes(
        b"HandstandPushups/v_HandStandPushups_g08_c01.avi 1\r\nArchery/v_Archery_g08_c01.avi 2\r\n"
    )
    (lists / "testlist01.txt").write_bytes(b"Archery/v_Archery_g01_c01.avi\r\n")
    (lists / "trainlist02.txt").write_bytes(b"Archery/v_Archery_g01_c01.avi 2\r\n")
    touch(tmp_path, "UCF-101/HandstandPushups/v_HandStandPushups_g08_c01.avi")
    touch(tmp_path, "UCF-101/Archery/v_Archery_g08_c01.mp4", "UCF-101/Archery/v_Archery_g01_c01.avi")  # one re-encoded
    assert main(["prepare", "list", "ucf101", str(tmp_path)]) == 0
    expected = [
        ("UCF-101/HandstandPushups/v_HandStandPushups_g08_c01.avi", 0),
        ("UCF-101/Archery/v_Archery_g08_c01.mp4", 1),
    ]
    assert listed(tmp_path, "train1.txt") == expected
    assert (
        listed(tmp_path, "test1.txt")
        == listed(tmp_path, "train2.txt")
        == [("UCF-101/Archery/v_Archery_g01_c01.avi", 1)]
    )
    said = capsys.readouterr().out
    assert "9,537" in said and "3 videos on the disk, published 13,320" in said
    # AVI, which decord refuses: i3d_oct names it for Kinetics.
    words = "--data.train train1.txt --data.val null --data.test test1.txt --data.classes classes.txt"
    start = f"octvideo fit -c i3d_oct --name ucf101 --data.root {tmp_path} --data.decoder auto"
    assert said.rstrip().endswith(f"{start} {words}")


@pytest.mark.parametrize("name", ["hmdb51", "jhmdb"])
def test_hmdb_and_jhmdb(tmp_path: Path, name: str) -> None:
    splits = tmp_path / ("testTrainMulti_7030_splits" if name == "hmdb51" else "splits")
    splits.mkdir()
    (splits / "wave_test_split1.txt").write_text("a_wave (1);x.avi 1 \nb_wave.avi 2 \nc_wave.avi 0 \n")
    (splits / "catch_test_split1.txt").write_text("#1_catch.avi 2 \n\n")
    touch(tmp_path, *(f"videos/wave/{stem}_wave{rest}.avi" for stem, rest in (("a", " (1);x"), ("b", ""), ("c", ""))))
    touch(tmp_path, "videos/catch/#1_catch.avi", "videos/wave/#1_catch.avi")
    assert main(["prepare", "list", name, str(tmp_path)]) == 0
    assert listed(tmp_path, "train1.txt") == [("videos/wave/a_wave (1);x.avi", 1)]
    assert listed(tmp_path, "test1.txt") == [("videos/catch/#1_catch.avi", 0), ("videos/wave/b_wave.avi", 1)]
    assert sorted(lines(tmp_path / "extra.txt")) == ["videos/wave/#1_catch.avi", "videos/wave/c_wave.avi"]


def test_the_real_jhmdb(real_videos: Path, tmp_path: Path) -> None:
    """928 real clips, with split files made of their list: every clip is found, and none is left over."""
    root, splits = real_videos / "jhmdb", tmp_path / "splits"
    splits.mkdir()
    for name, value in (("train", 1), ("test", 2)):
        for line in (root / f"{name}.txt").read_text().splitlines():
            folder, _, file = line.rpartition(" ")[0].partition("/")
            with (splits / f"{folder}_test_split1.txt").open("a") as text:
                text.write(f"{Path(file).stem}.avi {value}\n")
    out = tmp_path / "out"
    assert main(["prepare", "list", "jhmdb", str(root), "--annotations", str(splits), "-o", str(out)]) == 0
    for name in ("train", "test"):
        known = sorted(tuple(line.rsplit(" ", 1)) for line in (root / f"{name}.txt").read_text().splitlines())
        assert [(path, str(label)) for path, label in sorted(listed(out, f"{name}1.txt", base=root))] == known
    assert lines(out / "missing.txt") == lines(out / "extra.txt") == []


# ── Something-Something ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("prefix", ["", "something-something-v2-"])
def test_something_something(tmp_path: Path, prefix: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "labels"
    folder.mkdir()
    left, right = "Pulling something from left to right", "Pulling something from right to left"
    templates = {"Holding something": "1", "Approaching something with your camera": "0", left: "2", right: "3"}
    (folder / f"{prefix}labels.json").write_text(json.dumps(templates))
    entry = {"id": "74225", "label": "holding potato", "template": "Holding [something]", "placeholders": ["potato"]}
    (folder / f"{prefix}train.json").write_text(json.dumps([entry, entry | {"id": "7"}]))
    (folder / f"{prefix}validation.json").write_text(
        json.dumps([{**entry, "id": "9", "template": "Approaching [something] with your camera"}])
    )
    (folder / f"{prefix}test.json").write_text(json.dumps([{"id": "12"}]))
    touch(tmp_path, *(f"20bn-something-something-v2/{number}.webm" for number in (74225, 9, 12)))
    assert main(["prepare", "list", "ssv2", str(tmp_path)]) == 0
    names = ["Approaching something with your camera", "Holding something", left, right]
    assert read_class_names(tmp_path / "classes.txt") == names
    swaps = read_swaps(tmp_path / "flip_labels.yaml")
    assert flipped_classes(swaps, names) == [0, 1, 3, 2]
    assert listed(tmp_path, "train.txt") == [("20bn-something-something-v2/74225.webm", 1)]
    assert listed(tmp_path, "val.txt") == [("20bn-something-something-v2/9.webm", 0)]
    assert listed(tmp_path, "test.txt", labelled=False) == [("20bn-something-something-v2/12.webm", -1)]
    assert lines(tmp_path / "missing.txt") == ["train\t7"]
    assert capsys.readouterr().out.rstrip().endswith("--data.classes classes.txt --data.flip_labels flip_labels.yaml")


# ── Diving48, Jester, Charades ──────────────────────────────────────────────────────────────────────────────


def diving48(root: Path) -> None:
    (root / "annotations").mkdir(exist_ok=True)
    vocabulary = [["Back", "15som", "05Twis", "FREE"], ["Inward", "Dive", "NoTwis", "PIKE"]]
    (root / "annotations/Diving48_vocab.json").write_text(json.dumps(vocabulary))
    frames = {"start_frame": 0, "end_frame": 48}
    train = [{"vid_name": name, "label": label, **frames} for name, label in (("-mmq0PT-u8k_00155", 1), ("x_00001", 0))]
    (root / "annotations/Diving48_V2_train.json").write_text(json.dumps(train))
    (root / "annotations/Diving48_V2_test.json").write_text(
        json.dumps([{"vid_name": "_8Vy3dlHg2w_00000", "label": 0, **frames}])
    )


def test_diving48(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    diving48(tmp_path)
    touch(tmp_path, "rgb/-mmq0PT-u8k_00155.mp4", "rgb/_8Vy3dlHg2w_00000.mp4", "rgb/of_v1_00001.mp4")
    assert main(["prepare", "list", "diving48", str(tmp_path)]) == 0
    assert read_class_names(tmp_path / "classes.txt") == ["Back 15som 05Twis FREE", "Inward Dive NoTwis PIKE"]
    assert listed(tmp_path, "train.txt") == [("rgb/-mmq0PT-u8k_00155.mp4", 1)]
    assert listed(tmp_path, "test.txt") == [("rgb/_8Vy3dlHg2w_00000.mp4", 0)]
    assert lines(tmp_path / "missing.txt") == ["train\tx_00001"]
    assert lines(tmp_path / "extra.txt") == ["rgb/of_v1_00001.mp4"]
    assert "--data.val null --data.test test.txt --data.classes classes.txt" in capsys.readouterr().out


GESTURES = (
    "Swiping Left",
    "Swiping Right",
    "Drumming Fingers",
    "Turning Hand Clockwise",
    "Turning Hand Counterclockwise",
)


def jester(root: Path) -> None:
    (root / "jester-v1-labels.csv").write_text("".join(f"{name}\n" for name in GESTURES))
    train = ("34870;Drumming Fingers", "56557;Swiping Right", "7;Swiping Left", "8;Swiping Left")
    (root / "jester-v1-train.csv").write_text("\n".join(train))
    (root / "jester-v1-validation.csv").write_text("9223;Swiping Left\n")
    (root / "jester-v1-test.csv").write_text("1004\n")


def test_jester(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jester(tmp_path)
    for video, count in (("34870", 3), ("56557", 2), ("9223", 1), ("1004", 2), ("5", 1)):
        touch(tmp_path, *(f"20bn-jester-v1/{video}/{n + 1:05d}.jpg" for n in range(count)))
    touch(tmp_path, "20bn-jester-v1/8/00001.jpg", "20bn-jester-v1/8/00003.jpg")
    assert main(["prepare", "list", "jester", str(tmp_path)]) == 0
    assert lines(tmp_path / "train.txt") == ["20bn-jester-v1/34870 3 2", "20bn-jester-v1/56557 2 1"]
    assert lines(tmp_path / "val.txt") == ["20bn-jester-v1/9223 1 0"]
    assert lines(tmp_path / "test.txt") == ["20bn-jester-v1/1004 2"]
    assert lines(tmp_path / "missing.txt") == ["train\t7", "train\t8\tits 2 images are not 00001.jpg, 00002.jpg, ..."]
    assert lines(tmp_path / "extra.txt") == ["20bn-jester-v1/5"]
    classes = ClassIndex(read_class_names(tmp_path / "classes.txt"))
    names = FrameNames("{:05d}.jpg")
    records = read_records(tmp_path / "train.txt", root=tmp_path, classes=classes, frames=names, fps=12.0)
    assert [(Path(record.path).name, record.label, record.frames) for record in records] == [
        ("34870", 2, FrameRange(0, 3, names, 12.0)),
        ("56557", 1, FrameRange(0, 2, names, 12.0)),
    ]
    unlabelled = read_records(tmp_path / "test.txt", root=tmp_path, classes=classes, frames=names, labelled=False)
    assert unlabelled[0].label == -1
    assert flipped_classes(read_swaps(tmp_path / "flip_labels.yaml"), classes.names) == [1, 0, 2, 4, 3]
    out = capsys.readouterr().out
    assert "118,562" in out and f"octvideo check {tmp_path}/train.txt" in out
    assert out.rstrip().endswith(
        "--data.flip_labels flip_labels.yaml --data.frame_names '{:05d}.jpg' --data.frame_fps 12"
    )


def charades(root: Path) -> None:
    (root / "Charades").mkdir()
    (root / "Charades/Charades_v1_classes.txt").write_text(
        "c000 Holding some clothes\nc001 Putting clothes somewhere\nc002 Taking some clothes from somewhere\n"
    )
    header = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length\n"
    row = '{},HR43,Kitchen,6,7,Yes,"A person, with ""clothes"".",food;stove,"x.",{},{}\n'
    train = [("46GP8", "c002 11.90 21.20;c000 0.00 12.60;c002 3.00 4.00"), ("N11GT", "c001 0.00 7.00"), ("XXXXX", "")]
    for split, videos in (("train", train), ("test", [("2NXFV", "c000 0.00 9.00"), ("GONE1", "c000 0.00 1.00")])):
        text = header + "".join(row.format(name, actions, 24.8) for name, actions in videos)
        (root / f"Charades/Charades_v1_{split}.csv").write_text(text)


def test_charades(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    charades(tmp_path)
    touch(tmp_path, *(f"Charades_v1_480/{name}.mp4" for name in ("46GP8", "N11GT", "XXXXX", "2NXFV")))
    assert main(["prepare", "list", "charades", str(tmp_path)]) == 0
    assert lines(tmp_path / "train.txt") == ["Charades_v1_480/46GP8.mp4 0;2", "Charades_v1_480/N11GT.mp4 1"]
    assert lines(tmp_path / "test.txt") == ["Charades_v1_480/2NXFV.mp4 0"]
    assert lines(tmp_path / "missing.txt") == ["test\tGONE1"]
    assert read_class_names(tmp_path / "classes.txt")[1] == "Putting clothes somewhere"
    assert "1 videos of Charades_v1_train.csv have no action, and are in no list" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "file", "content", "message"),
    [
        (diving48, "annotations/Diving48_V2_train.json", '[{"vid_name": "a", "label": 2}]', "label 2, expected 0 to 1"),
        (
            diving48,
            "annotations/Diving48_V2_train.json",
            '[{"name": "a"}]',
            "a list of videos with 'vid_name'",
        ),
        (diving48, "annotations/Diving48_vocab.json", "{", "can't be read as JSON"),
        (diving48, "annotations/Diving48_vocab.json", '{"a": 1}', "expected a list of classes such as"),
        (
            jester,
            "jester-v1-train.csv",
            "1;Swiping Lft",
            "train.csv:1: 'Swiping Lft' is no class of jester",
        ),
        (charades, "Charades/Charades_v1_train.csv", "id,actions\nA,c009 0 1\n", "train.csv:2: 'c009' is no class"),
        (charades, "Charades/Charades_v1_train.csv", "id,length\nA,9\n", "a csv with the columns 'id' and 'actions'"),
        (charades, "Charades/Charades_v1_classes.txt", "c000\n", "got 'c000', expected lines such as"),
    ],
)
def test_a_mistake_in_these_is_told_with_its_place(
    tmp_path: Path, make: Callable[[Path], None], file: str, content: str, message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    make(tmp_path)
    (tmp_path / file).write_text(content)
    touch(tmp_path, "videos/A.mp4")
    name = make.__name__
    assert main(["prepare", "list", name, str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


# ── own folders ─────────────────────────────────────────────────────────────────────────────────────────────


def own(root: Path) -> Path:
    """Three classes of 30, 20 and 10 videos, in groups of two by source; two sources are in two classes."""
    for label, count in (("clap", 30), ("jump", 20), ("wave", 10)):
        touch(
            root,
            *(f"{label}/deep/s{(n // 2) + (1000 if label == 'wave' else 0)}_{label}_{n}.mp4" for n in range(count)),
        )
    return root


def test_own_folders_are_split_by_class(tmp_path: Path) -> None:
    root = own(tmp_path / "set")
    main(["prepare", "list", "folder", str(root), "--test", "0.2", "--val", "0.1", "-o", str(tmp_path / "a")])
    parts = {name: listed(tmp_path / "a", f"{name}.txt", base=root) for name in ("train", "val", "test")}
    counts = {name: [sum(label == k for _, label in part) for k in range(3)] for name, part in parts.items()}
    assert counts == {"train": [21, 14, 7], "val": [3, 2, 1], "test": [6, 4, 2]}
    assert len({path for part in parts.values() for path, _ in part}) == 60
    assert lines(tmp_path / "a/missing.txt") == lines(tmp_path / "a/extra.txt") == []
    main(["prepare", "list", "folder", str(root), "--test", "0.2", "--val", "0.1", "-o", str(tmp_path / "b")])
    main(
        [
            "prepare",
            "list",
            "folder",
            str(root),
            "--test",
            "0.2",
            "--val",
            "0.1",
            "-o",
            str(tmp_path / "c"),
            "--seed",
            "1",
        ]
    )
    texts = [(tmp_path / name / "test.txt").read_text() for name in "abc"]
    assert texts[0] == texts[1] != texts[2]


def test_no_source_is_on_two_sides(tmp_path: Path) -> None:
    root = own(tmp_path / "set")
    assert main(["prepare", "list", "folder", str(root), "--group", r"/(s\d+)_", "-o", str(tmp_path / "out")]) == 0
    sources = [
        {Path(path).name.split("_")[0] for path, _ in listed(tmp_path / "out", f"{name}.txt", base=root)}
        for name in ("train", "test")
    ]
    assert sources[0] and sources[1] and not sources[0] & sources[1]
    counts = [sum(label == k for _, label in listed(tmp_path / "out", "test.txt", base=root)) for k in range(3)]
    assert counts[2] == 2 and 4 <= counts[0] <= 8 and 2 <= counts[1] <= 6  # clap and jump share their sources


def test_folders_that_are_a_split_are_no_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Else a network learns to tell training videos from test videos, and nothing says so."""
    touch(tmp_path, "train/wave/a.mp4", "train/clap/b.mp4", "Validation/wave/c.mp4", "annotations/train.csv")
    assert main(["prepare", "list", "folder", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "is split already, its folders are Validation, train" in said
    assert "--data.train train --data.val Validation --data.test null --data.classes null" in said
    assert not (tmp_path / "train.txt").exists()
    touch(tmp_path, "clap/d.mp4")  # with others beside them they are classes
    assert main(["prepare", "list", "folder", str(tmp_path)]) == 0


def test_empty_class_folders_and_lists_without_a_class_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, *(f"wave/{n}.mp4" for n in range(10)), "clap/0.mp4")
    (tmp_path / "jump").mkdir()
    assert main(["prepare", "list", "folder", str(tmp_path)]) == 0
    assert (tmp_path / "classes.txt").read_text() == "clap\nwave\n"
    said = capsys.readouterr().err
    assert caplog.messages == [f"{tmp_path}: folders without videos of their own are no classes: 'jump'"]
    assert "warning: test.txt has no video of 'clap' (a class needs more videos, or --test a larger share)" in said
    touch(tmp_path, "jump/0.mp4")
    assert main(["prepare", "list", "folder", str(tmp_path)]) == 2
    assert "holds other classes (without 'jump')" in capsys.readouterr().err


# ── files ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_of_the_users_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = kinetics(tmp_path)
    touch(root, "train/-abcdefghij_000007_000017.mp4")
    (root / "train.txt").write_text("mine.mp4 3\n")
    assert main(["prepare", "list", "kinetics400", str(root)]) == 2
    assert f"{root}/train.txt is there and not written by this tool" in capsys.readouterr().err
    assert (root / "train.txt").read_text() == "mine.mp4 3\n" and not (root / "val.txt").exists()
    (root / "train.txt").unlink()
    (root / "classes.txt").write_text("a\nb\n")
    assert main(["prepare", "list", "kinetics400", str(root)]) == 2
    assert "classes.txt is there and holds other classes" in capsys.readouterr().err
    (root / "classes.txt").unlink()
    assert [main(["prepare", "list", "kinetics400", str(root)]) for _ in range(2)] == [
        0,
        0,
    ]  # its own lists it writes again


@pytest.mark.parametrize(
    ("dataset", "files", "message"),
    [
        ("kinetics400", {}, "no lists of kinetics400: looked for train.csv"),
        ("kinetics400", {"annotations/train.csv": TRAIN}, "none of the 3 videos of"),
        ("kinetics600", {"annotations/train.txt": "a b c\n"}, "train.txt:1: got 'a b c', expected label,youtube_id"),
        ("ucf101", {}, "no lists of UCF101: looked for classInd.txt in"),
        ("ucf101", {"classInd.txt": "1 A\n3 B\n"}, "the classes are not numbered from 1 to 2"),
        (
            "ucf101",
            {"classInd.txt": "1 A\n", "trainlist01.txt": "A/x.avi 2\n"},
            "trainlist01.txt:1: number 2, but classInd.txt",
        ),
        ("hmdb51", {}, "no split files: looked for <class>_test_split1.txt"),
        (
            "hmdb51",
            {"splits/a_test_split1.txt": "x.avi 3\n"},
            "a_test_split1.txt:1: got 'x.avi 3', expected 'file.avi 0'",
        ),
        (
            "hmdb51",
            {"splits/a_test_split1.txt": "", "splits/a_test_split2.txt": "", "splits/b_test_split1.txt": ""},
            "split 2 has no file b_test_split2.txt",
        ),
        ("ssv2", {"labels.json": "{"}, "labels.json can't be read as JSON"),
        (
            "ssv2",
            {"labels.json": '{"A": "0"}', "train.json": '[{"id": "1", "template": "B"}]'},
            "video 1: 'B' is no class",
        ),
        ("folder", {}, "has no class folders"),
        ("folder", {"a/b.mp4": "", "c.mp4": ""}, "c.mp4 lies in no class folder"),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path, dataset: str, files: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert main(["prepare", "list", dataset, str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_a_link_that_leads_back_is_walked_once(tmp_path: Path) -> None:
    touch(tmp_path, "a/b/x.mp4", "elsewhere/y.mp4")
    (tmp_path / "a/b/loop").symlink_to(tmp_path / "a")
    (tmp_path / "a/link").symlink_to(tmp_path / "elsewhere")
    assert VideoFiles(tmp_path / "a").paths == ["b/x.mp4", "link/y.mp4"]


def test_classes_called_by_numbers_are_listed_by_name(tmp_path: Path) -> None:
    """Ids 0, 1, 2 would be other classes of 1, 2, 3; and 10 is not between 1 and 2."""
    for root, names in ((tmp_path / "from 1", range(1, 13)), (tmp_path / "from 0", range(12))):
        touch(root, *(f"{number}/{number}_{take}.mp4" for number in names for take in range(2)))
        assert main(["prepare", "list", "folder", str(root), "--test", "0.5"]) == 0
        classes = read_class_names(root / "classes.txt")
        assert classes == [str(number) for number in names]
        for split in ("train.txt", "test.txt"):
            found = read_records(root / split, root=root, classes=ClassIndex(classes))
            assert sorted(record.label for record in found) == list(range(12))
            assert all(Path(record.path).parent.name == classes[record.label] for record in found)
    assert lines(tmp_path / "from 1/test.txt")[0].endswith(".mp4,1")
    assert lines(tmp_path / "from 0/test.txt")[0].endswith(".mp4 0")
