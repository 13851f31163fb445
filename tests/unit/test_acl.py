"""The ACL file: what it says, and that nothing but a ConfigError ever comes of a wrong one."""

from __future__ import annotations

import os
import random
import tomllib
from pathlib import Path

import pytest

from shmq.acl import Acl, Action
from shmq.errors import ConfigError
from tests.support.require import require_root

USERS = {"ada": 1001, "bob": 1002, "eve": 1003}
GROUPS = {"desk": 501, "audit": 502}

EXAMPLE = """
global_white_users = ["ada"]
default_group_perm = "SUB"

[[accounts]]
user = "bob"
map = true
topic_perms = ["orders-*=PUB|SUB", "orders=SUB", "secret=DENY"]
group_perms = ["bob*=SUB", "*=DENY"]
quota = { session_count_max = 2, ring_bytes_max = "1 MiB" }

[[accounts]]
group = "desk"
admin = true
map = false
topicPerms = ["secret=SUB", "orders-*=DENY"]
defaultTopicPerm = "PUB"

[quota]
topic_count_max = 7
"""


def parse(text: str) -> Acl:
    return Acl.parse(text, "acl.toml", uid_of=USERS.__getitem__, gid_of=GROUPS.__getitem__)


@pytest.fixture(scope="module")
def acl() -> Acl:
    return parse(EXAMPLE)


NOBODY: frozenset[int] = frozenset()
DESK = frozenset({501})


@pytest.mark.parametrize(
    ("uid", "gids", "action", "name", "is_allowed", "rule"),
    [
        (1001, NOBODY, Action.ADMIN, "", True, "global_white_users has uid 1001"),
        (1001, NOBODY, Action.SEND, "secret", True, "global_white_users"),
        (1002, NOBODY, Action.MAP, "", True, "accounts[1] (user bob): map = true"),
        (1002, NOBODY, Action.ADMIN, "", False, "no account of uid 1002"),
        (1002, DESK, Action.ADMIN, "", True, "accounts[2] (group desk): admin = true"),
        (1002, DESK, Action.MAP, "", True, "accounts[1]"),
        (1003, DESK, Action.MAP, "", False, "accounts[2] (group desk): map = false"),
        (1002, NOBODY, Action.SEND, "orders-eu", True, 'topic_perms "orders-*=PUB|SUB"'),
        (1002, NOBODY, Action.SEND, "orders", False, 'topic_perms "orders=SUB"'),
        (1002, NOBODY, Action.PULL, "orders", True, 'topic_perms "orders=SUB"'),
        (1002, DESK, Action.PULL, "secret", False, "accounts[1]"),
        (1003, DESK, Action.PULL, "secret", True, "accounts[2]"),
        (1003, DESK, Action.SEND, "orders-eu", False, 'topic_perms "orders-*=DENY"'),
        (1003, DESK, Action.SEND, "other", True, "accounts[2] (group desk): default_topic_perm"),
        (1002, NOBODY, Action.SEND, "other", False, "default_topic_perm = DENY, as no account"),
        (1002, NOBODY, Action.CONSUME, "bobs", True, 'group_perms "bob*=SUB"'),
        (1002, NOBODY, Action.CONSUME, "else", False, 'group_perms "*=DENY"'),
        (1003, NOBODY, Action.CONSUME, "else", True, "default_group_perm = SUB"),
        (1002, NOBODY, Action.PULL, "%RETRY%bobs", True, 'group_perms "bob*=SUB"'),
        (1002, NOBODY, Action.PULL, "%DLQ%else", False, 'group_perms "*=DENY"'),
        (1002, NOBODY, Action.PULL, "SCHEDULE_TOPIC_XXXX", False, "admin = true"),
    ],
)
def test_first_line_that_fits_decides_and_is_named(
    acl: Acl, uid: int, gids: frozenset[int], action: Action, name: str, is_allowed: bool, rule: str
) -> None:
    said = acl.explain(uid, gids, action, name)
    assert said.is_allowed is is_allowed
    assert rule in said.rule
    assert said.rule.startswith("acl.toml: ")
    assert acl.explain(uid, gids, action, name) == said, "and again, from what it keeps"


def test_quota_is_that_of_the_first_account_that_says_one(acl: Acl) -> None:
    assert acl.quota_of(1002, DESK, "session_count_max") == (
        2,
        "acl.toml: accounts[1] (user bob): quota.session_count_max",
    )
    assert acl.quota_of(1002, DESK, "ring_bytes_max") == (
        1 << 20,
        "acl.toml: accounts[1] (user bob): quota.ring_bytes_max",
    )
    assert acl.quota_of(1003, DESK, "topic_count_max") == (7, "acl.toml: quota.topic_count_max")
    assert acl.quota_of(1003, DESK, "group_count_max") is None


@pytest.mark.parametrize(
    ("pattern", "name", "is_fit"),
    [
        ("a", "a", True),
        ("a", "ab", False),
        ("*", "", True),
        ("*", "anything", True),
        ("a*", "a", True),
        ("*a", "ba", True),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("a*b*c", "a-b-b-c", True),
        ("a*b*c", "a-c-b", False),
        ("a*bc*c", "abc", False),
        ("**a**", "bab", True),
        ("%RETRY%*", "x", False),
    ],
)
def test_star_stands_for_any_characters(pattern: str, name: str, is_fit: bool) -> None:
    made = parse(f'[[accounts]]\nuser = 7\ntopic_perms = ["{pattern}=PUB"]')
    assert made.explain(7, NOBODY, Action.SEND, name).is_allowed is is_fit


def test_stars_are_matched_as_regular_expressions_would() -> None:
    dice = random.Random(5)
    for _ in range(3000):
        pattern = "".join(dice.choice("ab*") for _ in range(dice.randint(1, 6)))
        name = "".join(dice.choice("ab") for _ in range(dice.randint(1, 8)))
        made = parse(f'[[accounts]]\nuser = 7\ntopic_perms = ["{pattern}=PUB"]')
        wanted = _like_shell(pattern, name)
        assert made.explain(7, NOBODY, Action.SEND, name).is_allowed is wanted, (pattern, name)


def _like_shell(pattern: str, name: str) -> bool:
    """The definition, slow and plain."""
    if not pattern:
        return not name
    if pattern[0] == "*":
        return any(_like_shell(pattern[1:], name[i:]) for i in range(len(name) + 1))
    return bool(name) and name[0] == pattern[0] and _like_shell(pattern[1:], name[1:])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("acounts = []", "did you mean accounts?"),
        ("accounts = 5", "accounts: 5, wanted tables"),
        ("accounts = [5]", "accounts[1]: 5, wanted a table"),
        ("[[accounts]]", "accounts[1]: wanted either user or group"),
        ("[[accounts]]\nuser = 1\ngroup = 1", "wanted either user or group"),
        ('[[accounts]]\nuser = "mallory"', "accounts[1]: user: no user 'mallory' on this machine"),
        ("[[accounts]]\nuser = true", "user: True, wanted a user's name or number"),
        ("[[accounts]]\nuser = -1", "user: -1, wanted"),
        ("[[accounts]]\nuser = 4294967295", "wanted a user's name or number"),
        ('[[accounts]]\ngroup = "wheel"', "no group 'wheel'"),
        ('[[accounts]]\nuser = 1\nmap = "yes"', "map: 'yes', wanted true or false"),
        ('[[accounts]]\nuser = 1\ntopic_perms = "a=PUB"', "topic_perms: 'a=PUB', wanted a list"),
        ('[[accounts]]\nuser = 1\ntopic_perms = ["a"]', 'wanted "name=DENY"'),
        ('[[accounts]]\nuser = 1\ntopic_perms = ["a=PUT"]', 'wanted "name=DENY"'),
        ('[[accounts]]\nuser = 1\ntopic_perms = ["a b=PUB"]', 'wanted "name=DENY"'),
        ('[[accounts]]\nuser = 1\ngroup_perms = ["a=PUB"]', "nobody sends to a group"),
        ('[[accounts]]\nuser = 1\nsend = ["a"]', "send: no such key"),
        ("[[accounts]]\nuser = 1\ntopicPerms = []\ntopic_perms = []", "is set twice"),
        ('default_topic_perm = "MAYBE"', "default_topic_perm: 'MAYBE', wanted DENY, PUB"),
        ("quota = { session_count_max = -1 }", "session_count_max: -1, wanted a whole number"),
        ('quota = { ring_bytes_max = "much" }', "or a size in KiB, MiB or GiB"),
        ("quota = { rings = 1 }", "quota: rings: no such key"),
        ("a = ", "not TOML"),
    ],
)
def test_wrong_file_says_where_and_what_is_wanted(text: str, wanted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert str(caught.value).startswith("acl.toml: ")
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)


def test_whatever_is_written_gives_rules_or_one_kind_of_error() -> None:
    dice = random.Random(os.environ.get("SHMQ_SEED", "acl"))
    words = [*EXAMPLE.split(), "[[", "]]", "=", '"', "{", "}", "\n", "1e9", "nan", "1979-05-27"]
    words += ["\x00", "\ud7ff", "[" * 2000, "'''", "0x7fffffffffffffffff"]
    refused = 0
    for _ in range(4000):
        text = list(EXAMPLE)
        for _ in range(dice.randint(1, 6)):
            at = dice.randrange(len(text))
            kind = dice.randrange(3)
            if kind == 0:
                text[at] = chr(dice.choice([0, 10, 34, 61, 91, 127, 233, dice.randrange(32, 127)]))
            elif kind == 1:
                del text[at : at + dice.randint(1, 20)]
            else:
                text[at:at] = dice.choice(words)
        try:
            made = parse("".join(text))
        except ConfigError:
            refused += 1
            continue
        for action in Action:
            assert made.explain(1002, DESK, action, "orders-eu").rule
    assert 0 < refused < 4000


def test_values_of_every_kind_under_every_key_give_rules_or_one_kind_of_error() -> None:
    keys = ["global_white_users", "default_topic_perm", "default_group_perm", "accounts", "quota"]
    inner = ["user", "group", "map", "admin", "topic_perms", "group_perms", "quota"]
    values = ["1", "-1", "true", '"x"', "[]", "[1]", '["x"]', "[[]]", "{}", "{a=1}", "1.5", "nan"]
    values += ["1979-05-27", '""', "[{}]", '["=DENY"]', '["*=ANY"]', "99999999999999999999"]
    texts = [f"{key} = {value}" for key in keys for value in values]
    texts += [f"accounts = [{{ user = 1, {key} = {item} }}]" for key in inner for item in values]
    for text in texts:
        try:
            tomllib.loads(text)
            parse(text)
        except (ConfigError, tomllib.TOMLDecodeError):
            continue


def test_file_that_others_may_write_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "acl.toml"
    file.write_text('default_topic_perm = "PUB"')
    file.chmod(0o640)
    assert Acl.load(file).explain(5, NOBODY, Action.SEND, "t").is_allowed
    file.chmod(0o660)
    with pytest.raises(ConfigError, match=r"mode 0660; wanted root or uid \d+"):
        Acl.load(file)


def test_file_of_another_uid_is_refused(tmp_path: Path) -> None:
    require_root()
    file = tmp_path / "acl.toml"
    file.write_text("")
    os.chown(file, 65534, -1)
    with pytest.raises(ConfigError, match="owner uid 65534"):
        Acl.load(file)


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "large", "binary"])
def test_what_is_no_acl_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "acl.toml"
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "large":
        file.write_text("#" * (1 << 20) + "#")
    elif kind == "binary":
        file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError) as caught:
        Acl.load(file)
    assert str(file) in str(caught.value)
