"""What a machine takes for a round, a byte and a multiply-add, from records: the constants that `mpcache plan` uses."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import astuple, replace
from pathlib import Path

import torch

from mpcache.benchmarks.cases.decode import Workload
from mpcache.benchmarks.measure.program import Program
from mpcache.benchmarks.records.record import Record
from mpcache.benchmarks.records.selection import done
from mpcache.generation.network import LOOPBACK, Network
from mpcache.generation.price import Speed, layer_weights
from mpcache.model.config import ModelConfig
from mpcache.model.shapes import model_shape
from mpcache.protocols.errors import ConfigError


def fit(records: Sequence[Record]) -> tuple[Speed, list[tuple[Record, float]]]:
    """(constants, each record with the seconds that they give): least squares of relative errors, none below zero.

    records: decode steps and prefills of the mpc backend, of several shapes or lengths. Raises ConfigError if too few.
    """
    used = [r for r in done(records) if r["bench"] in ("decode", "prefill", "network")]
    used = [r for r in used if r["backend"] == "mpc"]
    if len(used) < 8:
        raise ConfigError(f"{len(used)} records of decode steps and prefills are too few: at least 8 are needed")
    terms = torch.tensor([_terms(r) for r in used], dtype=torch.float64)
    known = torch.tensor([_network(r).seconds(r["rounds"], r["online_bytes"]) for r in used], dtype=torch.float64)
    measured = torch.tensor([r["seconds"] for r in used], dtype=torch.float64)
    speed = Speed(*_not_negative(terms / measured[:, None], (measured - known) / measured))
    estimates = known + terms @ torch.tensor(astuple(speed), dtype=torch.float64)
    return speed, list(zip(used, estimates.tolist(), strict=True))


def _network(record: Record) -> Network:
    raw = record["settings"]["network"]
    return Network(**raw) if raw else LOOPBACK


def _terms(record: Record) -> list[float]:
    return [record["rounds"], record["online_bytes"], record["correlation_bytes"], multiply_adds(record)]


def multiply_adds(record: Record) -> int:
    """Of the record's linear layers, at one party."""
    settings = record["settings"]
    program = Program(**settings["program"])
    folder = Path(settings["shape"]).is_dir()
    config: ModelConfig = model_shape(settings["shape"]) if not folder else _config(settings)
    config = replace(config, layers=settings["layers"])
    tokens = settings["tokens"] if program.kind == "prefill" else 1
    table = config.vocabulary * config.hidden
    return tokens * layer_weights(config) * config.layers + table * (tokens * program.embedding + program.head)


def _config(settings: Record) -> ModelConfig:
    return Workload(settings["shape"], settings["layers"], Program()).setup(settings["tokens"]).config


def _not_negative(a: torch.Tensor, b: torch.Tensor) -> list[float]:
    """argmin |a x - b| over x >= 0: the best of the solutions on each subset of columns, of which there are 15."""
    best, least = [0.0] * a.shape[1], float("inf")
    columns = range(a.shape[1])
    for chosen in itertools.chain.from_iterable(itertools.combinations(columns, n) for n in range(1, len(columns) + 1)):
        part = a[:, list(chosen)]
        x = torch.linalg.lstsq(part, b).solution
        error = float((part @ x - b).norm())
        if (x >= 0).all() and error < least:
            best, least = [0.0] * a.shape[1], error
            for column, value in zip(chosen, x.tolist(), strict=True):
                best[column] = value
    return best
