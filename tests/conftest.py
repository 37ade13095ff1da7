"""Shared by all tests: one thread each, and the pretrained test model where it is present."""

import os
import sys
from pathlib import Path

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

# crypten's metadata brings in torchvision, whose build for CUDA does not import beside a CPU build of torch; nothing
# here needs it, but transformers (the tests' reference) would try
sys.modules["torchvision"] = None  # type: ignore[assignment]

STORIES = Path(__file__).resolve().parents[2] / "shared" / "models" / "stories260k"


@pytest.fixture
def stories() -> Path:
    if not STORIES.is_dir():
        pytest.skip("the pretrained model stories260k is not beside this checkout")
    return STORIES
