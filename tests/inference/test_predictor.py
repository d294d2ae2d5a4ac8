"""Predictor and `octvideo infer` on a video made here."""

from __future__ import annotations

import itertools
import json
import logging
import math
import shutil
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch

from octvideo.cli import end_with, main
from octvideo.cli.infer_output import RESULTS, ResultFile
from octvideo.cli.model_arguments import engine_of_results
from octvideo.errors import UserError
from octvideo.inference import Predictor, choice, predictor, torch_engines
from octvideo.inference.checkpoint import network_of_checkpoint
from octvideo.inference.predictor import Prediction
from octvideo.models import i3d_small
from octvideo.octave.kernel.formats import FORMATS
from octvideo.octave.kernel.fused_conv import has_format
from octvideo.training.checkpoint_block import make_block
from octvideo.video import VideoReadError, ViewSettings, read_views

VIEWS = ViewSettings(clip_frames=4, frame_stride=2, num_clips=2, num_crops=3, short_side_px=32, crop_px=32)
NAMES = ["left", "right", "up"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    network = i3d_small(num_classes=3, alpha=0.25)
    path = tmp_path_factory.mktemp("runs") / "demo" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    block = make_block(network, NAMES, views=VIEWS, mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2))
    weights = {f"network.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": weights, "octvideo": block}, path)
    return path


def test_scores_are_the_mean_softmax_over_the_views(checkpoint: Path, tiny_video: Path) -> None:
    predictor = Predictor.from_checkpoint(checkpoint, device="cpu")
    network, _ = network_of_checkpoint(checkpoint)
    clips = (read_views(tiny_video, VIEWS).float() / 255 - 0.4) / 0.2
    with torch.no_grad():
        expected = torch.stack([network(clip[None])[0].softmax(0) for clip in clips]).mean(0)
    torch.testing.assert_close(predictor.scores(tiny_video), expected, atol=1e-5, rtol=1e-4)
    prediction = predictor.predict(tiny_video, topk=5)
    assert [name for name, _ in prediction.top] == [NAMES[k] for k in expected.argsort(descending=True)]
    assert sum(score for _, score in prediction.top) == pytest.approx(1, abs=1e-5)


def test_json_of_several_files_and_folders_with_one_broken(
    checkpoint: Path, tiny_video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    code = main(["infer", str(tmp_path), str(tiny_video), "--ckpt", str(checkpoint), "--json", "--topk", "2"])
    out, err = capsys.readouterr()
    content = json.loads(out)
    assert code == 1
    assert content["weights"] == str(checkpoint)
    assert [(v["path"], len(v["top"])) for v in content["videos"]] == [(str(tiny_video), 2)]
    assert [e["path"] for e in content["errors"]] == [str(tmp_path / "broken.mp4")]
    assert f"error: cannot read video '{tmp_path / 'broken.mp4'}'" in err
    assert f"weights: {checkpoint}" in err


@pytest.mark.parametrize("options", [[], pytest.param(["--json"], marks=pytest.mark.slow)])
def test_a_name_that_is_no_text_is_printed_as_it_is(
    options: list[str], checkpoint: Path, tiny_video: Path, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    path = tmp_path / "caf\udce9.mp4"  # Latin-1 on the disk
    try:
        path.write_bytes(tiny_video.read_bytes())
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    logging.getLogger("octvideo.video").setLevel(logging.ERROR)  # pytest-xdist can't send a warning with this name
    try:
        assert _program([str(path), "--ckpt", str(checkpoint), *options]) == 0
    finally:
        logging.getLogger("octvideo.video").setLevel(logging.NOTSET)
    out = capsysbinary.readouterr().out
    if options:
        assert json.loads(out.decode("ascii"))["videos"][0]["path"] == str(path)
    else:
        assert b"caf\xe9.mp4" in out


def _program(argv: list[str]) -> object:
    """The exit code of the program, which sets up how text is printed."""
    with pytest.raises(SystemExit) as end:
        end_with(partial(main, ["infer", *argv]))
    return end.value.code


@pytest.mark.parametrize("given", ["last", "demo", "RUNS/demo"])
def test_text_and_the_newest_checkpoint(
    given: str,
    checkpoint: Path,
    tiny_video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()  # named like the run, and none
    runs = checkpoint.parents[2]
    assert main(["infer", str(tiny_video), "--ckpt", given.replace("RUNS", str(runs)), "--runs_dir", str(runs)]) == 0
    captured = capsys.readouterr()
    assert f"weights: {checkpoint}" in captured.err
    out = captured.out.splitlines()
    assert out[0] == str(tiny_video)
    assert sorted(line.split("%  ")[1] for line in out[1:]) == sorted(NAMES)


@pytest.fixture
def folder(tiny_video: Path, tmp_path: Path) -> Path:
    """Two videos and, between them in order, a broken one."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("a", "c"):
        shutil.copy(tiny_video, folder / f"{name}.mp4")
    (folder / "b.mp4").write_bytes(b"not a video")
    return folder


def stop_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C when so many results are there."""
    whole = Predictor.predict_many

    def some(self: Predictor, paths: list[str], *, topk: int) -> Generator[Prediction | VideoReadError, None, None]:
        yield from itertools.islice(whole(self, paths, topk=topk), count)
        raise KeyboardInterrupt

    monkeypatch.setattr(Predictor, "predict_many", some)


def test_a_file_of_results_is_gone_on_with(
    checkpoint: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.jsonl"
    words = [str(folder), "--ckpt", str(checkpoint), "--output", str(file)]
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        assert main(["infer", *words]) == 130
    assert "stopped: results that go into a file (-o) are kept" in capsys.readouterr().err
    first = file.read_bytes() + b'{"my": "note"}\n'
    file.write_bytes(first + b'{"path": "c.mp4", "to')  # as a kill leaves it
    assert main(["infer", *words]) == 1  # as the first run would have said, too
    out, err = capsys.readouterr()
    told = f"2 of 3 videos are in {file} already, 1 of them can't be read: --retry tries those again"
    assert out == "" and told in err and f"3 results are in {file}" in err
    assert file.read_bytes().startswith(first)
    made_by, a, b, _, c = map(json.loads, file.read_text("ascii").splitlines())
    assert made_by["weights"] == str(checkpoint)
    assert [Path(record["path"]).name for record in (a, b, c)] == ["a.mp4", "b.mp4", "c.mp4"]
    assert b["reason"] and [t["name"] for t in a["top"]] == [t["name"] for t in c["top"]]
    assert sum(t["score"] for t in c["top"]) == pytest.approx(1, abs=1e-5)
    assert main(["infer", words[0], *words]) == 1 and len(file.read_text().splitlines()) == 5
    assert f"3 results are in {file}, 1 of them of videos that can't be read" in capsys.readouterr().err
    (folder / "b.mp4").write_bytes((folder / "a.mp4").read_bytes())
    assert main(["infer", *words, "--retry"]) == 0 and len(file.read_text().splitlines()) == 6
    assert f"3 results are in {file}\n" in capsys.readouterr().err
    assert main(["infer", *words, "--topk", "2"]) == 2  # nor are others mixed with these
    assert "topk: 5, now 2" in capsys.readouterr().err
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"] = {key: value + 1 for key, value in content["state_dict"].items()}
    moved = shutil.copytree(checkpoint.parents[1], tmp_path / "runs" / "demo")
    monkeypatch.chdir(tmp_path)
    words[2], words[4] = "demo", "more.jsonl"
    assert main(["infer", *words]) == 0
    assert main(["infer", *words[:2], str(checkpoint), *words[3:]]) == 0  # the same weights by another name
    torch.save(content, moved / "checkpoints" / "last.ckpt")
    assert main(["infer", *words]) == 2
    assert "more.jsonl is of another model, or of other settings (sha256: '" in capsys.readouterr().err


def test_names_that_are_not_there(
    checkpoint: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = Path("names.txt")
    names.write_text("".join(f"videos/{n}.mp4\n" for n in range(9)))
    words = ["infer", "@names.txt", "--ckpt", str(checkpoint), "-o", "out.jsonl"]
    assert main(words) == 2
    said = "names.txt: none of its 9 names is there, such as videos/0.mp4; they count from the folder where the command"
    assert said in capsys.readouterr().err and not Path("out.jsonl").exists()
    shutil.copy(folder / "a.mp4", folder / "8.mp4")
    assert main(words) == 1
    err = capsys.readouterr().err
    assert err.count("error: ") == 6 and "error: 3 more can't be read, or not to their end; out.jsonl says why" in err
    shutil.copy(folder / "a.mp4", folder / "0.mp4")  # as when its disk is mounted: it is tried without being asked
    assert main(words) == 1
    assert "2 of 9 videos" not in capsys.readouterr().err  # of the first run only one was done
    assert main(["join", "out.jsonl", "-o", "all.jsonl", "--list", "@names.txt"]) == 0
    results = [json.loads(line) for line in Path("all.jsonl").read_text().splitlines()[1:]]
    assert [result["path"] for result in results] == names.read_text().splitlines()  # each once
    assert [result["path"] for result in results if "top" in result] == ["videos/0.mp4", "videos/8.mp4"]


def engine_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("engine: ")]
    return line


def test_int8_is_calibrated_on_the_videos_given(
    checkpoint: Path, tiny_video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not has_format(FORMATS["int8"]):
        pytest.skip("this processor has no products in int8")
    words = ["infer", str(tiny_video), "--ckpt", str(checkpoint), "--device", "cpu", "--precision", "int8"]
    assert main(words) == 2
    assert "int8 needs typical videos to choose its scales from: --calibrate" in capsys.readouterr().err
    assert main([*words[:-1], "f32", "--calibrate", str(tiny_video)]) == 2
    assert "--calibrate is for --precision int8" in capsys.readouterr().err
    assert main([*words, "--engine", "eager", "--calibrate", str(tiny_video)]) == 0
    assert "engine: eager, int8 (calibrated on " in engine_line(capsys)


def test_the_engine_is_chosen_and_told(
    checkpoint: Path,
    tiny_video: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(choice, "bf16_pays", lambda: True)
    monkeypatch.setattr(choice, "product_rates", lambda: (1.0, 2.0, 4.0))
    monkeypatch.setattr(torch_engines, "bf16_pays", lambda: True)
    words = ["infer", str(tiny_video), "--ckpt", str(checkpoint), "--device", "cpu"]
    assert main(words) == 0
    told = "engine: eager, bf16 (by rule: this CPU multiplies faster in bf16; measured where more is to be done)"
    assert engine_line(capsys) == told
    assert main([*words, "--engine", "eager", "--precision", "f32"]) == 0
    assert engine_line(capsys) == "engine: eager, f32"


def test_a_run_is_resumed_by_the_engine_that_it_began_with(
    checkpoint: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.jsonl"
    words = ["infer", str(folder), "--ckpt", str(checkpoint), "--output", str(file), "--device", "cpu"]
    monkeypatch.setattr(torch_engines, "bf16_pays", lambda: True)
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        assert main([*words, "--precision", "bf16", "--engine", "eager"]) == 130
    # Here, f32 would be chosen.
    monkeypatch.setattr(choice, "product_rates", lambda: (1.0, 0.0, 0.0))
    for given in ([], ["--engine", "eager"], ["--precision", "bf16", "--engine", "auto"]):
        capsys.readouterr()
        assert main([*words, *given]) == 1
        assert engine_line(capsys) == f"engine: eager, bf16 (as the results in {file} so far)"
    for given in (["--precision", "f32"], ["--precision", "f32", "--engine", "eager"]):
        assert main([*words, *given]) == 2
        assert "(precision: 'bf16', now 'f32')" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "given", "expected"),
    [
        ({"engine": "compile", "precision": "bf16"}, ("auto", "auto"), ("compile", "bf16")),
        ({"engine": "compile", "precision": "bf16"}, ("compile", "auto"), ("compile", "bf16")),
        ({"engine": "compile", "precision": "bf16"}, ("eager", "auto"), None),
        ({"engine": "compile", "precision": "bf16"}, ("auto", "f32"), None),
        ({"engine": "eager", "precision": "f32"}, ("eager", "f32"), None),  # nothing is left open
        ({"engine": "openvino", "precision": "int8"}, ("auto", "auto"), None),  # of an exported model
        ({"engine": "tvm", "precision": "f32"}, ("auto", "auto"), None),
        ({"engine": ["eager"], "precision": 3}, ("auto", "auto"), None),
        ({"results": "another tool"}, ("auto", "auto"), None),
        (None, ("auto", "auto"), None),
    ],
)
def test_what_a_file_says_of_its_engine(
    line: dict | None, given: tuple[str, str], expected: tuple[str, str] | None, tmp_path: Path
) -> None:
    file = tmp_path / "results.jsonl"
    if line is not None:
        file.write_text(json.dumps({"results": "octvideo infer 1", **line}) + "\n")
    assert engine_of_results(file, *given, RESULTS) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"notes of mine", "FILE is no file of results of this tool: name another file"),
        pytest.param(
            b'{"my": "notes"}\n',
            "FILE is no file of results of this tool: name another file",
            marks=pytest.mark.slow,
        ),
        (
            b'{"results": "octvideo infer 1", "weights": "other.ckpt", "engine": "eager", "precision": "f32"}\n',
            "FILE is of another model, or of other settings (weights: 'other.ckpt', now '",
        ),
    ],
)
def test_a_file_of_something_else_is_left_alone(
    content: bytes, message: str, checkpoint: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.jsonl"
    file.write_bytes(content)
    assert main(["infer", str(folder), "--ckpt", str(checkpoint), "--output", str(file)]) == 2
    assert message.replace("FILE", str(file)) in capsys.readouterr().err
    assert file.read_bytes() == content


def test_one_process_at_a_time_writes_a_file(
    checkpoint: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.jsonl"
    other = ResultFile(file, {"weights": "w", "engine": "eager", "precision": "f32"})
    assert main(["infer", str(folder), "--ckpt", str(checkpoint), "--output", str(file)]) == 2
    other.end()
    assert f"another process writes {file}: wait for it, or name another file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "shown"), [("--json", '"path": "{}"'), pytest.param("--topk=2", "{}\n", marks=pytest.mark.slow)]
)
def test_what_was_done_before_ctrl_c_is_shown(
    option: str,
    shown: str,
    checkpoint: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stop_after(1, monkeypatch)
    assert main(["infer", str(folder), "--ckpt", str(checkpoint), option]) == 130
    out = capsys.readouterr().out
    assert shown.format(folder / "a.mp4") in out and "c.mp4" not in out


def test_names_from_a_file(
    checkpoint: Path, folder: Path, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    odd = folder / "-caf\udce9.mp4"  # Latin-1 on the disk
    try:
        shutil.copy(folder / "a.mp4", odd)
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    names = tmp_path / "names.txt"
    names.write_bytes(b"\n".join([b"lost.mp4", bytes(folder / "c.mp4"), b"", bytes(odd), b""]))
    assert _program([f"@{names}", "--ckpt", str(checkpoint)]) == 1
    out, err = capsysbinary.readouterr()
    assert b"error: cannot read video 'lost.mp4': " in err
    assert out.startswith(bytes(folder / "c.mp4") + b"\n") and b"-caf\xe9.mp4\n" in out and out.count(b".mp4") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nope.mp4"], "error: no file or folder nope.mp4"),
        (["notes.TXT"], "error: notes.TXT is no video: give @notes.TXT for the names in it"),
        (["@no.txt"], "error: can't read no.txt: No such file or directory"),
        (["VIDEO", "--ckpt", "CKPT", "--output", "/dev/null"], "error: /dev/null is no file: name another file"),
        (["VIDEO", "--ckpt", "nope.ckpt"], "error: no checkpoint at nope.ckpt"),
        (
            ["VIDEO", "--ckpt", "last"],
            "looked for **/checkpoints/*.ckpt): train one first, or name a checkpoint",
        ),
        (["VIDEO", "--ckpt", "VIDEO"], "it is not a file of torch.save"),
        (["VIDEO", "--ckpt", "."], "looked for checkpoints/*.ckpt): train one first, or name a checkpoint"),
        (["VIDEO", "--ckpt", "CKPT", "--device", "tpu9"], "error: device 'tpu9' can't be used here"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str],
    message: str,
    checkpoint: Path,
    tiny_video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"VIDEO": str(tiny_video), "CKPT": str(checkpoint)}
    assert main(["infer", *(given.get(word, word) for word in words)]) == 2
    assert message in capsys.readouterr().err


def test_offline_without_weights_says_what_to_do(
    tiny_video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("octvideo.download.urlopen", offline)
    assert main(["infer", str(tiny_video)]) == 2
    err = capsys.readouterr().err
    for part in ("I3D_8x8_R50.pyth", "no network", "Give --ckpt PATH", "--ckpt last", "by hand"):
        assert part in err


@pytest.mark.slow
def test_pytorchvideos_weights_go_through_kinetics_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from octvideo.models import i3d_r50
    from octvideo.models.weight_sources import cache_path

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = cache_path("https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/I3D_8x8_R50.pyth")
    cached.parent.mkdir(parents=True)
    torch.save({"model_state": i3d_r50().state_dict()}, cached)
    predictor = Predictor.from_pytorchvideo(device="cpu")
    assert len(predictor.class_names) == 400 and predictor.class_names[0] == "abseiling"
    assert predictor.views.num_views == 30 and "pytorchvideo" in predictor.source


def test_a_builder_that_is_not_ours_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content["octvideo"]["network"] = {"class_path": "os.system", "init_args": {"command": "true"}}
    torch.save(content, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match=r"names the builder os\.system, expected one of octvideo\.models"):
        Predictor.from_checkpoint(tmp_path / "evil.ckpt")


def test_an_unreadable_video_raises_its_name(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(VideoReadError, match=r"cannot read video '.*a\.mp4'"):
        Predictor.from_checkpoint(checkpoint, device="cpu").predict(tmp_path / "a.mp4")


# ── numbers that are none ───────────────────────────────────────────────────────────────────────────────────


def strict_json(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def changed(checkpoint: Path, folder: Path, key: str, value: float) -> Path:
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"][key].view(-1)[0] = value
    torch.save(content, folder / "changed.ckpt")
    return folder / "changed.ckpt"


@pytest.mark.parametrize(
    ("key", "value"), [("blocks.0.conv.weight", math.nan), ("blocks.0.norm.running_var", math.inf)]
)
@pytest.mark.parametrize("program", ["infer", "export"])
def test_weights_that_are_not_finite_are_refused(
    program: str,
    key: str,
    value: float,
    checkpoint: Path,
    tiny_video: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = changed(checkpoint, tmp_path, f"network.{key}", value)
    if program == "infer":
        code = main(["infer", str(tiny_video), "--ckpt", str(file), "--json"])
    else:
        code = main(["export", "--ckpt", str(file), "--engine", "onnx", "-o", str(tmp_path / "out")])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    told = f"weights from {file} are not finite, the first is {key}: take a checkpoint from before training diverged"
    assert err == f"error: {told}, or train anew\n"


@pytest.mark.parametrize("option", ["--json", "--output"])
def test_scores_that_are_not_finite_are_an_error_of_their_video(
    option: str, checkpoint: Path, tiny_video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The weights are finite, and their products are not.
    file = changed(checkpoint, tmp_path, "network.blocks.6.proj.bias", 3e38)
    content = torch.load(file, weights_only=True)
    content["state_dict"]["network.blocks.6.proj.weight"].fill_(3e38)
    torch.save(content, file)
    words = [option, str(tmp_path / "results")] if option == "--output" else [option]
    code = main(["infer", str(tiny_video), "--ckpt", str(file), "--precision", "f32", *words])
    out, err = capsys.readouterr()
    assert code == 1
    reason = "its scores are not finite in precision f32, though the weights are"
    assert f"error: no result for video '{tiny_video}': {reason}" in err.splitlines()
    if option == "--json":
        content = strict_json(out)
        assert (content["videos"], content["errors"]) == ([], [{"path": str(tiny_video), "reason": reason}])
    else:
        _, line = (tmp_path / "results").read_text().splitlines()
        assert strict_json(line) == {"path": str(tiny_video), "reason": reason}


@pytest.mark.parametrize(
    ("views", "crop", "threads", "expected"),
    [
        (30, 256, 1, 1),
        (30, 256, 2, 2),
        (30, 256, 3, 3),
        (30, 256, 4, 1),
        (12, 112, 1, 4),
        (12, 112, 2, 6),
        (7, 256, 2, 1),
    ],
)
def test_each_thread_gets_as_many_views(views: int, crop: int, threads: int, expected: int) -> None:
    settings = ViewSettings(clip_frames=8, num_clips=views, num_crops=1, short_side_px=crop, crop_px=crop)
    assert predictor.choose_views_per_call(settings, torch.device("cpu"), threads) == expected


@pytest.mark.parametrize(("views", "expected"), [(30, 6), (12, 6), (7, 7), (1, 1), (11, 8)])
def test_views_of_a_call_on_a_gpu(views: int, expected: int) -> None:
    settings = ViewSettings(clip_frames=8, num_clips=views, num_crops=1, short_side_px=64, crop_px=64)
    for threads in (1, 16):
        assert predictor.choose_views_per_call(settings, torch.device("cuda"), threads) == expected


class Counted(torch.Tensor):
    """Counts what would wait for a GPU: copies to the host, and values that are read."""

    reads = 0

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits = (torch.Tensor.cpu, torch.Tensor.to, torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.__bool__)
        result = super().__torch_function__(func, types, args, kwargs or {})
        if func not in waits:
            return result
        cls.reads += 1
        return result.as_subclass(torch.Tensor) if isinstance(result, torch.Tensor) else result


class CountedEngine:
    name, precision, views_per_call = "eager", "f32", 2

    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        return clips.mean((2, 3, 4)).as_subclass(Counted)


def test_a_gpu_is_waited_for_once_a_video(tiny_video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counted, "reads", 0)
    scores = Predictor(CountedEngine(), NAMES, views=VIEWS).scores(tiny_video)  # 6 views in 3 calls
    assert Counted.reads == 1 and scores.shape == (3,)
