"""Commands that look before a private run: at a model's values, at costs, at policies. No other party hears of it."""

from __future__ import annotations

from pathlib import Path

import click
import torch

from mpcache.demo import DEMO_MODEL, DEMO_PROMPT
from mpcache.files import write_json
from mpcache.generation.network import parse_network
from mpcache.generation.request import GenerationRequest
from mpcache.inspection.inspect import inspect_model
from mpcache.model.shapes import model_shape
from mpcache.parties.command.inspect_report import show_inspection
from mpcache.parties.command.options import chosen_policy, policy_options, read_prompt, refuse_prompt
from mpcache.parties.command.plan_report import plan_policies, show_plan
from mpcache.parties.command.report import prefill_bar
from mpcache.policies import available_policies, parse_policies, policy_settings, spelled
from mpcache.protocols.errors import ModelError


@click.command()
@click.argument("model", type=click.Path(path_type=Path), required=False)
@click.option("--prompt", hidden=True, expose_value=False, callback=refuse_prompt)
@click.option(
    "--prompt-file",
    type=click.Path(path_type=Path),
    help="File with a prompt, or - for standard input; a newline at its end is left out. Default: random tokens, or "
    "the demo model's day sheet.",
)
@policy_options
@click.option("--max-new-tokens", type=click.IntRange(1), default=16, show_default=True, help="Tokens to generate.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write all of it as JSON, for you alone.")
def inspect(
    model: Path | None,
    prompt_file: Path | None,
    policy: str | None,
    budget: float | None,
    max_new_tokens: int,
    json_path: Path | None,
) -> None:
    """Whether a model's values fit a private computation: by its weights, and by a run in plaintext.

    MODEL is a folder (default: the demo model). Runs here alone and tells nobody. Ends with 1 if a bound was passed, or
    is certain to be.
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
    """List the KV cache policies: what each costs beyond attention to the tokens that it leaves, and its settings."""
    for name, policy in available_policies().items():
        click.echo(f"{name:10} {policy.summary}\n{'':10} MPC cost: {policy.mpc_cost}")
        click.echo(f"{'':10} default: {spelled(policy_settings(name))}")


@click.command()
@click.option("--shape", default="gpt2", show_default=True, help="gpt2, gpt2-medium, llama-7b, or a model folder.")
@click.option("--model", type=click.Path(path_type=Path), help="A model folder, for --shape.")
@click.option("--tokens", type=click.IntRange(1), default=512, show_default=True, help="Prompt tokens.")
@click.option("--max-new-tokens", type=click.IntRange(1), default=16, show_default=True)
@click.option(
    "--policy",
    default="full",
    show_default=True,
    help="Policies, joined by commas, or 'all'; with settings: mpcache:keep_ratio=1.",
)
@click.option("--network", default="loopback", show_default=True, help="loopback, lan, wan or e.g. 5ms,100mbit.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the plan as JSON.")
def plan(
    shape: str,
    model: Path | None,
    tokens: int,
    max_new_tokens: int,
    policy: str,
    network: str,
    json_path: Path | None,
) -> None:
    """What a private generation will take, to the byte, without running it; its seconds are estimated.

    A model of any size is planned within seconds. The first new token comes with the prefill.
    """

    request = GenerationRequest(prompt_tokens=tokens, max_new_tokens=max_new_tokens, network=network)
    where, policies = parse_network(network), [(p.label, p.settings) for p in parse_policies(policy)]
    records = plan_policies(model_shape(model or shape, positions=request.tokens), request, policies)
    show_plan(records, where)
    if json_path is not None:
        write_json(json_path, records, "the plan")
