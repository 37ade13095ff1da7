"""How many tokens a pass gives where several are drafted, in plaintext, and what a token then takes on a network.

Answers are the model's own, whether they are right or not, up to an end token. The first token comes with the prefill,
so tokens a pass are those after it. Seconds are planned, for a model of any shape that drafts as well as this one does.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from mpcache.benchmarks.cases.tasks import TASKS
from mpcache.benchmarks.measure.runner import Case
from mpcache.benchmarks.records.record import Record
from mpcache.benchmarks.records.selection import done
from mpcache.benchmarks.records.tables import Rows
from mpcache.generation.loop import decoding
from mpcache.generation.network import Network
from mpcache.generation.passes import Drafting, Pass
from mpcache.generation.price import price, seconds
from mpcache.generation.recorded import Recorded, record
from mpcache.generation.request import GenerationRequest
from mpcache.model.checkpoint import load_checkpoint
from mpcache.model.decoder import Decoder
from mpcache.model.shapes import model_shape
from mpcache.model.tokenizer import end_tokens, load_tokenizer
from mpcache.policies import LabelledPolicy, PolicySettings
from mpcache.protocols.backends.plain import PlainBackend

PRICED_PASSES = 8
"""The price of a pass is the mean of so many, the first ones after the prompt."""
CONTAINS = {
    "answers": "of each document the first question's: its tokens, and the passes after the first token that gave them",
    "tokens_a_pass": "tokens after the first token over passes after it, of all answers together",
    "tokens_a_pass_if_right": "the same of a model that gives the answers that the task wants, token by token",
    "same": "whether every answer is that of one token a step",
    "seconds_a_token": "planned, by network: the mean of the first passes, or steps, of the shape after such a prompt, "
    "over tokens a pass",
}


@dataclass(frozen=True)
class DraftOptions:
    """draft: numbers of drafts, to compare. shape: what seconds are planned for, on the networks."""

    model: Path
    tasks: Sequence[str]
    tokens: Sequence[int]
    policies: Sequence[LabelledPolicy]
    draft: Sequence[int]
    new_tokens: int
    documents: int
    shape: str
    networks: Sequence[Network]


def draft_cases(options: DraftOptions) -> list[Case]:
    def case(task: str, tokens: int, policy: LabelledPolicy, draft: int) -> Case:
        settings = {
            "bench": "drafts",
            "model": options.model.name,
            "task": task,
            "tokens": tokens,
            "max_new_tokens": options.new_tokens,
            "documents": options.documents,
            "policy": asdict(policy.settings),
            "label": policy.label,
            "draft": draft,
            "shape": options.shape,
            "networks": [network.name for network in options.networks],
        }
        name = f"drafts {task} {tokens} tokens, {policy.label}, {draft}"
        return Case(name, settings, lambda: _measure(options, task, tokens, policy, draft))

    of_each = itertools.product(options.tasks, options.tokens, options.policies, options.draft)
    return [case(*which) for which in of_each]


@torch.no_grad()
def _measure(options: DraftOptions, task: str, tokens: int, policy: LabelledPolicy, draft: int) -> Record:
    checkpoint, tokenizer = load_checkpoint(options.model), load_tokenizer(options.model)
    decoder, ends = Decoder(checkpoint.config, PlainBackend(), checkpoint.tensors), end_tokens(options.model, tokenizer)
    answers, same, further, taken, right = [], True, 0, 0, [0, 0]
    for seed in range(options.documents):
        sample = TASKS[task].generate(tokenizer, tokens, seed)[0]
        prompt = [*sample.document, *sample.turns[0][0]]
        recorded = record(decoder, prompt)
        single, _ = answer(decoder, recorded, prompt, policy.settings, 0, options.new_tokens, ends)
        found, passes = answer(decoder, recorded, prompt, policy.settings, draft, options.new_tokens, ends)
        same = same and found == single
        answers.append({"tokens": found, "passes": passes})
        further, taken = further + len(found) - 1, taken + passes
        wanted = sample.turns[0][1]
        right = [right[0] + len(wanted) - 1, right[1] + passes_if_right(prompt, wanted, draft)]
    a_pass = further / taken if taken else 1.0
    return {
        "policy": policy.label,
        "task": task,
        "tokens": tokens,
        "draft": draft,
        "answers": answers,
        "tokens_a_pass": a_pass,
        "tokens_a_pass_if_right": right[0] / right[1] if right[1] else 1.0,
        "same": same,
        "seconds_a_token": {
            n.name: pass_seconds(options.shape, tokens, policy.settings, draft, n) / a_pass for n in options.networks
        },
        "contains": CONTAINS,
    }


def answer(
    decoder: Decoder,
    recorded: Recorded,
    prompt: list[int],
    policy: PolicySettings,
    draft: int,
    new_tokens: int,
    ends: Sequence[int],
) -> tuple[list[int], int]:
    """(tokens, passes after the first token) of the model's answer in the clear."""
    request = GenerationRequest(prompt_tokens=len(prompt), max_new_tokens=new_tokens, policy=policy, draft=draft)
    request.check_for(decoder.config)
    cache, found, passes = recorded.cache(decoder, policy), list[int](), -1
    for part in decoding(decoder, request, prompt, recorded.hidden, cache, lambda token: token in ends):
        given = part.tokens if isinstance(part, Pass) else (part,)
        found += [token for token in given or () if token is not None]
        passes += 1
    return found, passes


def passes_if_right(prompt: Sequence[int], wanted: Sequence[int], draft: int) -> int:
    """After the first token, for a model that gives the wanted answer."""
    request = GenerationRequest(prompt_tokens=len(prompt), max_new_tokens=len(wanted), draft=draft)
    client, given, passes = Drafting(request, prompt, wanted[0], lambda token: False), 1, 0
    while client.goes_on:
        client.block()
        given += len(client.take(wanted[given : given + draft + 1]))
        passes += 1
    return passes


def pass_seconds(shape: str, tokens: int, policy: PolicySettings, draft: int, network: Network) -> float:
    """Planned, of the mean pass, or step, after a prompt of so many tokens."""
    request = GenerationRequest(
        prompt_tokens=tokens, max_new_tokens=PRICED_PASSES + 1, policy=policy, network=network.name, draft=draft
    )
    passes = price(model_shape(shape, positions=request.cached), request).decode
    return sum(seconds(one, network) for one in passes) / len(passes)


def draft_rows(records: Sequence[Record]) -> Rows:
    out = []
    for r in done(records):
        cells = [f"{r['seconds_a_token'][name]:.2f}" for name in r["settings"]["networks"]]
        same, right = "the same" if r["same"] else "OTHERS", f"{r['tokens_a_pass_if_right']:.2f}"
        out.append(
            [
                r["task"],
                r["policy"],
                f"{r['tokens']:,}",
                str(r["draft"]),
                f"{r['tokens_a_pass']:.2f}",
                right,
                *cells,
                same,
            ]
        )
    return out


def header(records: Sequence[Record]) -> list[str]:
    networks = [f"s a token, {name}" for name in records[0]["settings"]["networks"]]
    return ["task", "policy", "tokens", "drafts", "tokens a pass", "if right", *networks, "answers without"]
