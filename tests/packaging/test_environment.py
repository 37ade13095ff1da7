"""The environment that the scripts make has what the tests' extra promises, in the versions of constraints.txt."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FAMILIES = (
    "LlamaForCausalLM, GPT2LMHeadModel, Qwen2ForCausalLM, Qwen3ForCausalLM, MistralForCausalLM, Gemma3ForCausalLM, "
    "Phi3ForCausalLM"
)


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", line) for line in pinned)  # no folder, host or build
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in pinned)}


def requirements() -> list[Requirement]:
    extras = PROJECT["project"]["optional-dependencies"]
    texts = [*PROJECT["project"]["dependencies"], *(text for extra in extras.values() for text in extra)]
    return [Requirement(text) for text in [*texts, *PROJECT["dependency-groups"]["crypten"]]]


@pytest.mark.parametrize("requirement", [r for r in requirements() if r.name != "mpcache"], ids=str)
def test_every_requirement_has_a_tested_version_that_meets_it(requirement: Requirement) -> None:
    assert requirement.specifier.contains(constraints()[canonicalize_name(requirement.name)])


def test_what_only_crypten_metadata_asks_for_is_not_among_them() -> None:
    assert not constraints().keys() & {"torchvision", "onnx", "pandas", "tensorboard", "sklearn", "scipy", "omegaconf"}


@pytest.mark.slow
def test_transformers_imports_every_family_that_is_a_reference() -> None:
    code = f"from transformers import {FAMILIES}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
