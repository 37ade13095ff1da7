from pathlib import Path

import pytest
import torch

from mpcache.generation.loop import steps
from mpcache.generation.request import GenerationRequest
from mpcache.model.checkpoint import load_checkpoint, weight_shapes
from mpcache.model.decoder import Decoder
from mpcache.protocols.backends.mpc import MpcBackend, masked_weight
from mpcache.protocols.backends.plain import PlainBackend
from mpcache.protocols.local import run_parties
from mpcache.protocols.plan import PlanSession
from mpcache.protocols.randomness import new_key
from mpcache.protocols.session import Cost, Session
from tests.asking import asked
from tests.mpcache.models import save_random_model

MODELS = {
    "llama": ("llama", {}),
    "llama, tied, one key/value head": ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True, "rope_theta": 500.0, "head_dim": 16}),
    "gpt2": ("gpt2", {}),
    "gpt2, exact gelu": ("gpt2", {"activation_function": "gelu", "n_inner": 40}),
}
PROMPT = [5, 17, 90, 3, 3, 41, 77, 8, 60, 2, 33]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, torch.nn.Module]:
    family, changes = MODELS[request.param]
    return tmp_path, save_random_model(tmp_path, family, **changes)


@pytest.mark.parametrize("block", [4, 64])
def test_plain_logits_equal_transformers(model: tuple[Path, torch.nn.Module], block: int) -> None:
    folder, reference = model
    checkpoint = load_checkpoint(folder)
    backend = PlainBackend()
    decoder = Decoder(checkpoint.config, backend, checkpoint.tensors)
    tokens = list(PROMPT)
    for token in steps(decoder, asked(len(PROMPT), 6, prefill_block=block), PROMPT):
        with torch.no_grad():
            expected = reference(torch.tensor([tokens])).logits[0, -1]
        assert (backend.last_logits - expected).abs().max() < 1e-4
        assert token is not None
        tokens.append(token)


def run_privately(folder: Path, prompt: list[int], plan: GenerationRequest) -> tuple[list[int | None], Cost, list]:
    checkpoint, key = load_checkpoint(folder), new_key()
    masked = {n: masked_weight(key, n, checkpoint.tensors[n]) for n in weight_shapes(checkpoint.config)}

    def program(session: Session) -> tuple[list[int | None], Cost]:
        backend = MpcBackend(session, key if session.party == 0 else None, masked)
        decoder = Decoder(checkpoint.config, backend, checkpoint.tensors if session.party == 0 else None)
        return list(steps(decoder, plan, prompt if session.party == 1 else None)), session.cost

    (at_owner, cost), (at_client, _) = run_parties(program, weight_key=key)
    return at_client, cost, at_owner


def test_private_generation_equals_plaintext_and_its_plan(model: tuple[Path, torch.nn.Module]) -> None:
    folder, _ = model
    checkpoint = load_checkpoint(folder)
    plan = asked(len(PROMPT), 5, prefill_block=4)
    backend = PlainBackend()
    plain: list[int | None] = []
    margins = []
    for token in steps(Decoder(checkpoint.config, backend, checkpoint.tensors), plan, PROMPT):
        plain.append(token)
        best = backend.last_logits.topk(2).values  # type: ignore[union-attr]
        margins.append(float(best[0] - best[1]))
    assert min(margins) > 0.005, "the test's own model is too close to a tie"

    at_client, cost, at_owner = run_privately(folder, PROMPT, plan)
    assert at_client == plain
    assert at_owner == [None] * 5, "the owner must not learn a token"

    session = PlanSession()
    list(steps(Decoder(checkpoint.config, MpcBackend(session)), plan, None))
    assert session.plan.cost() == cost


def test_a_prompt_of_one_token(tmp_path: Path) -> None:
    save_random_model(tmp_path, "llama")
    checkpoint = load_checkpoint(tmp_path)
    plan = asked(1, 2)
    plain = list(steps(Decoder(checkpoint.config, PlainBackend(), checkpoint.tensors), plan, [7]))
    assert run_privately(tmp_path, [7], plan)[0] == plain


def test_sampling_is_private_and_follows_the_temperature(tmp_path: Path) -> None:
    save_random_model(tmp_path, "llama")
    plan = asked(3, 4, temperature=50.0)
    first, _, owner = run_privately(tmp_path, [7, 1, 2], plan)
    second, _, _ = run_privately(tmp_path, [7, 1, 2], plan)
    assert first != second
    assert owner == [None] * 4
