"""The library: what `import mpcache` gives, and that its answers, plans, comparisons and errors are what they say."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

import mpcache
from mpcache.generation import in_process
from mpcache.parties.launcher import launched_model, write_settings
from mpcache.parties.threads import session_threads
from mpcache.protocols.session import Cost
from tests.mpcache.models import save_random_model

VOCABULARY = 96
PROMPT = [5, 17, 3, 88, 41, 60, 12, 7, 90, 33, 21, 54, 9, 70, 2, 38, 47, 19, 81, 26]
NEW = 3
POLICY = "mpcache:budget=8:sinks=1:recent=4:clusters=2"


@dataclass(frozen=True)
class Tiny:
    """A random model with words for tokens, and transformers' own of the same weights."""

    folder: Path
    reference: torch.nn.Module


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("tiny")
    reference = save_random_model(folder, "llama", eos_token_id=None)
    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCABULARY)}, "w0"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return Tiny(folder, reference)


@pytest.fixture(scope="module")
def model(tiny: Tiny) -> mpcache.Model:
    return mpcache.load_model(tiny.folder)


@pytest.fixture(scope="module")
def parties(model: mpcache.Model) -> mpcache.InProcess:
    return mpcache.InProcess(model)


# ---------------------------------------------------------------- the front door


def test_the_public_names_are_those_of_the_stub_and_all_are_there() -> None:
    stub = Path(mpcache.__file__).with_suffix(".pyi").read_text()
    names = re.findall(r"^from \S+ import (\w+) as (\w+)$", stub, re.MULTILINE)
    assert all(name == public for name, public in names)
    assert mpcache.__all__ == sorted(public for _, public in names)
    assert all(getattr(mpcache, name) is not None for name in mpcache.__all__)
    assert set(mpcache.__all__) <= set(dir(mpcache))
    with pytest.raises(AttributeError):
        mpcache.nothing_of_this_name  # type: ignore[attr-defined]  # noqa: B018


def test_every_error_is_public_and_one_of_the_tree() -> None:
    errors = {name for name, kind in vars(mpcache.protocols.errors).items() if isinstance(kind, type)}
    assert errors <= set(mpcache.__all__)
    assert all(issubclass(getattr(mpcache, name), mpcache.MpcacheError) for name in errors)


def test_to_import_it_loads_no_torch() -> None:
    code = "import sys, mpcache; dir(mpcache); sys.exit(any(m in sys.modules for m in ('torch', 'grpc', 'pydantic')))"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize("policy", ["full", POLICY])
def test_private_answers_in_this_process_are_the_plaintext_ones(
    model: mpcache.Model, parties: mpcache.InProcess, policy: str
) -> None:
    plain = mpcache.generate(model, PROMPT, max_new_tokens=NEW, policy=policy)
    with parties:
        private = parties.generate(PROMPT, max_new_tokens=NEW, policy=policy)
    assert private.tokens == plain.tokens and len(private.tokens) == NEW
    assert private.text == plain.text == " ".join(f"w{token}" for token in plain.tokens)
    assert private.request == plain.request and plain.decode.cost == Cost()
    assert not session_threads()


def test_plaintext_is_what_transformers_says(model: mpcache.Model, tiny: Tiny) -> None:
    assert list(mpcache.generate(model, PROMPT, max_new_tokens=NEW, policy="full").tokens) == greedy(tiny, PROMPT, NEW)


@pytest.mark.slow
def test_processes_and_parties_elsewhere_give_the_plaintext_answer_as_well(model: mpcache.Model, tiny: Tiny) -> None:
    text = model.decode(PROMPT)
    plain = mpcache.generate(model, text, max_new_tokens=NEW)
    with mpcache.LocalProcesses(tiny.folder) as local:
        apart = local.generate(text, max_new_tokens=NEW)
        local.prepare(len(model.encode(text)), max_new_tokens=NEW)
        kept = local._data_owner.connection.state / "prepared"
        assert len(list(kept.iterdir())) == 1
        assert local.generate(text, max_new_tokens=NEW).tokens == apart.tokens
        assert not list(kept.iterdir()), "it was used"
        with pytest.raises(mpcache.ConfigError, match="unknown option 'fixed_length'"):
            local.prepare(3, fixed_length=True)  # type: ignore[call-arg]
    together = mpcache.InProcess(model).generate(text, max_new_tokens=NEW)
    assert apart.tokens == together.tokens == plain.tokens
    assert (apart.prefill.cost, apart.decode.cost) == (together.prefill.cost, together.decode.cost)
    with launched_model(tiny.folder) as running:
        folder = running.connection.state.parent
        places = {"owner": running.owner.address, "dealer": running.dealer.address, "tokenizer": tiny.folder}
        remote = mpcache.Remote(write_settings(folder / "client.toml", {**places, "max_new_tokens": NEW}))
        assert remote.generate(text).tokens == plain.tokens
        assert mpcache.Remote(folder / "client.toml").generate(PROMPT, max_new_tokens=1).tokens == plain.tokens[:1]
        with pytest.raises(mpcache.ConfigError, match="beyond its vocabulary of 96"):
            remote.generate([96])
    assert not session_threads()


def test_the_pieces_of_a_stream_are_its_answer(parties: mpcache.InProcess) -> None:
    heard: list[tuple[int, int]] = []
    stream = parties.stream(PROMPT, max_new_tokens=NEW, on_block=lambda done, total: heard.append((done, total)))
    with pytest.raises(mpcache.ConfigError, match="the answer is not whole yet"):
        _ = stream.answer
    assert "".join(stream) == stream.answer.text != ""
    assert heard == [(len(PROMPT), len(PROMPT))]
    with pytest.raises(mpcache.ConfigError, match="a stream is read once"):
        iter(stream)


def test_threads_may_share_parties(parties: mpcache.InProcess, model: mpcache.Model) -> None:
    prompts = [PROMPT, PROMPT[::-1]]
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda prompt: parties.generate(prompt, max_new_tokens=2), prompts))
    assert [a.tokens for a in answers] == [mpcache.generate(model, p, max_new_tokens=2).tokens for p in prompts]


def test_an_answer_ends_with_an_end_token_and_shows_nothing_after_it(model: mpcache.Model, parties: Any) -> None:
    first, second, _ = parties.generate(PROMPT, max_new_tokens=NEW).tokens
    ending = mpcache.Model(model.folder, model.checkpoint, model.tokenizer, (second,))
    assert mpcache.generate(ending, PROMPT, max_new_tokens=NEW).tokens == (first, second)
    short = mpcache.InProcess(ending).generate(PROMPT, max_new_tokens=NEW)
    hidden = mpcache.InProcess(ending).generate(PROMPT, max_new_tokens=NEW, fixed_length=True)
    assert short.tokens == hidden.tokens == (first, second)
    assert hidden.decode.cost.rounds > short.decode.cost.rounds


# ---------------------------------------------------------------- ends


def test_to_leave_a_stream_early_ends_the_owners_thread(parties: mpcache.InProcess) -> None:
    for _ in parties.stream(PROMPT, max_new_tokens=NEW):
        assert session_threads()
        break
    assert not session_threads()


def test_the_end_of_the_block_ends_what_was_not_read_to_its_end(model: mpcache.Model) -> None:
    with mpcache.InProcess(model) as parties:
        pieces = iter(parties.stream(PROMPT, max_new_tokens=NEW))
        next(pieces)
        (owner,) = session_threads()
    owner.join(60)
    assert not owner.is_alive()
    with pytest.raises(mpcache.PeerLost, match="the client stopped"):
        next(pieces)


def test_what_goes_wrong_in_the_owners_thread_is_raised_to_who_asked(
    parties: mpcache.InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = in_process.steps

    def failing(decoder: Any, request: Any, prompt: Any, *rest: Any) -> Iterator[int | None]:
        if prompt is None:
            raise ZeroDivisionError("of the owner")
        yield from steps(decoder, request, prompt, *rest)

    monkeypatch.setattr(in_process, "steps", failing)
    with pytest.raises(ZeroDivisionError, match="of the owner"):
        parties.generate(PROMPT, max_new_tokens=1)
    assert not session_threads()


def test_what_goes_wrong_where_blocks_are_heard_ends_the_owners_thread(parties: mpcache.InProcess) -> None:
    def broken(done: int, total: int) -> None:
        raise ZeroDivisionError("of the caller")

    with pytest.raises(ZeroDivisionError, match="of the caller"):
        parties.generate(PROMPT, max_new_tokens=1, on_block=broken)
    assert not session_threads()


# ---------------------------------------------------------------- plans


@pytest.mark.parametrize(("policy", "temperature"), [("full", 0.0), (POLICY, 0.7), ("h2o:budget=8", 0.0)])
def test_a_plan_is_what_a_run_takes_to_the_byte(
    model: mpcache.Model, parties: mpcache.InProcess, policy: str, temperature: float
) -> None:
    answer = parties.generate(PROMPT, max_new_tokens=NEW, policy=policy, temperature=temperature)
    prices = mpcache.plan(model, prompt_tokens=len(PROMPT), max_new_tokens=NEW, policy=policy, temperature=temperature)
    assert facts(answer.prefill.cost) == facts((prices.prefill + prices.eviction).cost)
    assert facts(answer.decode.cost) == facts(prices.decoding.cost) and len(prices.decode) == NEW - 1


@pytest.mark.parametrize("policy", ["full", f"{POLICY}:cluster_answer=false:only_if_cheaper=false"])
def test_drafts_change_no_answer_and_take_what_their_plan_says(
    model: mpcache.Model, parties: mpcache.InProcess, policy: str
) -> None:
    new = 2 * NEW
    single = mpcache.generate(model, PROMPT, max_new_tokens=new, policy=policy)
    plain = mpcache.generate(model, PROMPT, max_new_tokens=new, policy=policy, draft=2)
    answer = parties.generate(PROMPT, max_new_tokens=new, policy=policy, draft=2)
    assert answer.tokens == plain.tokens == single.tokens
    assert answer.passes == plain.passes <= single.passes == len(single.tokens) - 1
    prices = mpcache.plan(model, prompt_tokens=len(PROMPT), max_new_tokens=new, policy=policy, draft=2)
    assert facts(answer.decode.cost) == facts(sum((p.cost for p in prices.decode[: answer.passes]), mpcache.Cost()))


def test_where_drafts_cannot_be_taken_nothing_begins(model: mpcache.Model, parties: mpcache.InProcess) -> None:
    for ask in (parties.generate, lambda *p, **o: mpcache.generate(model, *p, **o)):
        with pytest.raises(mpcache.ConfigError, match="the cache policy 'h2o' takes no drafts"):
            ask(PROMPT, max_new_tokens=NEW, policy="h2o:budget=8", draft=2)


def facts(cost: mpcache.Cost) -> tuple[int, int, int]:
    return cost.online_bytes, cost.correction_bytes, cost.rounds


def test_a_model_its_shape_and_its_folder_have_the_same_plan(model: mpcache.Model) -> None:
    plans = [mpcache.plan(m, prompt_tokens=20, max_new_tokens=2) for m in (model, model.config, model.folder)]
    assert plans[0] == plans[1] == plans[2]
    assert mpcache.plan("tiny", prompt_tokens=500, max_new_tokens=1).decode == []


# ---------------------------------------------------------------- comparisons


def logits(tiny: Tiny, tokens: list[int]) -> torch.Tensor:
    """Of the token after each, by transformers."""
    with torch.no_grad():
        return tiny.reference(torch.tensor([tokens])).logits[0]


def greedy(tiny: Tiny, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(logits(tiny, tokens)[-1].argmax()))
    return tokens[len(prompt) :]


def negative_log_likelihood(tiny: Tiny, prompt: list[int], answer: list[int]) -> float:
    scores = logits(tiny, prompt + answer)[len(prompt) - 1 : -1].log_softmax(-1)
    return -float(scores.gather(1, torch.tensor(answer)[:, None]).sum())


def test_without_answers_the_full_caches_own_are_wanted(model: mpcache.Model, tiny: Tiny) -> None:
    full, streaming = mpcache.compare_policies(
        model, [PROMPT], ["full", "streaming:budget=5:sinks=1:recent=2"], max_new_tokens=NEW
    )
    wanted = greedy(tiny, PROMPT, NEW)
    assert (full.policy, full.prompts, full.exact_match, full.token_match, full.attended) == ("full", 1, 1.0, 1.0, 1.0)
    assert full.perplexity == pytest.approx(math.exp(negative_log_likelihood(tiny, PROMPT, wanted) / NEW), rel=1e-3)
    assert streaming.attended == pytest.approx(5 / len(PROMPT))
    assert streaming.perplexity > full.perplexity


def test_answers_that_are_given_are_what_counts(model: mpcache.Model, tiny: Tiny) -> None:
    prompts = [PROMPT, PROMPT[5:]]
    right, wrong = (greedy(tiny, prompt, NEW) for prompt in prompts)
    wrong[1] = (wrong[1] + 1) % VOCABULARY  # the second of its tokens
    (quality,) = mpcache.compare_policies(model, prompts, ["full"], answers=[model.decode(right), wrong])
    assert (quality.prompts, quality.exact_match, quality.token_match) == (2, 1 / 2, (3 + 1) / 6)
    loss = sum(negative_log_likelihood(tiny, p, a) for p, a in zip(prompts, (right, wrong), strict=True))
    assert quality.perplexity == pytest.approx(math.exp(loss / 6), rel=1e-3)


def test_settings_and_spellings_are_compared_alike(model: mpcache.Model) -> None:
    settings = mpcache.policy_settings("streaming", budget=5, sinks=1, recent=2)
    done: list[int] = []
    given, spelled = mpcache.compare_policies(
        model,
        [PROMPT, PROMPT[3:]],
        [settings, "streaming:budget=5:prefill_budget=0:sinks=1:recent=2"],
        max_new_tokens=1,
        on_prompt=done.append,
    )
    assert (given.perplexity, given.policy) == (spelled.perplexity, spelled.policy)
    assert done == [1, 2]


# ---------------------------------------------------------------- errors

ASKED: dict[str, tuple[dict[str, Any], str]] = {
    "no token": ({"prompt": []}, "the prompt is empty"),
    "no word": ({"prompt": " "}, "the prompt is empty"),
    "a token too large": ({"prompt": [1, 96]}, "beyond its vocabulary of 96"),
    "a token below 0": ({"prompt": [-1]}, "beyond its vocabulary of 96"),
    "too long": ({"prompt": [1] * 127}, "do not fit the model's 128 positions"),
    "no new token": ({"max_new_tokens": 0}, "at least one new token"),
    "an unknown policy": ({"policy": "mpcach"}, "did you mean 'mpcache'?"),
    "an unknown setting": ({"policy": "mpcache:keepratio=1"}, "did you mean 'keep_ratio'?"),
    "a class": ({"policy": mpcache.Policy}, "a policy is named in quotes"),
    "another's settings": ({"policy": mpcache.PolicySettings("h2o")}, "its settings are made by policy_settings"),
    "a budget too small": ({"policy": "h2o:budget=1"}, "below the 2"),
    "a cold temperature": ({"temperature": -1.0}, "the temperature must be between 0 and 100"),
}
PRIVATELY: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown network": ({"network": "moon"}, "the network 'moon' is none of"),
    "an unknown option": ({"max_tokens": 3}, "unknown option 'max_tokens'.*did you mean 'max_new_tokens'"),
    "what the library decides": ({"backend": "crypten"}, "unknown option 'backend'"),
}


@pytest.mark.parametrize(("changes", "message"), ASKED.values(), ids=ASKED)
def test_what_cannot_be_asked_for_is_refused_alike_in_words(
    model: mpcache.Model, parties: mpcache.InProcess, changes: dict[str, Any], message: str
) -> None:
    options = {"prompt": PROMPT, "max_new_tokens": 2, **changes}
    for ask in (parties.generate, parties.stream, lambda prompt, **rest: mpcache.generate(model, prompt, **rest)):
        with pytest.raises(mpcache.ConfigError, match=message):
            ask(options["prompt"], **{name: value for name, value in options.items() if name != "prompt"})


@pytest.mark.parametrize(("options", "message"), PRIVATELY.values(), ids=PRIVATELY)
def test_options_of_a_private_generation_are_refused_in_words(
    parties: mpcache.InProcess, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(mpcache.ConfigError, match=message):
        parties.stream(PROMPT, **options)


ELSEWHERE: dict[str, tuple[Callable[[mpcache.Model, Path], object], type[mpcache.MpcacheError], str]] = {
    "no folder": (lambda model, tmp: mpcache.load_model(tmp / "none"), mpcache.ModelError, "there is no folder"),
    "an empty folder": (lambda model, tmp: mpcache.load_model(tmp), mpcache.ModelError, r"config\.json"),
    "no folder to serve": (
        lambda model, tmp: mpcache.LocalProcesses(tmp / "none"),
        mpcache.ModelError,
        "there is no folder",
    ),
    "a folder without tokenizer": (lambda model, tmp: mpcache.LocalProcesses(tmp), mpcache.ModelError, "no tokenizer"),
    "processes that do not run": (
        lambda model, tmp: mpcache.LocalProcesses(model.folder).generate(PROMPT),
        mpcache.ConfigError,
        "the processes run in a block alone",
    ),
    "no settings": (lambda model, tmp: mpcache.Remote(tmp / "none.toml"), mpcache.ConfigError, "there is no file"),
    "an unknown shape": (lambda model, tmp: mpcache.plan("gpt9", prompt_tokens=1), mpcache.ConfigError, "known shape"),
    "a plan of no prompt": (
        lambda model, tmp: mpcache.plan(model, prompt_tokens=0),
        mpcache.ConfigError,
        "a generation needs a prompt",
    ),
    "a plan of too much": (
        lambda model, tmp: mpcache.plan(model, prompt_tokens=128),
        mpcache.ConfigError,
        "do not fit the model's 128 positions",
    ),
    "a plan of a small budget": (
        lambda model, tmp: mpcache.plan("tiny", prompt_tokens=9, policy="h2o:budget=1"),
        mpcache.ConfigError,
        "below the 2",
    ),
    "a policy twice": (
        lambda model, tmp: mpcache.register_policy(type("Full", (mpcache.policies.full.Full,), {"name": "full"})),
        mpcache.ConfigError,
        "there is a cache policy 'full' already",
    ),
}


@pytest.mark.parametrize(("ask", "error", "message"), ELSEWHERE.values(), ids=ELSEWHERE)
def test_every_other_mistake_has_its_error(
    model: mpcache.Model, tmp_path: Path, ask: Callable[..., object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ask(model, tmp_path)


COMPARED: dict[str, tuple[dict[str, Any], str]] = {
    "no prompt": ({"prompts": []}, "prompts are a list with at least one"),
    "one text": ({"prompts": "w1 w2"}, "prompts are a list with at least one"),
    "no policy": ({"policies": []}, "policies are a list with at least one"),
    "one policy": ({"policies": "full"}, "policies are a list with at least one"),
    "an unknown policy": ({"policies": ["ful"]}, "did you mean 'full'?"),
    "a budget too small": ({"policies": ["h2o:budget=1"]}, "below the 2"),
    "a prompt of one token": ({"prompts": [[4]]}, "a prompt has two tokens or more"),
    "a prompt too long": ({"prompts": [[4] * 128]}, "take 130 tokens, and the model has 128 positions"),
    "another number of answers": ({"answers": [[1], [2]]}, "1 prompts and 2 answers"),
    "an empty answer": ({"answers": [""]}, "an answer: the prompt is empty"),
    "an answer of no token": ({"max_new_tokens": 0}, "an answer has at least one token"),
}


@pytest.mark.parametrize(("changes", "message"), COMPARED.values(), ids=COMPARED)
def test_a_comparison_of_nothing_is_refused_in_words(
    model: mpcache.Model, changes: dict[str, Any], message: str
) -> None:
    asked = {"prompts": [PROMPT], "policies": ["full"], "max_new_tokens": 2, **changes}
    with pytest.raises(mpcache.ConfigError, match=message):
        mpcache.compare_policies(model, **asked)


def test_a_model_shows_its_shape_and_no_weights(model: mpcache.Model) -> None:
    assert "vocabulary=96" in repr(model) and "tensor(" not in repr(model)
    assert len({model, model}) == 1


def test_a_model_without_a_tokenizer_takes_token_ids_alone(model: mpcache.Model) -> None:
    bare = mpcache.Model(model.folder, model.checkpoint, None, ())
    answer = mpcache.generate(bare, PROMPT, max_new_tokens=NEW)
    assert answer.text == "" and len(answer.tokens) == NEW
    with pytest.raises(mpcache.ConfigError, match="give token ids instead of text"):
        mpcache.generate(bare, "w1 w2")
    assert bare.encode(torch.tensor(PROMPT)) == PROMPT  # type: ignore[arg-type]
