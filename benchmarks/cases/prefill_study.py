"""What a sparse prefill costs in answers: every design of prefill_designs.py, on tasks, lengths and budgets.

Decoding attends to all that the prefill has left, so that a wrong answer is the prefill's doing. Where the question is
at the end of the prompt, it is a block of its own.
"""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
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
from mpcache.demo import DEMO_MODEL
from mpcache.demo.reader import write_reader
from mpcache.generation.recorded import greedy
from mpcache.model.checkpoint import load_checkpoint
from mpcache.model.decoder import PREFILL_BLOCK, Decoder
from mpcache.model.tokenizer import load_tokenizer
from mpcache.protocols.backends.plain import PlainBackend

UNBOUNDED = ("all pairs", "local")
"""Designs that no budget changes."""
READ = ("chain", "moves")
"""Tasks for the reader."""


@dataclass(frozen=True)
class StudyOptions:
    """model: a folder; None: of each task the model that solves it, the reader (demo/reader.py) or the demo model."""

    model: Path | None
    tasks: Sequence[str]
    tokens: Sequence[int]
    designs: Sequence[str]
    budgets: Sequence[int]
    documents: int


def run_study(
    options: StudyOptions, records: Records, on_case: Callable[[str], None] = lambda case: None
) -> list[Record]:
    """All records, those that were there already included. on_case: hears what is measured next."""
    out = []
    for task in options.tasks:
        with _model_for(options.model, task) as folder:
            checkpoint, tokenizer = load_checkpoint(folder), load_tokenizer(folder)
        decoder = Decoder(checkpoint.config, PlainBackend(), checkpoint.tensors)
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


@contextlib.contextmanager
def _model_for(model: Path | None, task: str) -> Iterator[Path]:
    if model is not None:
        yield model
    elif task in READ:
        with tempfile.TemporaryDirectory() as folder:
            write_reader(Path(folder))
            yield Path(folder)
    else:
        yield DEMO_MODEL


def _settings(options: StudyOptions, task: str, tokens: int, design: str, budget: int) -> Record:
    return {
        "bench": "prefill-study",
        "model": options.model.name if options.model else "reader" if task in READ else DEMO_MODEL.name,
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
    right = True
    for i, (question, answer) in enumerate(sample.turns):
        cache.prompt_tokens = cache.past + len(question)
        if i > 0 or placement == "later":
            cache.read_whole()  # as decode steps that attend to all that is left
        x = _read(decoder, cache, question)
        right = greedy(decoder, cache, x, len(answer)) == list(answer) and right
        if i + 1 < len(sample.turns):
            decoder.forward(answer[-1:], 1, cache)
    return right


def _copy(cache: Reader) -> Reader:
    """What a policy's reading has made of the document is shared: a question adds nothing to it."""
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
