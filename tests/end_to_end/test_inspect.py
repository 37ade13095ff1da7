"""`mpcache inspect`, as whoever has a model meets it."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from mpcache.demo import DEMO_MODEL
from mpcache.inspection.bounds import BOUNDS
from mpcache.parties.command.main import main
from tests.mpcache.models import save_random_model
from tests.mpcache.test_ranges import changed, set_to


def inspect(*arguments: object, prompt: str | None = None) -> Result:
    return CliRunner().invoke(main, ["inspect", *map(str, arguments)], input=prompt)


def last_line(result: Result) -> str:
    return result.output.splitlines()[-1]


def test_the_demo_model_is_within_its_bounds_on_its_own_day_sheet(tmp_path: Path) -> None:
    result = inspect("--json", tmp_path / "out.json")
    assert result.exit_code == 0 and last_line(result).startswith("all values within their bounds; nearest: layer")
    assert "certain to be wrong, by the weights alone: nothing" in result.output
    assert "492 tokens (the prompt given)" in result.output and "input of SiLU or GELU" in result.output
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["certain"] == [] and written["not_excluded"] and written["measured"]["passed"] == 0
    assert {p["place"] for p in written["measured"]["places"]} <= {bound.name for bound in BOUNDS}
    assert {p["layer"] for p in written["measured"]["places"]} == {None, 0, 1, 2, 3}
    assert all(p["size"] < 0.1 * p["limit"] for p in written["measured"]["places"])
    assert (tmp_path / "out.json").stat().st_mode & 0o777 == 0o600


def test_a_pretrained_model_is_within_its_bounds_on_a_prompt_of_its_own(stories: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("Once upon a time there was a little girl named Lily.\n")
    result = inspect(stories, "--prompt-file", tmp_path / "prompt.txt", "--policy", "full", "--max-new-tokens", 40)
    assert result.exit_code == 0 and "40 new ones, policy full" in result.output


def test_a_prompt_comes_from_standard_input_and_is_written_nowhere(tmp_path: Path) -> None:
    secret = "Which Dr does Jasdell see?"
    result = inspect("--prompt-file", "-", "--json", tmp_path / "out.json", prompt=f"{secret}\n")
    assert result.exit_code == 0 and "the prompt given" in result.output
    assert "Jasdell" not in result.output and "Jasdell" not in (tmp_path / "out.json").read_text()


def test_without_a_prompt_random_tokens_are_said_to_be_taken(tmp_path: Path) -> None:
    save_random_model(tmp_path, "gpt2")
    result = inspect(tmp_path)
    assert result.exit_code == 0
    assert "112 tokens (random tokens of the vocabulary, as no prompt was given), 16 new ones" in result.output


def test_a_model_that_is_certain_to_break_ends_with_its_layer(tmp_path: Path) -> None:
    save_random_model(tmp_path, "llama")
    changed(tmp_path, set_to("model.embed_tokens.weight", 51_686, 7, 3))
    result = inspect(tmp_path / "changed", "--json", tmp_path / "out.json")
    assert result.exit_code == 1 and "Traceback" not in result.output
    assert "changed cannot be run privately: embedding's element: 51,686, beyond 16,384" in last_line(result)
    assert json.loads((tmp_path / "out.json").read_text())["certain"]


def test_a_bound_that_only_some_prompts_pass_is_found_by_running_one(tmp_path: Path) -> None:
    """Token 7 alone lies along the first channel, which layer 0's first gate multiplies by 1,000."""
    save_random_model(tmp_path, "llama")

    def change(tensors: dict[str, torch.Tensor]) -> None:
        set_to("model.embed_tokens.weight", 0.0, slice(None), 0)(tensors)
        set_to("model.embed_tokens.weight", 0.0, 7)(tensors)
        set_to("model.embed_tokens.weight", 1.0, 7, 0)(tensors)
        set_to("model.layers.0.self_attn.o_proj.weight", 0.0)(tensors)
        set_to("model.layers.0.post_attention_layernorm.weight", 1.0)(tensors)
        set_to("model.layers.0.mlp.gate_proj.weight", 1000.0, 0, 0)(tensors)
        set_to("model.layers.0.mlp.up_proj.weight", 0.0, 0)(tensors)

    changed(tmp_path, change)
    result = inspect(tmp_path / "changed")
    assert "certain to be wrong, by the weights alone: nothing" in result.output
    assert "layer 0, input of SiLU or GELU: 5,6" in result.output.partition("measured")[0]  # not excluded
    assert result.exit_code == 1
    assert "layer 0, input of SiLU or GELU: 5,6" in last_line(result) and "not to be trusted" in last_line(result)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        (b"a " * 4000, (), "do not fit the model's 2048 positions: shorten the prompt or lower --max-new-tokens"),
        (b"\xff\xfe", (), "cannot be read"),
        (b"a", ("--policy", "mpcach"), "did you mean 'mpcache'?"),
        (b"a", ("--json", "/nowhere/out.json"), "cannot be written to"),
    ],
)
def test_a_mistake_gets_one_line(prompt: bytes, options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_bytes(prompt)
    result = inspect(DEMO_MODEL, "--prompt-file", tmp_path / "prompt.txt", *options)
    assert result.exit_code == 1 and last_line(result).startswith("mpcache: ") and message in last_line(result)


@pytest.mark.parametrize(("prompt", "message"), [("", "the prompt is empty"), ("a b", "beyond its vocabulary")])
def test_a_prompt_that_the_tokenizer_makes_nothing_of_is_refused(prompt: str, message: str, tmp_path: Path) -> None:
    save_random_model(tmp_path, "llama")
    tokenizer = Tokenizer(WordLevel({"a": 5, "b": 96, "end": 2}, "a"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    result = inspect(tmp_path, "--prompt-file", "-", prompt=prompt)
    assert result.exit_code == 1 and message in last_line(result)


def test_a_prompt_is_never_an_argument_which_others_on_the_machine_can_see() -> None:
    refused = inspect("--prompt", "x")
    assert refused.exit_code == 1 and "does not belong on a command line" in last_line(refused)
    assert "--prompt-file" in inspect("--help").output
