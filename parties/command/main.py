"""The command line: `mpcache --help`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import torch

from mpcache import __version__
from mpcache.policies import PolicySettings, available_policies, check_policy, parse_policies, policy_settings, spelled
from mpcache.protocols.errors import ConfigError, ModelError, MpcacheError

log = logging.getLogger("mpcache")


class _Commands(click.Group):
    """Prints expected errors as one line, without a traceback; loads the benchmarks only when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), "bench"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "bench":  # by name: the suite stands above the command line
            return import_module("mpcache.benchmarks.run.commands").bench  # type: ignore[no-any-return]
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MpcacheError as error:
            from mpcache.parties.logs import one_line

            click.echo(f"mpcache: {one_line(str(error))}", err=True)
            sys.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
@click.option("--verbose", is_flag=True, help="Log what the processes do (never a secret).")
def main(verbose: bool) -> None:
    """Private inference of large language models: the model stays with its owner, the prompt with its own."""
    from mpcache.parties.logs import configure

    configure(verbose)
    torch.set_num_threads(1)  # three processes share the machine; integer kernels gain little from more


_config = click.option(
    "--config", "path", type=click.Path(path_type=Path), required=True, help="TOML file of this role."
)
_backend = click.option(
    "--backend", type=click.Choice(["mpc", "crypten"]), default="mpc", show_default=True, help="crypten: baseline."
)
_insecure = click.option("--insecure", is_flag=True, help="Plaintext, on loopback only. For tests.")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path), default="certificates")
@click.option("--days", default=30, show_default=True, help="How long the certificates are valid.")
@click.option("--force", is_flag=True, help="Replace what is there.")
def certs(folder: Path, days: int, force: bool) -> None:
    """Make a development authority and the three identities in FOLDER.

    Give each machine ca.pem and its own role's .pem and .key, nothing else; keep ca.key apart.
    """
    from mpcache.parties.certificates import write_development_certificates

    write_development_certificates(folder, days, force)
    click.echo(f"wrote ca, owner, client and dealer (.pem, .key) to {folder}, valid for {days} days")


def _identity(folder: Path, role: str, insecure: bool) -> Any:
    from mpcache.parties.certificates import load_identity

    return None if insecure else load_identity(folder, role)


def _log_service() -> None:
    from mpcache.parties.logs import log_service

    log_service()


def _serve(server: Any, role: str, address: str, drain_seconds: float) -> None:
    from mpcache.parties.serving import serve

    def announce() -> None:
        click.echo(f"{role} listening on {address.rpartition(':')[0]}:{server.port}")
        sys.stdout.flush()

    serve(server, drain_seconds, announce)


@main.command()
@_config
@_insecure
def dealer(path: Path, insecure: bool) -> None:
    """Run the dealer: correlated randomness from public parameters."""
    _log_service()
    from mpcache.parties.dealer import DealerServer
    from mpcache.parties.settings import DealerSettings, load_settings

    settings = load_settings(path, DealerSettings)
    identity = _identity(settings.certificates, "dealer", insecure or settings.insecure)
    _serve(DealerServer(settings, identity), "dealer", settings.listen, settings.drain_seconds)


@main.command()
@_config
@_insecure
def owner(path: Path, insecure: bool) -> None:
    """Run the model owner: serves private generations."""
    _log_service()
    from mpcache.parties.owner import OwnerServer
    from mpcache.parties.settings import OwnerSettings, load_settings

    settings = load_settings(path, OwnerSettings)
    identity = _identity(settings.certificates, "owner", insecure or settings.insecure)
    _serve(OwnerServer(settings, identity), "owner", settings.listen, settings.drain_seconds)


def _refuse_prompt(context: click.Context, option: click.Parameter, value: str | None) -> None:
    if value is not None:
        raise ConfigError(
            "a prompt does not belong on a command line, which every user of this machine can list: put it into a file "
            "and name that with --prompt-file, or give it on standard input"
        )


def _prompt_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--prompt", hidden=True, expose_value=False, callback=_refuse_prompt),
        click.option(
            "--prompt-file",
            type=click.Path(path_type=Path),
            help="File with the private prompt, or - for standard input; a newline at its end is left out.",
        ),
        click.option("--max-new-tokens", type=click.IntRange(1), help="Tokens to generate at most."),
        click.option(
            "--fixed-length", is_flag=True, help="Generate --max-new-tokens whatever they are, to hide the length."
        ),
        click.option(
            "--json", "json_path", type=click.Path(path_type=Path), help="Also write the result as JSON, for you alone."
        ),
    ):
        command = option(command)
    return command


def _policy_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option(
            "--policy",
            metavar="NAME[:KEY=VALUE]...",
            help="KV cache policy and what differs from its settings, as mpcache:keep_ratio=1; see: mpcache policies.",
        ),
        click.option("--budget", type=float, help="Tokens a step attends to; below 1: a fraction of the prompt."),
    ):
        command = option(command)
    return command


def _chosen_policy(settings: PolicySettings, policy: str | None, budget: float | None) -> PolicySettings:
    """What the command line says; the settings where it says nothing."""
    chosen = settings if policy is None else policy_settings(policy)
    return check_policy(chosen if budget is None else replace(chosen, budget=budget))


def _read_prompt(path: Path) -> str:
    """From a file, or from standard input for '-'. Raises ConfigError."""
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the prompt in {path} cannot be read: {error}") from None
    return text.removesuffix("\n")  # an editor's last newline is no part of the prompt


@main.command()
@_config
@_insecure
@_prompt_options
@_policy_options
@_backend
@click.option("--temperature", type=click.FloatRange(0, 100), help="0 takes the likeliest token.")
@click.option("--network", help="What protocols are chosen for: loopback, lan, wan or e.g. 5ms,100mbit.")
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
) -> None:
    """Run the data owner: generate from a private prompt, from a file or standard input."""
    from mpcache.files import write_json
    from mpcache.parties.client import Generation
    from mpcache.parties.command.report import run_generation, show_result
    from mpcache.parties.settings import ClientSettings, load_settings

    settings = load_settings(path, ClientSettings)
    if prompt_file is None and sys.stdin.isatty():
        click.echo("Type the prompt, then Ctrl-D:", err=True)
    connection, tokenizer, defaults = _client(settings, insecure)
    ids = tokenizer.encode(_read_prompt(prompt_file or Path("-"))).ids
    if not ids:
        raise ConfigError("the prompt is empty")
    request = defaults.with_prompt(
        ids,
        max_new_tokens=max_new_tokens or settings.max_new_tokens,
        temperature=settings.temperature if temperature is None else temperature,
        policy=_chosen_policy(settings.policy, policy, budget),
        backend=backend,
        network=network or settings.network,
    )
    request = replace(request, fixed_length=fixed_length or settings.fixed_length)
    result = run_generation(lambda on_block: Generation(connection, request, on_block), tokenizer, request.public)
    show_result(result)
    if json_path:
        write_json(json_path, result.to_dict(), "the result", private=True)


@main.command()
@_config
@_insecure
@click.option("--listen", default="127.0.0.1:7002", show_default=True, help="Loopback address for applications.")
def gateway(path: Path, insecure: bool, listen: str) -> None:
    """Run the data owner's gateway: applications on this machine generate through it (proto/client.proto)."""
    _log_service()
    from mpcache.parties.gateway import GatewayServer
    from mpcache.parties.settings import ClientSettings, load_settings

    settings = load_settings(path, ClientSettings)
    _serve(GatewayServer(listen, *_client(settings, insecure)), "gateway", listen, drain_seconds=60.0)


def _client(settings: Any, insecure: bool) -> tuple[Any, Any, Any]:
    """(connection, tokenizer, request without a prompt) of a data owner's settings."""
    from mpcache.generation.request import ClientRequest, GenerationRequest
    from mpcache.model.tokenizer import end_tokens, load_tokenizer, vocabulary_size
    from mpcache.parties.client import Connection

    identity = _identity(settings.certificates, "client", insecure or settings.insecure)
    connection = Connection(
        settings.owner,
        settings.dealer,
        identity,
        settings.state,
        settings.timeout_seconds,
        settings.max_model_gib,
        settings.max_step_gib,
    )
    tokenizer = load_tokenizer(settings.tokenizer)
    ends = end_tokens(settings.tokenizer, tokenizer)
    if not ends:
        log.warning(
            "%s does not say which tokens end an answer (generation_config.json, config.json, tokenizer_config.json): "
            "every answer takes max_new_tokens",
            settings.tokenizer,
        )
    public = GenerationRequest(
        prompt_tokens=0,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        policy=settings.policy,
        network=settings.network,
    )
    request = ClientRequest(
        prompt=(),
        public=public,
        end_tokens=ends,
        fixed_length=settings.fixed_length,
        vocabulary=vocabulary_size(tokenizer),
        model_digest=settings.model_digest,
    )
    return connection, tokenizer, request


@main.command()
@_prompt_options
@_policy_options
@click.option("--model", type=click.Path(path_type=Path), help="Model folder. Default: the demo model.")
@_backend
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
    """Start all three processes on this machine and answer a private question.

    Shows beside the costs what the full cache would have cost: planned to the byte, or measured with --compare.
    """
    from mpcache.parties.command.demo import run_demo

    text = None if prompt_file is None else _read_prompt(prompt_file)
    chosen = _chosen_policy(policy_settings(), policy, budget)
    run_demo(text, max_new_tokens or 16, model, json_path, chosen, backend, compare, fixed_length)


@main.command()
@click.argument("model", type=click.Path(path_type=Path), required=False)
@click.option("--prompt", hidden=True, expose_value=False, callback=_refuse_prompt)
@click.option(
    "--prompt-file",
    type=click.Path(path_type=Path),
    help="File with a prompt, or - for standard input; a newline at its end is left out. Default: random tokens, or "
    "the demo model's day sheet.",
)
@_policy_options
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
    from mpcache.demo import DEMO_MODEL
    from mpcache.files import write_json
    from mpcache.inspection.inspect import inspect_model
    from mpcache.parties.command.inspect_report import show_inspection
    from mpcache.parties.command.report import prefill_bar

    folder = model or DEMO_MODEL
    if prompt_file is None and folder.resolve() == DEMO_MODEL.resolve():
        prompt: str | None = (DEMO_MODEL / "daysheet_512.txt").read_text()
    else:
        prompt = None if prompt_file is None else _read_prompt(prompt_file)
    chosen = _chosen_policy(policy_settings(), policy, budget)
    with prefill_bar() as (_, on_block):
        inspection = inspect_model(folder, prompt, chosen, max_new_tokens, on_block)
    show_inspection(inspection)
    if json_path is not None:
        write_json(json_path, inspection.to_dict(), "the inspection", private=True)
    failure = inspection.failure()
    if failure is not None:
        raise ModelError(failure)
    click.echo(inspection.measured.lines()[0])


@main.command("policies")
def list_policies() -> None:
    """List the KV cache policies: what each costs beyond attention to the tokens that it leaves, and its settings."""
    for name, policy in available_policies().items():
        click.echo(f"{name:10} {policy.summary}\n{'':10} MPC cost: {policy.mpc_cost}")
        click.echo(f"{'':10} default: {spelled(policy_settings(name))}")


@main.command()
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
    from mpcache.files import write_json
    from mpcache.generation.network import parse_network
    from mpcache.generation.request import GenerationRequest
    from mpcache.model.shapes import model_shape
    from mpcache.parties.command.plan_report import plan_policies, show_plan

    request = GenerationRequest(prompt_tokens=tokens, max_new_tokens=max_new_tokens, network=network)
    where, policies = parse_network(network), [(p.label, p.settings) for p in parse_policies(policy)]
    records = plan_policies(model_shape(model or shape, positions=request.tokens), request, policies)
    show_plan(records, where)
    if json_path is not None:
        write_json(json_path, records, "the plan")
