from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.servers import Servers, serving
from tests.mpcache.models import save_random_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_random_model(folder, "llama")
    return folder


@pytest.fixture(scope="module")
def servers(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with serving(model, tmp_path_factory.mktemp("servers")) as running:
        yield running
