"""The command line: `mpcache --help`. The one module here that may import `parties`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import click
import torch

from mpcache import __version__
from mpcache.policies import PolicySettings, changed_settings, check_policy, policies
from protocols.errors import ConfigError, ModelError, MpcacheError


class _Commands(click.Group):
    """Prints expected errors as one line, without a traceback; loads the benchmarks only when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), "bench"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "bench":
            from benchmarks.commands import bench

            return bench
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MpcacheError as error:
            click.echo(f"mpcache: {error}", err=True)
            sys.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
@click.option("--verbose", is_flag=True, help="Log what the processes do (never a secret).")
def main(verbose: bool) -> None:
    """Private inference of large language models: the model stays with its owner, the prompt with its own."""
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(name)s: %(message)s")
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
    from parties.certificates import write_development_certificates

    write_development_certificates(folder, days, force)
    click.echo(f"wrote ca, owner, client and dealer (.pem, .key) to {folder}, valid for {days} days")


def _identity(folder: Path, role: str, insecure: bool) -> Any:
    from parties.certificates import load_identity

    return None if insecure else load_identity(folder, role)


def _serve(server: Any, role: str, address: str) -> None:
    click.echo(f"{role} listening on {address.rpartition(':')[0]}:{server.port}")
    sys.stdout.flush()
    try:
        server.wait()
    except KeyboardInterrupt:
        server.stop()


@main.command()
@_config
@_insecure
def dealer(path: Path, insecure: bool) -> None:
    """Run the dealer: correlated randomness from public parameters."""
    from parties.dealing import DealerServer
    from parties.settings import DealerSettings, load_settings

    settings = load_settings(path, DealerSettings)
    identity = _identity(settings.certificates, "dealer", insecure or settings.insecure)
    server = DealerServer(settings.listen, identity, settings.timeout_seconds, settings.memory_mib << 20)
    _serve(server, "dealer", settings.listen)


@main.command()
@_config
@_insecure
def owner(path: Path, insecure: bool) -> None:
    """Run the model owner: serves private generations."""
    from parties.owner import OwnerServer
    from parties.settings import OwnerSettings, load_settings

    settings = load_settings(path, OwnerSettings)
    identity = _identity(settings.certificates, "owner", insecure or settings.insecure)
    _serve(OwnerServer(settings, identity), "owner", settings.listen)


def _prompt_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--prompt", help="The private prompt."),
        click.option(
            "--prompt-file",
            type=click.Path(path_type=Path),
            help="File with the private prompt; a newline at its end is left out.",
        ),
        click.option("--max-new-tokens", type=click.IntRange(1), help="Tokens to generate at most."),
        click.option("--json", "json_path", type=click.Path(path_type=Path), help="Also write the result as JSON."),
    ):
        command = option(command)
    return command


def _policy_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--policy", "policy_name", metavar="NAME", help="KV cache policy; see: mpcache policies."),
        click.option("--budget", type=float, help="Tokens a step attends to; below 1: a fraction of the prompt."),
        click.option(
            "--policy-option",
            "assignments",
            multiple=True,
            metavar="KEY=VALUE",
            help="Any setting of the policy, as in client.toml. Repeatable.",
        ),
    ):
        command = option(command)
    return command


def _chosen_policy(
    settings: PolicySettings, name: str | None, budget: float | None, assignments: tuple[str, ...]
) -> PolicySettings:
    """The settings, changed by what the command line says."""
    first = [f"{key}={value}" for key, value in (("name", name), ("budget", budget)) if value is not None]
    return check_policy(changed_settings(settings, [*first, *assignments]))


def _read_prompt(prompt: str | None, prompt_file: Path | None) -> str:
    if (prompt is None) == (prompt_file is None):
        raise ConfigError("give one of --prompt and --prompt-file")
    if prompt is not None:
        return prompt
    assert prompt_file is not None
    try:
        return prompt_file.read_text().removesuffix("\n")  # an editor's last newline is no part of the prompt
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the prompt in {prompt_file} cannot be read: {error}") from None


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
    prompt: str | None,
    prompt_file: Path | None,
    max_new_tokens: int | None,
    json_path: Path | None,
    policy_name: str | None,
    budget: float | None,
    assignments: tuple[str, ...],
    backend: str,
    temperature: float | None,
    network: str | None,
) -> None:
    """Run the data owner: generate from a private prompt."""
    from mpcache.checkpoint import load_tokenizer
    from mpcache.report import run_generation
    from parties.client import Connection, Generation, Request
    from parties.settings import ClientSettings, load_settings

    settings = load_settings(path, ClientSettings)
    identity = _identity(settings.certificates, "client", insecure or settings.insecure)
    tokenizer = load_tokenizer(settings.tokenizer)
    ids = tokenizer.encode(_read_prompt(prompt, prompt_file)).ids
    if not ids:
        raise ConfigError("the prompt is empty")
    connection = Connection(settings.owner, settings.dealer, identity, settings.state, settings.timeout_seconds)
    request = Request(
        ids,
        max_new_tokens or settings.max_new_tokens,
        settings.temperature if temperature is None else temperature,
        _chosen_policy(settings.policy, policy_name, budget, assignments),
        backend,
        settings.model_digest,
        network or settings.network,
    )
    result = run_generation(lambda on_block: Generation(connection, request, on_block), tokenizer, len(ids))
    result.backend, result.policy = backend, request.policy
    result.show()
    if json_path:
        result.write(json_path)


@main.command()
@_config
@_insecure
@click.option("--listen", default="127.0.0.1:7002", show_default=True, help="Loopback address for applications.")
def gateway(path: Path, insecure: bool, listen: str) -> None:
    """Run the data owner's gateway: applications on this machine generate through it (proto/client.proto)."""
    from mpcache.checkpoint import load_tokenizer
    from parties.client import Connection, Request
    from parties.gateway import GatewayServer
    from parties.settings import ClientSettings, load_settings

    settings = load_settings(path, ClientSettings)
    identity = _identity(settings.certificates, "client", insecure or settings.insecure)
    connection = Connection(settings.owner, settings.dealer, identity, settings.state, settings.timeout_seconds)
    defaults = Request(
        (),
        settings.max_new_tokens,
        settings.temperature,
        settings.policy,
        model_digest=settings.model_digest,
        network=settings.network,
    )
    _serve(GatewayServer(listen, connection, load_tokenizer(settings.tokenizer), defaults), "gateway", listen)


@main.command()
@_prompt_options
@_policy_options
@click.option("--model", type=click.Path(path_type=Path), help="Model folder. Default: the demo model.")
@_backend
@click.option("--compare", is_flag=True, help="Also run the full cache privately, and measure it instead of planning.")
def demo(
    prompt: str | None,
    prompt_file: Path | None,
    max_new_tokens: int | None,
    json_path: Path | None,
    policy_name: str | None,
    budget: float | None,
    assignments: tuple[str, ...],
    model: Path | None,
    backend: str,
    compare: bool,
) -> None:
    """Start all three processes on this machine and answer a private question.

    Shows beside the costs what the full cache would have cost: planned to the byte, or measured with --compare.
    """
    from parties.demo import run_demo

    text = _read_prompt(prompt, prompt_file) if prompt is not None or prompt_file is not None else None
    policy = _chosen_policy(PolicySettings(), policy_name, budget, assignments)
    run_demo(text, max_new_tokens or 16, model, json_path, policy, backend, compare)


@main.command()
@click.argument("model", type=click.Path(path_type=Path), required=False)
@click.option(
    "--prompt-file",
    type=click.File(encoding="utf-8"),
    help="File with a prompt, - for standard input; a newline at its end is left out. Default: random tokens, or the "
    "demo model's day sheet.",
)
@_policy_options
@click.option("--max-new-tokens", type=click.IntRange(1), default=16, show_default=True, help="Tokens to generate.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write all of it as JSON, for you alone.")
def inspect(
    model: Path | None,
    prompt_file: TextIO | None,
    policy_name: str | None,
    budget: float | None,
    assignments: tuple[str, ...],
    max_new_tokens: int,
    json_path: Path | None,
) -> None:
    """Whether a model's values fit a private computation: by its weights, and by a run in plaintext.

    MODEL is a folder (default: the demo model). Runs here alone and tells nobody. Ends with 1 if a bound was passed, or
    is certain to be.
    """
    from mpcache.inspection import inspect_model
    from parties.demo import DEMO_MODEL

    folder = model or DEMO_MODEL
    if prompt_file is None and folder.resolve() == DEMO_MODEL.resolve():
        prompt: str | None = (DEMO_MODEL / "daysheet_512.txt").read_text()
    else:
        prompt = None if prompt_file is None else _read_text(prompt_file)
    inspection = inspect_model(
        folder, prompt, _chosen_policy(PolicySettings(), policy_name, budget, assignments), max_new_tokens
    )
    inspection.show()
    if json_path is not None:
        inspection.write(json_path)
    failure = inspection.failure()
    if failure is not None:
        raise ModelError(failure)
    click.echo(inspection.measured.lines()[0])


def _read_text(file: TextIO) -> str:
    try:
        return file.read().removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the prompt in {file.name} cannot be read: {error}") from None


@main.command("policies")
def list_policies() -> None:
    """List the KV cache policies, and what each costs beyond attention to the tokens that it leaves."""
    for name, policy in policies().items():
        click.echo(f"{name:10} {policy.summary}\n{'':10} MPC cost: {policy.mpc_cost}")


@main.command()
@click.option("--shape", default="gpt2", show_default=True, help="gpt2, gpt2-medium, llama-7b, or a model folder.")
@click.option("--model", type=click.Path(path_type=Path), help="A model folder, for --shape.")
@click.option("--tokens", type=click.IntRange(1), default=512, show_default=True, help="Prompt tokens.")
@click.option("--max-new-tokens", type=click.IntRange(1), default=16, show_default=True)
@click.option(
    "--policy", default="full", show_default=True, help="Joined by commas; with settings: mpcache:keep_ratio=1."
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
    from benchmarks.policies import parse_contenders
    from benchmarks.records import write_json
    from mpcache.network import parse_network
    from mpcache.plan_report import plan_policies, show_plan
    from mpcache.pricing import Generation
    from mpcache.shapes import model_shape

    where, policies = parse_network(network), [(c.label, c.settings) for c in parse_contenders(policy)]
    config = model_shape(model or shape, positions=tokens + max_new_tokens)
    records = plan_policies(Generation(config, tokens, max_new_tokens - 1, network=where), policies, where)
    show_plan(records, where)
    if json_path is not None:
        write_json(json_path, records)
