"""The study of sparse prefills: resumable, and with a control that fails where the whole prefill does not."""

from pathlib import Path

import pytest
import torch

from mpcache.benchmarks.cases.prefill_designs import DESIGNS, RECENT, SINKS, Reader, reader
from mpcache.benchmarks.cases.prefill_study import StudyOptions, run_study, study_tables
from mpcache.benchmarks.records.store import Records
from mpcache.demo import DEMO_MODEL
from mpcache.generation.recorded import record
from mpcache.model.checkpoint import load_checkpoint
from mpcache.model.decoder import Decoder
from mpcache.protocols.backends.plain import PlainBackend


def decoder() -> Decoder:
    checkpoint = load_checkpoint(DEMO_MODEL)
    return Decoder(checkpoint.config, PlainBackend(), checkpoint.tensors)


@torch.no_grad()
def read(design: str, budget: int, tokens: int = 300) -> tuple[Reader, torch.Tensor]:
    model = decoder()
    cache, prompt = reader(model, DESIGNS[design], budget, tokens), [2 + i * 7 % 800 for i in range(tokens)]
    for start in range(0, tokens, 64):
        hidden = model.forward(prompt[start : start + 64], len(prompt[start : start + 64]), cache)
    whole = record(model, prompt).hidden[-hidden.shape[0] :]
    return cache, (hidden - whole).norm() / whole.norm()  # type: ignore[return-value]


@pytest.mark.parametrize("design", DESIGNS)
def test_a_budget_of_everything_is_the_whole_prefill(design: str) -> None:
    if design != "local":
        assert read(design, 1000)[1] < 1e-4
    assert (read(design, SINKS + RECENT + 8)[1] > 1e-3) == (design != "all pairs")


def test_what_is_evicted_leaves_the_budget() -> None:
    for design in DESIGNS:
        tokens = read(design, 100)[0].cached(0).tokens
        assert tokens == (100 if design.startswith("evict by") else 300)


def test_a_blind_prefill_fails_where_picked_clusters_do_not(tmp_path: Path) -> None:
    designs = ["all pairs", "local", "pick by largest score"]
    options = StudyOptions(None, ["moves"], [512], designs, [128], 1)
    records = run_study(options, Records(tmp_path))
    right = {r["design"]: (r["end"]["right"], r["later"]["right"]) for r in records}
    asked = records[0]["end"]["asked"]
    assert right["all pairs"] == right["pick by largest score"] == (asked, asked)
    assert right["local"] == (0, 0)
    ((title, header, rows),) = study_tables(records)
    assert title == f"moves: right of {asked}" and header[2] == "512: end / later"
    assert [row[0] for row in rows] == designs and rows[1][2] == "0 / 0"
    again = run_study(options, Records(tmp_path))
    assert [r["measured_at"] for r in again] == [r["measured_at"] for r in records]
