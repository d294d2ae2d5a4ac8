"""The command line: `octvideo fit|validate|test|predict --config X`, the only file that knows every package.

Lightning's CLI with what a user should not have to know: configs are found by name, a config may start from
another one (`base:`), a run has a name and a folder, the number of classes comes from the data, and a mistake
is one line, not a traceback.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from octvideo.config_files import CONFIG_FLAGS, Subcommand, prepare_argv
from octvideo.data.datamodule import VideoDataModule
from octvideo.errors import UserError
from octvideo.inference.checkpoint import read_checkpoint
from octvideo.training import ResumeHint, RunFolder, VideoClassifier, WriteScores, checkpoint_callbacks
from octvideo.training.run_folder import RunCSVLogger

_USAGE = "octvideo fit|validate|test|predict -c CONFIG [--KEY VALUE ...]   (all keys: octvideo fit --help)"

_TRAINER_DEFAULTS = {
    # Our samplers split the videos themselves; Lightning's would count some of them twice.
    "use_distributed_sampler": False,
    # The first batches of validation say nothing about a network that has learnt nothing.
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 10,
    "enable_model_summary": False,  # the module says it in one line
}
# Hints of the libraries that a user of the tools can do nothing about.
_HINTS = (
    ".*does not have many workers.*",
    ".*The `srun` command is available.*",
    ".*is smaller than the logging interval.*",
    ".*You have overridden `transfer_batch_to_device`.*",
    ".*treespec.*is deprecated.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*predict returned None.*",
    ".*callbacks used to create the checkpoint need to be provided.*",
)


def main(argv: Sequence[str] | None = None, *, default: Subcommand | None = None) -> int:
    """Runs the command line and returns the exit code.

    Args:
        argv: without the program's name; None takes the process's own.
        default: subcommand of a tool that is called without one.

    Returns:
        0; 2 for a mistake of the user's, told on stderr; 130 after Ctrl-C.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == ["infer"]:
        from octvideo.inference.command import main as infer

        return infer(given[1:])
    _quiet()
    try:
        args, stem = prepare_argv(given, default=default)
        OctvideoCLI(args, stem)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except SystemExit as end:
        # Lightning turns Ctrl-C into exit code 1; the shell's own is 130.
        return 130 if isinstance(end.__context__, KeyboardInterrupt) else int(end.code or 0)
    return 0


class SaveRunConfig(SaveConfigCallback):
    """Saves the config of a fit as config.yaml, which a later test of the same run leaves alone
    (config_test.yaml).
    """

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        name = getattr(stage, "value", stage)  # an enum whose str() is its own name
        self.config_filename = "config.yaml" if name == "fit" else f"config_{name}.yaml"
        super().setup(trainer, pl_module, stage)


class OctvideoCLI(LightningCLI):
    """VideoClassifier and VideoDataModule under Lightning's Trainer, one folder per run.

    Args:
        args: from `prepare_argv`.
        default_name: name of the run where `--name` gives none.
    """

    def __init__(self, args: list[str], default_name: str | None) -> None:
        self._default_name = default_name
        super().__init__(
            VideoClassifier,
            VideoDataModule,
            save_config_callback=SaveRunConfig,
            save_config_kwargs={"overwrite": True},
            trainer_defaults=_TRAINER_DEFAULTS,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=args,
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """As Lightning's, with `--cfg` too, without the thousand characters of usage before each error."""
        if "description" in kwargs:  # a subcommand's parser
            kwargs["usage"] = _USAGE
        parser = LightningArgumentParser(prog="octvideo", allow_abbrev=False, **kwargs)
        parser.add_argument(
            *CONFIG_FLAGS, action=ActionConfigFile, help="config by path or name; may be repeated"
        )
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--name", type=str | None, default=None, help="of the run; default: the config's name"
        )
        parser.add_argument("--runs_dir", type=str, default="runs", help="folder of all runs")
        parser.add_argument(
            "--base", type=str | None, default=None, help="in a config: the config it starts from"
        )
        parser.add_argument(
            "--resume", type=bool, default=False, nargs="?", const=True, help="continue the run"
        )
        parser.add_argument(
            "--overwrite", type=bool, default=False, nargs="?", const=True, help="replace the run"
        )
        parser.add_argument(
            "--checkpoint_minutes", type=float | None, default=None, help="also save within epochs"
        )
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "test":
            parser.set_defaults({"verbose": False})  # WriteScores prints a better table
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Lightning reads hyperparameters from the checkpoint here; ours hold none, the config is the one
        source.
        """

    def before_instantiate_classes(self) -> None:
        """Settles the run's folder, its checkpoint and the number of classes before anything is built."""
        config = self.config[self.subcommand]
        config.name = config.name or self._default_name or "run"
        self.folder = RunFolder(Path(config.runs_dir) / config.name)
        config.trainer.default_root_dir = str(self.folder.path)
        self.checkpoint = self._find_checkpoint(config)
        _link_num_classes(config)
        if self.subcommand == "fit" and _is_first_process():
            if self.checkpoint is None:
                self.folder.start(overwrite=config.overwrite)
            elif self.checkpoint == self.folder.last:
                self.folder.forget_after(read_checkpoint(self.checkpoint)["global_step"])
        # The saved config repeats the run; it must not resume or replace one when it is used again.
        config.ckpt_path, config.base, config.resume, config.overwrite = None, None, False, False

    def _find_checkpoint(self, config: Namespace) -> Path | None:
        asked = "last" if config.resume else config.ckpt_path
        if asked in ("last", "best"):
            path = self.folder.checkpoint(asked)
        elif asked is not None:
            path = Path(asked)
        elif self.subcommand == "fit" or config.model.init_weights is not None:
            return None
        else:
            path = self.folder.best_or_last()
        read_checkpoint(path)
        if _is_first_process():
            print(f"checkpoint: {path}")
        return path

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Lightning's Trainer with our progress bar, loggers and checkpoints beside the user's callbacks."""
        config = self.config_init[self.subcommand]
        fitting = self.subcommand == "fit"
        if config.trainer.logger in (None, True):
            board = TensorBoardLogger(self.folder.path.parent, name=self.folder.path.name, version="")
            kwargs["logger"] = [RunCSVLogger(self.folder), board] if fitting else False
        callbacks: list[Callback] = [*(config.trainer.callbacks or []), WriteScores(self.folder)]
        if config.trainer.enable_progress_bar is not False:
            callbacks.append(RichProgressBar())
        if not fitting:
            kwargs["enable_checkpointing"] = False
        elif config.trainer.enable_checkpointing is not False:
            callbacks += checkpoint_callbacks(self.folder, every_minutes=config.checkpoint_minutes)
            callbacks.append(ResumeHint(self.folder, _resume_command()))
        return super().instantiate_trainer(callbacks=callbacks, **kwargs)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        path = None if self.checkpoint is None else str(self.checkpoint)
        return {**super()._prepare_subcommand_kwargs(subcommand), "ckpt_path": path}

    def after_fit(self) -> None:
        if self.trainer.is_global_zero and self.folder.last.exists():
            print(
                f"run: {self.folder.path}   test it with: octvideo test -c {self.folder.path / 'config.yaml'}"
            )


def _link_num_classes(config: Namespace) -> None:
    """Gives the network the data's number of classes, unless the config states another one.

    jsonargparse links arguments into classes, not into builder functions, so this is done here.
    """
    network = config.model.network
    init_args = network.get("init_args")
    if init_args is None or "num_classes" not in init_args:
        return
    parser = ArgumentParser()
    parser.add_class_arguments(VideoDataModule, "data")
    expected = parser.instantiate_classes(Namespace(data=config.data)).data.num_classes
    default = inspect.signature(_import(network.class_path)).parameters["num_classes"].default
    if init_args["num_classes"] not in (default, expected):
        raise UserError(
            f"model.network.init_args.num_classes is {init_args['num_classes']}, but the data has "
            f"{expected} classes: "
            "leave the key out, and it follows the data"
        )
    init_args["num_classes"] = expected


def _import(class_path: str) -> Any:
    module, _, name = class_path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _is_first_process() -> bool:
    # Lightning hangs the rank on its decorator; before any process group exists, that is the only place.
    return getattr(rank_zero_only, "rank", 0) == 0


def _resume_command() -> str:
    words = [word for word in sys.argv[1:] if word not in ("--resume", "--overwrite")]
    program = f"python {sys.argv[0]}" if sys.argv[0].endswith(".py") else Path(sys.argv[0]).name
    return f"{program} {shlex.join(words)} --resume"


def _quiet() -> None:
    """Drops Lightning's advertisements, and hints that a user of the tools can do nothing about."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(lambda record: "Tip:" not in record.getMessage())
    for message in _HINTS:
        warnings.filterwarnings("ignore", message=message)


if __name__ == "__main__":
    raise SystemExit(main())
