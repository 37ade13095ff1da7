"""Which records a table or a figure is about: what they measured, and which of several runs to show."""

from __future__ import annotations

from collections.abc import Iterable

from mpcache.benchmarks.records.record import Record, canonical
from mpcache.model.shapes import model_shape
from mpcache.protocols.errors import MpcacheError

SIZES = ("repeat", "documents", "max_new_tokens")
"""The settings that say how much was measured; all others say what."""


def done(records: Iterable[Record]) -> list[Record]:
    """Those of cases that have figures."""
    return [r for r in records if r["status"] == "done"]


def is_block(record: Record) -> bool:
    """Whether a decode step or prefill is that of one block, on loopback."""
    settings = record["settings"]
    ends = settings["program"]["head"] or settings["program"].get("embedding")
    return settings["layers"] == 1 and not settings["network"] and not ends


def is_whole_model(record: Record) -> bool:
    """Whether it is that of all of a model, from the token to the next one, on loopback."""
    settings = record["settings"]
    ends = settings["program"]["head"] and settings["program"].get("embedding")
    return bool(ends) and not settings["network"] and _all_layers(settings)


def _all_layers(settings: Record) -> bool:
    try:
        return bool(settings["layers"] == model_shape(settings["shape"]).layers)
    except MpcacheError:  # a model folder that is not on this machine: nobody knows
        return False


def size(record: Record) -> tuple[int, ...]:
    """How much was measured: repeats, documents and tokens, 0 where a case has none."""
    return tuple(record["settings"].get(name) or 0 for name in SIZES)


def largest_run(records: Iterable[Record]) -> list[Record]:
    """Of records from runs of several sizes, those of the largest, so that all of them were measured alike."""
    every = list(records)
    most = max((size(r) for r in every), default=())
    return [r for r in every if size(r) == most]


def most_measured(records: Iterable[Record]) -> list[Record]:
    """Each case once: of records that differ in size alone, the largest. All policies that answer the same task are one
    case, because only answers about the same documents compare."""
    every = list(records)
    most: dict[str, tuple[int, ...]] = {}
    for r in every:
        most[_case(r)] = max(most.get(_case(r), ()), size(r))
    return [r for r in every if size(r) == most[_case(r)]]


def _case(record: Record) -> str:
    left_out = {*SIZES, "policy", "label"} if record["bench"] == "quality" else set(SIZES)
    return canonical({key: value for key, value in record["settings"].items() if key not in left_out})
