"""What Lightning says that a user of the tools can do nothing about, left unsaid."""

from __future__ import annotations

import logging
import warnings

# Hints of the libraries that a user of the tools can do nothing about.
_HINTS = (
    ".*does not have many workers.*",
    ".*The `srun` command is available.*",
    ".*is smaller than the logging interval.*",
    ".*treespec.*is deprecated.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*predict returned None.*",
    ".*You are using a custom batch sampler.*",
    ".*in eval mode at the start of training.*",  # what is frozen is in eval mode
    ".*exists and is not empty.*",  # the checkpoints of a resumed run
    ".*Total length of `list` across ranks is zero.*",  # no validation set
    ".*callbacks used to create the checkpoint need to be provided.*",
)


def quiet_lightning() -> None:
    """Drops Lightning's advertisements, and hints that a user of the tools can do nothing about."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(lambda record: "Tip:" not in record.getMessage())
    for message in _HINTS:
        warnings.filterwarnings("ignore", message=message)
