"""What of an answer reaches the terminal."""

from typing import Any

import pytest

from mpcache.generation.loop import Meter, Phase
from mpcache.parties.command.report import run_generation, show_result, showable
from mpcache.parties.result import FullCache, Result
from mpcache.protocols.session import Cost
from tests.asking import asked


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tline\nand more", "a\tline\nand more"),
        ("\x1b[2J\x1b]0;title\x07", "\ufffd[2J\ufffd]0;title\ufffd"),
        ("over\rwritten", "over\ufffdwritten"),
        ("\u202egnp.exe\x9b", "\ufffdgnp.exe\ufffd"),
        ("Grüße, 你好", "Grüße, 你好"),
    ],
)
def test_control_characters_do_not_reach_the_terminal(text: str, shown: str) -> None:
    assert showable(text) == shown


def test_what_plaintext_twins_answer_is_shown_without_them(capsys: pytest.CaptureFixture[str]) -> None:
    full = FullCache(kind="planned", prefill=Phase(), decode=Phase(), tokens=1, plain_answer="may\rbe")
    show_result(
        Result(
            answer="yes", new_tokens=1, request=asked(3, 1), meter=Meter(Cost), plain_answer="\x07no", full_cache=full
        )
    )
    shown = capsys.readouterr().out
    assert "\ufffdno" in shown and "may\ufffdbe" in shown


@pytest.mark.parametrize("end", ["", "\ufffd"], ids=["at once", "at the end, as half a character may be whole then"])
def test_a_streamed_answer_is_shown_without_them_and_kept_with_them(
    capsys: pytest.CaptureFixture[str], end: str
) -> None:

    class Painting:
        """Decodes to what would clear the screen."""

        def decode(self, tokens: list[int]) -> str:
            return "\x1b[2J\x07" * len(tokens) + end

    class Answer:
        meter, setup_bytes, waited_for_dealer, prepared = Meter(Cost), 0, 0.0, False

        def __iter__(self) -> Any:
            return iter([1, 2])

    painting: Any = Painting()
    result = run_generation(lambda on_block: Answer(), painting, asked(3, 2))
    assert capsys.readouterr().out == "\ufffd[2J\ufffd" * 2 + end + "\n"  # click itself leaves out some of them
    assert result.answer == "\x1b[2J\x07" * 2 + end
