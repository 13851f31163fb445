"""How a run of all tests uses two cores: which worker gets which test, and when.

What lives here: `TwoWorkers`, the scheduler of pytest-xdist that tests/conftest.py names,
`runs_alone`, and `encodable`. It runs in the process that was started; the tests run in its
workers. Files are handed out whole, so that what a module shares is made once; when both workers
have done theirs, one of them runs the tests that run alone with nothing beside it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from tests.support.require import in_ci

if TYPE_CHECKING:
    from xdist.workermanage import WorkerController

ALONE = {
    "tests/cluster/test_broker_quiet.py::test_idle_broker": "counts the time an idle broker takes",
    "tests/unit/test_support.py::test_object_without": "puts down what others' leaks look like",
}
"""How the ids of such tests begin, and why nothing may run beside them."""
BESIDE_IN_CI = (
    "tests/c/",
    "tests/interop/",
    "tests/model/",
    "tests/simulation/",
    "tests/style/",
    "tests/unit/",
    *(
        f"tests/cluster/test_{name}.py"
        for name in (
            "backup", "bench", "bench_peers", "broker_groups", "broker_messages", "broker_topics",
            "cli", "client_arguments", "client_bodies", "delay", "doctor", "examples",
            "fresh_clone", "look_back", "many_topics", "other_uid", "retries", "rights",
            "topic_group_config",
        )
    ),
    "tests/crash/test_cut_death.py",
    "tests/crash/test_power_images.py",
    "tests/crash/test_producer_death.py",
    "tests/crash/test_stepping.py",
    "tests/crash/test_store_death.py",
    "tests/stress/test_bits.py",
    "tests/stress/test_hostile_files.py",
)  # fmt: skip
"""How the ids of tests begin that have a neighbour in CI, too, since no clock judges them: they
compute, compile, install, wait for a JVM, look what a command or a request answers, ask that
nothing comes too early, or stop what they kill at an instruction or a byte. What has to be quick,
to be noticed in time or to cost little, and who dies under load, has the machine to itself.
"""


def runs_alone(test: str) -> bool:
    """Whether nothing runs beside the test with this id, in a run on two workers."""
    if test.startswith(tuple(ALONE)):
        return True
    return in_ci() and not test.startswith(BESIDE_IN_CI)


class TwoWorkers:
    """Hands out tests as xdist.scheduler.protocol.Scheduling says.

    A worker begins a test when it knows the next one, or that there is none: it always holds one
    that it has not begun.
    """

    def __init__(self, worker_count: int) -> None:
        self._worker_count = worker_count
        self._collected: dict[WorkerController, list[str]] = {}
        self._held: dict[WorkerController, list[int]] = {}
        """What each worker has been given and has not done, in its order."""
        self._ids: list[str] | None = None
        self._files: deque[list[int]] = deque()
        self._alone: list[int] = []

    # ---- what xdist asks -------------------------------------------------------------------------

    @property
    def nodes(self) -> list[WorkerController]:
        return list(self._held)

    @property
    def collection_is_completed(self) -> bool:
        return len(self._collected) >= self._worker_count

    @property
    def has_pending(self) -> bool:
        return bool(self._files or self._alone or any(self._held.values()))

    @property
    def tests_finished(self) -> bool:
        """Nothing is left to give: each worker may run what it holds, and end."""
        is_given = self.collection_is_completed and not self._files and not self._alone
        return is_given and all(len(held) <= 1 for held in self._held.values())

    # ---- what xdist tells ------------------------------------------------------------------------

    def add_node(self, node: WorkerController) -> None:
        self._held[node] = []

    def add_node_collection(self, node: WorkerController, collection: Sequence[str]) -> None:
        self._collected[node] = list(collection)

    def schedule(self) -> None:
        """Begin, or go on with a worker that takes the place of one that died."""
        if self._ids is None:
            self._ids = next(iter(self._collected.values()))
            self._put_back(list(range(len(self._ids))))
        for node, ids in self._collected.items():
            if ids != self._ids:
                here = sorted({*ids} ^ {*self._ids})[:5]
                raise RuntimeError(f"{node.gateway.id} collected other tests: {here}")
        self._give()

    def mark_test_complete(
        self, node: WorkerController, item_index: int, duration: float = 0
    ) -> None:
        self._held[node].remove(item_index)
        self._give()

    def remove_node(self, node: WorkerController) -> str | None:
        """A worker has ended; the id of the test that it died in, if it did."""
        held = self._held.pop(node)
        if not held or self._ids is None:
            return None
        self._put_back(held[1:])
        self._give()
        return self._name(held[0])

    def mark_test_pending(self, item: str) -> None:
        raise NotImplementedError  # asked for by plugins that we do not use

    def remove_pending_tests_from_node(
        self, node: WorkerController, indices: Sequence[int]
    ) -> None:
        raise NotImplementedError  # nothing is taken from a worker here

    # ---- giving ----------------------------------------------------------------------------------

    def _put_back(self, indices: list[int]) -> None:
        self._alone += filter(self._is_alone, indices)
        beside = [at for at in indices if not self._is_alone(at)]
        self._files += [list(tests) for _, tests in groupby(beside, key=self._file)]

    def _is_alone(self, index: int) -> bool:
        return runs_alone(self._name(index))

    def _file(self, index: int) -> str:
        return self._name(index).partition("::")[0]

    def _name(self, index: int) -> str:
        assert self._ids is not None
        return self._ids[index]

    def _give(self) -> None:
        """Give each worker that holds one test at most what it shall do next."""
        takers = [node for node in self._held if node in self._collected and not _is_ending(node)]
        for node in takers:
            while len(self._held[node]) <= 1 and self._files:
                self._send(node, self._files.popleft())
        if self._files or not takers:
            return
        first, *others = takers
        for node in others:
            node.shutdown()
        if not any(held for node, held in self._held.items() if node is not first):
            self._send(first, self._alone)
            self._alone = []
            first.shutdown()
        elif len(held := self._held[first]) == 1 and self._alone and not self._is_alone(held[0]):
            self._send(first, [self._alone.pop(0)])  # so that it begins the one that it holds

    def _send(self, node: WorkerController, indices: list[int]) -> None:
        self._held[node] += indices
        if indices:
            node.send_runtest_some(indices)


def _is_ending(node: WorkerController) -> bool:
    """What is sent to a worker behind the word that nothing comes is not done."""
    return bool(node.shutting_down)


def encodable(value: Any) -> Any:
    """A report as it may be sent: xdist ends the run over a string that has no UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {encodable(key): encodable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(encodable, value))
    return value
