"""The end of a run of several processes."""

from __future__ import annotations

import torch
from torch import distributed


def leave_process_group() -> None:
    """End what connects the processes, where a run has come to its end.

    Lightning leaves Gloo's threads (NCCL's it ends) to the end of the process, when Python is gone. A finished run was
    once seen to die there: "terminate called without an active exception", exit code 134. Not with torch 2.6, whose
    Gloo may wait for ever here.
    """
    if distributed.is_available() and distributed.is_initialized() and not torch.__version__.startswith("2.6."):
        distributed.destroy_process_group()
