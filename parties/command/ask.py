"""Commands that ask a private question, with parties elsewhere or with three processes on this machine."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import click
import torch

from mpcache.files import write_json
from mpcache.parties.command.demo import run_demo
from mpcache.parties.command.options import (
    Extended,
    backend,
    chosen_policy,
    config,
    draft_options,
    insecure,
    policy_options,
    prompt_options,
    read_prompt,
)
from mpcache.parties.command.report import bytes_bar, run_generation, show_result
from mpcache.parties.data_owner import data_owner_of
from mpcache.parties.settings import ClientSettings, load_settings
from mpcache.policies import policy_settings

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
    draft: int | None,
    max_passes: int | None,
) -> None:
    """Generate from a private prompt, as the data owner.

    The prompt comes from a file or from standard input.
    """
    torch.set_num_threads(1)
    settings = load_settings(path, ClientSettings)
    if prompt_file is None and sys.stdin.isatty():
        click.echo("Type the prompt, then Ctrl-D:", err=True)
    me = data_owner_of(settings, insecure)
    request = me.request(
        read_prompt(prompt_file or Path("-")),
        fixed_length=fixed_length or settings.fixed_length,
        max_new_tokens=max_new_tokens or settings.max_new_tokens,
        temperature=settings.temperature if temperature is None else temperature,
        policy=chosen_policy(settings.policy, policy, budget),
        backend=backend,
        network=network or settings.network,
        draft=settings.draft if draft is None else draft,
        max_passes=settings.max_passes if max_passes is None else max_passes,
    )
    request.public.check_values()
    result = run_generation(lambda on_block: me.start(request, on_block), me.tokenizer, request.public)
    show_result(result)
    if json_path:
        write_json(json_path, result.to_dict(), "the result", private=True)


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
