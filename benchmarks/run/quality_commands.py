"""`mpcache bench quality`, `prefill-study`, `agreement` and `drafts`: answers by policy or prefill."""

from __future__ import annotations

from pathlib import Path

import click

from mpcache.benchmarks.cases.ablations import compared_policies
from mpcache.benchmarks.cases.agreement import ANSWERED, agreement_cases
from mpcache.benchmarks.cases.drafts import DraftOptions, draft_cases
from mpcache.benchmarks.cases.prefill_designs import DESIGNS
from mpcache.benchmarks.cases.prefill_study import StudyOptions, run_study, study_tables
from mpcache.benchmarks.cases.quality import QualityOptions, quality_tables, run_quality
from mpcache.benchmarks.cases.scoring import PLACEMENTS
from mpcache.benchmarks.cases.tasks import TASKS
from mpcache.benchmarks.records import tables
from mpcache.benchmarks.records.store import Records
from mpcache.benchmarks.run.finish import run_and_show, show_and_write
from mpcache.benchmarks.run.options import (
    json_option,
    model_option,
    numbers,
    out_option,
    policy_option,
    shares,
    tokens_option,
    words,
)
from mpcache.generation.network import parse_network
from mpcache.parties.command.options import worker_options
from mpcache.parties.workers.choice import chosen_pool


@click.command()
@model_option
@click.option("--task", default="day-sheet", show_default=True, help=f"Any of {', '.join(TASKS)}; or all.")
@tokens_option
@policy_option("all")
@click.option(
    "--budget",
    default="0.05,0.1,0.125,0.25",
    show_default=True,
    help="Tokens to attend to, or their share of the prompt.",
)
@click.option(
    "--placement",
    default="end,later",
    show_default=True,
    help="Where the question stands: at the end of the prompt, or later (after eviction).",
)
@click.option("--documents", type=click.IntRange(1), default=50, show_default=True, help="Documents of each length.")
@out_option
@json_option
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the tables as Markdown.")
@worker_options
def quality(
    model: Path | None,
    task: str,
    tokens: str,
    policy: str,
    budget: str,
    placement: str,
    documents: int,
    out: Path | None,
    json_path: Path | None,
    markdown: Path | None,
    workers: int | None,
    ray: str | None,
) -> None:
    """Measure the exact match of answers by policy and budget, in plaintext.

    All policies see the same documents. The prefill of a document is computed once. With --workers or --ray, cases
    with other documents or another placement are measured side by side.
    """
    from mpcache.demo import DEMO_MODEL

    options = QualityOptions(
        (model or DEMO_MODEL).resolve(),
        list(TASKS) if task == "all" else words(task, tuple(TASKS), "task"),
        numbers(tokens),
        compared_policies(policy),
        shares(budget),
        words(placement, PLACEMENTS, "placement"),
        documents,
    )
    pool = chosen_pool(workers or 1, ray or "")
    try:
        records = run_quality(options, Records(out), pool)
    finally:
        if pool is not None:
            pool.close()
    show_and_write(records, json_path)
    if markdown is not None:
        written = [f"### {title}\n\n{tables.markdown(head, rows)}" for title, head, rows in quality_tables(records)]
        markdown.write_text("\n".join(written))


@click.command("prefill-study")
@click.option(
    "--model", type=click.Path(path_type=Path, exists=True), help="Model folder (default: of each task its own)."
)
@click.option("--task", default="day-sheet,chain,moves", show_default=True, help=f"Any of {', '.join(TASKS)}.")
@tokens_option
@click.option("--design", default="all", show_default=True, help=f"Any of {', '.join(DESIGNS)}; or all.")
@click.option("--budget", default="128,256", show_default=True, help="Tokens before a block that it attends to.")
@click.option("--documents", type=click.IntRange(1), default=12, show_default=True, help="Documents of each length.")
@out_option
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the tables as Markdown.")
def prefill_study(
    model: Path | None,
    task: str,
    tokens: str,
    design: str,
    budget: str,
    documents: int,
    out: Path | None,
    markdown: Path | None,
) -> None:
    """Compare designs of a sparse prefill by their answers, in plaintext.

    A block of 64 of the prompt's tokens attends to 4 first and 64 last tokens before it, and to what its design adds.
    Without --model, chain and moves are for a model whose weights are laid out by hand (mpcache/demo/reader.py).
    """
    options = StudyOptions(
        model,
        words(task, tuple(TASKS), "task"),
        numbers(tokens),
        list(DESIGNS) if design == "all" else words(design, tuple(DESIGNS), "design"),
        numbers(budget),
        documents,
    )
    records = run_study(options, Records(out), lambda case: click.echo(case, err=True))
    found = study_tables(records)
    for title, head, rows in found:
        tables.show(title, head, rows)
    if markdown is not None:
        markdown.write_text("\n".join(f"### {title}\n\n{tables.markdown(head, rows)}" for title, head, rows in found))


@click.command()
@click.option("--task", default="day-sheet,needle", show_default=True, help=f"Any of {', '.join(ANSWERED)}.")
@click.option("--tokens", default="512", show_default=True, help="Lengths, joined by commas.")
@policy_option("full,mpcache")
@click.option("--documents", type=click.IntRange(1), default=3, show_default=True, help="Documents of each length.")
@out_option
@json_option
def agreement(task: str, tokens: str, policy: str, documents: int, out: Path | None, json_path: Path | None) -> None:
    """Compare answers under MPC with those in plaintext, case by case, on the first documents of `quality`."""
    from mpcache.demo import DEMO_MODEL

    tasks = words(task, ANSWERED, "task with an answer")
    cases = agreement_cases(DEMO_MODEL, tasks, numbers(tokens), compared_policies(policy), documents)
    run_and_show(cases, out, json_path)


@click.command()
@model_option
@click.option("--task", default="day-sheet,copy", show_default=True, help=f"Any of {', '.join(ANSWERED)}.")
@click.option("--tokens", default="512,1024", show_default=True, help="Lengths, joined by commas.")
@policy_option("full")
@click.option("--draft", default="0,2,4,8", show_default=True, help="Numbers of drafts, joined by commas.")
@click.option("--max-new-tokens", type=click.IntRange(2), default=48, show_default=True, help="Tokens to generate.")
@click.option("--documents", type=click.IntRange(1), default=12, show_default=True, help="Documents of each length.")
@click.option("--shape", default="gpt2", show_default=True, help="What seconds are planned for.")
@click.option("--network", default="lan wan", show_default=True, help="Networks, separated by spaces.")
@out_option
@json_option
def drafts(
    model: Path | None,
    task: str,
    tokens: str,
    policy: str,
    draft: str,
    max_new_tokens: int,
    documents: int,
    shape: str,
    network: str,
    out: Path | None,
    json_path: Path | None,
) -> None:
    """Count the tokens that a pass with drafts gives, in plaintext, and plan the seconds of a token.

    The first question of each document of `quality` is answered with each number of drafts.
    """
    from mpcache.demo import DEMO_MODEL

    options = DraftOptions(
        (model or DEMO_MODEL).resolve(),
        words(task, ANSWERED, "task with an answer"),
        numbers(tokens),
        compared_policies(policy),
        numbers(draft, least=0),
        max_new_tokens,
        documents,
        shape,
        [parse_network(text) for text in network.split()],
    )
    run_and_show(draft_cases(options), out, json_path)
