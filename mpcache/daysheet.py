"""Private day sheets: synthetic documents of facts about named people, and questions that only the sheet can answer.

Everything follows from a seed. Names are two syllables, each one token of the demo model's tokenizer; a tenth of them
(by a stable hash) is held out and never seen in training. Every value is one token (times are two).
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

_FIRST = """
Ma Ka Lo Te Sa Ri Do Ve Ni Ba Pe Jo Fa Lu Ha Mi Ro Se Ta Vi Da Ne Ko La Be So Ra Fi No Ca Le Mo Sha Bri Cla
Dra Ele Flo Gra Ale Isa Oli Ana Emi Ari Eli Ada Ula Wen Yas Zo Ju Pau Phi Tho Qui Ste Tri Bre Cor Del Fer Gil
Hel Ing Jas Kel Lam Mar Nor Osk Par Rud Sil Tam Urs Val Wil Xan Yor Zel Bar Cam Dor Est Fre Gus Hol Ivo Jer
Kir Lin Mel Nad Orl Pip Ren Sol Tor
""".split()_SECOND = """
rin vel dan sek lina mar tis bor neth las dor win ka mir son gel ros tan vik lyn dra sa mon ber fin zar keth
lo par nia hel stan wyn rik bel dia gan vor len tha mos ril san dell pia gor nis fer cas ton bia ras mek lor
shan vin das tor phen wick ley brook man ford hart well stein ett ano ini ova ski ez ier ois ard olf ulf und
eth ian iel ora una isk ast ent ull arn ode ume ish
""".split()_MEDICINES = """
Zolpax Brenil Cortan Dalvex Ferona Glynol Hexor Ivaro Kelmin Lorvax Mendol Norita Optrex Panvil Quorin Rastol
Selbin Tarnox Ulvita Vexal Wolmar Xerin Yastol Zamor Arlin Bextra Calmar Doxil Emprin Fludar Gentol Helvin
""".split()_ALLERGENS = """
walnuts latex pollen shellfish penicillin soy eggs milk peanuts wheat sesame mustard celery dust wasps nickel
aspirin iodine kiwi almonds cats dogs mold garlic corn oats fish plums figs rye hops wool
""".split()_DOCTORS = """
Ruvan Kemp Ostler Hale Brandt Voss Lind Marsh Pike Thorne Ashby Cole Drake Frost Grant Hobbs Ives Jarvis Keene
Lowe Moss Nash Oakes Price Quill Reyes Stone Tate Udall Vane Webb Yates
""".split()_DOSES = (5, 10, 15, 20, 25, 30, 40, 50, 60, 75, 80, 90)
_ROOMS = range(100, 200)
_MINUTES = [f":{m:02d}" for m in range(0, 60, 5)]
_DAYS = "Monday Tuesday Wednesday Thursday Friday".split()
_FILLER = (
    "The ward was quiet this morning.",
    "Please keep this sheet private.",
    "The lift is out of order.",
    "Visitors leave before noon.",
    "The pharmacy opens early.",
)
_WORDS = re.compile(r" ?[A-Za-z]+| ?[0-9]+|:[0-9][0-9]|[^\sA-Za-z0-9]|\n")

END = "\n"
"""Ends an answer."""


@dataclass(frozen=True)
class Kind:
    """A kind of fact: its sentence, its question and its values."""

    sentence: str
    question: str
    value: Callable[[random.Random], str]


KINDS = {
    "room": Kind("{n} is in room {v}.", "Which room is {n} in?", lambda r: str(r.choice(_ROOMS))),
    "dose": Kind("{n} takes {v} mg.", "How many mg does {n} take?", lambda r: str(r.choice(_DOSES))),
    "medicine": Kind("{n} was given {v}.", "What was {n} given?", lambda r: r.choice(_MEDICINES)),
    "allergy": Kind("{n} is allergic to {v}.", "What is {n} allergic to?", lambda r: r.choice(_ALLERGENS)),
    "doctor": Kind("{n} sees Dr {v}.", "Which Dr does {n} see?", lambda r: r.choice(_DOCTORS)),
    "time": Kind("{n} comes at {v}.", "When does {n} come?", lambda r: f"{r.randint(8, 18)}{r.choice(_MINUTES)}"),
}


@dataclass(frozen=True)
class Question:
    """`prompt` follows the sheet and ends with 'A:'; the answer is ' value' and `END`."""

    kind: str
    prompt: str
    answer: str


def is_held_out(name: str) -> bool:
    """Whether a name is kept from training."""
    return zlib.crc32(name.encode()) % 10 == 0


@cache
def names(split: str) -> tuple[str, ...]:
    """All names of a split, 'train' or 'heldout'; names that two pairs of syllables spell are left out."""
    seen: dict[str, int] = {}
    for a in _FIRST:
        for b in _SECOND:
            seen[a + b] = seen.get(a + b, 0) + 1
    return tuple(n for n, count in seen.items() if count == 1 and is_held_out(n) == (split == "heldout"))


@dataclass
class DaySheet:
    """A growing day sheet. Every (person, kind) is stated at most once; facts of one person are scattered."""

    rng: random.Random
    split: str
    people: int
    facts: list[tuple[str, str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        cast = self.rng.sample(names(self.split), self.people)
        self._deck = [(name, kind) for name in cast for kind in self.rng.sample(list(KINDS), 4)]
        self.rng.shuffle(self._deck)

    def heading(self) -> str:
        return f"Day sheet, {self.rng.choice(_DAYS)} {self.rng.randint(1, 30)}.\n"

    def sentence(self) -> str:
        """One more sentence: a fact, or now and then a filler."""
        if self.rng.random() < 0.04 or not self._deck:
            return self.rng.choice(_FILLER)
        name, kind = self._deck.pop()
        value = KINDS[kind].value(self.rng)
        self.facts.append((name, kind, value))
        return KINDS[kind].sentence.format(n=name, v=value)

    def question(self) -> Question:
        """A question about a random fact stated so far."""
        name, kind, value = self.rng.choice(self.facts)
        return Question(kind, f"Q: {KINDS[kind].question.format(n=name)}\nA:", f" {value}{END}")


def evaluation_sheet(
    seed: int, split: str, tokens: int, tokenizer: Tokenizer, questions: int = 1
) -> tuple[str, list[Question]]:
    """(sheet, questions): the sheet and any one question together take at most `tokens` tokens."""
    rng = random.Random(f"{split}-{seed}")
    sheet = DaySheet(rng, split, tokens // 24 + 2)
    text = sheet.heading()
    used = _length(tokenizer, text)
    while True:
        facts = len(sheet.facts)
        more = " " + sheet.sentence()
        length = _length(tokenizer, more)
        if used + length + 16 > tokens:
            del sheet.facts[facts:]  # a fact that did not fit is not asked about
            break
        text, used = text + more, used + length
    return text + "\n", [sheet.question() for _ in range(questions)]


def _length(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False).ids)


def training_text(rng: random.Random, tokens: int) -> Iterator[tuple[str, bool]]:
    """Endless pieces (text, is an answer) of a training sequence of about `tokens` tokens: a sheet, then questions."""
    share = rng.uniform(0.25, 0.7)
    sheet = DaySheet(rng, "train", max(2, int(tokens * share / 32) + 1))
    yield sheet.heading(), False
    sentences = max(2, int(tokens * share / 8))
    for _ in range(sentences):
        yield " " + sheet.sentence(), False
    while not sheet.facts:
        yield " " + sheet.sentence(), False
    yield "\n", False
    while True:
        question = sheet.question()
        yield question.prompt, False
        yield question.answer, True
        yield "", False


def build_tokenizer() -> Tokenizer:
    """The demo model's tokenizer: the generator's words and syllables, and single bytes for any other text."""
    frame = [k.sentence for k in KINDS.values()] + [k.question for k in KINDS.values()]
    words = {
        w for text in [*frame, *_FILLER, "Day sheet, x", "Q: x", "A: x"] for t in (text, " " + text) for w in _split(t)
    }
    words |= {" " + w for group in (_MEDICINES, _ALLERGENS, _DOCTORS, _DAYS) for w in group}
    words |= {f" {i}" for i in range(200)} | set(_MINUTES) | {"\n", ".", ",", "?", ":"}
    pieces = ["<s>", *sorted(words), *[f" {a}" for a in _FIRST], *_SECOND]
    pieces = [*dict.fromkeys(pieces), "<unk>", *[f"<0x{b:02X}>" for b in range(256)]]
    scores = [0.0 if p.startswith("<") else -1.0 for p in pieces]
    tokenizer = Tokenizer(models.Unigram(list(zip(pieces, scores, strict=True)), pieces.index("<unk>"), True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_WORDS.pattern), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<s>", "<unk>"])
    return tokenizer


def _split(text: str) -> list[str]:
    return [w for w in _WORDS.findall(text.replace("{n}", "\0").replace("{v}", "\0")) if "\0" not in w]
