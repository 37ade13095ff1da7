"""`python -m tests.mpcache.constants`: fingerprints of all public constants, as this process computes them, in JSON."""

import hashlib
import json

import torch

from mpcache.demo import DEMO_MODEL
from mpcache.generation.plan import constants_digest, plan_digest
from mpcache.generation.request import GenerationRequest
from mpcache.model.config import ModelConfig
from mpcache.model.config_file import read_model_config
from mpcache.model.shapes import model_shape
from mpcache.policies import PolicySettings, available_policies
from mpcache.protocols.ring import encode
from tests.asking import asked
from tests.mpcache.policies.matrix import small

DEMO = read_model_config(DEMO_MODEL)
LLAMA_7B = model_shape("llama-7b"), asked(2032, 16)


def of_a_policy(settings: PolicySettings, prompt_tokens: int = 32) -> tuple[ModelConfig, GenerationRequest]:
    return model_shape("tiny"), asked(prompt_tokens, 2, policy=settings)


def fingerprints() -> dict[str, str]:
    """Tables of models, and plans of every policy, which have its factors."""
    settings = {name: small(name) for name in available_policies()}
    settings["mpcache, extremes"] = small("mpcache", representative="extremes")
    return {
        "LLaMA 7B's tables": constants_digest(*LLAMA_7B),
        "GPT-2's tables": constants_digest(model_shape("gpt2"), asked(1000, 24)),
        "the demo's tables": constants_digest(DEMO, asked(512, 16)),
        **{name: plan_digest(*of_a_policy(one)) for name, one in settings.items()},
    }


def by_torchs_kernels() -> str:
    """Of LLaMA 7B's rotary tables as torch's own kernels give them, on this processor."""
    exponents = -torch.arange(0, 128, 2).float() / 128
    angles = torch.outer(torch.arange(2048).float(), 10000.0**exponents)
    return hashlib.sha256(torch.stack([encode(angles.cos()), encode(angles.sin())]).numpy().tobytes()).hexdigest()


if __name__ == "__main__":
    kernels = torch.backends.cpu.get_cpu_capability()
    print(json.dumps({"kernels": kernels, "torch's": by_torchs_kernels(), "ours": fingerprints()}))
