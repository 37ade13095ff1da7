"""What an owner says of its model before it serves."""

import logging
from pathlib import Path

import pytest

from mpcache.parties.owner import OwnerServer
from mpcache.parties.settings import OwnerSettings
from mpcache.protocols.errors import ModelError
from tests.mpcache.models import save_random_model
from tests.mpcache.test_ranges import changed, set_to


def started(model: Path) -> None:
    OwnerServer(OwnerSettings("127.0.0.1:0", "127.0.0.1:1", model), None).stop()


def test_a_model_whose_answers_are_certain_to_be_wrong_is_not_served(tmp_path: Path) -> None:
    save_random_model(tmp_path, "llama")
    changed(tmp_path, set_to("model.layers.1.input_layernorm.weight", 950))
    with pytest.raises(ModelError, match="cannot be run privately: layer 1, score"):
        started(tmp_path / "changed")


def test_how_much_its_weights_do_not_exclude_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Values whose sum leaves its ring only after a long prompt."""
    save_random_model(tmp_path, "llama", max_position_embeddings=1 << 24)
    with caplog.at_level(logging.INFO):
        started(tmp_path)
    assert "do not exclude that values leave their range at 2 places: see mpcache inspect" in caplog.text
