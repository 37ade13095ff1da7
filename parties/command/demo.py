"""All three processes on this machine: owner and dealer as processes of their own, the client before your eyes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from mpcache.demo import DEMO_MODEL, DEMO_PROMPT
from mpcache.files import write_json
from mpcache.generation.loop import Phase
from mpcache.generation.plan import phase_costs
from mpcache.generation.request import FULL, ClientRequest, GenerationRequest
from mpcache.inspection.watched import plain_twin
from mpcache.model.config_file import read_model_config
from mpcache.parties.command.report import run_generation, show_result
from mpcache.parties.data_owner import DataOwner, data_owner
from mpcache.parties.launcher import local_parties
from mpcache.parties.result import FullCache, Result
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
    if prompt is None:
        if model is not None:
            raise ConfigError("with --model, give --prompt-file as well")
        prompt = DEMO_PROMPT.read_text()
    asked = GenerationRequest(prompt_tokens=0, max_new_tokens=max_new_tokens, policy=policy, backend=backend)
    with local_parties(folder) as connection:
        me = data_owner(connection, folder, asked)
        request = me.request(prompt, fixed_length=fixed_length)
        public, tokenizer, ends = request.public, me.tokenizer, request.end_tokens
        shown = f"private prompt of {public.prompt_tokens} tokens, ending: ...{prompt[-160:]}"
        click.echo(shown, nl=not prompt.endswith("\n"))
        result = run_generation(lambda on_block: me.start(request, on_block), tokenizer, public)
        plain, ranges = plain_twin(folder, request.prompt, max_new_tokens, policy, ends)
        result = replace(result, plain_answer=tokenizer.decode(plain), ranges=ranges)
        if policy.name != FULL.name:
            wanted = replace(request, public=replace(public, policy=FULL, max_new_tokens=result.new_tokens))
            full = _full_cache(folder, me, wanted, compare)
            if full is not None:
                plain, ranges = plain_twin(folder, request.prompt, max_new_tokens, FULL, ends)
                full = replace(full, plain_answer=tokenizer.decode(plain), ranges=ranges)
            result = replace(result, full_cache=full)
    show_result(result)
    if json_path:
        write_json(json_path, result.to_dict(), "the result", private=True)
    return result


def _full_cache(folder: Path, me: DataOwner, request: ClientRequest, compare: bool) -> FullCache | None:
    """Measured or planned; None for CrypTen's plan, which is a dry run that takes as long as a real one."""
    if compare:
        return _measured_full(me, request)
    return _planned_full(folder, request.public) if request.public.backend == "mpc" else None


def _planned_full(folder: Path, request: GenerationRequest) -> FullCache:
    prefill, decode = phase_costs(read_model_config(folder), request)
    return FullCache(
        kind="planned", prefill=Phase(cost=prefill), decode=Phase(cost=decode), tokens=request.max_new_tokens
    )


def _measured_full(me: DataOwner, request: ClientRequest) -> FullCache:
    click.echo("and once more with a full cache ...", err=True)
    generation = me.start(request)
    for _ in generation:
        pass
    meter = generation.meter
    assert meter is not None
    return FullCache(kind="measured", prefill=meter.prefill, decode=meter.decode, tokens=meter.tokens)
