"""Run a generation before a person's eyes: progress, streamed text, and what it cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mpcache.generation.loop import Phase
from mpcache.generation.request import GenerationRequest
from mpcache.generation.text import Decodes, TextStream
from mpcache.inspection.bounds import Sizes
from mpcache.parties.result import Metered, Result

OnBlock = Callable[[int, int], None]
"""Hears how many of the prompt's tokens are done, and how many there are."""


@contextmanager
def prefill_bar(total: int | None = None) -> Iterator[tuple[Progress, OnBlock]]:
    """A progress bar of a prefill on standard error; it goes with the block, or when it is stopped."""
    columns = (TextColumn("prefill"), BarColumn(), TextColumn("{task.completed}/{task.total} tokens"))
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, *times, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("prefill", total=total)
        yield bar, lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def bytes_bar(what: str) -> Iterator[Callable[[int], None]]:
    """How many bytes there are so far, on standard error; it goes with the block. Gives what hears of them."""
    columns = (TextColumn("{task.description}"), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda nbytes: bar.update(task, completed=nbytes)


def run_generation(start: Callable[[OnBlock], Metered], tokenizer: Decodes, request: GenerationRequest) -> Result:
    """Show a prefill's progress, then the tokens as they come."""
    answer = TextStream(tokenizer)
    with prefill_bar(request.prompt_tokens) as (bar, on_block):
        generation = start(on_block)
        for token in generation:
            bar.stop()
            click.echo(showable(answer.add(token)), nl=False)
    click.echo(showable(answer.rest()), nl=False)
    click.echo("" if answer.text.endswith("\n") else "\n", nl=False)
    return Result.of(generation, request, answer)


def showable(text: str) -> str:
    """A model's text, fit for a terminal: lines and tabs stay, other control characters do not reach it."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def show_result(result: Result) -> None:
    """The costs, readable, to standard error's side of the answer."""
    _show_twins(result)
    request, prefill, decode = result.request, result.meter.prefill, result.meter.decode
    full = result.full_cache
    click.echo(
        f"prompt {request.prompt_tokens} tokens, answer {result.new_tokens} tokens, policy {request.policy.name}"
    )
    if result.prepared:
        click.echo("  prepared: the dealer had the corrections on its disk")
    _line("time to first token", prefill)
    if full is not None:
        _line(f"  full cache, {full.kind}", full.prefill)
    if result.new_tokens > 1:
        _line("each token after it", decode, result.new_tokens - 1)
        if request.draft:
            passes = len(result.meter.steps)
            click.echo(f"    in {passes} passes of {1 + request.draft} tokens, of which {request.draft} were drafts")
        if full is not None and full.tokens > 1:
            _line(f"  full cache, {full.kind}", full.decode, full.tokens - 1)
    if result.setup_bytes:
        click.echo(f"  masked weights, sent once per model and client: {_megabytes(result.setup_bytes)}")


def _show_twins(result: Result) -> None:
    """What plaintext answers, and the bounds that it passed."""
    if result.plain_answer is not None:
        same = "the same" if result.plain_answer == result.answer else "DIFFERENT"
        click.echo(f"in plaintext: {showable(result.plain_answer.strip())}  ({same})")
    if result.ranges is not None:
        show_ranges(result.ranges)
    full = result.full_cache
    if full is not None and full.ranges is not None and full.ranges.passed():
        click.echo("with a full cache:")
        show_ranges(full.ranges)
    if full is not None and full.plain_answer not in (None, result.plain_answer):
        click.echo(
            f"in plaintext with a full cache: {showable(str(full.plain_answer).strip())}  "
            f"(policy {result.request.policy.name} differs)"
        )


def show_ranges(sizes: Sizes) -> None:
    """Which bounds the plaintext twin passed, loudly; or how near it came."""
    for line in sizes.lines():
        click.secho(line, fg="red" if sizes.passed() else None, bold=bool(sizes.passed()))


def _megabytes(count: float) -> str:
    return f"{count / 1e6:.2f} MB"


def _line(what: str, phase: Phase, tokens: int = 1) -> None:
    """A planned phase has no seconds."""
    cost, seconds = phase.cost, f"{phase.seconds / tokens:.2f} s, " if phase.seconds else ""
    click.echo(
        f"  {what}: {seconds}{_megabytes(cost.online_bytes / tokens)} online (both directions), "
        f"{_megabytes(cost.correction_bytes / tokens)} correlations, {cost.rounds // tokens} rounds"
    )
