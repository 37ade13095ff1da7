"""A log's lines, whatever a peer sent."""

import logging
import subprocess
import sys

from mpcache.parties.logs import FORMAT, LONGEST, OneLine, one_line

FORGED = "x\n2026-11-27 00:00:00,000 INFO mpcache.owner: [deadbeef] session ends\x1b[2J\r\u2028"


def test_a_message_is_one_line_without_control_characters() -> None:
    record = logging.LogRecord("mpcache.owner", logging.WARNING, "", 0, "refused %s", (FORGED,), None)
    line = OneLine(FORMAT).format(record)
    assert line.isprintable() and "refused x 2026" in line


def test_a_message_has_an_end() -> None:
    assert len(one_line("x" * 100_000)) == LONGEST


def test_what_a_user_reads_of_a_peer_is_one_line() -> None:
    program = (
        "import sys\n"
        "from mpcache.parties.command import look, main\n"
        "from mpcache.protocols.errors import HandshakeError\n"
        "def fail(*a, **o): raise HandshakeError('the owner says \\n\\x1b[2Jforged')\n"
        "look.list_policies.callback = fail\n"
        "main.main(['policies'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600)
    assert done.returncode == 1 and done.stderr == "mpcache: the owner says   [2Jforged\n"
