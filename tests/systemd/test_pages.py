"""The pages of docs/operate followed word for word on a fresh Debian: each command is typed as it
stands, with what a person fills in, and what comes out is as tests/systemd/typed.py says.
"""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

import pytest

from tests.support.pages import Page, lines_of
from tests.support.services import IN_SYNC, sections, wait_for
from tests.systemd.typed import FILES, PLACEHOLDERS, TYPED, Typed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.machine import Machine

pytestmark = [pytest.mark.ci, pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]

_FRESH = "rm -rf /tmp/shmq-0 /run/by-hand /disk1 /disk2 store*; mkdir -p /disk1 /disk2 /run/by-hand"
"""Nobody has started anything by hand before."""
_LOOKS = 60
_PATH = 'PATH="/opt/shmq/bin:$PATH"; export TERM=linux; '


@pytest.fixture(scope="module")
def members(installed: Machine) -> Iterator[Machine]:
    """A broker, and a replica set with its Controller; alice has sent what is looked for."""
    units = "shmq-broker@set-0 shmq-broker@set-1 shmq-controller"
    for block in sections()["Replica sets"]:
        installed.run(f"set -e\n{block}")
    try:
        wait_for(installed, IN_SYNC)
        send = "/opt/shmq/bin/shmq pub orders hello --keys order-17 --json"
        said = installed.run(send, user="alice")
        (found,) = re.findall(r'"messageId":"(\w+)"', said)
        (installed.root / "root/sent").write_text(found)
        consume = "/opt/shmq/bin/shmq sub orders --group billing --count 1"
        assert installed.run(consume, user="alice") == "hello\n"
        yield installed
    finally:
        installed.run(
            f"systemctl disable --quiet --now {units}; rm -f /etc/shmq/brokers/set-*;"
            " shmq=/opt/shmq/bin/shmq; $shmq topic delete payments --yes >/dev/null 2>&1; true"
        )


def filled_in(command: str, typed: Typed) -> str:
    """What a person types for it."""
    for word, meant in (*typed.names, *PLACEHOLDERS.items()):
        command = re.sub(rf"(?<![\w/-]){re.escape(word)}(?![\w-])", lambda _, to=meant: to, command)
    return command


def script_of(command: str, typed: Typed) -> str:
    """It, and around it what `typed` says; daemons are stopped again, the first one
    first: with the Controller gone nobody is elected while the others stop."""
    staying, others = lines_of(filled_in(command, typed))
    if typed.at_terminal:
        (line,) = others
        keys = "{ while sleep 0.1; do printf q; done; }"
        others = [
            f"{{ {keys}; }} | script --quiet --return --command {shlex.quote(line)} /dev/null"
        ]
    started = [f'{line} & daemons="$daemons $!"' for line in staying]
    lines = [
        f"{_PATH}daemons=",
        _FRESH if staying else "",
        typed.before,
        *started,
        *(f"{line} 2>&1" for line in others),
        "code=$?",
        _until_there(typed) if staying else "",
        f"{{ {typed.look}; }} 2>&1",
        "for daemon in $daemons; do kill $daemon; wait $daemon; done",
        f"{{ {typed.after or 'true'}; }} >&2",
        "exit $code",
    ]
    return "\n".join(line for line in lines if line)


def _until_there(typed: Typed) -> str:
    """Until a look at what was started gives what it should, or never will."""
    wanted = shlex.quote(typed.says)
    fits = "python3 -c 'import re, sys; sys.exit(not re.search(sys.argv[1], sys.stdin.read()))'"
    return (
        f"looks=0; until {{ {typed.look}; }} 2>&1 | {fits} {wanted} || [ $looks = {_LOOKS} ];"
        " do looks=$((looks + 1)); sleep 0.1; done"
    )


_seen: set[tuple[str, Typed]] = set()
"""What was typed on a page before, and changes nothing: it says the same on the next one."""


@pytest.mark.parametrize("name", TYPED)
def test_page_is_followed(members: Machine, name: str) -> None:
    page = Page.read(name)
    for text in page.texts:
        if name in FILES and text.startswith(FILES[name]):
            (members.root / "root/page.toml").write_text(f"{text}\n")
    for command in page.commands:
        typed = TYPED[name].get(command)
        if typed is None or (command, typed) in _seen:
            continue
        if typed == Typed(typed.says, typed.codes):
            _seen.add((command, typed))
        done = members.try_to(script_of(command, typed))
        assert done.returncode in typed.codes, (command, done.stdout, done.stderr)
        assert re.search(typed.says, done.stdout), (command, done.stdout, done.stderr)
