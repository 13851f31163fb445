"""The ACL file: which uid and group may do what, in the words of RocketMQ's plain_acl.yml.

What lives here: `Acl`, one file as it was read, and `AclFile`, one that may change. It is TOML:

    global_white_users = ["ops"]             may do everything, as root and the broker's own uid
    default_topic_perm = "DENY"              for whoever no account decides about
    default_group_perm = "DENY"

    [[accounts]]
    user = "billing"                         or group = "audit"; a name or a number
    map = true                               maps the log: reads everything in it, in place
    admin = false
    topic_perms = ["orders-*=SUB", "billing=PUB|SUB", "*=DENY"]
    group_perms = ["billing-*=SUB"]
    quota = { session_count_max = 8, ring_bytes_max = "64 MiB" }

The first line that fits decides: accounts from top to bottom, those of them that are the peer's uid
or one of its groups; in an account its lines from left to right, then its default_topic_perm or
default_group_perm if it has one; at last the defaults at the top of the file. A retry or dead
letter topic is decided as its group, a system topic as administration.

Who uses it: brokers and NameServers, the tools. Nothing is written; `load` reads the file and asks
the machine for users and groups, which may block; everything else is pure. A file that cannot be
used in full is refused in full: ConfigError naming file, account, key, seen and wanted.
"""

import difflib
import grp
import os
import pwd
import re
import stat
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntFlag, StrEnum, unique
from pathlib import Path

from shmq.errors import ConfigError
from shmq.topic import DLQ_PREFIX, RETRY_PREFIX, is_system_topic

__all__ = ["Account", "Acl", "AclFile", "AclPerm", "Action", "Decision", "Quota", "TOPIC_ACTIONS"]

FILE_BYTES_MAX = 1 << 20
ACCOUNT_COUNT_MAX = 10_000
PERM_COUNT_MAX = 10_000
"""Lines of one account."""
_DECISION_COUNT_MAX = 65_536
_ID_MAX = (1 << 32) - 2
_COUNT_MAX = (1 << 63) - 1
_PATTERN = re.compile(r"[%|a-zA-Z0-9_*-]{1,255}")
_SIZE = re.compile(r"(\d{1,18})\s*(B|KiB|MiB|GiB)?")
_FACTOR = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


@unique
class Action(StrEnum):
    """What somebody wants to do."""

    MAP = "map"
    """Map the log, and so read everything in it; of the broker."""
    SEND = "send"
    """Send to a topic."""
    PULL = "pull"
    """Read a topic."""
    CONSUME = "consume"
    """Take part in a consumer group."""
    ADMIN = "admin"
    """Change topics, groups and offsets by hand; look at everything but messages."""


TOPIC_ACTIONS = frozenset({Action.SEND, Action.PULL})
"""Those whose name is a topic's; CONSUME has a group's."""


class AclPerm(IntFlag):
    """What may be done with a topic; of a group SUB is the only right."""

    DENY = 0
    PUB = 1
    SUB = 2


@dataclass(frozen=True, slots=True)
class Quota:
    """How much a uid may have; None: whatever the broker's settings say."""

    session_count_max: int | None = None
    """Clients connected to one broker at a time."""
    ring_bytes_max: int | None = None
    """Bytes of their rings, pages and chunk memory together."""
    topic_count_max: int | None = None
    """Topics that were created by it and exist."""
    group_count_max: int | None = None
    """Consumer groups that were created by it and exist."""


@dataclass(frozen=True, slots=True)
class Decision:
    """An answer, and what it was taken from."""

    is_allowed: bool
    """Whether it may."""
    rule: str
    """The line that decided, for people."""


@dataclass(frozen=True, slots=True)
class _Line:
    parts: tuple[str, ...]
    """The name, split where it has a star."""
    perm: AclPerm
    text: str

    def fits(self, name: str) -> bool:
        """Whether it is about this name. Looks at each character once: names are clients'."""
        first, *middle = self.parts
        if not middle:
            return name == first
        last = middle.pop()
        end = len(name) - len(last)
        at = len(first)
        if end < at or not name.startswith(first) or not name.endswith(last):
            return False
        for part in middle:
            found = name.find(part, at, end)
            if found < 0:
                return False
            at = found + len(part)
        return True


@dataclass(frozen=True, slots=True)
class Account:
    """One [[accounts]] of the file."""

    title: str
    """accounts[2] (user billing)."""
    uid: int | None
    """Whose it is; None: a group's."""
    gid: int | None
    """Whose it is; None: a user's."""
    is_map: bool | None
    """map; None: it says nothing."""
    is_admin: bool | None
    """admin; None: it says nothing."""
    default_topic_perm: AclPerm | None
    """For topics that none of its lines fits; None: the next account decides."""
    default_group_perm: AclPerm | None
    """The same for groups."""
    topics: tuple[_Line, ...]
    """topic_perms."""
    groups: tuple[_Line, ...]
    """group_perms."""
    quota: Quota
    """What of it the account says."""

    def fits(self, uid: int, gids: frozenset[int]) -> bool:
        """Whether it is about this peer."""
        return self.uid == uid if self.uid is not None else self.gid in gids


_Key = tuple[int, frozenset[int], Action, str]


@dataclass(slots=True)
class Acl:
    """One ACL file as it was read."""

    source: str
    """Path of the file."""
    accounts: tuple[Account, ...] = ()
    """In their order."""
    white_uids: frozenset[int] = frozenset()
    """global_white_users."""
    default_topic_perm: AclPerm = AclPerm.DENY
    """Where no account decides."""
    default_group_perm: AclPerm = AclPerm.DENY
    """Where no account decides."""
    quota: Quota = field(default_factory=Quota)
    """[quota]: for uids whose accounts say nothing."""
    _decisions: dict[_Key, Decision] = field(default_factory=dict)

    # ---- reading -----------------------------------------------------------------------------

    @classmethod
    def load(cls, path: Path, *, owner_uid: int | None = None) -> "Acl":
        """Read a file.

        Args:
            path: of the file.
            owner_uid: who may own it besides root; None: our own uid.

        Raises:
            ConfigError: it cannot be read, others may write it, or something in it is wrong.
        """
        return cls.parse(_read(path, os.geteuid() if owner_uid is None else owner_uid), str(path))

    @classmethod
    def parse(
        cls,
        text: str,
        source: str,
        *,
        uid_of: Callable[[str], int] | None = None,
        gid_of: Callable[[str], int] | None = None,
    ) -> "Acl":
        """The rules in a text; `uid_of` and `gid_of` know names (KeyError: not this one).

        Raises:
            ConfigError: something in it is wrong.
        """
        try:
            data: dict[str, object] = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise ConfigError(f"{source}: not TOML: {error}") from None
        names = _Names(uid_of or _uid_of, gid_of or _gid_of)
        top = _Table(data, source)
        white = top.texts_or_numbers("global_white_users")
        tables = top.tables("accounts")
        if len(tables) > ACCOUNT_COUNT_MAX:
            raise ConfigError(
                f"{source}: {len(tables)} accounts, wanted at most {ACCOUNT_COUNT_MAX}"
            )
        made = cls(
            source=source,
            accounts=tuple(
                _account(item, f"{source}: accounts[{number}]", number, names)
                for number, item in enumerate(tables, 1)
            ),
            white_uids=frozenset(
                names.uid(item, f"{source}: global_white_users") for item in white
            ),
            default_topic_perm=top.perm("default_topic_perm") or AclPerm.DENY,
            default_group_perm=top.group_perm("default_group_perm") or AclPerm.DENY,
            quota=_quota(top.table("quota"), f"{source}: quota"),
        )
        top.end()
        return made

    # ---- asking ------------------------------------------------------------------------------

    def explain(self, uid: int, gids: frozenset[int], action: Action, name: str) -> Decision:
        """Whether a peer may do something, and which line says so.

        Args:
            uid: of the peer, from the kernel.
            gids: its group and supplementary groups.
            action: what it wants.
            name: the topic (SEND, PULL) or group (CONSUME); of no weight for others.
        """
        if action in (Action.MAP, Action.ADMIN):
            name = ""
        key = uid, gids, action, name
        known = self._decisions.get(key)
        if known is None:
            if len(self._decisions) >= _DECISION_COUNT_MAX:
                self._decisions.clear()
            self._decisions[key] = known = self._decide(uid, gids, action, name)
        return known

    def quota_of(self, uid: int, gids: frozenset[int], key: str) -> tuple[int, str] | None:
        """(figure, setting) of a quota; None: the file says nothing of it."""
        for account in self.accounts:
            figure: int | None = getattr(account.quota, key)
            if figure is not None and account.fits(uid, gids):
                return figure, f"{self.source}: {account.title}: quota.{key}"
        figure = getattr(self.quota, key)
        return None if figure is None else (figure, f"{self.source}: quota.{key}")

    def names_quota(self, uid: int, key: str) -> bool:
        """Whether an account of this very uid says something of a quota."""
        return any(a.uid == uid and getattr(a.quota, key) is not None for a in self.accounts)

    def _decide(self, uid: int, gids: frozenset[int], action: Action, name: str) -> Decision:
        if uid in self.white_uids:
            return Decision(True, f"{self.source}: global_white_users has uid {uid}")
        if action in TOPIC_ACTIONS:
            for prefix in (RETRY_PREFIX, DLQ_PREFIX):
                if name.startswith(prefix):
                    action, name = Action.CONSUME, name[len(prefix) :]
                    break
            else:
                if is_system_topic(name):
                    action, name = Action.ADMIN, ""
        mine = [account for account in self.accounts if account.fits(uid, gids)]
        if action in (Action.MAP, Action.ADMIN):
            return self._decide_flag(mine, uid, action)
        return self._decide_name(mine, uid, action, name)

    def _decide_flag(self, mine: list[Account], uid: int, action: Action) -> Decision:
        for account in mine:
            flag = account.is_map if action is Action.MAP else account.is_admin
            if flag is not None:
                rule = f"{self.source}: {account.title}: {action} = {str(flag).lower()}"
                return Decision(flag, rule)
        return Decision(
            False, f"{self.source}: no account of uid {uid} or its groups says {action} = true"
        )

    def _decide_name(self, mine: list[Account], uid: int, action: Action, name: str) -> Decision:
        is_group = action is Action.CONSUME
        needed = AclPerm.PUB if action is Action.SEND else AclPerm.SUB
        kind = "group" if is_group else "topic"
        for account in mine:
            for line in account.groups if is_group else account.topics:
                if line.fits(name):
                    rule = f'{self.source}: {account.title}: {kind}_perms "{line.text}"'
                    return Decision(bool(line.perm & needed), rule)
            perm = account.default_group_perm if is_group else account.default_topic_perm
            if perm is not None:
                rule = f"{self.source}: {account.title}: default_{kind}_perm = {_perm_text(perm)}"
                return Decision(bool(perm & needed), rule)
        perm = self.default_group_perm if is_group else self.default_topic_perm
        rule = (
            f"{self.source}: default_{kind}_perm = {_perm_text(perm)}, as no account of uid {uid} "
            f"or its groups has a line for {kind} {name}"
        )
        return Decision(bool(perm & needed), rule)


class AclFile:
    """An ACL file that may change while a daemon lives: what of it is in force.

    Raises:
        ConfigError: it is wrong at the start already.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        """Of the file."""
        self._stamp = self._look()
        self.acl = Acl.load(path)
        """The rules in force: those of the last file that was right."""
        self.problem: str | None = None
        """Why the file as it stands is not in force; None: it is."""
        self.reload_count = 0
        """How often other rules came into force; counted by whoever puts them there."""

    def has_changed(self) -> bool:
        """Whether the file is another than at the last look. Blocks for a stat."""
        return self._look() != self._stamp

    def reload(self) -> bool:
        """Read it again; whether other rules are in force now. Blocks for the file and the
        machine's users; a file that is wrong changes nothing but `problem`.
        """
        self._stamp = self._look()
        try:
            read = Acl.load(self.path)
        except ConfigError as error:
            self.problem = str(error)
            return False
        self.problem = None
        self.acl = read
        return True

    def _look(self) -> tuple[int, ...]:
        try:
            found = self.path.stat()
        except OSError as error:
            return (error.errno or 0,)
        return (
            found.st_dev,
            found.st_ino,
            found.st_size,
            found.st_mtime_ns,
            found.st_ctime_ns,
        )


def _perm_text(perm: AclPerm) -> str:
    """As it is written."""
    return "|".join(part.name or "" for part in (AclPerm.PUB, AclPerm.SUB) if part & perm) or "DENY"


# ---- the file ------------------------------------------------------------------------------------


def _read(path: Path, owner_uid: int) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path}: {said}; wanted an ACL file") from None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"{path}: no regular file; wanted an ACL file")
        if found.st_uid not in (0, owner_uid) or found.st_mode & 0o022:
            raise ConfigError(
                f"{path}: owner uid {found.st_uid}, mode {stat.S_IMODE(found.st_mode):04o}; wanted"
                f" root or uid {owner_uid}, and nobody else who may write it: chown, chmod go-w"
            )
        raw = b""
        while len(raw) <= FILE_BYTES_MAX and (more := os.read(fd, FILE_BYTES_MAX + 1)):
            raw += more
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; wanted an ACL file") from None
    finally:
        os.close(fd)
    if len(raw) > FILE_BYTES_MAX:
        raise ConfigError(f"{path}: more than {FILE_BYTES_MAX} bytes; wanted an ACL file")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None


def _uid_of(name: str) -> int:
    return pwd.getpwnam(name).pw_uid


def _gid_of(name: str) -> int:
    return grp.getgrnam(name).gr_gid


@dataclass(frozen=True, slots=True)
class _Names:
    """Users and groups of the machine."""

    uid_of: Callable[[str], int]
    gid_of: Callable[[str], int]

    def uid(self, item: object, where: str) -> int:
        return self._id(item, where, "user", self.uid_of)

    def gid(self, item: object, where: str) -> int:
        return self._id(item, where, "group", self.gid_of)

    @staticmethod
    def _id(item: object, where: str, kind: str, known: Callable[[str], int]) -> int:
        if type(item) is int and 0 <= item <= _ID_MAX:
            return item
        if isinstance(item, str) and item and "\0" not in item:
            try:
                return known(item)
            except (KeyError, UnicodeError):
                raise ConfigError(
                    f"{where}: no {kind} {item!r} on this machine; wanted a name or a number"
                ) from None
        raise ConfigError(f"{where}: {_shown(item)}, wanted a {kind}'s name or number")


_ALIASES = {
    "globalWhiteUsers": "global_white_users",
    "defaultTopicPerm": "default_topic_perm",
    "defaultGroupPerm": "default_group_perm",
    "topicPerms": "topic_perms",
    "groupPerms": "group_perms",
}


class _Table:
    """One table, key by key; `end` refuses what nobody asked for."""

    def __init__(self, data: object, where: str) -> None:
        if not isinstance(data, Mapping):
            raise ConfigError(f"{where}: {_shown(data)}, wanted a table")
        self._where = where
        self._data: dict[str, object] = {}
        self._known: list[str] = []
        for key, value in data.items():
            name = _ALIASES.get(str(key), str(key))
            if name in self._data:
                raise ConfigError(f"{where}: {name} is set twice, by both of its names")
            self._data[name] = value

    def take(self, key: str) -> object:
        self._known.append(key)
        return self._data.get(key)

    def end(self) -> None:
        for key in self._data:
            if key not in self._known:
                near = difflib.get_close_matches(key, self._known, n=1)
                proposal = f"; did you mean {near[0]}?" if near else ""
                raise ConfigError(f"{self._where}: {key[:64]}: no such key{proposal}")

    def table(self, key: str) -> object:
        value = self.take(key)
        return {} if value is None else value

    def tables(self, key: str) -> list[object]:
        return self._list(key, "tables [[accounts]]")

    def texts_or_numbers(self, key: str) -> list[object]:
        return self._list(key, "a list of users")

    def flag(self, key: str) -> bool | None:
        value = self.take(key)
        if value is None or isinstance(value, bool):
            return value
        raise self._wrong(key, value, "true or false")

    def perm(self, key: str) -> AclPerm | None:
        value = self.take(key)
        if value is None:
            return None
        perm = _perm(value)
        if perm is None:
            raise self._wrong(key, value, "DENY, PUB, SUB or PUB|SUB")
        return perm

    def group_perm(self, key: str) -> AclPerm | None:
        perm = self.perm(key)
        if perm is not None and perm & AclPerm.PUB:
            raise self._wrong(key, _perm_text(perm), "DENY or SUB: nobody sends to a group")
        return perm

    def lines(self, key: str, *, is_group: bool) -> tuple[_Line, ...]:
        items = self._list(key, 'a list of "name=perm"')
        if len(items) > PERM_COUNT_MAX:
            raise self._wrong(key, f"{len(items)} lines", f"at most {PERM_COUNT_MAX}")
        return tuple(self._line(key, item, is_group) for item in items)

    def _line(self, key: str, item: object, is_group: bool) -> _Line:
        wanted = '"name=DENY", PUB, SUB or PUB|SUB; a name may have * for any characters'
        if is_group:
            wanted = '"name=DENY" or "name=SUB"; a name may have * for any characters'
        if not isinstance(item, str):
            raise self._wrong(key, item, wanted)
        name, equals, text = (part.strip() for part in item.rpartition("="))
        perm = _perm(text)
        if not equals or perm is None or not _PATTERN.fullmatch(name):
            raise self._wrong(key, item, wanted)
        if is_group and perm & AclPerm.PUB:
            raise self._wrong(key, item, "DENY or SUB: nobody sends to a group")
        return _Line(tuple(name.split("*")), perm, f"{name}={_perm_text(perm)}")

    def _list(self, key: str, wanted: str) -> list[object]:
        value = self.take(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self._wrong(key, value, wanted)
        return value

    def _wrong(self, key: str, value: object, wanted: str) -> ConfigError:
        return ConfigError(f"{self._where}: {key}: {_shown(value)}, wanted {wanted}")


def _account(item: object, where: str, number: int, names: _Names) -> Account:
    table = _Table(item, where)
    user, group = table.take("user"), table.take("group")
    if (user is None) == (group is None):
        raise ConfigError(f"{where}: wanted either user or group")
    whose = f"user {user}" if user is not None else f"group {group}"
    made = Account(
        title=f"accounts[{number}] ({whose[:80]})",
        uid=None if user is None else names.uid(user, f"{where}: user"),
        gid=None if group is None else names.gid(group, f"{where}: group"),
        is_map=table.flag("map"),
        is_admin=table.flag("admin"),
        default_topic_perm=table.perm("default_topic_perm"),
        default_group_perm=table.group_perm("default_group_perm"),
        topics=table.lines("topic_perms", is_group=False),
        groups=table.lines("group_perms", is_group=True),
        quota=_quota(table.table("quota"), f"{where}: quota"),
    )
    table.end()
    return made


def _quota(item: object, where: str) -> Quota:
    table = _Table(item, where)
    values: dict[str, int | None] = {}
    for key in Quota.__dataclass_fields__:
        raw = table.take(key)
        value = _count(raw, is_size="bytes" in key)
        if raw is not None and value is None:
            wanted = "a whole number" + (", or a size in KiB, MiB or GiB" if "bytes" in key else "")
            raise ConfigError(f"{where}: {key}: {_shown(raw)}, wanted {wanted}")
        values[key] = value
    table.end()
    return Quota(**values)


def _count(raw: object, *, is_size: bool) -> int | None:
    if type(raw) is int and 0 <= raw <= _COUNT_MAX:
        return raw
    match = _SIZE.fullmatch(raw) if isinstance(raw, str) and is_size else None
    if match is None:
        return None
    value = int(match[1]) * _FACTOR.get(match[2], 1)
    return value if value <= _COUNT_MAX else None


def _perm(value: object) -> AclPerm | None:
    if not isinstance(value, str):
        return None
    if value in ("DENY", "ANY"):
        return AclPerm.DENY if value == "DENY" else AclPerm.PUB | AclPerm.SUB
    perm = AclPerm.DENY
    for part in value.split("|"):
        if part.strip() not in ("PUB", "SUB"):
            return None
        perm |= AclPerm[part.strip()]
    return perm


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except RecursionError:
        text = type(value).__name__
    return text if len(text) <= 80 else f"{text[:77]}..."
