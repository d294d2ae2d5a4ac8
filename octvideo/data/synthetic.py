"""The demo data set: small H.264 videos whose class is in the motion and nowhere else.

Classes come in opposite pairs. Both videos of a pair hold the very same frames, one in reverse order:
whatever a network learns from single frames, or from frames in any order, leaves it at 50 % inside a pair.
A horizontal flip turns move_left into move_right and a clockwise rotation into its opposite: it must be off.

Files: train/<class>/000.mp4 ..., test/<class>/..., classes.txt, train.txt, test.txt, demo.json (the settings)
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import av
from torch import Generator, Tensor

from octvideo.data.scenes import Motion, Scene, draw_scene
from octvideo.data.workers import available_cpus
from octvideo.errors import UserError
from octvideo.files import whole_file
from octvideo.progress import track
from octvideo.seeds import seed_of

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")

# motion as drawn, class of the frames in order, class of the frames reversed
_PAIRS: tuple[tuple[Motion, str, str], ...] = (
    ("left", "move_left", "move_right"),
    ("up", "move_up", "move_down"),
    ("clockwise", "rotate_clockwise", "rotate_counterclockwise"),
    ("approach", "approach", "recede"),
)
OPPOSITES: tuple[tuple[str, str], ...] = tuple((forward, backward) for _, forward, backward in _PAIRS)
CLASS_NAMES: tuple[str, ...] = tuple(sorted(name for pair in OPPOSITES for name in pair))
_SETTINGS_FILE = "demo.json"
# x264's fast arithmetic of macroblock trees differs between processors, and once in 500 videos between two runs.
_REPRODUCIBLE = "cpu-independent=1"


@dataclass(frozen=True)
class DemoSettings:
    """Everything the videos depend on: equal settings, equal files.

    Args:
        videos_per_class: in train.
        test_videos_per_class: in test.
        seed: of the whole set; train and test never share scenes.
        num_frames: of each video.
        fps: frames per second.
        width: in pixels, even.
        height: in pixels, even.

    Raises:
        UserError: a number that no video can have.
    """

    videos_per_class: int = 60
    test_videos_per_class: int = 10
    seed: int = 0
    num_frames: int = 32
    fps: int = 25
    width: int = 128
    height: int = 96

    def __post_init__(self) -> None:
        for name in ("videos_per_class", "test_videos_per_class", "num_frames", "fps", "width", "height"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: got {getattr(self, name)}, expected 1 or more")
        for name in ("width", "height"):
            if getattr(self, name) % 2:
                raise UserError(f"{name}: got {getattr(self, name)}, expected an even number (for H.264)")

    def count(self, split: Split) -> int:
        """Videos per class of a split."""
        return self.videos_per_class if split == "train" else self.test_videos_per_class


def frames_of(settings: DemoSettings, split: Split, class_name: str, index: int) -> Tensor:
    """The frames of one video, before encoding.

    Args:
        settings: of the set.
        split: "train" or "test".
        class_name: one of CLASS_NAMES.
        index: of the video within its class.

    Returns:
        uint8 (T, H, W, 3); those of the opposite class are the same in reverse.

    Example:
        >>> left = frames_of(DemoSettings(), "test", "move_left", 3)
        >>> right = frames_of(DemoSettings(), "test", "move_right", 3)
        >>> bool((left == right.flip(0)).all())
        True
    """
    scene, is_reversed = _scene_of(settings, split, class_name, index)
    frames = scene.render(height=settings.height, width=settings.width)  # (T,H,W,3)
    return frames.flip(0) if is_reversed else frames


def boxes_of(settings: DemoSettings, split: Split, class_name: str, index: int) -> Tensor:
    """Where the moving shape is in each frame of one video: what there is to find.

    Args:
        settings, split, class_name, index: of `frames_of`.

    Returns:
        int64 (T, 4): left, top, right and bottom edges in pixels, the last two excluded.
    """
    scene, is_reversed = _scene_of(settings, split, class_name, index)
    boxes = scene.boxes(height=settings.height, width=settings.width)
    return boxes.flip(0) if is_reversed else boxes


def _scene_of(settings: DemoSettings, split: Split, class_name: str, index: int) -> tuple[Scene, bool]:
    """The scene of a video, and whether its frames are in reverse order."""
    for motion, forward, backward in _PAIRS:
        if class_name in (forward, backward):
            draw = Generator().manual_seed(seed_of(settings.seed, split, motion, index))
            size = {"height": settings.height, "width": settings.width}
            return draw_scene(motion, draw, num_frames=settings.num_frames, **size), class_name == backward
    raise UserError(f"no class {class_name!r}: expected one of {', '.join(CLASS_NAMES)}")


def write_video(frames: Tensor, path: Path, *, fps: int = 25) -> None:
    """Encodes RGB frames as an H.264 mp4; the file appears under its name only when it is whole.

    Args:
        frames: uint8 (T, H, W, 3), H and W even.
        path: of the file; its folder is made.
        fps: frames per second.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part, av.open(str(part), "w", format="mp4") as container:
        options = {"crf": "18", "preset": "fast", "g": "12", "x264-params": _REPRODUCIBLE}
        stream = container.add_stream("libx264", rate=fps, options=options)
        _, stream.height, stream.width, _ = frames.shape
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1  # the videos are the unit of parallel work
        for image in frames.numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def write_demo(out: Path, settings: DemoSettings, *, workers: int | None = None, overwrite: bool = False) -> int:
    """Writes the demo data set, or its missing files.

    Args:
        out: folder of the data set.
        settings: what to write.
        workers: videos made at once; None takes one per CPU.
        overwrite: replaces a demo data set of other settings.

    Returns:
        How many videos were written: 0 where all were there.

    Raises:
        UserError: the folder holds something else.
    """
    _claim(out, settings, overwrite=overwrite)
    missing = [
        (split, class_name, index, path)
        for split in SPLITS
        for class_name, index, path in videos_of(settings, split)
        if not (out / path).exists()
    ]

    def make(split: Split, class_name: str, index: int, path: str) -> None:
        write_video(frames_of(settings, split, class_name, index), out / path, fps=settings.fps)

    # Threads: rendering and encoding both leave the interpreter's lock, and nothing is imported again.
    with ThreadPoolExecutor(workers or available_cpus()) as pool:
        jobs = [pool.submit(make, *job) for job in missing]
        try:
            for job in track(as_completed(jobs), "writing videos", len(jobs)) if jobs else ():
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    _write_lists(out, settings)
    return len(missing)


def read_settings(root: Path) -> DemoSettings:
    """The settings of a demo data set on disk.

    Raises:
        UserError: the folder holds none.
    """
    file = root / _SETTINGS_FILE
    if not file.is_file():
        raise UserError(f"no demo data in {root} (no {_SETTINGS_FILE}): octvideo demo-data -o {root} writes it")
    return DemoSettings(**json.loads(file.read_text()))


def videos_of(settings: DemoSettings, split: Split) -> Iterator[tuple[str, int, str]]:
    """Class, index within it and path of each video of a split, in the order of its list."""
    for class_name in CLASS_NAMES:
        for index in range(settings.count(split)):
            yield class_name, index, f"{split}/{class_name}/{index:03d}.mp4"


def _claim(out: Path, settings: DemoSettings, *, overwrite: bool) -> None:
    """Makes `out` a folder for these settings, without touching anything that is not demo data."""
    file = out / _SETTINGS_FILE
    wanted = asdict(settings)
    if not file.exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} is not empty and holds no demo data (no {_SETTINGS_FILE}): choose another folder")
    else:
        held = json.loads(file.read_text())
        if held == wanted:
            return
        if not overwrite:
            differing = [f"{k} is {held.get(k)}, asked for {wanted[k]}" for k in wanted if held.get(k) != wanted[k]]
            raise UserError(
                f"{out} holds demo data of other settings ({'; '.join(differing)}): "
                "choose another folder, or add --overwrite to replace it"
            )
        for split in SPLITS:
            shutil.rmtree(out / split, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(wanted, indent=2) + "\n")


def _write_lists(out: Path, settings: DemoSettings) -> None:
    (out / "classes.txt").write_text("".join(f"{name}\n" for name in CLASS_NAMES))
    for split in SPLITS:
        lines = [f"{path} {CLASS_NAMES.index(name)}\n" for name, _, path in videos_of(settings, split)]
        (out / f"{split}.txt").write_text("".join(lines))
