"""Memory limits: seen in every shape that Linux gives them, respected before memory is taken."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from shmq.errors import ShmError, ShmFullError
from shmq.shm.memory import memory_left, mount_of, require_memory
from tests.support.memory_group import memory_group
from tests.unit.shm import children

MIB = 1 << 20
UNLIMITED_V1 = 9223372036854771712


class Proc:
    """A /proc and its cgroup mounts in a folder."""

    def __init__(self, folder: Path, *, available_mib: int = 1000) -> None:
        self.folder = folder
        self.proc = folder / "proc"
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "meminfo").write_text(
            f"MemTotal: 99999 kB\nMemAvailable:   {available_mib * 1024} kB\nBuffers: 1 kB\n"
        )
        self.mounts = ["25 24 0:23 / /dev/shm rw,relatime - tmpfs tmpfs rw,size=24682416k"]
        self.member_of: list[str] = []

    def mount(self, name: str, *, root: str = "/", kind: str, options: str) -> Path:
        point = self.folder / name
        point.mkdir()
        escaped = str(point).replace(" ", r"\040")
        self.mounts.append(f"30 25 0:9 {root} {escaped} rw shared:7 - {kind} {kind} {options}")
        return point

    def left(self) -> tuple[int, str]:
        (self.proc / "self" / "mountinfo").write_text("\n".join(self.mounts) + "\n")
        (self.proc / "self" / "cgroup").write_text("".join(f"{line}\n" for line in self.member_of))
        return memory_left(self.proc)


def _v2(folder: Path, *, limit: object, usage: int, cache: int = 0, high: object = "max") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.high").write_text(f"{high}\n")
    (folder / "memory.current").write_text(f"{usage}\n")
    statistics = f"anon 1\nfile {cache}\nshmem 0\ninactive_file {cache}\nactive_file 0\n"
    (folder / "memory.stat").write_text(statistics)


def _v1(folder: Path, *, limit: int, usage: int, cache: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{usage}\n")
    statistics = f"cache 5\ntotal_inactive_file {cache}\ntotal_active_file 0\n"
    (folder / "memory.stat").write_text(statistics)


def test_without_cgroups_the_machines_memory_counts(tmp_path: Path) -> None:
    assert Proc(tmp_path).left() == (1000 * MIB, "MemAvailable of the machine")


def test_least_of_all_groups_above_counts_on_v2(tmp_path: Path) -> None:
    fake = Proc(tmp_path)
    mount = fake.mount("cgroup", kind="cgroup2", options="rw")
    fake.member_of = ["0::/system.slice/shmq.service"]
    _v2(mount / "system.slice", limit=300 * MIB, usage=100 * MIB)
    _v2(mount / "system.slice" / "shmq.service", limit="max", usage=50 * MIB)
    assert fake.left() == (200 * MIB, f"{mount}/system.slice/memory.max")
    _v2(mount / "system.slice" / "shmq.service", limit=64 * MIB, usage=50 * MIB)
    assert fake.left() == (14 * MIB, f"{mount}/system.slice/shmq.service/memory.max")


def test_soft_limit_counts_because_shared_memory_cannot_be_reclaimed(tmp_path: Path) -> None:
    fake = Proc(tmp_path)
    mount = fake.mount("cgroup", kind="cgroup2", options="rw")
    fake.member_of = ["0::/a"]
    _v2(mount / "a", limit=300 * MIB, high=200 * MIB, usage=0)
    assert fake.left() == (200 * MIB, f"{mount}/a/memory.high")


def test_page_cache_in_the_group_would_be_given_back(tmp_path: Path) -> None:
    fake = Proc(tmp_path)
    mount = fake.mount("cgroup", kind="cgroup2", options="rw")
    fake.member_of = ["0::/a"]
    _v2(mount / "a", limit=100 * MIB, usage=100 * MIB, cache=60 * MIB)
    assert fake.left()[0] == 60 * MIB


def test_group_over_its_limit_has_nothing_left(tmp_path: Path) -> None:
    fake = Proc(tmp_path)
    mount = fake.mount("cgroup", kind="cgroup2", options="rw")
    fake.member_of = ["0::/a"]
    _v2(mount / "a", limit=100 * MIB, usage=120 * MIB)
    assert fake.left()[0] == 0


def test_v1_limit_counts_beside_an_empty_v2_hierarchy(tmp_path: Path) -> None:
    fake = Proc(tmp_path)
    fake.mount("cpu", kind="cgroup", options="rw,cpu")
    mount = fake.mount("memory", kind="cgroup", options="rw,memory")
    fake.mount("unified", kind="cgroup2", options="rw")
    fake.member_of = ["5:cpu:/x", "4:memory:/docker/abc", "1:name=systemd:/", "0::/"]
    _v1(mount, limit=UNLIMITED_V1, usage=7 * MIB)
    _v1(mount / "docker", limit=UNLIMITED_V1, usage=7 * MIB)
    _v1(mount / "docker" / "abc", limit=128 * MIB, usage=100 * MIB, cache=20 * MIB)
    assert fake.left() == (48 * MIB, f"{mount}/docker/abc/memory.limit_in_bytes")


def test_group_inside_a_container_is_found_by_its_path_below_the_mounts_root(
    tmp_path: Path,
) -> None:
    fake = Proc(tmp_path)
    mount = fake.mount("cgroup", root="/docker/abc", kind="cgroup2", options="rw")
    fake.member_of = ["0::/docker/abc/shmq.service"]
    _v2(mount, limit=640 * MIB, usage=0)
    _v2(mount / "shmq.service", limit=64 * MIB, usage=0)
    assert fake.left() == (64 * MIB, f"{mount}/shmq.service/memory.max")


@pytest.mark.parametrize("path", ["/docker/abc", "/"])
def test_container_sees_its_own_part_of_the_hierarchy(tmp_path: Path, path: str) -> None:
    fake = Proc(tmp_path)
    mount = fake.mount("cgroup", root="/docker/abc", kind="cgroup2", options="rw")
    fake.member_of = [f"0::{path}"]
    _v2(mount, limit=64 * MIB, usage=0)
    assert fake.left() == (64 * MIB, f"{mount}/memory.max")


def test_mount_point_with_a_blank_is_found(tmp_path: Path) -> None:
    fake = Proc(tmp_path)
    mount = fake.mount("my cgroup", kind="cgroup2", options="rw")
    fake.member_of = ["0::/a"]
    _v2(mount / "a", limit=64 * MIB, usage=0)
    assert fake.left() == (64 * MIB, f"{mount}/a/memory.max")


def test_unreadable_meminfo_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ShmError, match="read .*/meminfo: No such file"):
        memory_left(tmp_path)
    (tmp_path / "meminfo").write_text("MemTotal: 5 kB\n")
    with pytest.raises(ShmError, match="mount /proc"):
        memory_left(tmp_path)


def test_what_does_not_fit_is_refused_with_limit_and_remedy(tmp_path: Path) -> None:
    fake = Proc(tmp_path, available_mib=100)
    fake.left()
    require_memory("create x", wanted_bytes=92 * MIB, proc=fake.proc)
    with pytest.raises(
        ShmFullError,
        match=f"create x: {92 * MIB + 1} bytes wanted, {100 * MIB} left by MemAvailable of the"
        " machine; raise MemoryMax=",
    ):
        require_memory("create x", wanted_bytes=92 * MIB + 1, proc=fake.proc)


def test_path_is_on_the_nearest_mount_and_of_two_on_the_last(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "inside").mkdir()
    (tmp_path / "self" / "mountinfo").write_text(
        f"1 0 0:1 / / rw - ext4 a rw\n2 1 0:2 / {tmp_path}/inside rw - xfs b rw\n"
        f"3 1 0:3 / {tmp_path}/inside ro master:1 - tmpfs c rw,size=1m\n"
    )
    inside = mount_of(tmp_path / "inside", proc=tmp_path)
    assert (inside.kind, inside.point) == ("tmpfs", f"{tmp_path}/inside")
    assert {"ro", "size=1m"} <= inside.options
    assert mount_of(tmp_path, proc=tmp_path).kind == "ext4"


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A real memory cgroup of 96 MiB."""
    with memory_group() as group:
        group.limit(96 * MIB)
        yield group.folder


def test_memory_of_a_small_container_is_refused_before_the_kernel_kills(small_group: Path) -> None:
    out = children.run(
        """
        import sys
        from shmq.errors import ShmFullError
        from shmq.shm.memfd import create_sealed
        from shmq.shm.memory import memory_left
        left, source = memory_left()
        assert source.startswith(sys.argv[1]), source
        assert left < 96 << 20
        create_sealed("fits", size_bytes=8 << 20)
        try:
            create_sealed("does not", size_bytes=96 << 20)
        except ShmFullError as error:
            print(error)
        """,
        small_group,
        before=["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(small_group)],
    )
    assert out.startswith("create memfd does not: 100663296 bytes wanted, ")
    assert f"left by {small_group}/memory." in out
