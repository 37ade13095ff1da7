"""Shared by all tests: one thread each, and the pretrained test model where it is present."""

import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

STORIES = Path(__file__).resolve().parents[2] / "shared" / "models" / "stories260k"


@pytest.fixture
def stories() -> Path:
    if not STORIES.is_dir():
        pytest.skip("the pretrained model stories260k is not beside this checkout")
    return STORIES
