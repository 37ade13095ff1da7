"""Private day sheets: synthetic documents of facts about named people, and questions that only the sheet can answer.

Everything follows from a seed. The task is made to be learnt by a small model in minutes, and to need the whole sheet:
a name is two syllables, each one token, so that names never seen in training (a tenth of them, by a stable hash) still
consist of known tokens; a value is one token; no two people share a name, and no (person, kind) is stated twice.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

BEGIN = "<s>"
"""Precedes every text (tokenizer.json adds it)."""
END = "\n"
"""Ends an answer."""
SPLITS = ("train", "heldout")
FILLER_SHARE = 0.25
"""The share of sentences that state no fact."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_FIRST = _words("""
    Ma Ka Lo Te Sa Ri Do Ve Ni Ba Pe Jo Fa Lu Ha Mi Ro Se Ta Vi Da Ne Ko La Be So Ra Fi No Ca Le Mo Sha Bri Cla Dra Ele
    Flo Gra Ale Isa Oli Ana Emi Ari Eli Ada Ula Wen Yas Zo Ju Pau Phi Tho Qui Ste Tri Bre Cor Del Fer Gil Hel Ing Jas
    Kel Lam Mar Nor Osk Par Rud Sil Tam Urs Val Wil Xan Yor Zel Bar Cam Dor Est Fre Gus Hol Ivo Jer Kir Lin
    Mel Nad Orl
    Pip Ren Sol Tor
""")
_SECOND = _words("""
    rin vel dan sek lina mar tis bor neth las dor win ka mir son gel ros tan vik lyn dra sa mon ber fin zar keth lo par
    nia hel stan wyn rik bel dia gan vor len tha mos ril san dell pia gor nis fer cas ton bia ras mek lor shan vin das
    tor phen wick ley brook man ford hart well stein ett ano ini ova ski ez ier ois ard olf ulf und eth ian iel ora una
    isk ast ent ull arn ode ume ish
""")
_MEDICINES = _words("""
    Zolpax Brenil Cortan Dalvex Ferona Glynol Hexor Ivaro Kelmin Lorvax Mendol Norita Optrel Panvil Quorin Rastol Selbin
    Tarnox Ulvita Vexal Wolmar Xerin Yastol Zamor Arlin Bexara Calmar Doxen Emprin Fludar Gentol Helvin
""")
_ALLERGENS = _words("""
    walnuts latex pollen shellfish penicillin soy eggs milk peanuts wheat sesame mustard celery dust wasps nickel
    aspirin iodine kiwi almonds cats dogs mold garlic corn oats fish plums figs rye hops wool
""")
_DOCTORS = _words("""
    Ruvan Kemp Ostler Hale Brandt Voss Lind Marsh Pike Thorne Ashby Cole Drake Frost Grant Hobbs Ives Jarvis Keene Lowe
    Moss Nash Oakes Price Quill Reyes Stone Tate Udall Vane Webb Yates
""")
_DOSES = _words("5 10 15 20 25 30 35 40 45 50 55 60 65 70 75 80 85 90")
_ROOMS = tuple(str(room) for room in range(100, 200))
_TIMES = tuple(f"{hour}:{minute:02d}" for hour in range(8, 18) for minute in range(0, 60, 10))
_DAYS = _words("Monday Tuesday Wednesday Thursday Friday")
_DATES = tuple(str(day) for day in range(1, 31))
_FILLER = (
    "The ward was quiet this morning.",
    "Please keep this sheet private.",
    "The lift is out of order.",
    "Visitors leave before noon.",
    "The pharmacy opens early.",
    "Fresh linen is on the second floor.",
    "The night nurse left no notes.",
    "Lunch will be late today.",
    "The corridor was cleaned twice.",
    "Two windows need repair.",
    "All phones stay in the office.",
    "The garden is open after lunch.",
)
_LOG_WORDS = (" joins", " more")
"""What day logs (daylog.py) say and day sheets do not."""
_HEADING = "Day sheet, {day} {date}."
_TOKEN = re.compile(r"[QA]:| ?[0-9]+:[0-9][0-9]| ?[0-9]+| ?[A-Za-z]+|[^A-Za-z0-9]")


@dataclass(frozen=True)
class Kind:
    """A kind of fact: how it is stated and asked, and its values."""

    sentence: str
    question: str
    values: tuple[str, ...]


KINDS = {
    "room": Kind("{name} has room {value}.", "Which room does {name} have?", _ROOMS),
    "dose": Kind("{name} takes just {value} mg.", "How many mg does {name} take?", _DOSES),
    "medicine": Kind("{name} was given {value}.", "What was {name} given?", _MEDICINES),
    "allergy": Kind("{name} must avoid {value}.", "What must {name} avoid?", _ALLERGENS),
    "doctor": Kind("{name} sees Dr {value}.", "Which Dr does {name} see?", _DOCTORS),
    "time": Kind("{name} comes at {value}.", "When does {name} come?", _TIMES),
}


@dataclass(frozen=True)
class Fact:
    """One statement about one person."""

    name: str
    kind: str
    value: str

    @property
    def sentence(self) -> str:
        return KINDS[self.kind].sentence.format(name=self.name, value=self.value)

    @property
    def question(self) -> str:
        """What follows the sheet, up to and with 'A:'."""
        return f"Q: {KINDS[self.kind].question.format(name=self.name)}\nA:"

    @property
    def answer(self) -> str:
        """What should follow the question, up to and with END."""
        return f" {self.value}{END}"


@dataclass(frozen=True)
class DaySheet:
    """The sheet of a seed: `people` are named in it, in `sentences` sentences. More sentences extend the same sheet."""

    seed: int
    split: str = "train"
    people: int = 8
    sentences: int = 40

    @cached_property
    def lines(self) -> tuple[Fact | str, ...]:
        """The sentences: facts, those of one person scattered, and fillers."""
        rng = random.Random(f"{self.split}-{self.seed}-{self.people}")
        deck = _deck(rng, self.split, self.people)
        lines: list[Fact | str] = []
        for _ in range(self.sentences):
            filler = not deck or rng.random() < FILLER_SHARE
            lines.append(rng.choice(_FILLER) if filler else deck.pop())
        return tuple(lines)

    @property
    def facts(self) -> list[Fact]:
        return [line for line in self.lines if isinstance(line, Fact)]

    @property
    def heading(self) -> str:
        rng = random.Random(f"heading-{self.split}-{self.seed}")
        return _HEADING.format(day=rng.choice(_DAYS), date=rng.choice(_DATES))

    @property
    def text(self) -> str:
        return self.heading + "".join(f" {_sentence(line)}" for line in self.lines) + "\n"

    @property
    def questions(self) -> list[tuple[str, str]]:
        """(question, answer) of every fact, in random order; a prompt is `text` and a question."""
        facts = self.facts
        random.Random(f"questions-{self.split}-{self.seed}").shuffle(facts)
        return [(fact.question, fact.answer) for fact in facts]


def filler_sentences() -> tuple[str, ...]:
    """The sentences that state no fact."""
    return _FILLER


def _sentence(line: Fact | str) -> str:
    return line.sentence if isinstance(line, Fact) else line


def _deck(rng: random.Random, split: str, people: int) -> list[Fact]:
    """Facts about a new cast, two to six for each person, shuffled."""
    facts = [
        Fact(name, kind, rng.choice(KINDS[kind].values))
        for name in rng.sample(names(split), people)
        for kind in rng.sample(list(KINDS), rng.randint(2, len(KINDS)))
    ]
    rng.shuffle(facts)
    return facts


def is_held_out(name: str) -> bool:
    """Whether a name is kept from training."""
    return zlib.crc32(name.encode()) % 10 == 0


@cache
def names(split: str) -> tuple[str, ...]:
    """All names of a split; those that two pairs of syllables or a value spell are left out, being ambiguous."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is none of {SPLITS}")
    spelt: dict[str, int] = {}
    for name in (first + second for first in _FIRST for second in _SECOND):
        spelt[name] = spelt.get(name, 0) + 1
    values = {value for kind in KINDS.values() for value in kind.values}
    unique = (name for name, count in spelt.items() if count == 1 and name not in values)
    return tuple(name for name in unique if is_held_out(name) == (split == "heldout"))


def sheet_of_tokens(seed: int, split: str, tokens: int, tokenizer: Tokenizer) -> DaySheet:
    """The longest sheet of a seed whose text, any one of its questions and the answer take at most `tokens` tokens."""
    people = tokens // 40 + 2
    sheet = DaySheet(seed, split, people, sentences=tokens // 4)
    used = len(_ids(tokenizer, BEGIN + sheet.heading + "\n")) + _LONGEST_QUESTION
    for kept, line in enumerate(sheet.lines):
        used += len(_ids(tokenizer, f" {_sentence(line)}"))
        if used > tokens:
            return DaySheet(seed, split, people, sentences=kept)
    return sheet


_LONGEST_QUESTION = 14
"""Tokens of the longest question and its answer."""


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def training_pieces(rng: random.Random, tokens: int) -> Iterator[tuple[str, bool]]:
    """Endless pieces (text, is an answer) for a training sequence of `tokens` tokens.

    Half of the sequences are one sheet and then its questions; half go to and fro between a few sentences and a few
    questions. Every fact is asked about once at most: a question asked before could be answered without the sheet.
    """
    sheet = DaySheet(rng.getrandbits(60), "train", people=tokens // 40 + 2, sentences=tokens // 4)
    whole = rng.random() < 0.5
    sentences = max(2, int(tokens * rng.uniform(0.3, 0.85) / 7)) if whole else rng.randint(2, 10)
    yield BEGIN + sheet.heading, False
    lines, unasked = iter(sheet.lines), list[Fact]()
    while True:
        for _ in range(sentences):
            line = next(lines, _FILLER[0])
            yield f" {_sentence(line)}", False
            if isinstance(line, Fact):
                unasked.append(line)
        yield "\n", False
        rng.shuffle(unasked)
        asked = len(unasked) if whole else min(len(unasked), rng.randint(2, 8))
        for fact in unasked[:asked]:
            yield fact.question, False
            yield fact.answer, True
        del unasked[:asked]
        sentences = rng.randint(2, 10)


def build_tokenizer() -> Tokenizer:
    """The demo model's tokenizer: the words and syllables of day sheets, and single bytes for any other text."""
    frame = [
        _HEADING,
        "\nQ: ?\nA:",
        *_FILLER,
        *(k.sentence for k in KINDS.values()),
        *(k.question for k in KINDS.values()),
    ]
    words = {word for text in frame for start in ("", " ") for word in _frame_words(start + text)}
    values = {value for kind in KINDS.values() for value in kind.values}
    words |= {f" {word}" for word in (*values, *_DAYS, *_DATES, *_FIRST)} | set(_SECOND)
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    in_bytes = [whole.pre_tokenize_str(word)[0][0] for word in sorted(words)]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [(BEGIN, -10.0), *((letter, -10.0) for letter in letters)]
    pieces += [(word, -1.0) for word in in_bytes if len(word) > 1]
    pieces += [(whole.pre_tokenize_str(word)[0][0], -1.0) for word in _LOG_WORDS]  # the last: others keep their numbers
    tokenizer = Tokenizer(models.Unigram(pieces, None, False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_TOKEN.pattern), "isolated"), whole])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([BEGIN])
    begin = (BEGIN, tokenizer.token_to_id(BEGIN))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[begin])
    return tokenizer


def name_syllables() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The first and the second parts of names, as they are encoded."""
    return tuple(f" {first}" for first in _FIRST), _SECOND


def name_tokens(tokenizer: Tokenizer) -> list[int]:
    """The tokens that names consist of."""
    return [_ids(tokenizer, syllable)[0] for part in name_syllables() for syllable in part]


def _frame_words(text: str) -> list[str]:
    return [word for word in _TOKEN.findall(re.sub(r" ?\{\w+\}", "\0", text)) if "\0" not in word]
