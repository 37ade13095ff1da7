"""Prompts of a file, answered in batches: reading them, and showing and writing what came of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from mpcache.generation.batch import batch_cost
from mpcache.generation.loop import Meter
from mpcache.generation.request import ClientRequest
from mpcache.generation.text import TextStream
from mpcache.parties.batch import Batch
from mpcache.parties.command.options import read_prompt
from mpcache.parties.command.report import showable
from mpcache.parties.data_owner import DataOwner
from mpcache.parties.result import Result
from mpcache.protocols.errors import ConfigError
from mpcache.protocols.session import Cost


def read_prompts(path: Path) -> list[str]:
    """One a line; of a file that ends in .jsonl, the text "prompt" of a line's object. Empty lines are left out.

    Raises ConfigError.
    """
    numbered = [(number, line) for number, line in enumerate(read_prompt(path).split("\n"), 1) if line.strip()]
    if not numbered:
        raise ConfigError(f"there is no prompt in {path}")
    if path.suffix != ".jsonl":
        return [line for _, line in numbered]
    return [_prompt_of(line, f"line {number} of {path}") for number, line in numbered]


def _prompt_of(line: str, where: str) -> str:
    try:
        prompt = json.loads(line)["prompt"]
    except (ValueError, TypeError, KeyError, RecursionError):
        prompt = None
    if not isinstance(prompt, str):
        raise ConfigError(f'{where} is no JSON object with a text "prompt"')
    return prompt


def answer_all(me: DataOwner, requests: Sequence[ClientRequest], most: int) -> list[list[Result]]:
    """Of batches of at most `most` requests, one after the other. Each answer is shown when its batch has ended."""
    results: list[list[Result]] = []
    for start in range(0, len(requests), most):
        batch = me.start_batch(requests[start : start + most])
        results.append(_answered(batch, requests[start : start + most], lambda: TextStream(me.tokenizer)))
        for number, result in enumerate(results[-1], start + 1):
            click.echo(f"{number}: {showable(result.answer.strip())}")
    return results


def _answered(batch: Batch, requests: Sequence[ClientRequest], text: Callable[[], TextStream]) -> list[Result]:
    answers = [text() for _ in requests]
    for lane, token in batch:
        answers[lane].add(token)
    results = []
    for request, answer, meter in zip(requests, answers, batch.meters, strict=True):
        assert meter is not None
        results.append(Result(answer=answer.text, new_tokens=len(answer.tokens), request=request.public, meter=meter))
    waited = batch.waited_for_dealer
    first = replace(results[0], setup_bytes=batch.setup_bytes)
    return [replace(result, waited_for_dealer=waited) for result in (first, *results[1:])]


def show_batches(results: Sequence[Sequence[Result]]) -> None:
    """What they took."""
    for batch in results:
        cost, seconds = _cost(batch), max(_seconds(result.meter) for result in batch)
        tokens = sum(result.new_tokens for result in batch)
        click.echo(
            f"{len(batch)} prompts, {tokens} new tokens: {seconds:.2f} s, {cost.online_bytes / 1e6:,.2f} MB online "
            f"(both directions), {cost.correction_bytes / 1e6:,.2f} MB correlations, {cost.rounds:,} rounds, shared"
        )
    setup = results[0][0].setup_bytes
    if setup:
        click.echo(f"  masked weights, sent once per model and client: {setup / 1e6:.2f} MB")


def batches_to_dict(results: Sequence[Sequence[Result]]) -> dict[str, Any]:
    """For JSON: the answers in the prompts' order, and what each batch took."""
    batches = [
        {
            "prompts": len(batch),
            "seconds": max(_seconds(result.meter) for result in batch),
            "online_bytes": _cost(batch).online_bytes,
            "correlation_bytes": _cost(batch).correction_bytes,
            "rounds": _cost(batch).rounds,
        }
        for batch in results
    ]
    return {"answers": [result.to_dict() for batch in results for result in batch], "batches": batches}


def _cost(batch: Sequence[Result]) -> Cost:
    return batch_cost([result.meter.prefill.cost + result.meter.decode.cost for result in batch])


def _seconds(meter: Meter) -> float:
    return meter.prefill.seconds + meter.decode.seconds
