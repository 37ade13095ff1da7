"""Commands that run the process of a role until it is told to stop, and the command that makes their identities."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import torch

from mpcache.parties.certificates import Identity, load_identity, write_development_certificates
from mpcache.parties.command.options import Extended, config, insecure
from mpcache.parties.data_owner import data_owner_of
from mpcache.parties.dealer import DealerServer
from mpcache.parties.gateway import GatewayServer
from mpcache.parties.owner import OwnerServer
from mpcache.parties.serving import Server, serve
from mpcache.parties.settings import ClientSettings, DealerSettings, OwnerSettings, load_settings


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default="certificates")
@click.option("--days", default=30, show_default=True, help="How many days the certificates are valid.")
@click.option("--force", is_flag=True, help="Replace the certificates that are there.")
def certs(folder: Path, days: int, force: bool) -> None:
    """Make a development authority and the three identities in FOLDER.

    Give each machine ca.pem and the .pem and .key of its own role, and nothing else. Keep ca.key apart.
    """
    write_development_certificates(folder, days, force)
    click.echo(f"wrote ca, owner, client and dealer (.pem, .key) to {folder}, valid for {days} days")


@click.command("prepare")
@config
@insecure
def only_prepare(path: Path, insecure: bool) -> None:
    """Run a dealer that prepares sessions, and serves none.

    It writes their corrections to disk, for a dealer that hands them over later, in the same folder.
    """
    _run_dealer(path, insecure, only_prepare=True)


@click.command(cls=Extended, further={"prepare": only_prepare})
@config
@insecure
def dealer(path: Path, insecure: bool) -> None:
    """Run the dealer.

    It makes correlated randomness from public parameters. If its settings say so, it prepares sessions on disk, too,
    and hands over what is there.
    """
    _run_dealer(path, insecure)


def _run_dealer(path: Path, insecure: bool, only_prepare: bool = False) -> None:
    settings = load_settings(path, DealerSettings)
    identity = _identity(settings.certificates, "dealer", insecure or settings.insecure)
    server = DealerServer(settings, identity, only_prepare=only_prepare)
    _serve(server, "dealer", settings.listen, settings.drain_seconds)


@click.command()
@config
@insecure
def owner(path: Path, insecure: bool) -> None:
    """Run the model owner, who serves private generations."""
    settings = load_settings(path, OwnerSettings)
    identity = _identity(settings.certificates, "owner", insecure or settings.insecure)
    _serve(OwnerServer(settings, identity), "owner", settings.listen, settings.drain_seconds)


@click.command()
@config
@insecure
@click.option("--listen", default="127.0.0.1:7002", show_default=True, help="Loopback address for programs.")
def gateway(path: Path, insecure: bool, listen: str) -> None:
    """Run the data owner's gateway.

    Programs on this machine generate through it (proto/client.proto).
    """
    settings = load_settings(path, ClientSettings)
    _serve(GatewayServer(listen, data_owner_of(settings, insecure)), "gateway", listen, drain_seconds=60.0)


def _identity(folder: Path, role: str, insecure: bool) -> Identity | None:
    return None if insecure else load_identity(folder, role)


def _serve(server: Server, role: str, address: str, drain_seconds: float) -> None:
    torch.set_num_threads(1)  # three processes share the machine; integer kernels gain little from more

    def announce() -> None:
        click.echo(f"{role} listening on {address.rpartition(':')[0]}:{server.port}")
        sys.stdout.flush()

    serve(server, drain_seconds, announce)
