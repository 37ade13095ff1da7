"""A model without training that follows day logs: it works out what a statement means where it reads it.

Its weights are laid out by hand, so that it is right by construction, at any length, and there in a second: a judge of
sparse prefills, where the state of a line exists only if the line has seen the far line that it rests on. All of its
attention is what the layout says and nothing besides, which is kinder to a selection than a trained model's.

The residual stream has a channel for each purpose (`_CHANNELS`). A constant outweighs the rest, so that the norms
before each layer change nothing. Layer 0 looks back over the last words: a value, and the end of a line `X joins Y.`,
learn X (OF); the end of a question learns whom it asks for (ASKED); the end of a name learns all of it (HERE). In every
further layer the end of a question attends to where OF is its ASKED, the end of a name to where OF is its HERE, to the
latest of such places, or to the first token if there is none, and copies the value that is known there. So a chain of
lines is resolved by one line a layer, and the question takes the last layer.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from mpcache.demo.daysheet import BEGIN, KINDS, build_tokenizer, name_syllables
from mpcache.demo.training import Attention, Llama, Shape, export

HOPS = 2
"""Lines that an answer may need beyond the one that the question finds."""
_HEAD, _HALF = 64, 32
_SYLLABLE, _VALUE = 21, 60
_SIZES = {
    "constant": 1,
    "looks": 1,  # back over the last words: all tokens but the end of a line
    "first": 1,  # the first token
    "answer": 1,  # the end of a question
    "stop": 1,  # the end of a sentence
    "new": 1,  # the sentence before ended two words ago: the name before is none of this one's
    "first syllable": _SYLLABLE,
    "second syllable": _SYLLABLE,
    "of": 2 * _SYLLABLE,
    "asked": 2 * _SYLLABLE,
    "here": 2 * _SYLLABLE,
    "value": _VALUE,
    "word": 22,
}
_CHANNELS = {
    name: slice(sum(list(_SIZES.values())[:i]), sum(list(_SIZES.values())[: i + 1])) for i, name in enumerate(_SIZES)
}
_SHAPE = dict(
    hidden_size=256,
    intermediate_size=16,
    num_hidden_layers=HOPS + 2,
    num_attention_heads=6,
    num_key_value_heads=3,
    head_dim=_HEAD,
    rope_theta=1e12,
)
_CONSTANT = 128.0
_MATCH, _NOBODY = 2400.0, 0.85
"""Score of a place that has the whole name, and its share that the first token gets."""
_LATEST = 200.0
"""Of two places that have the name, the later one's score is higher: by a rotation that turns by less than half within
the context."""
_FAINT = 0.5
"""Of a channel that would have the model say the token it has just read: the embedding is the head as well."""
_TURNS = {2048: (8, 0.4), 8192: (9, 0.0)}
"""By the context: which rotation that is, and the phase at which it begins."""


def build_reader(context: int = 2048) -> tuple[Llama, Tokenizer]:
    """The model for a context of 2,048 or 8,192 tokens: the longer it is, the less apart the latest place is."""
    tokenizer = build_tokenizer()
    model = Llama(Shape(tokenizer.get_vocab_size(), max_position_embeddings=context, **_SHAPE))  # type: ignore[arg-type]
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(0.0 if weight.dim() == 2 else _CONSTANT / math.sqrt(model.shape.hidden_size))
        _embed(model.model.embed_tokens.weight, tokenizer)
        first, *others = [module for module in model.modules() if isinstance(module, Attention)]
        _look_back(first, model, tokenizer)
        for attention in others:
            _follow(attention, *_TURNS[context])
    return model.eval(), tokenizer


def write_reader(folder: Path, context: int = 2048) -> None:
    """A Hugging Face model folder."""
    export(*build_reader(context), folder)


def _embed(table: Tensor, tokenizer: Tokenizer) -> None:
    generator = torch.Generator().manual_seed(0)
    table[:, _CHANNELS["constant"]] = _CONSTANT
    table[:, _CHANNELS["looks"]] = 1.0
    table[_id(tokenizer, "\n"), _CHANNELS["looks"]] = 0.0
    table[tokenizer.token_to_id(BEGIN), _CHANNELS["first"]] = 1.0
    table[_id(tokenizer, "A:"), _CHANNELS["answer"]] = _FAINT
    table[_id(tokenizer, "."), _CHANNELS["stop"]] = 1.0
    for place, syllables in zip(("first syllable", "second syllable"), name_syllables(), strict=True):
        ids = [_id(tokenizer, syllable) for syllable in syllables]
        table[ids, _CHANNELS[place]] = _apart(len(ids), _SYLLABLE, generator)
    values = [_id(tokenizer, f" {value}") for kind in KINDS.values() for value in kind.values]
    ends = [*values, _id(tokenizer, "\n")]
    table[ends, _CHANNELS["value"]] = _apart(len(ends), _VALUE, generator)
    words = torch.randn(len(table), _SIZES["word"], generator=generator)
    table[:, _CHANNELS["word"]] = 0.15 * words / words.norm(dim=1, keepdim=True)


def _id(tokenizer: Tokenizer, text: str) -> int:
    (token,) = tokenizer.encode(text, add_special_tokens=False).ids
    return int(token)


def _apart(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Unit vectors (count, size) that are as far apart as a short descent brings them."""
    x = torch.randn(count, size, generator=generator)
    for _ in range(200):
        x = x / x.norm(dim=1, keepdim=True)
        near = (x @ x.t()).fill_diagonal_(0)
        x = x - 0.05 * (near**7) @ x / (near**7).abs().max()
    unit: Tensor = x / x.norm(dim=1, keepdim=True)
    return unit


def _frequencies() -> Tensor:
    theta = torch.tensor(_SHAPE["rope_theta"], dtype=torch.float64)
    return torch.pow(theta, -torch.arange(_HALF) / _HALF)


def _turned(weight: Tensor, head: int, channel: slice, pairs: slice, size: float, angle: Tensor) -> None:
    """Let a head's rotated pairs begin at an angle, as multiples of one channel."""
    rows = weight.view(-1, 2, _HALF, weight.shape[1])
    rows[head, 0, pairs, channel] = (size * angle.cos()).float()[:, None]
    rows[head, 1, pairs, channel] = (size * angle.sin()).float()[:, None]


def _look_back(attention: Attention, model: Llama, tokenizer: Tokenizer) -> None:
    """Heads that attend to the tokens at a distance: the product of two vectors that turn with their positions is
    largest there."""
    q, k, v, o = (getattr(attention, f"{name}_proj").weight for name in "qkvo")
    pairs, fast = slice(0, 6), _frequencies()[:6]
    for head in range(3):
        _turned(k, head, _CHANNELS["constant"], pairs, 1 / _CONSTANT, torch.zeros(6))
    for head in range(2):
        rows = slice(head * _HEAD, head * _HEAD + 2 * _SYLLABLE)
        v[rows, _CHANNELS["first syllable"].start : _CHANNELS["second syllable"].stop] = torch.eye(2 * _SYLLABLE)
    v[_HEAD + 2 * _SYLLABLE, _CHANNELS["answer"]] = 1 / _FAINT
    v[2 * _HEAD, _CHANNELS["stop"]] = 1.0
    _turned(q, 4, _CHANNELS["looks"], pairs, 16.0 * math.sqrt(_HEAD), -fast * 2)
    o[_CHANNELS["new"], 4 * _HEAD] = 1.0
    purposes = ((3.5, 8.0, "of", 2.0), (4.5, 8.0, "asked", 2.0), (0.0, 16.0, "here", 1.0), (1.0, 16.0, "here", 1.0))
    for head, (distance, sharpness, channels, gain) in enumerate(purposes):
        _turned(q, head, _CHANNELS["looks"], pairs, sharpness * math.sqrt(_HEAD), -fast * distance)
        o[_CHANNELS[channels], head * _HEAD : head * _HEAD + 2 * _SYLLABLE] = gain * torch.eye(2 * _SYLLABLE)
    end = model.model.embed_tokens.weight[_id(tokenizer, "\n"), _CHANNELS["value"]]
    o[_CHANNELS["value"], 3 * _HEAD + 2 * _SYLLABLE] = 3 * end  # after the token that follows a question, a line ends


def _follow(attention: Attention, turn: int, phase: float) -> None:
    """Head 0 compares ASKED, head 1 HERE with OF, in pairs that hardly turn."""
    q, k, v, o = (getattr(attention, f"{name}_proj").weight for name in "qkvo")
    slow, still = slice(_HALF - 1 - _SYLLABLE, _HALF - 1), slice(_HALF - 1, _HALF)
    names = torch.eye(2 * _SYLLABLE).view(2, _SYLLABLE, -1)
    k.view(-1, 2, _HALF, k.shape[1])[0, :, slow, _CHANNELS["of"]] = names
    _turned(k, 0, _CHANNELS["first"], still, 1.0, torch.zeros(1))
    _turned(k, 0, _CHANNELS["new"], still, -1.0, torch.zeros(1))
    _turned(k, 0, _CHANNELS["constant"], slice(turn, turn + 1), 1 / _CONSTANT, torch.zeros(1))
    scale = math.sqrt(_HEAD)
    for head, channels in enumerate(("asked", "here")):
        # a whole name's product is 2, a syllable's 1
        q.view(-1, 2, _HALF, q.shape[1])[head, :, slow, _CHANNELS[channels]] = _MATCH / 2 * scale * names
        nobody = (_MATCH * _NOBODY + _LATEST) * scale / _CONSTANT
        _turned(q, head, _CHANNELS["constant"], still, nobody, torch.zeros(1))
        latest = torch.full((1,), phase, dtype=torch.float64)
        _turned(q, head, _CHANNELS["constant"], slice(turn, turn + 1), _LATEST * scale / _CONSTANT, latest)
        o[_CHANNELS["value"], head * _HEAD : head * _HEAD + _VALUE] = torch.eye(_VALUE)
    v[:_VALUE, _CHANNELS["value"]] = torch.eye(_VALUE)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mpcache.demo.reader", description="Write the reader's folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--context", type=int, choices=sorted(_TURNS), default=2048, help="tokens (default %(default)s)"
    )
    options = parser.parse_args()
    write_reader(options.folder, options.context)


if __name__ == "__main__":
    main()
