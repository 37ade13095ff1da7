"""Commands that look before a private run, at a model's values, at costs and at policies. They tell no other party."""

from __future__ import annotations

from pathlib import Path

import click
import torch

from mpcache.demo import DEMO_MODEL, DEMO_PROMPT
from mpcache.files import write_json
from mpcache.generation.network import parse_network
from mpcache.generation.request import AUTOMATIC, GenerationRequest
from mpcache.inspection.inspect import inspect_model
from mpcache.model.shapes import model_shape
from mpcache.parties.command.inspect_report import show_inspection
from mpcache.parties.command.options import (
    chosen_policy,
    draft_options,
    policy_options,
    prefill_block_option,
    read_prompt,
    refuse_prompt,
)
from mpcache.parties.command.plan_report import plan_policies, show_plan
from mpcache.parties.command.report import prefill_bar
from mpcache.policies import PRESETS, available_policies, parse_policies, policy_settings, spelled
from mpcache.protocols.errors import ModelError


@click.command()
@click.argument("model", type=click.Path(path_type=Path), required=False)
@click.option("--prompt", hidden=True, expose_value=False, callback=refuse_prompt)
@click.option(
    "--prompt-file",
    type=click.Path(path_type=Path),
    help="File with a prompt, or - for standard input. A newline at its end is left out. Default: the demo model's day "
    "sheet, or random tokens for another model.",
)
@policy_options
@click.option(
    "--max-new-tokens", type=click.IntRange(1), default=16, show_default=True, help="How many tokens to generate."
)
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), help="Write all values as JSON, readable by you alone."
)
def inspect(
    model: Path | None,
    prompt_file: Path | None,
    policy: str | None,
    budget: float | None,
    max_new_tokens: int,
    json_path: Path | None,
) -> None:
    """Check whether a model's values fit a private computation.

    MODEL is a folder (default: the demo model). The command looks at the weights, and runs the model in plaintext. It
    runs here alone and tells nobody. It ends with 1 if a bound was passed, or is certain to be.
    """

    torch.set_num_threads(1)
    folder = model or DEMO_MODEL
    if prompt_file is None and folder.resolve() == DEMO_MODEL.resolve():
        prompt: str | None = DEMO_PROMPT.read_text()
    else:
        prompt = None if prompt_file is None else read_prompt(prompt_file)
    chosen = chosen_policy(policy_settings(), policy, budget)
    with prefill_bar() as (_, on_block):
        inspection = inspect_model(folder, prompt, chosen, max_new_tokens, on_block)
    show_inspection(inspection)
    if json_path is not None:
        write_json(json_path, inspection.to_dict(), "the inspection", private=True)
    failure = inspection.failure()
    if failure is not None:
        raise ModelError(failure)
    click.echo(inspection.measured.lines()[0])


@click.command("policies")
def list_policies() -> None:
    """List the cache policies, with settings and costs.

    MPC cost is what a policy adds to attention to the tokens that it keeps.
    """
    for name, policy in available_policies().items():
        click.echo(f"{name:10} {policy.summary}\n{'':10} MPC cost: {policy.mpc_cost}")
        click.echo(f"{'':10} default: {spelled(policy_settings(name))}")
    click.echo("\nPresets, written where a policy's name is:")
    for name, preset in PRESETS.items():
        click.echo(f"{name:13}  {preset.summary}\n{'':13}  {preset.policy}")


@click.command()
@click.option("--shape", default="gpt2", show_default=True, help="gpt2, gpt2-medium, llama-7b, or a model folder.")
@click.option("--model", type=click.Path(path_type=Path), help="Model folder, in place of --shape.")
@click.option(
    "--tokens", type=click.IntRange(1), default=512, show_default=True, help="How many tokens the prompt has."
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="How many tokens to generate at most.",
)
@click.option(
    "--policy",
    default="full",
    show_default=True,
    help="Policies, joined by commas, or 'all'. Settings follow a name: mpcache:keep_ratio=1.",
)
@click.option("--network", default="loopback", show_default=True, help="loopback, lan, wan, or e.g. 5ms,100mbit.")
@prefill_block_option
@click.option(
    "--batch", type=click.IntRange(1), default=1, show_default=True, help="How many such prompts share their rounds."
)
@draft_options
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the plan as JSON.")
def plan(
    shape: str,
    model: Path | None,
    tokens: int,
    max_new_tokens: int,
    policy: str,
    network: str,
    prefill_block: int | None,
    batch: int,
    draft: int | None,
    max_passes: int | None,
    json_path: Path | None,
) -> None:
    """Plan what a private generation will take.

    Nothing runs. Bytes and rounds are exact, seconds are estimates. A model of any size is planned within seconds. The
    first new token comes with the prefill. With --draft, a pass gives between 1 and 1 + DRAFT tokens: which texts give
    how many, see `mpcache bench drafts`.
    """

    request = GenerationRequest(
        prompt_tokens=tokens,
        max_new_tokens=max_new_tokens,
        network=network,
        prefill_block=prefill_block or AUTOMATIC,
        draft=draft or 0,
        max_passes=max_passes or 0,
    )
    where, policies = parse_network(network), [(p.label, p.settings) for p in parse_policies(policy)]
    records = plan_policies(model_shape(model or shape, positions=request.tokens), request, policies, batch)
    show_plan(records, where)
    if json_path is not None:
        write_json(json_path, records, "the plan")
