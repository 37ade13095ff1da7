"""Day logs: documents whose statements rest on earlier ones, so that a token needs far tokens while it is read.

Everything follows from a seed, in the names, values and layout of day sheets (daysheet.py). Later statements replace
earlier ones, and a statement means what it meant where it stands: who moves to somebody takes the room that this person
has at that point, whatever happens to it afterwards. So the state of a line is best worked out where the line is read.
A question's own tokens could follow a chain only back through every statement, one layer for each.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from tokenizers import Tokenizer

from mpcache.demo.daysheet import BEGIN, END, FILLER_SHARE, KINDS, DaySheet, Fact, filler_sentences, names

MOVE = "{name} joins {other}."
RAISE = "{name} takes 5 mg more."
STEP = 5
KINDS_OF_LOG = ("room", "dose")
FAR = 20
"""Sentences, of 6 to 8 tokens, between a statement and one that rests on it: beyond a window of 128 tokens."""


@dataclass(frozen=True)
class Statement:
    """What a sentence says of a person, and its sense there.

    value: what the person has from here on. rests_on: the earlier sentence that is needed to know it, or None. hops:
    how many sentences are needed beyond this one.
    """

    sentence: str
    name: str
    kind: str
    value: str
    rests_on: int | None = None
    hops: int = 0

    @property
    def question(self) -> str:
        return Fact(self.name, self.kind, self.value).question

    @property
    def answer(self) -> str:
        return f" {self.value}{END}"


@dataclass(frozen=True)
class DayLog:
    """The log of a seed: about rooms (who moves to whom) or doses (which are raised). More sentences extend it.

    hops: the most that an answer needs beyond a person's last statement. apart: sentences, at least, from a statement
    to one that rests on it. restated: the share of statements about people who have been named before.
    """

    seed: int
    split: str = "train"
    kind: str = "room"
    sentences: int = 40
    hops: int = 2
    apart: int = 0
    restated: float = 0.3

    @cached_property
    def lines(self) -> tuple[Statement | str, ...]:
        """The sentences: statements and fillers."""
        rng = random.Random(f"log-{self.kind}-{self.split}-{self.seed}-{self.hops}-{self.apart}-{self.restated}")
        cast = iter(_cast(rng, self.split))
        lines: list[Statement | str] = []
        latest: dict[str, int] = {}
        for place in range(self.sentences):
            if rng.random() < FILLER_SHARE:
                lines.append(rng.choice(filler_sentences()))
                continue
            statement = self._next(rng, lines, latest, place, cast)
            latest[statement.name] = place
            lines.append(statement)
        return tuple(lines)

    def _next(
        self, rng: random.Random, lines: list[Statement | str], latest: dict[str, int], place: int, cast: Iterator[str]
    ) -> Statement:
        far = [one for name, i in latest.items() if place - i >= self.apart and isinstance(one := lines[i], Statement)]
        base = rng.choice(far) if far and rng.random() < 0.5 else None
        if base is not None and base.hops < self.hops:
            if self.kind == "dose" and base.value != KINDS["dose"].values[-1]:
                return self._raised(base, latest[base.name])
            if self.kind == "room":
                return self._moved(self._who(rng, far, base.name, cast), base, latest[base.name])
        who = self._who(rng, far, None, cast)
        value = rng.choice(KINDS[self.kind].values)
        return Statement(Fact(who, self.kind, value).sentence, who, self.kind, value)

    def _who(self, rng: random.Random, known: list[Statement], but: str | None, cast: Iterator[str]) -> str:
        """Somebody known, or new while there are names."""
        others = [one.name for one in known if one.name != but]
        if others and rng.random() < self.restated:
            return rng.choice(others)
        return next(cast, None) or rng.choice(others)

    def _raised(self, base: Statement, place: int) -> Statement:
        value = str(int(base.value) + STEP)
        return Statement(RAISE.format(name=base.name), base.name, "dose", value, place, base.hops + 1)

    def _moved(self, who: str, base: Statement, place: int) -> Statement:
        sentence = MOVE.format(name=who, other=base.name)
        return Statement(sentence, who, "room", base.value, place, base.hops + 1)

    def overtaken(self, statement: Statement) -> bool:
        """Whether what it rests on has been replaced since, so that the answer is another than of what holds last."""
        if statement.rests_on is None:
            return False
        base = self.lines[statement.rests_on]
        assert isinstance(base, Statement)
        now = next(one for one in self.last if one.name == base.name)
        return now.value != statement.value

    @property
    def heading(self) -> str:
        return DaySheet(self.seed, self.split).heading

    @property
    def text(self) -> str:
        return self.heading + "".join(f" {sentence(line)}" for line in self.lines) + "\n"

    @property
    def last(self) -> list[Statement]:
        """Everybody's last statement, in random order; a prompt is `text` and one's question."""
        said = list({line.name: line for line in self.lines if isinstance(line, Statement)}.values())
        random.Random(f"log-questions-{self.split}-{self.seed}").shuffle(said)
        return said


def sentence(line: Statement | str) -> str:
    return line.sentence if isinstance(line, Statement) else line


def _cast(rng: random.Random, split: str) -> list[str]:
    people = list(names(split))
    rng.shuffle(people)
    return people


def log_of_tokens(log: DayLog, tokens: int, tokenizer: Tokenizer, questions: int = 1) -> DayLog:
    """The longest beginning of a log that takes at most `tokens` tokens with so many questions and their answers."""
    lengths: dict[str, int] = {}

    def length(text: str) -> int:
        if text not in lengths:
            lengths[text] = len(tokenizer.encode(text, add_special_tokens=False).ids)
        return lengths[text]

    whole = _of_length(log, tokens // 5)
    used = length(BEGIN + log.heading + "\n") + questions * _LONGEST_QUESTION
    for kept, line in enumerate(whole.lines):
        used += length(f" {sentence(line)}")
        if used > tokens:
            return _of_length(log, kept)
    return whole


_LONGEST_QUESTION = 14
"""Tokens of the longest question and its answer."""


def _of_length(log: DayLog, sentences: int) -> DayLog:
    return DayLog(log.seed, log.split, log.kind, sentences, log.hops, log.apart, log.restated)


def log_pieces(rng: random.Random, tokens: int, hops: int) -> Iterator[tuple[str, bool]]:
    """Endless pieces (text, is an answer) for a training sequence of `tokens` tokens, as `daysheet.training_pieces`."""
    kind = rng.choices(KINDS_OF_LOG, (5, 1))[0]
    apart, restated = rng.choice((0, 0, 5, FAR)), rng.choice((0.0, 0.3, 0.3))
    log = DayLog(rng.getrandbits(60), "train", kind, tokens // 4, hops, apart, restated)
    whole = rng.random() < 0.5
    sentences = max(2, int(tokens * rng.uniform(0.3, 0.8) / 7)) if whole else rng.randint(2, 10)
    yield BEGIN + log.heading, False
    lines, unasked = iter(log.lines), dict[str, Statement]()
    while True:
        for _ in range(sentences):
            line = next(lines, filler_sentences()[0])
            yield f" {sentence(line)}", False
            if isinstance(line, Statement):
                unasked[line.name] = line
        yield "\n", False
        waiting = list(unasked.values())
        rng.shuffle(waiting)
        waiting.sort(key=lambda one: one.hops == 0)  # what is hard first: a sequence may end before all are asked
        asked = len(waiting) if whole else min(len(waiting), rng.randint(2, 8))
        for statement in waiting[:asked]:
            yield statement.question, False
            yield statement.answer, True
            del unasked[statement.name]
        sentences = rng.randint(2, 10)
