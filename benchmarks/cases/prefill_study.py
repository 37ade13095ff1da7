"""What a sparse prefill costs in answers: every design of prefill_designs.py, on tasks, lengths and budgets.

Decoding attends to all that the prefill has left, so that a wrong answer is the prefill's doing. Where the question is
at the end of the prompt, it is a block of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mpcache.benchmarks.cases.prefill_designs import DESIGNS, Reader, reader
from mpcache.benchmarks.cases.scoring import PLACEMENTS, Outcome, Score
from mpcache.benchmarks.cases.tasks import TASKS, Sample
from mpcache.benchmarks.records.record import Record, make_record
from mpcache.benchmarks.records.selection import done
from mpcache.benchmarks.records.store import Records
from mpcache.benchmarks.records.tables import Rows
from mpcache.generation.recorded import greedy
from mpcache.generation.request import PREFILL_BLOCK
from mpcache.model.checkpoint import load_checkpoint
from mpcache.model.decoder import Decoder
from mpcache.model.tokenizer import load_tokenizer
from mpcache.protocols.backends.plain import PlainBackend

UNBOUNDED = ("all pairs", "local")
"""Designs that no budget changes."""


@dataclass(frozen=True)
class StudyOptions:
    model: Path
    tasks: Sequence[str]
    tokens: Sequence[int]
    designs: Sequence[str]
    budgets: Sequence[int]
    documents: int


def run_study(
    options: StudyOptions, records: Records, on_case: Callable[[str], None] = lambda case: None
) -> list[Record]:
    """All records, those that were there already included. on_case: hears what is measured next."""
    checkpoint, tokenizer = load_checkpoint(options.model), load_tokenizer(options.model)
    decoder = Decoder(checkpoint.config, PlainBackend(), checkpoint.tensors)
    out = []
    for task in options.tasks:
        for tokens in options.tokens:
            documents: list[list[Sample]] = []
            for design in options.designs:
                for budget in options.budgets[:1] if design in UNBOUNDED else options.budgets:
                    settings = _settings(options, task, tokens, design, budget)
                    record = records.find(settings)
                    if record is None:
                        on_case(f"{task}, {tokens} tokens, {design}, {budget}")
                        documents = documents or [
                            TASKS[task].generate(tokenizer, tokens, seed) for seed in range(options.documents)
                        ]
                        record = make_record(
                            settings, "done", _figures(settings, _scored(decoder, settings, documents))
                        )
                        records.add(record)
                    out.append(record)
    return out


def _settings(options: StudyOptions, task: str, tokens: int, design: str, budget: int) -> Record:
    return {
        "bench": "prefill-study",
        "model": options.model.name,
        "task": task,
        "tokens": tokens,
        "design": design,
        "budget": None if design in UNBOUNDED else budget,
        "documents": options.documents,
    }


def _figures(settings: Record, scores: dict[str, Score]) -> Record:
    figures = {key: settings[key] for key in ("task", "tokens", "design", "budget")}
    for placement, score in scores.items():
        figures[placement] = {"right": score.right, "asked": len(score.outcomes), "cells": score.cells}
    return figures


@torch.no_grad()
def _scored(decoder: Decoder, settings: Record, documents: Sequence[Sequence[Sample]]) -> dict[str, Score]:
    scores = {placement: Score() for placement in PLACEMENTS}
    for samples in documents:
        cache = reader(decoder, DESIGNS[settings["design"]], settings["budget"] or 0, len(samples[0].document))
        _read(decoder, cache, samples[0].document)
        for sample in samples:
            for placement, score in scores.items():
                score.add(Outcome(_right(decoder, _copy(cache), sample, placement), 1.0), sample.label)
    return scores


def _read(decoder: Decoder, cache: Reader, tokens: Sequence[int]) -> Any:
    hidden: Any = None
    for start in range(0, len(tokens), PREFILL_BLOCK):
        block = tokens[start : start + PREFILL_BLOCK]
        hidden = decoder.forward(block, len(block), cache)
    return hidden


def _right(decoder: Decoder, cache: Reader, sample: Sample, placement: str) -> bool:
    """Whether every answer is right in every token."""
    right, x = True, None
    for i, (question, answer) in enumerate(sample.turns):
        if i == 0 and placement == "end":
            cache.prompt_tokens = cache.past + len(question)
            x = _read(decoder, cache, question)
        else:
            for token in question:
                x = decoder.forward([token], 1, cache)
        right = greedy(decoder, cache, x, len(answer)) == list(answer) and right  # type: ignore[arg-type]
        if i + 1 < len(sample.turns):
            decoder.forward(answer[-1:], 1, cache)
    return right


def _copy(cache: Reader) -> Reader:
    other = copy.copy(cache)
    other._layers, other._got = list(cache._layers), list(cache._got)
    return other


# ------------------------------------------------------------ tables


def study_tables(records: Sequence[Record]) -> list[tuple[str, list[str], Rows]]:
    """For each task: (title, header, rows), a row for each design and budget, columns by length and placement."""
    measured = done(records)
    out = []
    for task in dict.fromkeys(r["task"] for r in measured):
        group = [r for r in measured if r["task"] == task]
        lengths = sorted({r["tokens"] for r in group})
        header = ["design", "tokens seen", *(f"{n:,}: end / later" for n in lengths)]
        rows = []
        for design, budget in dict.fromkeys((r["design"], r["budget"]) for r in group):
            mine = {r["tokens"]: r for r in group if (r["design"], r["budget"]) == (design, budget)}
            rows.append([design, _seen(design, budget), *(_cell(mine.get(n)) for n in lengths)])
        asked = {n: next(r["end"]["asked"] for r in group if r["tokens"] == n) for n in lengths}
        counts = ", ".join(str(count) for count in dict.fromkeys(asked.values()))
        out.append((f"{task}: right of {counts}", header, rows))
    return out


def _seen(design: str, budget: int | None) -> str:
    if budget is not None:
        return str(budget)
    return "all" if design == "all pairs" else "68"


def _cell(record: Record | None) -> str:
    return "" if record is None else f"{record['end']['right']} / {record['later']['right']}"
