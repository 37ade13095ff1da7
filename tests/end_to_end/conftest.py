from collections.abc import Iterator
from pathlib import Path

import pytest

from mpcache.parties.client import Connection
from mpcache.parties.launcher import local_parties
from tests.mpcache.models import save_random_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_random_model(folder, "llama")
    return folder


@pytest.fixture(scope="module")
def connection(model: Path) -> Iterator[Connection]:
    """Owner and dealer of a small random model, as processes of their own, over mutual TLS."""
    with local_parties(model) as where:
        yield where
