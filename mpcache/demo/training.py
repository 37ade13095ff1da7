"""Train and evaluate the demo model: a small LLaMA that answers questions about private day sheets (daysheet.py).

Retrieval emerges within minutes on a CPU because its beginnings are laid out in the first weights (`initialise`), and
because sequences start short: their length grows when the model answers well at the length before.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from mpcache.demo.daylog import FAR, KINDS_OF_LOG, DayLog, log_of_tokens, log_pieces
from mpcache.demo.daysheet import BEGIN, END, SPLITS, build_tokenizer, name_tokens, sheet_of_tokens, training_pieces

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class Shape:
    """The model's shape, by the names of a Hugging Face config.json."""

    vocab_size: int
    hidden_size: int = 192
    intermediate_size: int = 384
    num_hidden_layers: int = 4
    num_attention_heads: int = 6
    num_key_value_heads: int = 3
    head_dim: int = 32
    max_position_embeddings: int = 2048
    rope_theta: float = 500000.0
    rms_norm_eps: float = 1e-5


@dataclass(frozen=True)
class Recipe:
    """How to train. A stage is (tokens of a sequence, answer accuracy that ends it).

    logs: the share of sequences that are day logs (daylog.py), the others are day sheets; hops: the most in a log.
    """

    stages: tuple[tuple[int, float], ...] = ((128, 0.95), (256, 0.96), (512, 0.97), (1024, 0.98), (2048, 2.0))
    logs: float = 0.0
    hops: int = 2
    batch_tokens: int = 4096
    learning_rate: float = 3e-3
    warmup_steps: int = 50
    decay: float = 0.2
    """The share of the time at the end in which the learning rate falls to zero."""
    weight_decay: float = 0.01
    text_weight: float = 0.1
    """The loss of a token outside the answers, of which `text_share` are looked at."""
    text_share: float = 0.1
    log_steps: int = 50
    save_seconds: float = 180.0


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.key_value_heads, self.d = shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, self.heads * self.d, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, self.key_value_heads * self.d, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, self.key_value_heads * self.d, bias=False)
        self.o_proj = nn.Linear(self.heads * self.d, shape.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = (
            p(x).view(batch, tokens, -1, self.d).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        k, v = (t.repeat_interleave(self.heads // self.key_value_heads, 1) for t in (k, v))
        with torch.autocast("cpu", enabled=False):  # backward in bfloat16 takes four times as long on a CPU
            attended = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=True)
        out: Tensor = self.o_proj(attended.transpose(1, 2).flatten(2))
        return out


class FeedForward(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(shape), FeedForward(shape)
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        x = x + self.mlp(self.post_attention_layernorm(x))
        return x


class Body(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)


class Llama(nn.Module):
    """The architecture of transformers' LlamaForCausalLM with tied embeddings; parameters have the same names."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape, self.model = shape, Body(shape)
        angles = torch.outer(torch.arange(shape.max_position_embeddings).float(), _frequencies(shape)).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Hidden states (batch, tokens, hidden) of ids (batch, tokens)."""
        x, tokens = self.model.embed_tokens(ids), ids.shape[1]
        cos, sin = self.get_buffer("cos")[:tokens], self.get_buffer("sin")[:tokens]
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        out: Tensor = self.model.norm(x)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self.model.embed_tokens.weight.t()


def _frequencies(shape: Shape) -> Tensor:
    return shape.rope_theta ** (-torch.arange(0, shape.head_dim, 2).float() / shape.head_dim)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


NAME_CHANNELS = 20
SYLLABLE, VALUE_OF, ASKED, HERE = (slice(1 + i * NAME_CHANNELS, 1 + (i + 1) * NAME_CHANNELS) for i in range(4))
OTHERS = slice(HERE.stop, None)
LOOK, COPY, MATCH, NOISE = 0.3, 0.15, 2.0, 0.2


@torch.no_grad()
def initialise(model: Llama, syllables: list[int], ends: Sequence[int]) -> None:
    """Random weights, with the beginnings of retrieval by name laid out.

    From random weights alone, a model this small learns within minutes which kind of value is asked for, but whose
    remains a guess for long. So heads begin with a purpose, all of which training may change. In the channels SYLLABLE
    only syllables of names differ. Heads of the first layer look back over the words just before and copy these
    channels: to VALUE_OF from where the name is before a value, to ASKED from where it is before the end of a question,
    and to HERE from this word and the last, so that the end of a name knows the whole name. In all further layers,
    heads attend to where VALUE_OF holds their own ASKED (an answer), or their HERE (what is known of who is just being
    named), and copy what stands there besides names. ends: tokens that do not look back, being no value.
    """
    shape = model.shape
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            deviation = weight.shape[1] ** -0.5 * (0.5 if "embed" in name else 1.0)
            if "o_proj" in name or "down_proj" in name:
                deviation *= NOISE / math.sqrt(2 * shape.num_hidden_layers)
            weight.normal_(0, deviation)
    embedding = model.model.embed_tokens.weight
    embedding[:, SYLLABLE.start : HERE.stop] = 0.0
    embedding[syllables, SYLLABLE] = 0.5 * NAME_CHANNELS**-0.5 * torch.randn(len(syllables), NAME_CHANNELS)
    embedding[:, 1:] *= 0.5 / embedding[:, 1:].norm(dim=1, keepdim=True)
    embedding[:, 0] = 0.5  # the same for all tokens, before and after the norm: where heads that look back begin
    embedding[ends, 0] = 0.0
    first, *others = [module for module in model.modules() if isinstance(module, Attention)]
    _look_back(first, shape, 0.5 / embedding[0].square().mean().sqrt().item())
    for attention in others:
        _match_names(attention, shape)


def _look_back(attention: Attention, shape: Shape, constant: float) -> None:
    """Let each head attend to the tokens at some distance; the first four copy the channels of names.

    Queries and keys begin as multiples of channel 0, a `constant`. The rotary positions turn them: their product then,
    at distance x, is a sum of cosines of (x - distance), largest at the head's own distance.
    """
    count, half, d = 6, shape.head_dim // 2, shape.head_dim
    fast = _frequencies(shape)[:count]
    attention.q_proj.weight.mul_(0.03)
    attention.k_proj.weight.mul_(0.03)
    keys = attention.k_proj.weight.view(-1, 2, half, shape.hidden_size)
    keys[:, 0, :count, 0], keys[:, 1, :count, 0] = 0.7, 0.0
    distances = [(3.5, 2.5), (4.5, 2.5), *((float(i), 8.0) for i in range(shape.num_attention_heads - 2))]
    queries = attention.q_proj.weight.view(-1, 2, half, shape.hidden_size)
    for query, (distance, sharpness) in zip(queries, distances, strict=True):
        size = torch.full((count,), sharpness * math.sqrt(d) / (0.7 * constant**2))
        query[0, :count, 0], query[1, :count, 0] = size * (fast * distance).cos(), -size * (fast * distance).sin()
    copy = torch.eye(NAME_CHANNELS)
    shared = shape.num_attention_heads // shape.num_key_value_heads
    for head, (channels, part) in enumerate(((VALUE_OF, 1.0), (ASKED, 1.0), (HERE, 0.5), (HERE, 0.5))):
        rows = slice(head // shared * d, head // shared * d + NAME_CHANNELS)
        attention.v_proj.weight[rows] = 0.0
        attention.v_proj.weight[rows, SYLLABLE] = copy
        columns = slice(head * d, head * d + NAME_CHANNELS)
        attention.o_proj.weight[:, columns] = 0.0
        attention.o_proj.weight[channels, columns] = LOOK * part * copy


def _match_names(attention: Attention, shape: Shape) -> None:
    """Let the first key/value head compare VALUE_OF with its first query head's ASKED and its second one's HERE, in the
    slowly turning dimensions, and copy a random projection of the channels that name nobody."""
    half, d = shape.head_dim // 2, shape.head_dim
    slow = slice(half - NAME_CHANNELS // 2, half)
    copied = torch.randn(d, shape.hidden_size - HERE.stop) * d**-0.5
    attention.v_proj.weight[:d] = 0.0
    attention.v_proj.weight[:d, OTHERS] = copied
    for head in range(shape.num_attention_heads // shape.num_key_value_heads):
        attention.o_proj.weight[:, head * d : (head + 1) * d] = 0.0
        attention.o_proj.weight[OTHERS, head * d : (head + 1) * d] = COPY * copied.t()
    same = MATCH * torch.eye(NAME_CHANNELS).view(2, -1, NAME_CHANNELS)
    for weight, compared in ((attention.k_proj.weight, (VALUE_OF,)), (attention.q_proj.weight, (ASKED, HERE))):
        heads = weight.view(-1, 2, half, shape.hidden_size)
        for head, channels in zip(heads, compared, strict=False):
            head[:, slow] = 0.0
            head[:, slow, channels] = same


class Batches:
    """Endless training batches (ids, is an answer), each (sequences, tokens + 1)."""

    def __init__(self, tokenizer: Tokenizer, recipe: Recipe, seed: str) -> None:
        self._tokenizer, self._recipe, self._rng = tokenizer, recipe, random.Random(seed)
        self._cache: dict[str, list[int]] = {}

    def next(self, sequences: int, tokens: int) -> tuple[Tensor, Tensor]:
        rows = [self._sequence(tokens + 1) for _ in range(sequences)]
        ids, answers = zip(*rows, strict=True)
        return torch.tensor(ids), torch.tensor(answers)

    def _sequence(self, tokens: int) -> tuple[list[int], list[bool]]:
        ids: list[int] = []
        answers: list[bool] = []
        log = self._rng.random() < self._recipe.logs
        pieces = log_pieces(self._rng, tokens, self._recipe.hops) if log else training_pieces(self._rng, tokens)
        for text, answer in pieces:
            piece = self._encode(text)
            ids += piece
            answers += [answer] * len(piece)
            if len(ids) >= tokens:
                break
        return ids[:tokens], answers[:tokens]

    def _encode(self, text: str) -> list[int]:
        if text not in self._cache:
            if len(self._cache) > 200_000:
                self._cache.clear()
            self._cache[text] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return self._cache[text]


@dataclass
class Progress:
    """Where a run stands; kept in its checkpoint."""

    seconds: float = 0.0
    steps: int = 0
    tokens: int = 0
    stage: int = 0
    accuracy: float = 0.0
    resumed: int = 0


class Trainer:
    """Muon for the matrices and AdamW for the rest, on answers above all."""

    def __init__(self, folder: Path, recipe: Recipe, seed: int, resume: bool, start: Path | None = None) -> None:
        self.folder, self.recipe, self.seed, self.progress = folder, recipe, seed, Progress()
        torch.manual_seed(seed)
        self.tokenizer = build_tokenizer()
        self.model = Llama(Shape(self.tokenizer.get_vocab_size()))
        initialise(self.model, name_tokens(self.tokenizer), [_encode_answer(self.tokenizer, END)[0]])
        if start is not None:
            begin_with(self.model, start)
        matrices = [p for n, p in self.model.named_parameters() if p.dim() == 2 and "embed" not in n]
        rest = [p for n, p in self.model.named_parameters() if p.dim() != 2 or "embed" in n]
        rate, decay = recipe.learning_rate, recipe.weight_decay
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=rate, weight_decay=decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.95), weight_decay=decay),
        ]
        if resume:
            self._load()
        self.batches = Batches(self.tokenizer, recipe, f"{seed}-{self.progress.resumed}")

    def run(self, minutes: float) -> None:
        """Train for so long, saving and reporting on the way."""
        recipe, progress, started, before = self.recipe, self.progress, time.monotonic(), self.progress.seconds
        saved, steps_before, tokens_before = started, progress.steps, progress.tokens
        while (passed := (time.monotonic() - started) / (60 * minutes)) < 1:
            tokens, enough = recipe.stages[progress.stage]
            warm = min(1.0, (progress.steps - steps_before + 1) / recipe.warmup_steps)
            accuracy = self._step(tokens, recipe.learning_rate * warm * min(1.0, (1 - passed) / recipe.decay))
            progress.accuracy += 0.02 * (accuracy - progress.accuracy)
            progress.steps, progress.tokens = progress.steps + 1, progress.tokens + recipe.batch_tokens
            progress.seconds = before + time.monotonic() - started
            if progress.steps % recipe.log_steps == 0:
                speed = (progress.tokens - tokens_before) / (time.monotonic() - started)
                self._report(tokens, speed)
            if progress.accuracy > enough:
                print(f"length {tokens}: {progress.accuracy:.3f} of the answers right, going on", flush=True)
                progress.stage, progress.accuracy = progress.stage + 1, 0.0
            if time.monotonic() - saved > recipe.save_seconds:
                self._save()
                saved = time.monotonic()
        self._save()

    def _report(self, tokens: int, speed: float) -> None:
        p = self.progress
        seen = f"{p.seconds / 60:6.1f} min  step {p.steps}  {p.tokens / 1e6:.2f} M tokens"
        print(f"{seen}  length {tokens}  answers right {p.accuracy:.3f}  {speed:,.0f} tokens/s", flush=True)

    def _step(self, tokens: int, rate: float) -> float:
        """One step; the share of answers (not their ends) right."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        ids, answers = self.batches.next(self.recipe.batch_tokens // tokens, tokens)
        targets, answer = ids[:, 1:], answers[:, 1:]
        chosen = answer | (torch.rand(targets.shape) < self.recipe.text_share)
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.model.logits(self.model(ids[:, :-1])[chosen])
        targets, answer = targets[chosen], answer[chosen]
        losses = F.cross_entropy(logits.float(), targets, reduction="none")
        weights = torch.where(answer, 1.0, self.recipe.text_weight)
        ((losses * weights).sum() / weights.sum()).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        values = answer & (targets != self.tokenizer.token_to_id("Ċ"))
        return (logits.argmax(-1) == targets)[values].float().mean().item()

    def _save(self) -> None:
        """The checkpoint to resume from, the model folder, and what it can do now."""
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "progress": asdict(self.progress),
        }
        torch.save(state, self.folder / f"{CHECKPOINT}.new")
        (self.folder / f"{CHECKPOINT}.new").replace(self.folder / CHECKPOINT)
        export(self.model, self.tokenizer, self.folder / "model")
        tokens = sorted({128, 512, min(1024, 2 * self.recipe.stages[self.progress.stage][0])})
        figures = {n: exact_match(self.model, self.tokenizer, n, 50) for n in tokens}
        print("saved; held-out exact match " + "  ".join(f"{n}: {x:.2f}" for n, x in figures.items()), flush=True)
        if self.recipe.logs:
            for n, kind in itertools.product(tokens, KINDS_OF_LOG):
                cells = log_match(self.model, self.tokenizer, n, 10, kind, self.recipe.hops)
                print(
                    f"  log of {kind}, {n}: " + "  ".join(f"{h} hops {r}/{a}" for h, (r, a) in cells.items()),
                    flush=True,
                )

    def _load(self) -> None:
        state = torch.load(self.folder / CHECKPOINT, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.progress = Progress(**state["progress"])
        self.progress.resumed += 1


@torch.no_grad()
def exact_match(model: Llama, tokenizer: Tokenizer, tokens: int, documents: int, split: str = "heldout") -> float:
    """The share of documents whose one question, the last thing in the prompt, is answered exactly.

    An answer counts if every one of its tokens, END too, has the largest logit after the prompt and the tokens before
    it: then, and only then, would greedy decoding give it.
    """
    right = 0
    for seed in range(documents):
        sheet = sheet_of_tokens(seed, split, tokens, tokenizer)
        question, answer = sheet.questions[0]
        prompt, gold = tokenizer.encode(sheet.text + question).ids, _encode_answer(tokenizer, answer)
        with torch.autocast("cpu", torch.bfloat16, enabled=model.training):
            hidden = model(torch.tensor([prompt + gold[:-1]]))[0, len(prompt) - 1 :]
            right += model.logits(hidden).argmax(-1).tolist() == gold
    return right / documents


@torch.no_grad()
def log_match(
    model: Llama, tokenizer: Tokenizer, tokens: int, documents: int, kind: str, hops: int, split: str = "heldout"
) -> dict[int, tuple[int, int]]:
    """(right, asked) by an answer's hops, of day logs whose statements rest on far ones: two questions of each."""
    cells = {h: (0, 0) for h in range(hops + 1)}
    for seed in range(documents):
        log = log_of_tokens(DayLog(seed, split, kind, hops=hops, apart=FAR if tokens > 400 else 5), tokens, tokenizer)
        for h in cells:
            for said in [one for one in log.last if one.hops == h][:2]:
                prompt, gold = tokenizer.encode(log.text + said.question).ids, _encode_answer(tokenizer, said.answer)
                with torch.autocast("cpu", torch.bfloat16, enabled=model.training):
                    hidden = model(torch.tensor([prompt + gold[:-1]]))[0, len(prompt) - 1 :]
                right = model.logits(hidden).argmax(-1).tolist() == gold
                cells[h] = cells[h][0] + right, cells[h][1] + 1
    return cells


def _encode_answer(tokenizer: Tokenizer, answer: str) -> list[int]:
    return tokenizer.encode(answer, add_special_tokens=False).ids


def export(model: Llama, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a Hugging Face model folder."""
    folder.mkdir(parents=True, exist_ok=True)
    begin, end = tokenizer.token_to_id(BEGIN), tokenizer.encode(END, add_special_tokens=False).ids[0]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **asdict(model.shape),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": begin,
        "eos_token_id": end,
        "torch_dtype": "float16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "model_max_length": model.shape.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")
    tensors = {name: tensor.detach().half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})


@torch.no_grad()
def begin_with(model: Llama, folder: Path) -> None:
    """Take the weights of a trained model of the same shape, whose tokens are the first of this one's."""
    trained = load(folder)[0].state_dict()
    for name, weight in model.named_parameters():
        weight[: len(trained[name])] = trained[name]


def load(folder: Path) -> tuple[Llama, Tokenizer]:
    """A model folder that `export` wrote."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    model = Llama(Shape(**{field: config[field] for field in Shape.__dataclass_fields__}))
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()})
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mpcache.demo.training", description=__doc__)
    commands = parser.add_subparsers(required=True)
    _add_train(commands.add_parser("train", help="train the demo model", description=_TRAIN))
    _add_evaluate(commands.add_parser("evaluate", help="exact match on held-out day sheets"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.run(options)


_TRAIN = """Train the demo model on seeded synthetic day sheets. OUT gets checkpoint.pt, to resume from, and model/, a
Hugging Face model folder, every three minutes."""


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=90, help="how long to train (default %(default)s)")
    parser.add_argument("--out", type=Path, default="out/demo", help="folder to write to (default %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from OUT/checkpoint.pt")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the documents (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default %(default)s)")
    parser.add_argument("--start", type=Path, help="begin with the weights of this model folder, of the same shape")
    parser.add_argument("--logs", type=float, default=0.0, help="share of day logs in training (default %(default)s)")
    parser.set_defaults(run=lambda o: Trainer(o.out, Recipe(logs=o.logs), o.seed, o.resume, o.start).run(o.minutes))


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    parser.add_argument("--tokens", default="512,1024,2048", help="lengths of the prompts (default %(default)s)")
    parser.add_argument("--documents", type=int, default=200, help="day sheets of each length (default %(default)s)")
    parser.add_argument("--split", default="heldout", choices=SPLITS, help="whose names (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    parser.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> None:
    model, tokenizer = load(options.model)
    figures = {}
    for tokens in map(int, options.tokens.split(",")):
        figures[tokens] = exact_match(model, tokenizer, tokens, options.documents, options.split)
        print(f"{tokens:5} tokens: exact match {figures[tokens]:.3f} on {options.documents} documents", flush=True)
    if options.json:
        result = {"split": options.split, "documents": options.documents, "exact_match": figures}
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
