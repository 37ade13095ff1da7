"""Quality as records: every task, length, policy, budget and placement of the question."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mpcache.benchmarks.cases.scoring import Score, score
from mpcache.benchmarks.cases.tasks import TASKS, Sample
from mpcache.benchmarks.records.ranges import RANGES
from mpcache.benchmarks.records.record import Record, make_record
from mpcache.benchmarks.records.selection import done
from mpcache.benchmarks.records.store import Records
from mpcache.benchmarks.records.tables import Rows
from mpcache.inspection.watched import WatchedBackend
from mpcache.model.checkpoint import Checkpoint, load_checkpoint
from mpcache.model.decoder import Decoder
from mpcache.model.tokenizer import load_tokenizer
from mpcache.parties.workers.pool import Pool, State
from mpcache.policies import LabelledPolicy
from mpcache.protocols.errors import MpcacheError

CONTAINS = {
    "exact_match": "share of samples whose answers are right in every token, by greedy decoding",
    "standard_error": "of exact_match, by the add-two rule",
    "attended": "mean share of the tokens so far that the step which begins the answer attends to",
    "placement": "end: the prompt ends with the question, its last token is computed again after eviction; later: the "
    "question comes after eviction",
    "perplexity": "of the answers' tokens, given those before them",
    "cells": "by label: right, asked",
    "ranges": f"{RANGES}; of all policies that were measured together",
}


Keep = Callable[[Record], None]


@dataclass(frozen=True)
class QualityOptions:
    model: Path
    tasks: Sequence[str]
    tokens: Sequence[int]
    policies: Sequence[LabelledPolicy]
    budgets: Sequence[float]
    placements: Sequence[str]
    documents: int


@dataclass(frozen=True)
class _Entry:
    """A policy at a budget."""

    policy: LabelledPolicy
    budget: float | None

    def settings(self, options: QualityOptions, task: str, tokens: int, placement: str) -> Record:
        return {
            "bench": "quality",
            "model": options.model.name,
            "task": task,
            "tokens": tokens,
            "placement": placement,
            "documents": options.documents,
            "policy": asdict(self.policy.settings),
            "label": self.policy.label,
            "backend": "plain",
        }


def run_quality(options: QualityOptions, records: Records, pool: Pool | None = None) -> list[Record]:
    """All records, those that were there already included; all policies share each document's prefill.

    pool: measures groups of cases side by side, each in one process; None: this process, one after another. A group's
    records are kept as soon as it is done.
    """
    groups = [
        _Group(options, task, tokens, placement)
        for task in options.tasks
        for tokens in options.tokens
        for placement in options.placements
    ]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("documents"))
    with Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=True
    ) as bar:
        progress = bar.add_task("quality", total=len(groups) * options.documents)
        for group in groups:
            if not group.missing(records):
                bar.advance(progress, options.documents)

        def keep(record: Record) -> None:
            records.add(record)
            if record["status"] != "done":
                group = " ".join(str(record["settings"][name]) for name in ("task", "tokens", "placement", "label"))
                bar.console.print(f"{record['status']}: quality {group}: {record['error']}")

        if pool is None:
            _run_here(groups, records, keep, lambda: bar.advance(progress))
        else:
            _run_in(pool, groups, records, keep, lambda: bar.advance(progress, options.documents))
    return [record for group in groups for record in group.records(records)]


def _run_here(groups: Sequence[_Group], records: Records, keep: Keep, on_document: Callable[[], None]) -> None:
    state: State = {}
    for group in groups:
        if missing := group.missing(records):
            for record in measure(state, group, missing, on_document):
                keep(record)


def _run_in(pool: Pool, groups: Sequence[_Group], records: Records, keep: Keep, on_group: Callable[[], None]) -> None:
    """The longest groups first, so that none of them is left to the end. A group whose worker is lost has failed."""
    longest_first = sorted(groups, key=lambda group: -group.tokens)
    waiting = deque((group, missing) for group in longest_first if (missing := group.missing(records)))
    running: dict[Future[list[Record]], tuple[_Group, list[_Entry]]] = {}
    while waiting or running:
        for worker in pool.workers():
            if waiting and not worker.load:
                group, missing = waiting.popleft()
                running[worker.submit(measure, group, missing)] = group, missing
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            for record in _outcome(future, *running.pop(future)):
                keep(record)
            on_group()


def _outcome(future: Future[list[Record]], group: _Group, entries: Sequence[_Entry]) -> list[Record]:
    error = future.exception()
    return future.result() if error is None else [group.failed(entry, error) for entry in entries]


def measure(
    state: State, group: _Group, entries: Sequence[_Entry], on_document: Callable[[], None] = lambda: None
) -> list[Record]:
    """A group's records. state: keeps the model for the next group, and the documents for its other placement."""
    options = group.options
    if options.model not in state:
        state.clear()
        state[options.model] = load_checkpoint(options.model), load_tokenizer(options.model)
    checkpoint, tokenizer = state[options.model]
    documents = group.task, group.tokens, options.documents
    if state.get("documents") != documents:
        generate = TASKS[group.task].generate
        state["samples"] = [generate(tokenizer, group.tokens, seed) for seed in range(options.documents)]
        state["documents"] = documents
    return group.measure(checkpoint, state["samples"], entries, on_document)


@dataclass(frozen=True)
class _Group:
    """The cases that share their documents."""

    options: QualityOptions
    task: str
    tokens: int
    placement: str

    def missing(self, records: Records) -> list[_Entry]:
        return [entry for entry in self._entries() if records.find(self._settings(entry)) is None]

    def records(self, records: Records) -> list[Record]:
        wanted = [self._settings(entry) for entry in self._entries()]
        return [record for record in records.records if record["settings"] in wanted]

    def failed(self, entry: _Entry, error: BaseException) -> Record:
        reason = str(error) if isinstance(error, MpcacheError) else f"{type(error).__name__}: {error}"
        return make_record(self._settings(entry), "failed", {"error": reason})

    def _entries(self) -> list[_Entry]:
        """The full cache has no budget."""
        out = []
        for policy in self.options.policies:
            if policy.settings.name == "full":
                out.append(_Entry(policy, None))
            else:
                out += [_Entry(policy.with_budget(budget), budget) for budget in self.options.budgets]
        return out

    def _settings(self, entry: _Entry) -> Record:
        raw = entry.settings(self.options, self.task, self.tokens, self.placement)
        return {**raw, "policy": {k: list(v) if isinstance(v, tuple) else v for k, v in raw["policy"].items()}}

    def measure(
        self,
        checkpoint: Checkpoint,
        samples: Sequence[Sequence[Sample]],
        entries: Sequence[_Entry],
        on_document: Callable[[], None],
    ) -> list[Record]:
        """One policy's failure is its own: then each is measured alone."""
        watched = WatchedBackend()
        decoder = Decoder(checkpoint.config, watched, checkpoint.tensors)
        policies = {entry: entry.policy.settings for entry in entries}
        try:
            results = score(decoder, samples, policies, (self.placement,), on_document)
        except (MpcacheError, RuntimeError, ValueError, IndexError) as error:
            if len(entries) == 1:
                return [self.failed(entries[0], error)]
            return [record for entry in entries for record in self.measure(checkpoint, samples, [entry], lambda: None)]
        ranges = watched.sizes().to_dict()
        return [
            make_record(self._settings(entry), "done", self._figures(entry, results[entry, self.placement], ranges))
            for entry in entries
        ]

    def _figures(self, entry: _Entry, result: Score, ranges: Record) -> Record:
        figures: Record = {
            "policy": entry.policy.label,
            "task": self.task,
            "tokens": self.tokens,
            "placement": self.placement,
            "budget": entry.budget,
            "attended": result.attended,
            "asked": len(result.outcomes),
            "ranges": ranges,
            "contains": CONTAINS,
        }
        if result.perplexity is not None:
            return {**figures, "perplexity": result.perplexity}
        exact = {"exact_match": result.exact_match, "standard_error": result.standard_error, "right": result.right}
        return {**figures, **exact, "cells": result.cells}


# ------------------------------------------------------------ tables


def quality_tables(records: Sequence[Record]) -> list[tuple[str, list[str], Rows]]:
    """For each task, length and placement: (title, header, rows), a row for each policy, a column for each budget."""
    measured = done(records)
    groups = dict.fromkeys((r["task"], r["tokens"], r["placement"]) for r in measured)
    out = []
    for task, tokens, placement in groups:
        group = [r for r in measured if (r["task"], r["tokens"], r["placement"]) == (task, tokens, placement)]
        budgets = sorted({r["budget"] for r in group if r["budget"] is not None})
        title = f"{task}, {tokens:,} tokens, {PLACED[placement]}"
        header = ["policy", *(f"{budget:.4g}" if budget >= 1 else f"{budget:.1%}" for budget in budgets)]
        labels = dict.fromkeys(r["policy"] for r in group)
        out.append((title + _caveat(group), header, [_row(label, group, budgets) for label in labels]))
    return out


PLACED = {"end": "question at the end of the prompt", "later": "question after eviction"}


def _caveat(group: Sequence[Record]) -> str:
    """What a table says where the model itself fails, so that nothing is read into the policies' figures."""
    full = next((r for r in group if r["budget"] is None and "exact_match" in r), None)
    if full is None or full["exact_match"] >= CAN:
        return ""
    return f": beyond this model, whose full cache reaches {full['exact_match']:.2f}"


CAN = 0.9
"""The full cache's exact match from which on a model can be said to do a task."""


def _row(label: str, group: Sequence[Record], budgets: Sequence[float]) -> list[str]:
    mine = {r["budget"]: r for r in group if r["policy"] == label}
    if None in mine:
        return [label, _cell(mine[None]), *[""] * (len(budgets) - 1)]
    return [label, *(_cell(mine[b]) if b in mine else "" for b in budgets)]


def _cell(record: Record) -> str:
    if "perplexity" in record:
        return f"{record['perplexity']:.3f}"
    return f"{record['exact_match']:.3f} ± {record['standard_error']:.3f}"
