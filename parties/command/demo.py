"""All three processes on this machine: owner and dealer as processes of their own, the client before your eyes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from mpcache.demo import DEMO_MODEL, DEMO_PROMPT
from mpcache.generation.loop import FULL, Phase
from mpcache.generation.plan import PublicParameters, phase_costs
from mpcache.inspection.watched import plain_twin
from mpcache.model.config_file import read_model_config
from mpcache.model.tokenizer import end_tokens, load_tokenizer, vocabulary_size
from mpcache.parties.client import Connection, Generation, Request
from mpcache.parties.command.report import FullCache, Result, run_generation
from mpcache.parties.launcher import local_parties
from mpcache.parties.settings import DEFAULT_POLICY
from mpcache.policies import PolicySettings
from mpcache.protocols.errors import ConfigError


def run_demo(
    prompt: str | None,
    max_new_tokens: int,
    model: Path | None,
    json_path: Path | None,
    policy: PolicySettings = DEFAULT_POLICY,
    backend: str = "mpc",
    compare: bool = False,
    fixed_length: bool = False,
) -> Result:
    """Answer privately, then in plaintext, and print both with their costs and those of a full cache.

    compare: run the full cache privately as well, instead of planning what it would take.
    """
    folder = model or DEMO_MODEL
    tokenizer = load_tokenizer(folder)
    if prompt is None:
        if model is not None:
            raise ConfigError("with --model, give --prompt-file as well")
        prompt = DEMO_PROMPT.read_text()
    ids = tokenizer.encode(prompt).ids
    if not ids:
        raise ConfigError("the prompt is empty")
    click.echo(f"private prompt of {len(ids)} tokens, ending: ...{prompt[-160:]}", nl=not prompt.endswith("\n"))
    ends = end_tokens(folder, tokenizer)
    with local_parties(folder) as connection:
        request = Request(
            ids,
            max_new_tokens,
            policy=policy,
            backend=backend,
            end_tokens=ends,
            fixed_length=fixed_length,
            vocabulary=vocabulary_size(tokenizer),
        )
        result = run_generation(lambda on_block: Generation(connection, request, on_block), tokenizer, len(ids))
        result.backend, result.policy = backend, policy
        plain, result.ranges = plain_twin(folder, ids, max_new_tokens, policy, ends)
        result.plain_answer = tokenizer.decode(plain)
        if policy.name != FULL.name:
            request = replace(request, policy=FULL, max_new_tokens=result.new_tokens)
            if compare:
                result.full_cache = _measured_full(connection, request)
            elif backend == "mpc":  # CrypTen is planned by a dry run, which takes as long as a real one
                result.full_cache = _planned_full(folder, request)
            if result.full_cache is not None:
                plain, result.full_cache.ranges = plain_twin(folder, ids, max_new_tokens, FULL, ends)
                result.full_cache.plain_answer = tokenizer.decode(plain)
    result.show()
    if json_path:
        result.write(json_path)
    return result


def _planned_full(folder: Path, request: Request) -> FullCache:
    parameters = PublicParameters(
        read_model_config(folder), len(request.prompt), request.max_new_tokens, backend=request.backend
    )
    prefill, decode = phase_costs(parameters)
    return FullCache("planned", Phase(cost=prefill), Phase(cost=decode), request.max_new_tokens)


def _measured_full(connection: Connection, request: Request) -> FullCache:
    click.echo("and once more with a full cache ...", err=True)
    generation = Generation(connection, request)
    for _ in generation:
        pass
    assert generation.meter is not None
    return FullCache("measured", generation.meter.prefill, generation.meter.decode, generation.meter.tokens)
