"""`shmq acl`: files are checked and explained without a broker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click import UsageError

from shmq.errors import ConfigError
from shmq.tools.cli.acl import acl

RULES = """
[[accounts]]
user = 60001
map = true
topic_perms = ["orders-*=PUB|SUB", "secret=DENY"]
group_perms = ["g=SUB"]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "acl.toml"
    made.write_text(RULES)
    made.chmod(0o644)
    return made


def run(*arguments: object) -> int:
    """The exit code."""
    try:
        acl.main(args=[str(argument) for argument in arguments], standalone_mode=False)
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


def test_good_file_is_good_and_what_may_surprise_is_told(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("check", file) == 0
    said = capsys.readouterr().out
    assert "1 accounts, nothing wrong" in said
    assert 'whatever topic_perms "secret=DENY" denies' in said
    assert run("check", file, "--json") == 0
    assert json.loads(capsys.readouterr().out)["accounts"] == 1


def test_wrong_file_names_the_place(file: Path) -> None:
    file.write_text("[[accounts]]\nuser = 1\ntopic_perm = []")
    with pytest.raises(ConfigError, match="did you mean topic_perms"):
        run("check", file)


def test_answer_names_the_line_and_a_denial_is_the_exit_code(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--send", "orders-eu", "--consume", "g", "--map"]
    assert run("explain", file, "--user", 60001, *asked) == 0
    said = capsys.readouterr().out
    assert "send orders-eu: allowed by" in said
    assert 'topic_perms "orders-*=PUB|SUB"' in said
    assert run("explain", file, "--user", 60001, "--pull", "secret", "--admin", "--json") == 1
    answers = json.loads(capsys.readouterr().out)["answers"]
    assert [(one["action"], one["allowed"]) for one in answers] == [
        ("admin", False),
        ("pull", False),
    ]
    assert 'topic_perms "secret=DENY"' in answers[1]["rule"]


def test_question_and_user_are_wanted(file: Path) -> None:
    with pytest.raises(UsageError, match="wanted --map, --admin"):
        run("explain", file, "--user", 1)
    with pytest.raises(UsageError, match="user"):
        run("explain", file, "--send", "t")
    with pytest.raises(ConfigError, match="no such user"):
        run("explain", file, "--user", "nobody-of-this-name", "--map")


def test_root_is_asked_for_nothing(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain", file, "--user", 0, "--send", "secret") == 0
    assert "uid 0 is root's" in capsys.readouterr().out
