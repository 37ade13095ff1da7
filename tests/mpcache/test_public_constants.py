"""What both parties multiply shares by is the same on every machine, and compared before a secret moves."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mpcache.generation.plan import constants_digest, plan_digest
from mpcache.generation.request import FULL
from mpcache.model import rotary
from mpcache.policies import PolicySettings
from tests.mpcache.constants import LLAMA_7B, of_a_policy
from tests.mpcache.tampering import FACTORS, TABLES, Tamper
from tests.processors import processors

ROOT = Path(__file__).resolve().parents[2]


def fingerprints(environment: dict[str, str]) -> dict:
    command = [sys.executable, "-m", "tests.mpcache.constants"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=900, check=True
    )
    return json.loads(done.stdout)


def test_all_constants_are_the_same_on_every_processor() -> None:
    found = [fingerprints(environment) for environment in processors().values()]
    assert all(one["ours"] == found[0]["ours"] for one in found)
    kernels = {one["kernels"]: one["torch's"] for one in found}
    if "AVX2" in kernels:
        assert kernels["DEFAULT"] != kernels["AVX2"], "torch's kernels agree: this test would not see a difference"


def test_constants_are_those_of_any_other_machine() -> None:
    """LLaMA 7B's, at 2,048 positions: one right value each."""
    assert constants_digest(*LLAMA_7B) == "3bddebacf3762ad6cef9320286bf590eb441f822619fa9772ee3d8497022800e"


@pytest.mark.parametrize("tamper", TABLES.values(), ids=TABLES)
def test_a_changed_table_changes_both_digests(tamper: Tamper, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = of_a_policy(FULL, prompt_tokens=100)
    before = constants_digest(*asked), plan_digest(*asked)
    tamper(monkeypatch)
    after = constants_digest(*asked), plan_digest(*asked)
    assert before[0] != after[0] and before[1] != after[1]


@pytest.mark.parametrize(("settings", "tamper"), FACTORS.values(), ids=FACTORS)
def test_a_changed_factor_changes_the_plans_digest(
    settings: PolicySettings, tamper: Tamper, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = of_a_policy(settings)
    before = plan_digest(*asked)
    tamper(monkeypatch)
    assert plan_digest(*asked) != before


def test_every_position_of_a_generation_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those of the first block alone; and no position that it does not have."""
    model, request = LLAMA_7B
    asked = model, replace(request, prompt_tokens=300)
    original, before = rotary._chunk, constants_digest(*asked)
    for position, compared in ((315, True), (316, False)):

        def changed(theta: float, head_size: int, number: int, position: int = position) -> object:
            chunk = original(theta, head_size, number).clone()
            if number == position // rotary.CHUNK:
                chunk[1, position % rotary.CHUNK, 63] += 1
            return chunk

        monkeypatch.setattr(rotary, "_chunk", changed)
        assert (constants_digest(*asked) != before) == compared


def test_constants_depend_on_what_they_are_made_from() -> None:
    model, request = LLAMA_7B
    others = [replace(model, rope_theta=10001.0), replace(model, head_size=64), replace(model, family="gpt2")]
    digests = {constants_digest(one, request) for one in (model, *others)}
    assert len({*digests, constants_digest(model, replace(request, max_new_tokens=17))}) == 5
