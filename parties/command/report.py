"""Run a generation before a person's eyes: progress, streamed text, and what it cost; the same as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tokenizers import Tokenizer

from mpcache.files import written_whole
from mpcache.generation.loop import FULL, Meter, Phase
from mpcache.inspection.bounds import Sizes
from mpcache.policies import PolicySettings
from mpcache.protocols.errors import ConfigError


class Metered(Protocol):
    """A generation under way (see parties/client.py)."""

    meter: Meter | None
    setup_bytes: int
    waited_for_dealer: float

    def __iter__(self) -> Any: ...


@dataclass
class FullCache:
    """What the same generation takes with the whole cache. kind: 'planned' (no seconds) or 'measured'."""

    kind: str
    prefill: Phase
    decode: Phase
    tokens: int
    plain_answer: str | None = None
    ranges: Sizes | None = None

    def to_dict(self) -> dict[str, Any]:
        phases = {"prefill": _phase(self.prefill), "decode": _phase(self.decode)}
        return {
            "kind": self.kind,
            "new_tokens": self.tokens,
            "phases": phases,
            "plain_answer": self.plain_answer,
            "ranges": _ranges(self.ranges),
        }


@dataclass
class Result:
    """A finished generation. plain_answer, ranges: of the same policy in plaintext, and how large its values were."""

    answer: str
    prompt_tokens: int
    new_tokens: int
    meter: Meter
    setup_bytes: int
    waited_for_dealer: float
    backend: str = "mpc"
    policy: PolicySettings = FULL
    plain_answer: str | None = None
    ranges: Sizes | None = None
    full_cache: FullCache | None = None

    def to_dict(self) -> dict[str, Any]:
        phases = {"prefill": self.meter.prefill, "decode": self.meter.decode}
        total = self.meter.prefill.cost + self.meter.decode.cost
        return {
            "answer": self.answer,
            "plain_answer": self.plain_answer,
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": self.new_tokens,
            "prefill_seconds": self.meter.prefill.seconds,
            "seconds_per_token": self.meter.seconds_per_token,
            "online_bytes": total.online_bytes,
            "correlation_bytes": total.correction_bytes,
            "rounds": total.rounds,
            "backend": self.backend,
            "policy": self.policy.name,
            "policy_settings": asdict(self.policy),
            "phases": {name: _phase(phase) for name, phase in phases.items()},
            "setup_bytes": self.setup_bytes,
            "waited_for_dealer_seconds": self.waited_for_dealer,
            "ranges": _ranges(self.ranges),
            "full_cache": None if self.full_cache is None else self.full_cache.to_dict(),
        }

    def write(self, path: Path) -> None:
        """As JSON, whole or not at all, readable by you alone: it holds the answer."""
        try:
            with written_whole(path, 0o600) as partial:
                partial.write_text(json.dumps(self.to_dict(), indent=2) + "\n")
        except OSError as error:
            raise ConfigError(f"the result cannot be written to {path}: {error}") from None

    def show(self) -> None:
        """The costs, readable, to standard error's side of the answer."""
        if self.plain_answer is not None:
            same = "the same" if self.plain_answer == self.answer else "DIFFERENT"
            click.echo(f"in plaintext: {showable(self.plain_answer.strip())}  ({same})")
        if self.ranges is not None:
            show_ranges(self.ranges)
        full = self.full_cache
        if full is not None and full.ranges is not None and full.ranges.passed():
            click.echo("with a full cache:")
            show_ranges(full.ranges)
        if full is not None and full.plain_answer not in (None, self.plain_answer):
            click.echo(
                f"in plaintext with a full cache: {showable(str(full.plain_answer).strip())}  "
                f"(policy {self.policy.name} differs)"
            )
        prefill, decode = self.meter.prefill, self.meter.decode
        click.echo(f"prompt {self.prompt_tokens} tokens, answer {self.new_tokens} tokens, policy {self.policy.name}")
        _line("time to first token", prefill)
        if full is not None:
            _line(f"  full cache, {full.kind}", full.prefill)
        if self.new_tokens > 1:
            _line("each token after it", decode, self.new_tokens - 1)
            if full is not None and full.tokens > 1:
                _line(f"  full cache, {full.kind}", full.decode, full.tokens - 1)
        if self.setup_bytes:
            click.echo(f"  masked weights, sent once per model and client: {_megabytes(self.setup_bytes)}")


def showable(text: str) -> str:
    """A model's text, fit for a terminal: lines and tabs stay, other control characters do not reach it."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def show_ranges(sizes: Sizes) -> None:
    """Which bounds the plaintext twin passed, loudly; or how near it came."""
    for line in sizes.lines():
        click.secho(line, fg="red" if sizes.passed() else None, bold=bool(sizes.passed()))


def _ranges(sizes: Sizes | None) -> dict[str, Any] | None:
    return None if sizes is None else sizes.to_dict()


def _phase(phase: Phase) -> dict[str, float | None]:
    """A phase that was planned, not run, has no seconds."""
    return {
        "seconds": phase.seconds or None,
        "online_bytes": phase.cost.online_bytes,
        "correlation_bytes": phase.cost.correction_bytes,
        "rounds": phase.cost.rounds,
    }


def _megabytes(count: float) -> str:
    return f"{count / 1e6:.2f} MB"


def _line(what: str, phase: Phase, tokens: int = 1) -> None:
    """A planned phase has no seconds."""
    cost, seconds = phase.cost, f"{phase.seconds / tokens:.2f} s, " if phase.seconds else ""
    click.echo(
        f"  {what}: {seconds}{_megabytes(cost.online_bytes / tokens)} online (both directions), "
        f"{_megabytes(cost.correction_bytes / tokens)} correlations, {cost.rounds // tokens} rounds"
    )


def run_generation(
    start: Callable[[Callable[[int, int], None]], Metered], tokenizer: Tokenizer, prompt_tokens: int
) -> Result:
    """Show a prefill's progress, then the tokens as they come."""
    console = Console(stderr=True)
    tokens: list[int] = []
    shown = ""
    columns = (TextColumn("prefill"), BarColumn(), TextColumn("{task.completed}/{task.total} tokens"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("prefill", total=prompt_tokens)
        generation = start(lambda done, total: bar.update(task, completed=done))
        for token in generation:
            bar.stop()
            tokens.append(token)
            text = tokenizer.decode(tokens)
            if not text.endswith("\ufffd"):
                click.echo(showable(text[len(shown) :]), nl=False)
                shown = text
    answer = tokenizer.decode(tokens)
    click.echo(showable(answer[len(shown) :]), nl=False)
    click.echo("" if answer.endswith("\n") else "\n", nl=False)
    assert generation.meter is not None
    return Result(
        answer, prompt_tokens, len(tokens), generation.meter, generation.setup_bytes, generation.waited_for_dealer
    )
