"""Run a policy's program privately, and look at what nobody may see outside of a test: what it keeps and picks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from mpcache.generation.loop import steps
from mpcache.generation.request import GenerationRequest
from mpcache.model.checkpoint import Checkpoint, weight_shapes
from mpcache.model.decoder import Decoder
from mpcache.protocols.backends.mpc import MpcBackend, masked_weight
from mpcache.protocols.backends.plain import PlainBackend
from mpcache.protocols.local import run_parties
from mpcache.protocols.plan import PlanSession
from mpcache.protocols.public import Constants
from mpcache.protocols.randomness import new_key
from mpcache.protocols.ring import RING_BITS, encode
from mpcache.protocols.session import Cost, Session
from mpcache.protocols.shares import Secret
from mpcache.protocols.stripes import Stripes

LOGIT_ERROR = 0.02
"""See docs/protocols.md."""
SCORE_ERROR = {"top_k": 0.01, "choose_runs": 0.01, "retain": 0.001, "argmin": 0.001}
"""How close two scores must be for another choice than plaintext's: clusters are compared with 8 fractional bits, each
score off by one unit; attention received has all 16, and the softmax's error."""


@dataclass
class Decision:
    """A secret choice. picked: positions among the candidates, a row for each head or block. scores: plaintext's."""

    kind: str
    picked: torch.Tensor
    scores: torch.Tensor | None


@dataclass
class Recording:
    """A backend that also notes each secret decision, opened by `reveal`."""

    backend: Any
    reveal: Callable[[Any], torch.Tensor]
    decisions: list[Decision] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def retain(self, scores: Any, k: int, largest: float, rows: Any) -> Any:
        blocks, n, _ = rows.shape
        numbers = self.backend.zeros((blocks, n, 1)) + torch.arange(n)[None, :, None] / 2**16
        kept = self.backend.retain(scores, k, largest, self.backend.concatenate([rows, numbers], 2))
        self._note("retain", self.reveal(kept[:, :, -1]), scores)
        return kept[:, :, :-1]

    def choose_largest(self, scores: Any, stripes: int) -> Any:
        choice, plain = self.backend.choose_largest(scores, stripes), isinstance(scores, torch.Tensor)
        rows = choice if plain else self.reveal(self.backend.unmask(choice)) % 2
        self._note("top_k", rows.argmax(-1), scores.reshape(-1, stripes).t() if plain else None)
        return choice

    def top_k(self, scores: Any, k: int) -> Any:
        choice = self.backend.top_k(scores, k)
        self._note("top_k", self.reveal(choice).argmax(-1), scores)
        return choice

    def choose(self, scores: Any, stripes: Stripes, size: int) -> Any:
        """Each stripe is a decision, those of a group are noted together."""
        stage = self.backend.choose(scores, stripes, size)
        plain = scores if isinstance(scores, torch.Tensor) else torch.zeros(scores.shape)
        for choice, part in zip(stage.choice, stripes.split(plain[..., None]), strict=True):
            if choice is not None:
                rows = choice if plain is scores else self.reveal(choice) % 2  # the rings of choices are narrow
                picked = rows.argmax(-1).flatten(0, 1)
                self._note("top_k", picked, part[..., 0].flatten(0, 1) if plain is scores else None)
        return stage

    def choose_runs(self, queries: Any, masked: Any, stripes: int, k: int) -> Any:
        choice = self.backend.choose_runs(queries, masked, stripes, k)
        plain = isinstance(queries, torch.Tensor)
        scores = (queries @ masked.transpose(-1, -2)).amax((0, 1)).reshape(-1, stripes).t() if plain else None
        self._note("choose_runs", self.reveal(choice).argmax(-1), scores)
        return choice

    def argmin(self, scores: Any, largest: float) -> Any:
        choice = self.backend.argmin(scores, largest)
        self._note("argmin", self.reveal(choice).argmax(-1), scores)
        return choice

    def _note(self, kind: str, picked: torch.Tensor, scores: Any) -> None:
        self.decisions.append(Decision(kind, picked, scores if isinstance(scores, torch.Tensor) else None))


def recording_plain() -> Recording:
    return Recording(PlainBackend(), lambda x: (x * 2**16).round().to(torch.int64))


def recording_private(backend: Any, session: Session) -> Recording:
    return Recording(backend, lambda x: session.run(session.open(x.share, RING_BITS)))


def compare_decisions(ours: list[Decision], plain: list[Decision], bounds: float = 1.0) -> int:
    """How many decisions agree before the first that may differ: scores closer than so many times the error bound."""
    assert [d.kind for d in ours] == [d.kind for d in plain]
    for i, (a, b) in enumerate(zip(ours, plain, strict=True)):
        if not torch.equal(a.picked, b.picked):
            assert b.scores is not None
            for row, mine, theirs in zip(b.scores, a.picked, b.picked, strict=True):
                differing = set(mine.tolist()) ^ set(theirs.tolist()) or set(mine[mine != theirs].tolist())
                apart = float(row[list(differing)].max() - row[list(differing)].min()) if differing else 0.0
                assert apart < bounds * SCORE_ERROR[b.kind], (
                    f"decision {i} ({b.kind}) differs, and not by a near tie: {apart}"
                )
            return i
    return len(plain)


def smallest_gap(decisions: list[Decision]) -> float:
    """How far apart the scores are that plaintext's decisions turn on, in error bounds."""
    gaps = [float("inf")]
    for decision in decisions:
        assert decision.scores is not None
        rows = -decision.scores if decision.kind == "argmin" else decision.scores
        k = decision.picked.shape[-1]
        ranked = rows.sort(-1, descending=True).values
        first = k - 1 if decision.kind == "retain" else 0  # in retained rows only the last one matters
        apart = ranked[:, first : min(k, rows.shape[-1] - 1)] - ranked[:, first + 1 : k + 1]
        gaps.append(float(apart.min()) / SCORE_ERROR[decision.kind])
    return min(gaps)


def sharing(session: Session) -> Callable[[torch.Tensor], Secret]:
    """Shares of values that both parties of a test know, under the same masks at both."""
    generator = torch.Generator().manual_seed(1)

    def share(x: torch.Tensor) -> Secret:
        mask = torch.randint(-(2**62), 2**62, x.shape, generator=generator)
        return Secret(encode(x) - mask if session.party == 0 else mask, session.party)

    return share


# ---------------------------------------------------------------- whole generations


@dataclass
class Generated:
    tokens: list[int | None]
    decisions: list[Decision]
    margins: list[float] = field(default_factory=list)
    transcript: list[Any] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)


def generate_plain(checkpoint: Checkpoint, plan: GenerationRequest, prompt: list[int]) -> Generated:
    backend = recording_plain()
    out = Generated([], backend.decisions)
    for token in steps(Decoder(checkpoint.config, backend, checkpoint.tensors), plan, prompt):  # type: ignore[arg-type]
        out.tokens.append(token)
        best = backend.last_logits.topk(2).values
        out.margins.append(float(best[0] - best[1]))
    return out


def generate_privately(
    checkpoint: Checkpoint, plan: GenerationRequest, prompt: list[int], record: bool = True
) -> Generated:
    """What the client gets; with `record` also what was decided, which is then opened (and counted)."""
    key = new_key()
    masked = {n: masked_weight(key, n, checkpoint.tensors[n]) for n in weight_shapes(checkpoint.config)}

    def program(session: Session) -> Generated:
        transcript = watch(session)
        owner = session.party == 0
        backend: Any = MpcBackend(session, key if owner else None, masked)
        backend = recording_private(backend, session) if record else backend
        decoder = Decoder(checkpoint.config, backend, checkpoint.tensors if owner else None)
        tokens = list(steps(decoder, plan, None if owner else prompt))
        return Generated(tokens, backend.decisions if record else [], [], transcript, session.cost)

    owner, client = run_parties(program, weight_key=key)
    assert set(owner.tokens) == {None}, "the owner must not learn a token"
    assert plan.draft or len(owner.tokens) == len(client.tokens)
    assert owner.transcript == client.transcript
    client.cost = owner.cost
    return client


def planning_in_full() -> PlanSession:
    """A session that plans every call, also one that is like an earlier one (backends/planned.py), to be watched."""
    session = PlanSession()
    session.constants = Constants()
    return session


def watch(session: Session) -> list[Any]:
    """From now on: every correlation and every message (shapes, widths, directions), in order."""
    transcript: list[Any] = []
    take, round_ = session.take, session._round

    def watched_take(correlation: Any) -> Any:
        transcript.append(correlation)
        return take(correlation)

    def watched_round(requests: list[Any]) -> None:
        transcript.append([(tuple(r.shape), r.bits, r.xor, r.receiver) for r in requests])
        round_(requests)

    session.take, session._round = watched_take, watched_round  # type: ignore[method-assign]
    return transcript
