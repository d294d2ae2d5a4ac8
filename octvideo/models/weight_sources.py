"""Where weights come from: a file, a URL, or a name in torchvision's or timm's own zoo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from octvideo.errors import UserError
from octvideo.files import one_line
from octvideo.models.download import download
from octvideo.models.weight_files import PixelScale, Weights, read_file

# Written as --init PREFIX:NAME.
_TORCHVISION, _TIMM = "torchvision:", "timm:"


def read_weights(source: str | Path) -> Weights:
    """The weights that a path, a URL or a name means.

    Args:
        source: the path of a file (see `read_file` for what may be in it); an https URL of one, downloaded
            once; `torchvision:resnet50` for that network's default weights, or
            `torchvision:ResNet50_Weights.IMAGENET1K_V1`; `timm:resnet50.a1_in1k`.

    Raises:
        UserError: no such file, URL or name, no connection, or no weights in what is there.

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
    except Exception as error:  # of timm, of the hub behind it, of its connections: no common type
        reason = one_line(error)
        raise UserError(
            f"timm:{name} can't be had ({reason}); names with weights: timm.list_pretrained('*resnet50*')"
        ) from error
    trained: Any = network.pretrained_cfg
    return Weights(network.state_dict(), f"timm:{name}", pixels=_pixel_scale(trained["mean"], trained["std"]))


def _pixel_scale(mean: Any, std: Any) -> PixelScale:
    return PixelScale(tuple(map(float, mean)), tuple(map(float, std)))
