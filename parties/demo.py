"""All three processes on this machine: owner and dealer as processes of their own, the client before your eyes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click

from mpcache.backends import PRIVATE_BACKENDS
from mpcache.bounds import Sizes
from mpcache.checkpoint import load_checkpoint
from mpcache.config_file import read_model_config
from mpcache.generate import FULL, GenerationPlan, Phase
from mpcache.planning import PublicParameters, phase_costs
from mpcache.policies import PolicySettings
from mpcache.report import FullCache, Result, run_generation
from mpcache.tokenizer import end_tokens, load_tokenizer, vocabulary_size
from mpcache.watched import watched_answer
from parties.certificates import load_identity, write_development_certificates
from parties.client import Connection, Generation, Request
from parties.settings import DEFAULT_POLICY
from protocols.errors import ConfigError, PeerLost

DEMO_MODEL = Path(__file__).resolve().parents[1] / "mpcache" / "assets" / "demo"
START_SECONDS = 600
"""For a process to start, and for any wait of the three: long, as the machine may be busy. A process that ends is
noticed at once."""


@contextmanager
def role_process(role: str, settings: Path, module: str = "mpcache", prefix: Sequence[str] = ()) -> Iterator[str]:
    """A role's command as a process, ended with the block; gives the address where it listens.

    prefix: a command that runs the role's, somewhere else (benchmarks/namespace.py).
    """
    command = [*prefix, sys.executable, "-m", module, role, "--config", str(settings)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    errors: list[str] = []
    assert process.stderr is not None and process.stdout is not None
    reader = threading.Thread(target=lambda: errors.extend(process.stderr or ()), daemon=True)
    reader.start()
    guard = threading.Timer(START_SECONDS, process.kill)
    guard.start()
    try:
        line = process.stdout.readline()
        guard.cancel()
        if not line.startswith(f"{role} listening on "):
            process.wait(timeout=5)
            reader.join(timeout=5)
            raise PeerLost(f"the {role} did not start: {''.join(errors).strip() or 'it said nothing'}")
        yield line.split()[-1]
    finally:
        guard.cancel()
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _toml(path: Path, **values: object) -> Path:
    path.write_text(
        "".join(f"{key} = {json.dumps(str(v) if isinstance(v, Path) else v)}\n" for key, v in values.items())
    )
    return path


@contextmanager
def local_parties(model: Path) -> Iterator[Connection]:
    """Dealer and owner of `model` on loopback with certificates of their own; gives the client's connection."""
    with tempfile.TemporaryDirectory(prefix="mpcache-") as name:
        folder = Path(name)
        certificates = folder / "certificates"
        write_development_certificates(certificates, days=1)
        shared = {
            "listen": "127.0.0.1:0",
            "certificates": certificates,
            "timeout_seconds": START_SECONDS,
            "backends": PRIVATE_BACKENDS,
        }
        dealer_file = _toml(folder / "dealer.toml", **shared)
        with role_process("dealer", dealer_file) as dealer:
            owner_file = _toml(
                folder / "owner.toml", dealer=dealer, model=model.resolve(), state=folder / "owner-state", **shared
            )
            with role_process("owner", owner_file) as owner:
                identity = load_identity(certificates, "client")
                yield Connection(owner, dealer, identity, folder / "client-state", START_SECONDS)


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
        prompt = (DEMO_MODEL / "daysheet_512.txt").read_text()
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


def plain_twin(
    folder: Path,
    prompt: Sequence[int],
    max_new_tokens: int,
    policy: PolicySettings = FULL,
    end_tokens: Collection[int] = (),
) -> tuple[list[int], Sizes]:
    """What the same model generates in the clear, and how large its values get where a private run bounds them."""
    plan = GenerationPlan(len(prompt), max_new_tokens, policy=policy)
    return watched_answer(load_checkpoint(folder), plan, prompt, end_tokens)


def plain_answer(
    folder: Path,
    prompt: Sequence[int],
    max_new_tokens: int,
    policy: PolicySettings = FULL,
    end_tokens: Collection[int] = (),
) -> list[int]:
    """What the same model generates in the clear."""
    return plain_twin(folder, prompt, max_new_tokens, policy, end_tokens)[0]
