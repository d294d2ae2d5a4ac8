"""fit, validate, test and predict: `octvideo fit -c CONFIG [--KEY VALUE ...]`, the only file that knows every package.

Lightning's CLI with what a user should not have to know: configs are found by name, a config may start from
another one (`base:`), a run has a name and a folder, the number of classes comes from the data, and a mistake
is one line, not a traceback.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import pkgutil
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from octvideo.class_names import match_classes
from octvideo.cli import COMMANDS
from octvideo.cli.allocator import keep_freed_memory
from octvideo.cli.config_files import CONFIG_FLAGS, prepare_argv
from octvideo.cli.help_page import BUILDER_HELP, HelpParser, builder_help
from octvideo.cli.mistakes import explain, joined_lines, wrong_value
from octvideo.data.datamodule import VideoDataModule
from octvideo.data.quarantine import write_quarantine
from octvideo.data.workers import keep_to_cpus
from octvideo.errors import UserError
from octvideo.inference.checkpoint import check_run_name, expanded, find_checkpoint, run_folder
from octvideo.models.checkpoint import read_checkpoint
from octvideo.models.weights import read_weights
from octvideo.stores import is_remote, shown
from octvideo.training import ResumeHint, RunFolder, VideoClassifier, WriteScores, checkpoint_callbacks
from octvideo.training.callbacks import ProgressBar, SaveRunConfig, WriteUnreadable, is_sigterm
from octvideo.training.distillation import weight_of_labels
from octvideo.training.lightning_parts import (
    RunBoardLogger,
    RunCSVLogger,
    WholeFiles,
    leave_process_group,
    quiet_lightning,
    save_in,
)

_SIGTERM = 143  # what a shell says of a program that ended by it
_TRAINER_DEFAULTS = {
    # Our samplers split the videos themselves; Lightning's would count some of them twice.
    "use_distributed_sampler": False,
    # The first batches of validation say nothing about a network that has learnt nothing.
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 10,
    "enable_model_summary": False,  # the module says it in one line
}


# What Gloo and NCCL say where a process of the run is gone. (NCCL's other errors are of this process.)
_OTHERS_ENDED = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection closed by remote peer",
    "remote process exited",
    "ncclRemoteError",
    "NCCL communicator was aborted",
    "Watchdog caught collective operation timeout",
)


def run(words: Sequence[str], cli: Callable[[list[str], str | Path | None], object] | None = None) -> int:
    """Runs a command.

    Args:
        words: the command, and what follows it.
        cli: takes the place of OctvideoCLI.

    Returns:
        0; 1 where another process of the run has ended with an error; 143 after SIGTERM.
    """
    keep_freed_memory()
    quiet_lightning()
    keep_to_cpus()
    try:
        args, default_run = prepare_argv(words)
        if BUILDER_HELP in args:
            print(builder_help(args))
            return 0
        (cli or OctvideoCLI)(args, default_run)
        leave_process_group()
    except (MisconfigurationException, RuntimeError, ValueError, ImportError) as error:
        if is_sigterm(error):
            return _SIGTERM
        if any(words in str(error) for words in _OTHERS_ENDED):
            print("error: another process of this run has ended, its own message is above", file=sys.stderr)
            return 1
        cause: BaseException = error
        while _raised_by(cause) == "jsonargparse" and cause.__cause__ is not None:  # of what a key names, when built
            cause = cause.__cause__
        if _raised_by(cause) == "lightning":  # its word for what can't be, such as a callback without its metric
            raise UserError(joined_lines(cause)) from error
        if _raised_by(cause) == "jsonargparse":
            raise UserError(wrong_value(str(error))) from error
        if cause is not error:
            raise cause from None
        raise
    except SIGTERMException:
        return _SIGTERM
    except SystemExit as end:
        # Lightning turns Ctrl-C into exit code 1; the shell's own is 130.
        return 130 if isinstance(end.__context__, KeyboardInterrupt) else int(end.code or 0)
    return 0


def _raised_by(error: BaseException) -> str:
    """The package whose line raised an error."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals["__name__"]).partition(".")[0]


def add_arguments(parser: LightningArgumentParser) -> None:
    """The keys that are ours beside those of the network, the data and Lightning's Trainer."""
    parser.add_argument("--name", type=str | None, default=None, help="of the run; default: the config's name")
    parser.add_argument("--runs_dir", type=str, default="runs", help="folder of all runs")
    parser.add_argument("--base", type=str | None, default=None, help="in a config: the config it starts from")
    resume = "continue the run; auto: where there is one, else start it"
    parser.add_argument("--resume", type=bool | Literal["auto"], default=False, nargs="?", const=True, help=resume)
    parser.add_argument("--overwrite", type=bool, default=False, nargs="?", const=True, help="replace the run")
    parser.add_argument("--checkpoint_minutes", type=float | None, default=None, help="also save within epochs")


class OctvideoCLI(LightningCLI):
    """VideoClassifier and VideoDataModule under Lightning's Trainer, one folder per run.

    Args:
        args: from `prepare_argv`.
        default_run: where `--name` gives none, the run's name, or its folder.
    """

    def __init__(self, args: list[str], default_run: str | Path | None) -> None:
        self._args, self._default_run = args, default_run
        self._made: list[Path] = []  # folders, the innermost first
        try:
            self._run()
        except BaseException:
            for folder in self._made:
                with contextlib.suppress(OSError):
                    folder.rmdir()  # unless something is in it
            raise

    def _run(self) -> None:
        super().__init__(
            VideoClassifier,
            VideoDataModule,
            save_config_callback=SaveRunConfig,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults=_TRAINER_DEFAULTS,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={
                "exit_on_error": False,
                self._args[0]: {
                    "usage": f"octvideo {self._args[0]} -c CONFIG [--KEY VALUE ...]",
                    "description": f"{self._args[0]}: {COMMANDS[self._args[0]].help}.",
                },
            },
            args=self._args,
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """As Lightning's, with `--cfg` too, and help as a page."""
        parser = HelpParser(prog="octvideo", allow_abbrev=False, **kwargs)
        parser.add_argument(*CONFIG_FLAGS, action=ActionConfigFile, help="config by path or name; may be repeated")
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add_arguments(parser)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)
        weights = ("model.teacher", "model.distill_logits", "model.label_weight")
        parser.link_arguments(weights, "data.train_labels", compute_fn=_reads_labels)
        parser.link_arguments("model.loss", "data.several_labels", compute_fn=_has_several_labels)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The one that is asked for: to describe the other three takes .15 to .3 s."""
        return {self._args[0]: LightningCLI.subcommands()[self._args[0]]}

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "test":
            parser.set_defaults({"verbose": False})  # WriteScores prints a better table
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses, with mistakes in one line.

        Raises:
            UserError: for a mistake of any kind.
        """
        try:
            self.config = parser.parse_args(args)
        except ArgumentError as error:
            keys = [action.dest for action in self._subcommand_parsers[args[0]]._actions]
            said = explain(str(error), subcommand=args[0], keys=keys)
            own = self._own_config_command() if "are required" in str(error) else ""
            raise UserError(said + (own and f"; the run's own config has them: {own}")) from error
        self.config = _expanded(self.config)

    def _own_config_command(self) -> str:
        """The command that takes the run's own config, where another one was given; else nothing."""
        values = dict(itertools.pairwise(self._args))
        name, runs = values.get("--name"), values.get("--runs_dir", "runs")
        if self._args[0] == "fit" or name is None or "--config" not in values or isinstance(self._default_run, Path):
            return ""
        if not (run_folder(name, runs) / "config.yaml").is_file():
            return ""
        words = [self._args[0], "--name", name, *(["--runs_dir", runs] if runs != "runs" else [])]
        return f"octvideo {shlex.join(words)}"

    def _parse_ckpt_path(self) -> None:
        """Lightning reads hyperparameters from the checkpoint here; ours hold none, the config is the one source."""

    def before_instantiate_classes(self) -> None:
        """Settles the run's folder, its checkpoint and the number of classes before anything is built."""
        config = self.config[self.subcommand]
        self.folder = self._run_of(config)
        config.trainer.default_root_dir = str(self.folder.path)
        if config.resume and config.overwrite:
            raise UserError("--resume goes on with the run, --overwrite replaces it: leave one of them out")
        if config.resume == "auto":
            config.resume = self.folder.last.exists()
        self.checkpoint = self._find_checkpoint(config)
        self._overwrite = config.overwrite
        if self.subcommand == "fit" and not self._resumes() and _is_first_process():
            self.folder.check_free(overwrite=self._overwrite)
        if self.subcommand != "fit" and self.checkpoint is not None:
            config.model.init_weights = None  # what the run once started from is not read again
        self._find_teacher(config)
        trained = None if self.checkpoint is None else _classes_in(self.checkpoint)
        try:
            self._class_names = _link_num_classes(config, trained, predicts=self.subcommand == "predict")
        except UserError as error:
            own = self._own_config_command()
            raise UserError(f"{error}" + (own and f"; the run's own config has its data: {own}")) from error
        # The saved config repeats the run; it must not resume or replace one when it is used again.
        config.ckpt_path, config.base, config.resume, config.overwrite = None, None, False, False
        self._to_save, self.config = self.config, self.config.clone()  # nor do loggers' places in this run belong to it
        trainer = self.config[self.subcommand].trainer
        trainer.callbacks = _as_list(trainer.callbacks)  # of one by itself, jsonargparse loses the constructor's error
        for logger in _as_list(trainer.logger):
            if isinstance(logger, Namespace):
                save_in(self.folder, logger.class_path, logger.get("init_args", {}))

    def _run_of(self, config: Namespace) -> RunFolder:
        """The run's folder; runs_dir and name are set so that they find it again."""
        if is_remote(config.runs_dir):
            raise UserError(f"runs_dir: got {shown(config.runs_dir)}, expected a folder on this machine")
        given, folder = config.ckpt_path, None
        typed = dict(itertools.pairwise(self._args)).get("--name")
        if typed is None:
            folder = self._default_run if isinstance(self._default_run, Path) else None
            if self.subcommand != "fit" and given not in (None, "best", "last"):
                # What a checkpoint scores belongs to its own run, whatever the config is called.
                checkpoint = find_checkpoint(str(given), config.runs_dir)
                if checkpoint.parent.name == "checkpoints" and checkpoint.is_file():
                    folder = checkpoint.parent.parent
        if folder is None:
            name = config.name or str(self._default_run or "run") if typed is None else expanded(typed)
            folder = run_folder(check_run_name(name), config.runs_dir)
        if not folder.is_relative_to(config.runs_dir):
            config.runs_dir = str(folder.absolute().parent)
        config.name = str(folder.absolute().relative_to(Path(config.runs_dir).absolute()))
        return RunFolder(folder)

    def _find_checkpoint(self, config: Namespace) -> Path | None:
        asked = "last" if config.resume else config.ckpt_path
        if asked in ("last", "best"):
            path = self.folder.checkpoint(asked)
        elif asked is not None:
            path = find_checkpoint(str(asked), config.runs_dir)
        elif self._starts_from_init_weights(config):
            return None
        else:
            path = self.folder.best_or_last()
        read_checkpoint(path)
        if _is_first_process():
            print(f"checkpoint: {path}")
        return path

    def _find_teacher(self, config: Namespace) -> None:
        """Settles the file of model.teacher, which the run's config then names; nothing but fit needs it."""
        if self.subcommand != "fit":
            config.model.teacher = None
            config.data.train_labels = True
        if config.model.teacher is None:
            return
        path = find_checkpoint(config.model.teacher, config.runs_dir)
        if path.resolve().parent == self.folder.checkpoints.resolve():
            raise UserError(f"model.teacher is {path}, of this run itself: give the run that is to teach, or its file")
        read_checkpoint(path)
        config.model.teacher = str(path)

    def _starts_from_init_weights(self, config: Namespace) -> bool:
        if self.subcommand == "fit" or "--model.init_weights" in self._args:
            return True
        # A run's own config names what it started from: its checkpoint is meant, where it has got that far.
        return config.model.init_weights is not None and not self.folder.last.exists()

    def _resumes(self) -> bool:
        """Whether a fit goes on with the run that is in its folder."""
        return self.checkpoint is not None and self.checkpoint.resolve().parent == self.folder.checkpoints.resolve()

    def before_fit(self) -> None:
        """Opens the run's folder, as late as possible: a mistake in the data must not cost the run that is there."""
        self.datamodule.setup("fit")
        if self.model.distillation is not None:
            self.model.distillation.check_classes(self.datamodule.class_names, self.model.num_classes)
        if self.checkpoint is None and self.model.init_weights is not None:
            read_weights(self.model.init_weights)
        if not _is_first_process():
            return
        if self._resumes():
            self.folder.forget_after(self._first_step())
        else:
            self.folder.start(overwrite=self._overwrite)

    def _first_step(self) -> int:
        return 0 if self.checkpoint is None else int(read_checkpoint(self.checkpoint)["global_step"])

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Lightning's Trainer with our progress bar, loggers and checkpoints beside the user's callbacks."""
        self.config, self.datamodule.class_names = self._to_save, self._class_names
        config = self.config_init[self.subcommand]
        fitting = self.subcommand == "fit"
        if config.trainer.logger is not False:
            loggers = [] if config.trainer.logger is True else _as_list(config.trainer.logger)
            if fitting:  # ours come first: Lightning takes the place of files from the first
                own = [RunCSVLogger(self.folder), RunBoardLogger(self.folder, first_step=self._first_step())]
                loggers = [*own, *loggers]
            if loggers and _is_first_process():
                path = self.folder.path
                self._made = [folder for folder in (path, *path.parents) if not folder.exists()]
                path.mkdir(parents=True, exist_ok=True)  # some loggers write elsewhere where it isn't there
            kwargs["logger"] = loggers or False
        plugins = _as_list(config.trainer.plugins)
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*plugins, WholeFiles()]
        callbacks: list[Callback] = [
            *_as_list(config.trainer.callbacks),
            # As data.quarantine takes it; paths that are not absolute start from here.
            WriteUnreadable(self.folder, lambda file, videos: write_quarantine(file, str(Path.cwd()), videos)),
            WriteScores(self.folder),
        ]
        if config.trainer.enable_progress_bar is not False:
            callbacks.append(ProgressBar())
        if not fitting:
            kwargs["enable_checkpointing"] = False
        elif config.trainer.enable_checkpointing is not False:
            monitor = "val/map" if _has_several_labels(self.config[self.subcommand].model.loss) else "val/top1"
            minutes = config.checkpoint_minutes
            callbacks += checkpoint_callbacks(self.folder, every_minutes=minutes, monitor=monitor)
            callbacks.append(ResumeHint(self.folder, _resume_command()))
        try:
            return super().instantiate_trainer(callbacks=callbacks, **kwargs)
        except (ValueError, TypeError, ImportError) as error:  # for a wrong argument, or one that needs more
            raise UserError(f"trainer: {error}") from error

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        path = None if self.checkpoint is None else str(self.checkpoint)
        return {**super()._prepare_subcommand_kwargs(subcommand), "ckpt_path": path}

    def after_fit(self) -> None:
        for stopping in self.trainer.early_stopping_callbacks:
            if stopping.stopped_epoch and self.trainer.is_global_zero:
                best = f"{stopping.monitor} was {float(stopping.best_score):.4g} at best"
                print(f"stopped early, after epoch {stopping.stopped_epoch + 1}: {best}")
        if self.trainer.is_global_zero and self.folder.last.exists():
            config = shlex.quote(str(self.folder.path / "config.yaml"))
            print(f"run: {self.folder.path}   test it with: octvideo test -c {config}")


def _link_num_classes(config: Namespace, trained: Sequence[str] | None, *, predicts: bool) -> list[str]:
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
    elif not data.train_labels:  # nor need there be class folders
        data.take_class_names(trained or _classes_in(config.model.teacher))
    elif trained:
        match_classes(trained, data.class_names).needed_order()
    expected = data.num_classes
    network = config.model.network
    init_args = network.get("init_args") or Namespace()
    if "num_classes" in init_args:
        argument = inspect.signature(pkgutil.resolve_name(network.class_path)).parameters.get("num_classes")
        default = None if argument is None else argument.default
        if init_args["num_classes"] not in (default, expected):
            raise UserError(
                f"model.network.init_args.num_classes is {init_args['num_classes']}, but the data has {expected} "
                "classes: leave the key out, and it follows the data, or give "
                f"--model.network.init_args.num_classes {expected}"
            )
        init_args["num_classes"] = expected
    return list(data.class_names)


def _classes_in(checkpoint: str | Path) -> list[str]:
    """Class names of a checkpoint's network."""
    names: list[str] = read_checkpoint(checkpoint)["octvideo"]["class_names"]
    return names


def _reads_labels(teacher: str | None, distill_logits: float, label_weight: float | None) -> bool:
    """As `VideoClassifier.reads_labels`, before there is one."""
    return teacher is None or weight_of_labels(distill_logits, label_weight) > 0


def _has_several_labels(loss: str) -> bool:
    return loss == "bce"


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def _expanded(value: Any) -> Any:
    """A config whose texts are as a shell takes them, those that are no paths too: few have a `$`."""
    if isinstance(value, str):
        return expanded(value)
    if isinstance(value, list):
        return [_expanded(item) for item in value]
    for key in value.keys() if isinstance(value, Namespace) else ():
        value[key] = _expanded(value[key])
    return value


def _is_first_process() -> bool:
    # Lightning hangs the rank on its decorator; before any process group exists, that is the only place.
    return getattr(rank_zero_only, "rank", 0) == 0


def _resume_command() -> str:
    once = ("--resume", "--overwrite")
    words = [
        word
        for before, word in itertools.pairwise(["", *sys.argv[1:]])
        if not word.startswith(once) and not (before in once and word in ("true", "false", "auto"))
    ]
    name = Path(sys.argv[0]).name
    program = f"python {shlex.quote(sys.argv[0])}" if name.endswith(".py") else name
    program = "python -m octvideo" if name == "__main__.py" else program
    return f"{program} {shlex.join(words)} --resume"
