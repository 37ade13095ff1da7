from pathlib import Path

import pytest

from mpcache.parties.certificates import Identity, load_identity, write_development_certificates


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    write_development_certificates(folder)
    return folder


@pytest.fixture
def identities(certificates: Path) -> dict[str, Identity]:
    return {role: load_identity(certificates, role) for role in ("owner", "client", "dealer")}
