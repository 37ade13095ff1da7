"""Answers by cache policy, in the clear: `pytest benchmarks/timings/test_quality.py`. The exact match goes along."""

from typing import Any

import pytest

from mpcache.benchmarks.cases.ablations import compared_policies
from mpcache.benchmarks.cases.scoring import PLACEMENTS, score
from mpcache.benchmarks.cases.tasks import TASKS
from mpcache.demo import DEMO_MODEL
from mpcache.model.checkpoint import load_checkpoint
from mpcache.model.decoder import Decoder
from mpcache.model.tokenizer import load_tokenizer
from mpcache.policies import available_policies
from mpcache.protocols.backends.plain import PlainBackend

CHECKPOINT, TOKENIZER = load_checkpoint(DEMO_MODEL), load_tokenizer(DEMO_MODEL)
DOCUMENTS = [TASKS["day-sheet"].generate(TOKENIZER, 512, seed) for seed in range(5)]


@pytest.mark.parametrize("policy", available_policies())
def test_quality(benchmark: Any, policy: str) -> None:
    decoder = Decoder(CHECKPOINT.config, PlainBackend(), CHECKPOINT.tensors)
    (named,) = compared_policies(policy)
    results = benchmark.pedantic(score, args=(decoder, DOCUMENTS, {policy: named.settings}), rounds=1)
    benchmark.extra_info.update({placement: results[policy, placement].exact_match for placement in PLACEMENTS})
