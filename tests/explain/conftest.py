"""A trained octave network, its clips, and their saliency: made once, in some seconds."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from octvideo.explain import Saliency, explain_clip


@pytest.fixture(scope="session")
def small() -> ModuleType:
    """tests/explain/networks.py."""
    spec = importlib.util.spec_from_file_location("explain_networks", Path(__file__).parent / "networks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def trained_network(small: ModuleType) -> nn.Module:
    """Half of its channels are low."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    network = small.train(small.small_network(0.5))
    torch.set_num_threads(threads)
    return network


@pytest.fixture(scope="session")
def explained(small: ModuleType, trained_network: nn.Module) -> list[Saliency]:
    """Grad-CAM of 24 clips, for their own classes."""
    clips, labels, _ = small.striped_clips(24, 1)
    return [explain_clip(trained_network, clip, int(label)) for clip, label in zip(clips, labels, strict=True)]
