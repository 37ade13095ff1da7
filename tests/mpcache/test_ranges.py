"""Models whose values leave their bounds: refused by their weights where that is certain, else named, and seen by the
plaintext twin. Each was silent garbage once: right in plaintext, wrong privately."""

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mpcache.benchmarks.measure.model import random_checkpoint
from mpcache.demo import DEMO_MODEL
from mpcache.inspection import bounds
from mpcache.inspection.bounds import Bound, Sizes
from mpcache.inspection.implied import check_ranges, implied_ranges
from mpcache.inspection.watched import watched_answer
from mpcache.model.checkpoint import Checkpoint, load_checkpoint
from mpcache.model.shapes import model_shape
from mpcache.policies import available_policies
from mpcache.protocols.errors import ModelError
from tests.asking import asked
from tests.mpcache.models import save_random_model
from tests.mpcache.policies.matrix import fitting
from tests.mpcache.policies.private import LOGIT_ERROR, generate_plain, generate_privately

PROMPT = [5, 17, 90, 3, 3, 41, 77, 8, 60, 2, 33]
PLAN = asked(len(PROMPT), 5)
Change = Callable[[dict[str, torch.Tensor]], None]


def changed(folder: Path, change: Change) -> Checkpoint:
    """The model of a folder, with changed weights."""
    other = folder / "changed"
    other.mkdir(exist_ok=True)
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    change(tensors)
    shutil.copy(folder / "config.json", other)
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    return load_checkpoint(other)


def size_at(sizes: Sizes, bound: Bound, layer: int | None) -> float:
    (size,) = [r.size for r in sizes.readings() if (r.bound, r.layer) == (bound, layer)]
    return size


@dataclass(frozen=True)
class Scaled:
    """Weights that are scaled, together, until a place holds values of a size on the test's prompt."""

    bound: Bound
    layer: int | None
    size: float
    weights: tuple[str, ...]
    family: str = "llama"
    settings: Mapping[str, object] = field(default_factory=dict)

    @property
    def place(self) -> str:
        return bounds.Reading(self.bound, self.layer, self.size).place

    def checkpoint(self, folder: Path, size: float) -> Checkpoint:
        if not (folder / "config.json").exists():
            save_random_model(folder, self.family, **self.settings)
        factor = 1.0
        for _ in range(4):  # the place also holds what is not scaled
            at_hand = changed(folder, self._scale(factor))
            factor *= (size / size_at(watched_answer(at_hand, PLAN, PROMPT)[1], self.bound, self.layer)) ** (
                1 / len(self.weights)
            )
        return changed(folder, self._scale(factor))

    def _scale(self, factor: float) -> Change:
        def change(tensors: dict[str, torch.Tensor]) -> None:
            for name in self.weights:
                tensors[name] *= factor

        return change


LAYER = "model.layers.1."
CASES = {
    "a residual stream of 54,788": Scaled(
        bounds.STREAM, 1, 54_788, ("model.layers.0.mlp.down_proj.weight",), settings={"hidden_size": 128}
    ),
    "queries and keys of 222": Scaled(
        bounds.SCORE, 1, 222**2, (f"{LAYER}self_attn.q_proj.weight", f"{LAYER}self_attn.k_proj.weight")
    ),
    "logits 4,156 apart": Scaled(bounds.LOGITS, None, 4_156, ("lm_head.weight",)),
    "attention's output past 1,024": Scaled(bounds.ATTENTION, 1, 1_100, (f"{LAYER}self_attn.v_proj.weight",)),
    "SiLU's input past 4,080": Scaled(bounds.ACTIVATION, 1, 4_300, (f"{LAYER}mlp.gate_proj.weight",)),
    "gate times up past 16,384": Scaled(
        bounds.GATED, 1, 17_000, (f"{LAYER}mlp.gate_proj.weight", f"{LAYER}mlp.up_proj.weight")
    ),
    "GELU's input past 4,080": Scaled(bounds.ACTIVATION, 1, 4_300, ("transformer.h.1.mlp.c_fc.weight",), "gpt2"),
    "a GPT-2 residual stream past 32,768": Scaled(
        bounds.STREAM, 1, 40_000, ("transformer.h.0.mlp.c_proj.weight",), "gpt2"
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_model_that_leaves_its_bounds_is_refused_and_its_twin_says_where(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    checkpoint = case.checkpoint(tmp_path, case.size)
    certain = implied_ranges(checkpoint).certain
    assert case.place in [reading.place for reading in certain]
    with pytest.raises(ModelError, match=re.escape(str(certain[0])) + ".* take a checkpoint whose values are smaller"):
        check_ranges(checkpoint)
    told = watched_answer(checkpoint, PLAN, PROMPT)[1].lines()
    expected = f"{case.place}: {case.size:,}, beyond {case.bound.limit:,.0f}: the private answer is not to be trusted"
    assert expected in told


@pytest.mark.parametrize("name", list(CASES)[:3])
def test_within_its_bounds_it_answers_as_in_plaintext_and_beyond_it_does_not(name: str, tmp_path: Path) -> None:
    case, plan = CASES[name], asked(len(PROMPT), 3)
    for size, right in ((0.6 * case.bound.limit, True), (max(case.size, 1.9 * case.bound.limit), False)):
        checkpoint = case.checkpoint(tmp_path, size)
        plain = generate_plain(checkpoint, plan, PROMPT)
        assert min(plain.margins) > LOGIT_ERROR, "the test's own model is too close to a tie"
        sizes = watched_answer(checkpoint, plan, PROMPT)[1]
        assert (sizes.passed() == []) is right and bool(implied_ranges(checkpoint).certain) is not right
        private = generate_privately(checkpoint, plan, PROMPT, record=False)
        assert (private.tokens == plain.tokens) is right


def set_to(name: str, value: float, *index: int) -> Change:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name][index or ...] = value

    return change


@pytest.mark.parametrize(
    ("family", "settings", "change", "message"),
    [
        ("llama", {}, set_to("model.embed_tokens.weight", 51_686, 7, 3), "embedding's element: 51,686, beyond 16,384"),
        ("llama", {}, set_to("model.embed_tokens.weight", 9_000, 7), "layer 0, residual stream: 50,912, beyond 32,768"),
        ("llama", {}, set_to(f"{LAYER}input_layernorm.weight", 950), r"layer 1, score beside masked ones"),
        ("llama", {}, set_to(f"{LAYER}mlp.up_proj.weight", 2e9, 0, 0), r"layer 1, weight: .*, beyond 1,073,741,824"),
        ("llama", {}, set_to("model.norm.weight", 3e38), r"weight: .*e\+3\d, beyond 1,073,741,824"),
        ("llama", {"attention_bias": True}, set_to(f"{LAYER}self_attn.v_proj.bias", 1_500), "layer 1, attention's out"),
        ("gpt2", {}, set_to("transformer.h.1.attn.c_attn.bias", 20_000), "layer 1, queries, keys and values: 20,00"),
        ("gpt2", {}, set_to("transformer.wpe.weight", 40_000, 100, 5), "embedding's element: 38,750, beyond 16,384"),
    ],
)
def test_a_weight_that_no_prompt_can_make_good_is_refused(
    family: str, settings: dict, change: Change, message: str, tmp_path: Path
) -> None:
    save_random_model(tmp_path, family, **settings)
    with pytest.raises(ModelError, match=message):
        check_ranges(changed(tmp_path, change))


def test_what_depends_on_the_prompt_s_length_is_named_and_seen(tmp_path: Path) -> None:
    """3,000 equal scores and values of 950: their sum leaves its ring before it is divided."""
    save_random_model(tmp_path, "llama", max_position_embeddings=4096, num_hidden_layers=1)

    def with_values(factor: float) -> Change:
        def change(tensors: dict[str, torch.Tensor]) -> None:
            tensors["model.layers.0.self_attn.q_proj.weight"].zero_()
            tensors["model.layers.0.self_attn.v_proj.weight"] *= factor

        return change

    def attention(checkpoint: Checkpoint, token: int) -> float:
        return size_at(watched_answer(checkpoint, asked(1, 1), [token])[1], bounds.ATTENTION, 0)

    small = changed(tmp_path, with_values(1.0))
    largest = max(range(96), key=lambda token: attention(small, token))
    checkpoint = changed(tmp_path, with_values(950 / attention(small, largest)))
    assert (bounds.WEIGHTED, 0) in [(r.bound, r.layer) for r in check_ranges(checkpoint)]
    for tokens, passed in ((2_000, []), (3_000, ["layer 0, exponentials times values"])):
        _, sizes = watched_answer(checkpoint, asked(tokens, 1), [largest] * tokens)
        assert [reading.place for reading in sizes.passed()] == passed


def test_what_norms_allow_is_never_less_than_what_a_prompt_does(tmp_path: Path) -> None:
    """Whatever a twin sees passed was named before, as certain or as not excluded."""
    for name, case in CASES.items():
        folder = tmp_path / name
        folder.mkdir()
        checkpoint = case.checkpoint(folder, case.size)
        implied = implied_ranges(checkpoint)
        named = {(r.bound, r.layer) for r in implied.certain + implied.possible}
        assert {(r.bound, r.layer) for r in watched_answer(checkpoint, PLAN, PROMPT)[1].passed()} <= named


@pytest.mark.parametrize("policy", available_policies())
def test_watching_changes_no_answer_under_any_policy(policy: str, tmp_path: Path) -> None:
    save_random_model(tmp_path, "llama")
    checkpoint, prompt = load_checkpoint(tmp_path), PROMPT * 5
    settings = fitting(
        policy,
        budget=20,
        sinks=2,
        recent=4,
        page=4,
        window=4,
        representatives=2,
        cluster=1,
        called=1,
        only_if_cheaper=False,
        evict_if_cheap=False,
    )
    plan = asked(len(prompt), 4, policy=settings)
    tokens, sizes = watched_answer(checkpoint, plan, prompt)
    assert tokens == generate_plain(checkpoint, plan, prompt).tokens
    assert sizes.passed() == []
    seen = {reading.bound for reading in sizes.readings()}
    assert seen >= {b for b in bounds.BOUNDS[: bounds.BOUNDS.index(bounds.LOGITS) + 1]}
    expected = {
        "mpcache": {bounds.RECEIVED, bounds.SELECTION, bounds.SCALED},
        "h2o": {bounds.RECEIVED},
        "tova": {bounds.RECEIVED},
        "snapkv": {bounds.RECEIVED},
        "keydiff": {bounds.RECEIVED, bounds.SCALED, bounds.POLICY_PRODUCT},
        "quest": {bounds.SELECTION, bounds.EXTREME, bounds.POLICY_PRODUCT},
        "infllm": {bounds.SELECTION, bounds.SCALED, bounds.POLICY_PRODUCT},
        "recall": {bounds.SELECTION, bounds.SCALED},
    }
    assert seen - set(bounds.BOUNDS[: bounds.BOUNDS.index(bounds.LOGITS) + 1]) == expected.get(policy, set())


def test_trained_models_and_the_benchmarks_random_ones_are_not_refused(stories: Path) -> None:
    shape = replace(model_shape("llama-7b"), layers=4, hidden=512, intermediate=1024, heads=4, key_value_heads=4)
    for checkpoint in (load_checkpoint(DEMO_MODEL), load_checkpoint(stories), random_checkpoint(shape)):
        check_ranges(checkpoint)
