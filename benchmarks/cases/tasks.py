"""Quality tasks from our own generators: each makes, from a seed, questions about one document of so many tokens.

All are in the words of the demo model's day sheets (mpcache/demo/daysheet.py), so that another answer than the full
cache's is the policy's doing. Some ask for more than so small a model learns: then it fails with the full cache too,
and the records say so.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from mpcache.demo.daylog import FAR, DayLog, Statement, log_of_tokens
from mpcache.demo.daysheet import KINDS, DaySheet, Fact, filler_sentences, names, sheet_of_tokens

Turn = tuple[Sequence[int], Sequence[int]]


@dataclass(frozen=True)
class Sample:
    """Questions about a document, asked and answered one after another: (question, answer) each, all as tokens.

    label: what the results are split by, such as a needle's depth. scored: 'exact' (all answers, token by token) or
    'likelihood' (of the answers' tokens, each given those before it).
    """

    document: Sequence[int]
    turns: Sequence[Turn]
    label: str | None = None
    scored: str = "exact"


Generator = Callable[[Tokenizer, int, int], list[Sample]]


@dataclass(frozen=True)
class Task:
    """generate: (tokenizer, tokens of document and question, seed) to samples of one document."""

    name: str
    summary: str
    generate: Generator


QUESTIONS = 4
"""Questions about a day sheet: more documents say more than more questions about one."""
DEPTHS = (0, 25, 50, 75, 100)
HOPS = 2
"""Statements that an answer of a day log needs beyond the one that the question finds: at most so many."""
HEADROOM = 40
"""Tokens kept free for questions and answers, where a generator does not count them itself."""
SPAN = 24
"""Tokens to copy, or whose likelihood is taken."""


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def _turn(tokenizer: Tokenizer, question: str, answer: str) -> Turn:
    return _ids(tokenizer, question), _ids(tokenizer, answer)


def day_sheet(tokenizer: Tokenizer, tokens: int, seed: int) -> list[Sample]:
    sheet = sheet_of_tokens(seed, "heldout", tokens, tokenizer)
    document = tokenizer.encode(sheet.text).ids
    return [Sample(document, [_turn(tokenizer, q, a)]) for q, a in sheet.questions[:QUESTIONS]]


def _facts(rng: random.Random, count: int) -> list[Fact]:
    """Facts of different people."""
    people = rng.sample(names("heldout"), count)
    kinds = [rng.choice(list(KINDS)) for _ in people]
    return [Fact(n, k, rng.choice(KINDS[k].values)) for n, k in zip(people, kinds, strict=True)]


def _haystack(tokenizer: Tokenizer, tokens: int, rng: random.Random, needles: Sequence[tuple[float, str]]) -> list[int]:
    """A sheet of fillers with sentences at depths from 0 to 1."""
    heading = DaySheet(rng.getrandbits(60), "heldout").heading
    room = tokens - HEADROOM - len(_ids(tokenizer, "".join(f" {text}" for _, text in needles)))
    sentences: list[str] = []
    used = len(tokenizer.encode(heading + "\n").ids)
    while True:
        filler = rng.choice(filler_sentences())
        used += len(_ids(tokenizer, f" {filler}"))
        if used > room:
            break
        sentences.append(filler)
    for depth, text in sorted(needles, reverse=True):
        sentences.insert(round(depth * len(sentences)), text)
    return tokenizer.encode(heading + "".join(f" {s}" for s in sentences) + "\n").ids


def needle(tokenizer: Tokenizer, tokens: int, seed: int) -> list[Sample]:
    rng = random.Random(f"needle-{seed}")
    depth = DEPTHS[seed % len(DEPTHS)]
    (fact,) = _facts(rng, 1)
    document = _haystack(tokenizer, tokens, rng, [(depth / 100, fact.sentence)])
    return [Sample(document, [_turn(tokenizer, fact.question, fact.answer)], f"depth {depth}%")]


def needles(tokenizer: Tokenizer, tokens: int, seed: int) -> list[Sample]:
    rng = random.Random(f"needles-{seed}")
    facts = _facts(rng, 3)
    document = _haystack(tokenizer, tokens, rng, [(rng.random(), fact.sentence) for fact in facts])
    rng.shuffle(facts)
    return [Sample(document, [_turn(tokenizer, fact.question, fact.answer) for fact in facts])]


def two_hop(tokenizer: Tokenizer, tokens: int, seed: int) -> list[Sample]:
    rng = random.Random(f"two-hop-{seed}")
    (name,) = rng.sample(names("heldout"), 1)
    doctor, room = rng.choice(KINDS["doctor"].values), rng.choice(KINDS["room"].values)
    facts = [Fact(name, "doctor", doctor), Fact(name, "room", room), *_facts(rng, 4)]
    document = _haystack(tokenizer, tokens, rng, [(rng.random(), fact.sentence) for fact in facts])
    question = f"Q: Which room does who sees Dr {doctor} have?\nA:"
    return [Sample(document, [_turn(tokenizer, question, f" {room}\n")])]


def count(tokenizer: Tokenizer, tokens: int, seed: int) -> list[Sample]:
    rng = random.Random(f"count-{seed}")
    people = rng.sample(names("heldout"), rng.randint(2, 8))
    facts = [Fact(name, "medicine", rng.choice(KINDS["medicine"].values)) for name in people]
    document = _haystack(tokenizer, tokens, rng, [(rng.random(), fact.sentence) for fact in facts])
    return [Sample(document, [_turn(tokenizer, "Q: How many was given?\nA:", f" {len(people)}\n")])]


def conversation(tokenizer: Tokenizer, tokens: int, seed: int) -> list[Sample]:
    """Questions about one day sheet, one after another: what an answer needs, those before it did not."""
    sheet = sheet_of_tokens(seed, "heldout", tokens - 3 * HEADROOM, tokenizer)
    document = tokenizer.encode(sheet.text).ids
    return [Sample(document, [_turn(tokenizer, q, a) for q, a in sheet.questions[: 2 * QUESTIONS]])]


def chain(tokenizer: Tokenizer, tokens: int, seed: int) -> list[Sample]:
    """Nobody is named anew: a statement holds for good."""
    return _log(tokenizer, tokens, f"chain-{seed}", "room", 0.0, lambda log, said: said.hops > 0)


def moves(tokenizer: Tokenizer, tokens: int, seed: int) -> list[Sample]:
    """What the answer rests on has been corrected since: today's state of the other person is the wrong answer."""
    return _log(tokenizer, tokens, f"moves-{seed}", "room", 0.4, lambda log, said: log.overtaken(said))


def total(tokenizer: Tokenizer, tokens: int, seed: int) -> list[Sample]:
    return _log(tokenizer, tokens, f"total-{seed}", "dose", 0.3, lambda log, said: said.hops > 0)


def _log(
    tokenizer: Tokenizer,
    tokens: int,
    name: str,
    kind: str,
    restated: float,
    wanted: Callable[[DayLog, Statement], bool],
) -> list[Sample]:
    """Questions about a day log whose statements rest on far ones, labelled by their hops; at least one."""
    for attempt in itertools.count():
        seed = random.Random(f"{name}-{attempt}").getrandbits(40)
        apart = min(FAR, tokens // 24)
        log = log_of_tokens(DayLog(seed, "heldout", kind, 0, HOPS, apart, restated), tokens, tokenizer)
        asked = [said for said in log.last if wanted(log, said)][:QUESTIONS]
        if asked:
            document = tokenizer.encode(log.text).ids
            return [
                Sample(document, [_turn(tokenizer, said.question, said.answer)], f"{said.hops} hops") for said in asked
            ]
    raise AssertionError


def copy(tokenizer: Tokenizer, tokens: int, seed: int) -> list[Sample]:
    """The sheet's sentences once more, from a random one on."""
    sheet = sheet_of_tokens(seed, "heldout", tokens - 2 * SPAN, tokenizer)
    document = tokenizer.encode(sheet.text).ids
    start = random.Random(f"copy-{seed}").randrange(len(document) // 8, len(document) - 2 * SPAN)
    return [Sample(document, [(document[start : start + 8], document[start + 8 : start + 8 + SPAN])])]


def perplexity(tokenizer: Tokenizer, tokens: int, seed: int) -> list[Sample]:
    """Held-out text of the model's own kind: a sheet, then questions with their answers."""
    sheet = sheet_of_tokens(seed, "heldout", tokens - 3 * HEADROOM, tokenizer)
    document = tokenizer.encode(sheet.text).ids
    asked = "".join(question + answer for question, answer in sheet.questions[:8])
    text = _ids(tokenizer, asked)[: 3 * HEADROOM]
    return [Sample(document, [(text[:1], text[1:])], scored="likelihood")]


TASKS = {
    task.name: task
    for task in (
        Task("day-sheet", "a fact of a dense sheet, found by a person's name", day_sheet),
        Task("needle", "one fact among fillers, by its depth", needle),
        Task("needles", "three facts among fillers, asked one after another; all must be right", needles),
        Task("two-hop", "one fact's answer is the key of another", two_hop),
        Task("count", "how many people a kind of fact is stated of", count),
        Task("copy", f"the next {SPAN} tokens of a passage that the document has", copy),
        Task(
            "conversation",
            f"{2 * QUESTIONS} questions about a day sheet, one after another; all must be right",
            conversation,
        ),
        Task("chain", "a room that is told by whom somebody moves to, one or two people on, far apart", chain),
        Task("moves", "the same, of people who have moved on since", moves),
        Task("total", "a dose with what it was raised by, far apart", total),
        Task("perplexity", "likelihood of questions and answers, token by token", perplexity),
    )
}
