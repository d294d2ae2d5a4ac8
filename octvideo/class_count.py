"""The number of classes of a network, from the data that it is built for."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from octvideo.class_names import match_classes
from octvideo.data.datamodule import VideoDataModule
from octvideo.errors import UserError


def link_num_classes(config: Namespace, trained: Sequence[str] | None, *, predicts: bool) -> list[str]:
    """Gives the network the data's number of classes, unless the config states another one.

    jsonargparse links arguments into classes, not into builder functions, so this is done here.

    Args:
        config: of a subcommand; its model.network.init_args.num_classes is set.
        trained: class names of the checkpoint, where there are any.
        predicts: takes them in place of the data's; see `VideoDataModule.take_class_names`.

    Returns:
        The names of the classes.

    Raises:
        UserError: the data has no class names, or other ones than the checkpoint, or the config states another number.
    """
    parser = ArgumentParser()
    parser.add_class_arguments(VideoDataModule, "data")
    data = parser.instantiate_classes(Namespace(data=config.data)).data
    if trained and predicts:
        data.take_class_names(trained)
    elif trained:
        match_classes(trained, data.class_names).needed_order()
    expected = data.num_classes
    network = config.model.network
    init_args = network.get("init_args") or Namespace()
    if "num_classes" in init_args:
        argument = inspect.signature(_import(network.class_path)).parameters.get("num_classes")
        default = None if argument is None else argument.default
        if init_args["num_classes"] not in (default, expected):
            raise UserError(
                f"model.network.init_args.num_classes is {init_args['num_classes']}, but the data has {expected} "
                "classes: leave the key out, and it follows the data, or give "
                f"--model.network.init_args.num_classes {expected}"
            )
        init_args["num_classes"] = expected
    return list(data.class_names)


def _import(class_path: str) -> Any:
    module, _, name = class_path.rpartition(".")
    return getattr(importlib.import_module(module), name)
