"""Commands that ask a private question, with parties elsewhere or with three processes on this machine."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
import torch

from mpcache.files import write_json
from mpcache.generation.batch import MOST_PROMPTS
from mpcache.parties.command.demo import run_demo
from mpcache.parties.command.options import (
    Extended,
    backend,
    chosen_policy,
    config,
    draft_options,
    insecure,
    policy_options,
    prefill_block_option,
    prompt_options,
    read_prompt,
)
from mpcache.parties.command.prompts import answer_all, batches_to_dict, read_prompts, show_batches
from mpcache.parties.command.report import bytes_bar, run_generation, show_result
from mpcache.parties.data_owner import data_owner_of
from mpcache.parties.settings import ClientSettings, load_settings
from mpcache.policies import policy_settings
from mpcache.protocols.errors import ConfigError

temperature_option = click.option(
    "--temperature",
    type=click.FloatRange(0, 100),
    help="0 takes the likeliest token. Above 0, tokens are sampled privately.",
)
network_option = click.option(
    "--network", help="Network that protocols are chosen for: loopback, lan, wan, or e.g. 5ms,100mbit."
)


@click.command()
@config
@insecure
@policy_options
@backend
@click.option("--prompt-tokens", type=click.IntRange(1), required=True, help="How many tokens the prompts will have.")
@click.option("--max-new-tokens", type=click.IntRange(1), help="How many tokens the answers will have at most.")
@click.option("--sessions", type=click.IntRange(1), default=1, show_default=True, help="How many to prepare.")
@temperature_option
@network_option
@prefill_block_option
@draft_options
def prepare(
    path: Path,
    insecure: bool,
    policy: str | None,
    budget: float | None,
    backend: str,
    prompt_tokens: int,
    max_new_tokens: int | None,
    sessions: int,
    temperature: float | None,
    network: str | None,
    prefill_block: int | None,
    draft: int | None,
    max_passes: int | None,
) -> None:
    """Prepare sessions ahead of time; no prompt is needed yet.

    The dealer makes their corrections and keeps them on disk. A later `mpcache client` whose prompt has exactly so many
    tokens, and whose other settings are the same, uses one of them. Each is used once.
    """
    torch.set_num_threads(1)
    settings = load_settings(path, ClientSettings)
    me = data_owner_of(settings, insecure)
    facts = replace(
        me.defaults.public,
        prompt_tokens=prompt_tokens,
        max_new_tokens=max_new_tokens or settings.max_new_tokens,
        temperature=settings.temperature if temperature is None else temperature,
        policy=chosen_policy(settings.policy, policy, budget),
        backend=backend,
        network=network or settings.network,
        prefill_block=settings.prefill_block if prefill_block is None else prefill_block,
        draft=settings.draft if draft is None else draft,
        max_passes=settings.max_passes if max_passes is None else max_passes,
    )
    facts.check_values()
    for i in range(sessions):
        with bytes_bar(f"session {i + 1} of {sessions}") as hear:
            session, nbytes = me.prepare(facts, hear)
        click.echo(f"prepared {session.hex()[:8]}: {nbytes / 1e6:,.2f} MB on the dealer's disk")
    what = "session is" if sessions == 1 else "sessions are"
    click.echo(
        f"{sessions} {what} ready for prompts of {prompt_tokens} tokens, {facts.max_new_tokens} new ones at most, "
        f"policy {facts.policy.name}: run `mpcache client` with the same settings"
    )


@click.command(cls=Extended, further={"prepare": prepare})
@config
@insecure
@prompt_options
@policy_options
@backend
@temperature_option
@network_option
@prefill_block_option
@click.option(
    "--prompts",
    "prompts_file",
    type=click.Path(path_type=Path),
    help='File of private prompts, one a line, or in a .jsonl file one "prompt" of a JSON object a line. They are '
    "answered in batches, whose prompts share their rounds.",
)
@click.option(
    "--batch",
    type=click.IntRange(1),
    help=f"How many of --prompts share their rounds at most: {MOST_PROMPTS}, or so many. Each takes a session's room.",
)
@draft_options
def client(
    path: Path,
    insecure: bool,
    prompt_file: Path | None,
    max_new_tokens: int | None,
    fixed_length: bool,
    json_path: Path | None,
    policy: str | None,
    budget: float | None,
    backend: str,
    temperature: float | None,
    network: str | None,
    prefill_block: int | None,
    prompts_file: Path | None,
    batch: int | None,
    draft: int | None,
    max_passes: int | None,
) -> None:
    """Generate from a private prompt, or from many, as the data owner.

    The prompt comes from a file or from standard input; many come from --prompts.
    """
    torch.set_num_threads(1)
    settings = load_settings(path, ClientSettings)
    if prompts_file is not None and prompt_file is not None:
        raise ConfigError("--prompt-file names one prompt and --prompts many: give one of them")
    if batch is not None and prompts_file is None:
        raise ConfigError("--batch is for the prompts of --prompts: name their file, or leave it out")
    if prompts_file is None and prompt_file is None and sys.stdin.isatty():
        click.echo("Type the prompt, then Ctrl-D:", err=True)
    texts = [read_prompt(prompt_file or Path("-"))] if prompts_file is None else read_prompts(prompts_file)
    me = data_owner_of(settings, insecure)
    request = partial(
        me.request,
        fixed_length=fixed_length or settings.fixed_length,
        max_new_tokens=max_new_tokens or settings.max_new_tokens,
        temperature=settings.temperature if temperature is None else temperature,
        policy=chosen_policy(settings.policy, policy, budget),
        backend=backend,
        network=network or settings.network,
        prefill_block=settings.prefill_block if prefill_block is None else prefill_block,
        draft=settings.draft if draft is None else draft,
        max_passes=settings.max_passes if max_passes is None else max_passes,
    )
    requests = [request(text) for text in texts]
    requests[0].public.check_values()
    if prompts_file is not None:
        results = answer_all(me, requests, batch or MOST_PROMPTS)
        show_batches(results)
        written = batches_to_dict(results)
    else:
        result = run_generation(lambda on_block: me.start(requests[0], on_block), me.tokenizer, requests[0].public)
        show_result(result)
        written = result.to_dict()
    if json_path:
        write_json(json_path, written, "the result", private=True)


@click.command()
@prompt_options
@policy_options
@click.option("--model", type=click.Path(path_type=Path), help="Model folder. Default: the demo model.")
@backend
@click.option("--compare", is_flag=True, help="Also run the full cache privately, and measure it instead of planning.")
def demo(
    prompt_file: Path | None,
    max_new_tokens: int | None,
    fixed_length: bool,
    json_path: Path | None,
    policy: str | None,
    budget: float | None,
    model: Path | None,
    backend: str,
    compare: bool,
) -> None:
    """Answer a private question on this machine.

    Starts all three processes: owner, client and dealer. Shows what the answer cost, and beside it what the full cache
    would have cost: planned to the byte, or measured with --compare.
    """

    torch.set_num_threads(1)
    text = None if prompt_file is None else read_prompt(prompt_file)
    chosen = chosen_policy(policy_settings(), policy, budget)
    run_demo(text, max_new_tokens or 16, model, json_path, chosen, backend, compare, fixed_length)
