"""Config files written off the loop: once for many, and never answered before they are on disk."""

import asyncio
import threading
from pathlib import Path

import pytest

from shmq.broker.saver import Saver
from shmq.errors import DiskFullError
from shmq.store.config_files import ConfigFiles, SubscriptionGroups
from shmq.subscription import SubscriptionGroupConfig


class SlowFiles(ConfigFiles):
    """Real files whose writes wait until the test lets them."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.may_write = threading.Semaphore(0)
        self.written: list[list[str]] = []
        self.error: Exception | None = None

    def store(self, contents) -> None:
        assert self.may_write.acquire(timeout=30)
        if self.error is not None:
            raise self.error
        super().store(contents)
        self.written.append(sorted(contents.groups))


class Groups:
    def __init__(self, files: ConfigFiles) -> None:
        self.names: list[str] = []
        self.saver = Saver(files, self.contents)

    def contents(self) -> SubscriptionGroups:
        return SubscriptionGroups(
            groups={name: SubscriptionGroupConfig(group_name=name) for name in self.names}
        )

    async def add(self, name: str) -> None:
        self.names.append(name)
        await self.saver.save()


def test_changes_that_come_while_a_write_runs_share_the_next_one(tmp_path: Path) -> None:
    files = SlowFiles(tmp_path)

    async def scenario() -> None:
        groups = Groups(files)
        first = asyncio.create_task(groups.add("a"))
        await asyncio.sleep(0)
        others = [asyncio.create_task(groups.add(name)) for name in "bcd"]
        await asyncio.sleep(0)
        assert not first.done()
        files.may_write.release()
        await first
        assert not any(task.done() for task in others)
        files.may_write.release()
        await asyncio.gather(*others)

    asyncio.run(scenario())
    assert files.written == [["a"], ["a", "b", "c", "d"]]
    assert sorted(ConfigFiles(tmp_path).load_subscription_groups().groups) == ["a", "b", "c", "d"]


def test_change_is_kept_when_the_disk_refuses_and_goes_with_the_next_write(tmp_path: Path) -> None:
    files = SlowFiles(tmp_path)

    async def scenario() -> None:
        groups = Groups(files)
        files.error = DiskFullError("full")
        files.may_write.release()
        with pytest.raises(DiskFullError):
            await groups.add("a")
        files.error = None
        files.may_write.release()
        await groups.add("b")

    asyncio.run(scenario())
    assert files.written == [["a", "b"]]


def test_who_waits_has_an_error_that_nobody_expects_too(tmp_path: Path) -> None:
    files = SlowFiles(tmp_path)

    async def scenario() -> None:
        groups = Groups(files)
        files.error = TypeError("cannot be written")
        files.may_write.release()
        with pytest.raises(TypeError, match="cannot be written"):
            await groups.add("a")
        files.error = None
        files.may_write.release()
        await groups.add("b")

    asyncio.run(scenario())
    assert files.written == [["a", "b"]]


def test_who_gives_up_waiting_does_not_stop_the_write(tmp_path: Path) -> None:
    files = SlowFiles(tmp_path)

    async def scenario() -> None:
        groups = Groups(files)
        impatient = asyncio.create_task(groups.add("a"))
        patient = asyncio.create_task(groups.saver.save())
        await asyncio.sleep(0)
        impatient.cancel()
        files.may_write.release()
        await patient

    asyncio.run(scenario())
    assert files.written == [["a"]]
