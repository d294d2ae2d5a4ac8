"""Where weights come from: a file, a URL (downloaded once, whole or not at all), a shared network, or a name in
torchvision's, timm's or pytorchvideo's own zoo.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from filelock import FileLock

from octvideo.download import fetch, version_of
from octvideo.errors import UserError
from octvideo.files import digest, one_line, part_of, whole_file
from octvideo.models.hub import download_repository, is_hub_name, name_of_cached
from octvideo.models.shared_files import SHARED_FILES, is_shared_folder, shared_weights
from octvideo.models.weight_files import PixelScale, Weights, read_file
from octvideo.progress import Progress

# Written as --init PREFIX:NAME.
_TORCHVISION, _TIMM, _PYTORCHVIDEO = "torchvision:", "timm:", "pytorchvideo:"
# pytorchvideo's normalisation: its tutorials, and PySlowFast's DATA.MEAN and DATA.STD.
_KINETICS = PixelScale((0.45, 0.45, 0.45), (0.225, 0.225, 0.225))


def read_weights(source: str | Path) -> Weights:
    """The weights that a path, a URL or a name means.

    Args:
        source: the path of a file (see `read_file` for what may be in it); an https URL of one, downloaded
            once; `torchvision:resnet50` for that network's default weights, or
            `torchvision:ResNet50_Weights.IMAGENET1K_V1`; `timm:resnet50.a1_in1k`; `pytorchvideo:x3d_s`;
            `hf:USER/NAME`, or a folder that `octvideo card RUN --hub` wrote.

    Raises:
        UserError: no such file, URL or name, no connection, or no weights in the file.

    Example:
        >>> weights = read_weights("I3D_8x8_R50.pyth")  # doctest: +SKIP
        >>> load_weights(i3d_r50(), weights, head="strict")  # doctest: +SKIP
    """
    text = str(source)
    if text.startswith(("https://", "http://")):
        return _from_url(text)
    if text.startswith(_TORCHVISION):
        return _from_torchvision(text.removeprefix(_TORCHVISION))
    if text.startswith(_TIMM):
        return _from_timm(text.removeprefix(_TIMM))
    if text.startswith(_PYTORCHVIDEO):
        return _from_pytorchvideo(text.removeprefix(_PYTORCHVIDEO))
    if is_hub_name(text):
        folder = download_repository(text, SHARED_FILES)
        return shared_weights(folder, name_of_cached(folder))
    if is_shared_folder(Path(source)):
        return shared_weights(Path(source), text)
    return read_file(source)


def _from_url(url: str) -> Weights:
    path = download(url)
    try:
        return read_file(path, source=url)
    except UserError as error:
        raise UserError(f"{error}. What was downloaded is {path}: delete it to download it again") from error


def _from_torchvision(name: str) -> Weights:
    import torchvision.models as zoo

    try:
        entry = zoo.get_weight(name) if "." in name else zoo.get_model_weights(name).DEFAULT
    except (ValueError, KeyError) as error:
        raise UserError(
            f"no weights torchvision:{name}: got neither a network of torchvision nor weights of one, expected "
            "for example torchvision:resnet50 or torchvision:ResNet50_Weights.IMAGENET1K_V1"
        ) from error
    try:
        state = entry.get_state_dict(progress=True, check_hash=True, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError) as error:  # no connection; another hash than the name's
        raise UserError(f"torchvision:{name} can't be downloaded from {entry.url} ({error})") from error
    transforms: Any = entry.transforms()
    return Weights(state, f"torchvision:{name}", pixels=_pixel_scale(transforms.mean, transforms.std))


def _from_timm(name: str) -> Weights:
    try:
        import timm
    except ImportError as error:
        raise UserError(f"timm:{name} needs timm, which is not installed: pip install 'octvideo[image]'") from error
    try:
        network = timm.create_model(name, pretrained=True)
    except Exception as error:  # of timm, of its hub, of its connections: no common type
        reason = one_line(error)
        raise UserError(
            f"timm:{name} can't be had ({reason}); names with weights: timm.list_pretrained('*resnet50*')"
        ) from error
    trained: Any = network.pretrained_cfg
    return Weights(network.state_dict(), f"timm:{name}", pixels=_pixel_scale(trained["mean"], trained["std"]))


def _from_pytorchvideo(name: str) -> Weights:
    from pytorchvideo.models.hub import csn, r2plus1d, resnet, slowfast, x3d

    urls: dict[str, str] = {}
    for module in (csn, r2plus1d, resnet, slowfast, x3d):
        urls |= module.checkpoint_paths
    if name not in urls:
        raise UserError(f"no weights pytorchvideo:{name}: expected one of {', '.join(sorted(urls))}")
    return replace(_from_url(urls[name]), pixels=_KINETICS)


def library_pixels(name: str) -> PixelScale:
    """What a library's own weights of a network take: for files that do not say what theirs do.

    Args:
        name: "pytorchvideo:x3d_s", "torchvision:resnet50" or "timm:resnet50", as in the library.
    """
    library, _, own = name.partition(":")
    if library == "pytorchvideo":
        return _KINETICS
    if library == "timm":
        import timm

        trained: Any = timm.get_pretrained_cfg(own)
        return _pixel_scale(trained.mean, trained.std)
    import torchvision.models as zoo

    transforms: Any = zoo.get_model_weights(own).DEFAULT.transforms()
    return _pixel_scale(transforms.mean, transforms.std)


def _pixel_scale(mean: Any, std: Any) -> PixelScale:
    return PixelScale(tuple(map(float, mean)), tuple(map(float, std)))


def download(url: str) -> Path:
    """The file at a URL, from the cache where it has been downloaded before.

    A broken connection is resumed. A file of another length than the server said, or of another SHA-256 than its name
    says (`resnet50-11ad3fa6.pth`), is not kept. Processes that want the same
    file wait for the first.

    Args:
        url: https or http.

    Returns:
        Its path under torch's hub folder: see `cache_path`.

    Raises:
        UserError: no connection, no such file, or a damaged one.
    """
    target = cache_path(url)
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_file():
            try:
                with whole_file(target) as part:
                    _fetch(url, part)
                    _check_hash(url, part)
            except (OSError, HTTPException) as error:
                raise UserError(
                    f"{url} can't be downloaded ({one_line(error)}): check the address and the connection, or put "
                    f"the file at {target} by hand"
                ) from error
            finally:
                version_of(part_of(target)).unlink(missing_ok=True)
    return target


def cache_path(url: str) -> Path:
    """Where a URL's file is kept: by host and path, since different files share names (`model.safetensors`)."""
    parts = urlsplit(url)
    folders = [part for part in parts.path.split("/") if part not in ("", ".", "..")]
    place = Path(torch.hub.get_dir(), "checkpoints", parts.netloc.replace(":", "_"), *folders)
    if parts.query:
        place = place.with_name(f"{hashlib.sha256(parts.query.encode()).hexdigest()[:8]}-{place.name}")
    return place


def _fetch(url: str, part: Path) -> None:
    with Progress(part.stem, in_bytes=True) as shown:
        fetch(url, part, progress=lambda here, total: shown.update(here, total=total or None))


def _check_hash(url: str, part: Path) -> None:
    """Compares with the hash in the name, which torch's published files have.

    Raises:
        UserError: it is another.
    """
    named = re.search(r"-([0-9a-f]{8,64})\.\w+$", urlsplit(url).path)
    if named is None:
        return
    found = digest(part)
    if not found.startswith(named[1]):
        raise UserError(
            f"{url} is damaged: its SHA-256 is {found[: len(named[1])]}..., expected {named[1]} as in its name. "
            "Nothing was kept; try again"
        )
