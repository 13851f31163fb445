"""Replica sets as an administrator sees them: members, epochs, who is in sync, switch-over.

What lives here: `HaMember` and the functions behind Admin's verbs. Members and Controllers are
found by their sockets in the runtime folder, since one that waits is in no route. Which process:
any of the cluster's group. Writes: what a verb says, at the members or at the Controller. May fail:
ServiceNotAvailableError where nobody answers, or the one that was told did not become master.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple, Protocol

from shmq.clock import SYSTEM_CLOCK
from shmq.errors import ClosedError, ConfigError, ServiceNotAvailableError, ShmqError
from shmq.remoting import controller_requests as requests
from shmq.remoting.codes import RequestCode
from shmq.remoting.command import Command
from shmq.service import Phase
from shmq.status import BrokerRole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "Call",
    "HaMember",
    "chosen",
    "controller_of",
    "elect",
    "epochs_of",
    "members",
    "progress",
    "switch",
    "sync_states",
    "with_standing",
]

_SWITCH_TIMEOUT_NS = 30_000_000_000
"""For a member that a Controller elected."""
_HAND_OVER_TIMEOUT_NS = 30_000_000_000
"""For a master that was told: until its last flush."""
_TAKE_OVER_TIMEOUT_NS = 10_000_000_000
"""For a member that was told, from there on: after that the old master is told to go on."""
_LOOK_S = 0.02
_PROGRESS_S = 0.5
_TELL_TIMEOUT_NS = 2_000_000_000


class HaMember(NamedTuple):
    """One member of a replica set, as it says itself."""

    broker_name: str
    """The name that the members share."""
    broker_id: int
    """Its own among them."""
    role: str
    """RocketMQ's BrokerRole."""
    master_epoch: int
    """Of the last mastership that it knows."""
    pid: int
    """Its process."""
    committed_position: int
    """Bytes of its CommitLog."""
    flushed_position: int
    """How many of them are on its disk."""
    socket_name: str
    """Where it answers."""
    problem: str
    """What is wrong with it; empty if nothing is."""
    phase: str
    """STARTING, RUNNING or DRAINING: one that becomes master has that role before it serves."""
    resent_count: int = 0
    """Messages that only it had, which were appended again to the master's log."""
    lost_count: int = 0
    """Messages that only it had, which were not."""
    replica_problem: str = ""
    """Why it does not copy, or what of its log was lost; empty if nothing is wrong."""
    lag_bytes: int | None = None
    """How far it is behind the master's log; None where there is no master."""
    catch_up_s: float | None = None
    """Seconds until it has caught up at the present rate; None where it does not come closer."""
    promotion_problem: str = ""
    """Why it did not become master when it was told last."""
    is_async_learner: bool = False
    """It copies, and becomes master only where a person names it."""
    log_epoch: int = 0
    """Of the mastership under which the last byte of its log was written."""
    is_in_sync: bool | None = None
    """Its master waits for it where sends are to be on a slave; None: it is master, there is none,
    or nobody asked it."""

    @property
    def is_master(self) -> bool:
        """Whether it serves as one."""
        return self.role != BrokerRole.SLAVE and self.phase == Phase.RUNNING


class Call(Protocol):
    """Asks whoever listens at a socket."""

    def __call__(self, socket_name: str, command: Command) -> Command:
        """The answer, which is SUCCESS; else it raises."""


def members(call: Call, socket_names: Iterable[str], broker_name: str | None) -> list[HaMember]:
    """The members that answer, of one broker_name or of all; those of a name by their ids."""
    found = []
    for socket_name in socket_names:
        try:
            take = call(socket_name, Command(RequestCode.GET_BROKER_STATUS)).fields()
        except ShmqError:
            continue  # what a killed one left, or one that is about to end
        if broker_name in (None, take.text("brokerName")):
            member = HaMember(
                take.text("brokerName"),
                take.number("brokerId"),
                take.text("role"),
                take.number("masterEpoch", 0),
                take.number("pid"),
                take.number("committedPosition", 0),
                take.number("flushedPosition", 0),
                socket_name,
                next(filter(None, map(take.optional_text, _PROBLEMS)), None) or "",
                take.text("phase"),
                take.number("cutResentTotal", 0),
                take.number("cutLostTotal", 0),
                take.optional_text("cutProblem") or take.optional_text("replicaProblem") or "",
                promotion_problem=take.optional_text("promotionProblem") or "",
                is_async_learner=take.flag("asyncLearner", False),
                log_epoch=take.number("logEpoch", 0),
            )
            found.append(member)
    found.sort(key=lambda member: (member.broker_name, member.broker_id))
    ends = {each.broker_name: each.committed_position for each in found if each.is_master}
    return [each._replace(lag_bytes=_behind(each, ends.get(each.broker_name))) for each in found]


_PROBLEMS = ("promotionProblem", "problem", "controllerProblem")


def _behind(member: HaMember, master_end: int | None) -> int | None:
    return None if master_end is None else max(0, master_end - member.committed_position)


def progress(look: Callable[[], list[HaMember]]) -> list[HaMember]:
    """The members that `look` gives, with the time until each has caught up; looks twice, half a
    second apart, where one is behind.
    """
    before, begin_ns = look(), SYSTEM_CLOCK.monotonic_ns()
    now = before
    if any(each.lag_bytes for each in before):
        time.sleep(_PROGRESS_S)
        now = look()
    seconds = (SYSTEM_CLOCK.monotonic_ns() - begin_ns) / 1e9
    lags = {(each.broker_name, each.broker_id): each.lag_bytes for each in before}
    found = []
    for each in now:
        lag, known = each.lag_bytes, lags.get((each.broker_name, each.broker_id))
        left_s = 0.0 if lag == 0 else None
        if lag and known is not None and known > lag:
            left_s = lag * seconds / (known - lag)
        found.append(each._replace(catch_up_s=left_s))
    return found


def with_standing(call: Call, known: list[HaMember]) -> list[HaMember]:
    """The members, and which of them their masters count as in sync."""
    in_sync: dict[tuple[str, int], bool] = {}
    for master in known:
        if not master.is_master:
            continue
        try:
            said = call(master.socket_name, Command(RequestCode.GET_BROKER_HA_STATUS)).json()
        except ShmqError:
            continue  # it has ended just now
        slaves: list[dict[str, int]] = said["haConnectionInfo"]  # type: ignore[assignment]
        in_sync |= {(master.broker_name, each["brokerId"]): bool(each["inSync"]) for each in slaves}
    masters = {each.broker_name for each in known if each.is_master}
    return [
        each
        if each.is_master or each.broker_name not in masters
        else each._replace(is_in_sync=in_sync.get((each.broker_name, each.broker_id), False))
        for each in known
    ]


def epochs_of(call: Call, socket_name: str) -> list[tuple[int, int]]:
    """(master_epoch, start_position) of the masterships under which a member's log was written."""
    answer = call(socket_name, Command(RequestCode.GET_BROKER_EPOCH_CACHE)).json()
    entries: list[dict[str, int]] = answer["epochList"]  # type: ignore[assignment]
    return [(entry["epoch"], entry["startOffset"]) for entry in entries]


def controller_of(call: Call, socket_names: Iterable[str]) -> str:
    """The socket of the active Controller.

    Raises:
        ServiceNotAvailableError: there is none.
    """
    seen = []
    for name in socket_names:
        try:
            if call(name, requests.get_metadata_info()).fields().flag("isLeader", False):
                return name
            seen.append(f"{name} is a standby")
        except ShmqError:
            seen.append(f"{name} does not answer")
    raise ServiceNotAvailableError(
        f"find the Controller: {', '.join(seen) or 'none listens in this runtime folder'}",
        hint="start shmq-controller, or have the NameServer be one (enableControllerInNamesrv)",
    )


def sync_states(
    call: Call, controller: str, broker_name: str | None
) -> list[requests.SyncStateData]:
    """What a Controller says of one replica set, or of all."""
    names = [] if broker_name is None else [broker_name]
    return requests.sync_state_data_of(call(controller, requests.get_sync_state_data(names)))


def elect(
    call: Call, controller: str, known: list[HaMember], broker_name: str, to_id: int | None
) -> HaMember:
    """Have a Controller elect; who is master then. Blocks until it serves.

    Raises:
        ShmqError: the Controller refuses.
        ServiceNotAvailableError: the elected one did not become master.
    """
    try:
        answer = call(controller, requests.elect_master(broker_name, to_id))
    except ShmqError as error:
        if type(error) is ShmqError:  # a refusal; others know better what to do next
            error.hint = "shmq ha sync-state says who is master, who lives and who is in sync"
        raise
    elected_id = answer.fields().number("masterBrokerId")
    sockets = [member.socket_name for member in known if member.broker_id == elected_id]
    epoch = answer.fields().number("masterEpoch")
    end_ns = SYSTEM_CLOCK.monotonic_ns() + _SWITCH_TIMEOUT_NS
    while SYSTEM_CLOCK.monotonic_ns() < end_ns:
        for now in members(call, sockets, broker_name):
            if now.is_master and now.master_epoch == epoch:
                return now
        (state,) = sync_states(call, controller, broker_name)
        if state.info.master_epoch != epoch:
            raise ServiceNotAvailableError(
                f"elect {broker_name}:{elected_id}: it did not become master; the Controller has"
                f" elected {state.info.master_broker_id} since",
                hint="its log says why",
            )
        time.sleep(_LOOK_S)
    raise ServiceNotAvailableError(
        f"elect {broker_name}:{elected_id}: it is not master after {_SWITCH_TIMEOUT_NS // 10**9} s",
        hint="its log and shmq ha status say why",
    )


def chosen(
    known: list[HaMember],
    broker_name: str,
    to_id: int | None,
    *,
    is_unclean: bool = False,
    is_led: bool = False,
) -> HaMember:
    """Whom to switch over to: the member named; else, of those that wait and are no learners, the
    one whose log goes furthest, and of equals the lowest id.

    Args:
        known: the members that answer.
        broker_name: of the replica set.
        to_id: who is named; None: nobody.
        is_unclean: also one that lacks what another one has that waits.
        is_led: a Controller says who is master; what may be given up is for that to say.

    Raises:
        ConfigError: there is none that answers, it is master already, or it lacks messages.
    """
    others = [member for member in known if not member.is_master]
    able = [member for member in others if not member.is_async_learner]
    furthest = max(able, key=_furthest, default=None)
    if to_id is None and furthest is not None:
        return furthest
    whom = "another member" if to_id is None else f"broker_id {to_id}"
    what = f"switch over {broker_name} to {whom}"
    named = next((member for member in others if member.broker_id == to_id), None)
    if named is not None:
        is_master_there = len(others) < len(known)  # whose memory it goes on with
        if not (is_unclean or is_led or is_master_there or furthest is None):
            _require_furthest(what, named, furthest)
        return named
    ids = ", ".join(
        f"{member.broker_id}{' (a learner)' if member.is_async_learner else ''}"
        for member in others
    )
    waiting = f"members that wait: {ids or 'none'}; see shmq ha status"
    if to_id is None:
        learner = "a Controller elects no learner" if is_led else "or name a learner with --to"
        hint = f"start one{'; ' if is_led else ', '}{learner}" if others else "start one"
        raise ConfigError(f"{what}: {waiting}", hint=hint)
    if any(member.broker_id == to_id for member in known):
        raise ConfigError(f"{what}: it is master already", hint="name another member")
    raise ConfigError(
        f"{what}: it does not answer; {waiting}", hint="start it, or name one that waits"
    )


def _furthest(member: HaMember) -> tuple[int, int, int]:
    """Orders members as elections do: by the mastership that their last byte is of, then bytes."""
    return member.log_epoch, member.committed_position, -member.broker_id


def _require_furthest(what: str, named: HaMember, furthest: HaMember) -> None:
    if _furthest(named)[:2] < _furthest(furthest)[:2]:
        raise ConfigError(
            f"{what}: its log ends at {named.committed_position} in master epoch"
            f" {named.log_epoch}, that of broker_id {furthest.broker_id} at"
            f" {furthest.committed_position} in {furthest.log_epoch}, and nobody is master",
            hint=f"name broker_id {furthest.broker_id}; or --unclean: what only that one has is"
            " then appended again once it copies, behind newer messages",
        )


def switch(
    call: Call, known: list[HaMember], broker_name: str, to_id: int | None, *, is_unclean: bool
) -> HaMember:
    """Have another member become master, in order; who it is. Blocks until it serves.

    Raises:
        ConfigError: as `chosen`.
        ServiceNotAvailableError: it did not become master; the old one was told to go on, unless
            a third one has become it meanwhile.
    """
    what = f"switch over {broker_name}"
    master = next((member for member in known if member.is_master), None)
    target = chosen(known, broker_name, to_id, is_unclean=is_unclean)
    told = Command(
        RequestCode.NOTIFY_BROKER_ROLE_CHANGED,
        {"masterBrokerId": target.broker_id, "isUnclean": is_unclean},
    )
    _tell(call, target.socket_name, told)  # first: one that does not answer leaves all as it was
    if master is not None:
        _tell(call, master.socket_name, told)
    now = _await_switch(call, master, target)
    if now.is_master:
        return now
    goes_on = ""
    other = _master_now(call, known, broker_name)
    if other is not None and (master is None or other.broker_id != master.broker_id):
        raise ServiceNotAvailableError(
            f"{what} to broker_id {target.broker_id}: broker_id {other.broker_id} has become master"
            f" meanwhile, epoch {other.master_epoch}, process {other.pid}: somebody else switched",
            hint="if that is not the one that is wanted, switch again",
        )
    if master is not None:
        back = {"masterBrokerId": master.broker_id}
        _tell(call, master.socket_name, Command(RequestCode.NOTIFY_BROKER_ROLE_CHANGED, back))
        is_back = _await_master(call, master, _TAKE_OVER_TIMEOUT_NS).is_master
        goes_on = f"; the last master {'goes on' if is_back else 'was told to go on'}"
    raise ServiceNotAvailableError(
        f"{what} to broker_id {target.broker_id}: it is not master:"
        f" {now.promotion_problem or 'it does not say why'}{goes_on}",
        hint="its log says why",
    )


def _master_now(call: Call, known: list[HaMember], broker_name: str) -> HaMember | None:
    """Who is master now, of those that answered before; None: nobody."""
    found = members(call, [member.socket_name for member in known], broker_name)
    return next((member for member in found if member.is_master), None)


def _tell(call: Call, socket_name: str, told: Command) -> None:
    """Tell a member; one that goes from standby to slave has no socket for a moment."""
    end_ns = SYSTEM_CLOCK.monotonic_ns() + _TELL_TIMEOUT_NS
    while True:  # ends with its time
        try:
            call(socket_name, told)
            return
        except (ClosedError, ServiceNotAvailableError):
            if SYSTEM_CLOCK.monotonic_ns() >= end_ns:
                raise
        time.sleep(_LOOK_S)


def _await_switch(call: Call, master: HaMember | None, target: HaMember) -> HaMember:
    """What the target is once it is master or will not be: it has its time from when the master
    has handed over.
    """
    end_ns = SYSTEM_CLOCK.monotonic_ns() + _HAND_OVER_TIMEOUT_NS
    while master is not None and SYSTEM_CLOCK.monotonic_ns() < end_ns:
        if not _look(call, master).is_master:
            break
        time.sleep(_LOOK_S)
    return _await_master(call, target, _TAKE_OVER_TIMEOUT_NS)


def _await_master(call: Call, member: HaMember, timeout_ns: int) -> HaMember:
    """What a member is once it is master, or says why it is not, or its time is over."""
    end_ns = SYSTEM_CLOCK.monotonic_ns() + timeout_ns
    while True:  # bounded by the time
        now = _look(call, member)
        is_refusal = now.promotion_problem not in ("", member.promotion_problem)
        if now.is_master or is_refusal or SYSTEM_CLOCK.monotonic_ns() >= end_ns:
            return now
        time.sleep(_LOOK_S)


def _look(call: Call, member: HaMember) -> HaMember:
    """A member as it is now; one that does not answer is in no role."""
    found = members(call, [member.socket_name], member.broker_name)
    return found[0] if found else member._replace(phase=Phase.STARTING)
