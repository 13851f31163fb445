"""The runtime folder: who may make a socket, what is stale, and what is never touched."""

import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shmq.errors import (
    ConfigError,
    OwnerError,
    PermissionDeniedError,
    ServiceNotAvailableError,
    SystemBusyError,
)
from shmq.remoting import runtime_folder
from shmq.remoting.runtime_folder import (
    RuntimeFolder,
    broker_socket_name,
    namesrv_socket_name,
)
from tests.support.scale import scaled
from tests.unit.shm import children

NAME = "namesrv-ns0"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o027, 0o077])
def test_folder_and_socket_have_their_modes_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    (tmp_path / "above").mkdir()
    before = os.umask(umask)
    try:
        with RuntimeFolder.make(tmp_path / "above/run") as folder, folder.listen(NAME):
            assert mode(tmp_path / "above/run") == 0o750
            assert mode(tmp_path / f"above/run/{NAME}.sock") == 0o660
            assert mode(folder.private("broker-a-0")) == 0o700
    finally:
        os.umask(before)


def test_socket_is_gone_after_close_and_the_name_is_free(folder: RuntimeFolder) -> None:
    for _ in range(2):
        with folder.listen(NAME) as listener:
            assert folder.socket_names("namesrv") == [NAME]
            listener.close()
        assert folder.socket_names("namesrv") == []


def test_name_that_a_living_process_has_is_refused(folder: RuntimeFolder) -> None:
    with (
        folder.listen(NAME),
        pytest.raises(OwnerError, match="another process has it"),
        folder.listen(NAME),
    ):
        pass


def test_socket_of_a_killed_server_is_replaced(folder: RuntimeFolder) -> None:
    killed = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, signal, sys, pathlib\n"
            "from shmq.remoting.runtime_folder import RuntimeFolder\n"
            "listener = RuntimeFolder.open(pathlib.Path(sys.argv[1])).listen('namesrv-ns0')\n"
            "os.kill(os.getpid(), signal.SIGKILL)",
            str(folder.path),
        ],
        check=False,
        cwd=children.ROOT,
    )
    assert killed.returncode == -9
    assert folder.socket_names("namesrv") == folder.locked_names("namesrv") == [NAME]
    assert folder.locked_names("broker") == []
    with pytest.raises(ServiceNotAvailableError, match="nothing listens there"):
        folder.connect(NAME, timeout_s=1)
    with folder.listen(NAME), folder.connect(NAME, timeout_s=1):
        pass
    assert folder.socket_names("namesrv") == []
    assert folder.locked_names("namesrv") == [NAME]


def test_what_is_no_stale_socket_of_ours_is_left_alone(folder: RuntimeFolder) -> None:
    path = folder.path / f"{NAME}.sock"
    path.write_text("precious")
    with pytest.raises(OwnerError, match="no socket of ours; remove it by hand"):
        folder.listen(NAME)
    assert path.read_text() == "precious"
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(OwnerError, match="no socket of ours"):
        folder.listen(NAME)
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(OwnerError, match="something listens"):
            folder.listen(NAME)


def test_folder_that_takes_no_socket_says_so(folder: RuntimeFolder) -> None:
    (folder.path / f".{NAME}.new").mkdir()
    with pytest.raises(ConfigError, match=f"listen on {NAME} in .*: "):
        folder.listen(NAME)
    (folder.path / f".{NAME}.new").rmdir()
    folder.listen(NAME).close()


def test_close_leaves_a_socket_that_is_not_its_own(folder: RuntimeFolder) -> None:
    listener = folder.listen(NAME)
    path = folder.path / f"{NAME}.sock"
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(path))
        listener.close()
    assert path.is_socket()


def test_folder_whose_path_is_longer_than_a_socket_address_serves(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    with RuntimeFolder.make(deep) as folder, folder.listen(NAME), folder.connect(NAME, timeout_s=1):
        pass


def test_folder_that_others_may_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    for bits in (0o770, 0o752):
        path.chmod(bits)
        with pytest.raises(OwnerError, match=f"mode {bits:04o}; wanted 0750"):
            RuntimeFolder.open(path)


def test_folder_that_is_a_link_or_missing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o750)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for name in ("link", "none"):
        with pytest.raises(ServiceNotAvailableError, match="open the runtime folder"):
            RuntimeFolder.open(tmp_path / name)


def test_folder_that_cannot_be_made_says_where_to_name_another(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="name another with --runtime"):
        RuntimeFolder.make(tmp_path / "file/run")


def test_foreign_folder_among_everybodys_is_not_trusted(public_path: Path) -> None:
    """Somebody made /tmp/shmq-<our uid> before us and listens there."""
    public_path.chmod(0o1777)
    path = public_path / "run"
    children.run_as_nobody(
        "import os, sys; os.mkdir(sys.argv[1]); os.chmod(sys.argv[1], 0o755)", path
    )
    with pytest.raises(OwnerError, match="where everybody may make one"):
        RuntimeFolder.open(path)
    with pytest.raises(OwnerError, match="where everybody may make one"):
        RuntimeFolder.make(path)
    public_path.chmod(0o755)
    RuntimeFolder.open(path).close()  # put there by whoever owns the folder above
    with pytest.raises(OwnerError, match="owner uid 65534, wanted 0"):
        RuntimeFolder.make(path)


def test_other_uid_without_the_group_gets_one_clear_error(public_path: Path) -> None:
    said = {}
    for place, bits in (("closed", 0o750), ("open", 0o755)):
        path = public_path / place
        with RuntimeFolder.make(path) as folder, folder.listen(NAME):
            path.chmod(bits)
            said[place] = children.run_as_nobody(
                """
                import sys, pathlib
                from shmq.errors import PermissionDeniedError
                from shmq.remoting.runtime_folder import RuntimeFolder
                try:
                    RuntimeFolder.open(pathlib.Path(sys.argv[1])).connect(sys.argv[2], timeout_s=1)
                except PermissionDeniedError as error:
                    print(error, "|", error.hint)
                """,
                path,
                NAME,
            )
    assert "open the runtime folder" in said["closed"]
    assert f"connect to {NAME}" in said["open"]
    assert all("uid 65534" in text and "join its group" in text for text in said.values())


def test_full_backlog_is_waited_for_and_then_told(
    folder: RuntimeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_folder, "BACKLOG_COUNT", 0)
    with folder.listen(NAME) as listener:
        first = folder.connect(NAME, timeout_s=1)
        assert folder.try_connect(NAME) is None
        with pytest.raises(SystemBusyError, match="does not accept"):
            folder.connect(NAME, timeout_s=0.05)
        accepting = threading.Thread(target=lambda: listener.sock.accept()[0].close())
        waiting = threading.Thread(target=lambda: folder.connect(NAME, timeout_s=60).close())
        waiting.start()
        accepting.start()
        waiting.join()
        accepting.join()
        first.close()


def test_names_are_of_our_making_only(folder: RuntimeFolder) -> None:
    assert namesrv_socket_name("ns0") == "namesrv-ns0"
    assert broker_socket_name("broker-a", 1) == "broker-broker-a-1"
    odd = broker_socket_name("ä b", 0)
    assert odd.startswith("broker-__b-")
    with folder.listen(odd):
        assert folder.socket_names("broker") == [odd]
    for bad in ("../x", "x", "namesrv-", "namesrv-a/b", "namesrv-" + "a" * 80, "namesrv-a\0"):
        with pytest.raises(ConfigError, match="socket name"):
            folder.listen(bad)
        with pytest.raises(ConfigError, match="socket name"):
            folder.connect(bad, timeout_s=1)


def test_private_folder_is_ours_alone(folder: RuntimeFolder) -> None:
    path = folder.private("broker-a-0")
    assert mode(path) == 0o700
    assert folder.private("broker-a-0") == path
    path.chmod(0o750)
    with pytest.raises(OwnerError, match="wanted a folder of ours, 0700"):
        folder.private("broker-a-0")
    (folder.path / "link.d").symlink_to("/tmp")
    with pytest.raises(OwnerError, match="wanted a folder of ours, 0700"):
        folder.private("link")
    with pytest.raises(ConfigError, match="private folder"):
        folder.private("../x")


def test_lock_is_held_by_whoever_has_its_descriptor(folder: RuntimeFolder) -> None:
    fd = folder.try_lock("supervisor")
    assert fd is not None
    assert folder.try_lock("supervisor") is None
    copy = os.dup(fd)
    os.close(fd)
    assert folder.try_lock("supervisor") is None
    os.close(copy)
    again = folder.try_lock("supervisor")
    assert again is not None
    os.close(again)


def test_racing_attacker_in_the_folder_above_gets_nothing_outside_touched(tmp_path: Path) -> None:
    """Renames and links in place of the folder while servers come and go: nothing that is not
    ours is bound over, removed or changed."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / f"{NAME}.sock").write_text("precious")
    path = tmp_path / "run"
    is_over = threading.Event()

    def attack() -> None:
        while not is_over.is_set():
            try:
                os.rename(path, tmp_path / "away")
                os.symlink(victim, path)
                os.unlink(path)
                os.rename(tmp_path / "away", path)
            except OSError:
                pass

    RuntimeFolder.make(path).close()
    attacker = threading.Thread(target=attack)
    attacker.start()
    try:
        for _ in range(scaled(300, 10_000)):
            try:
                with RuntimeFolder.open(path) as folder, folder.listen(NAME):
                    pass
            except (ServiceNotAvailableError, OwnerError, PermissionDeniedError):
                pass
    finally:
        is_over.set()
        attacker.join()
    assert [entry.name for entry in victim.iterdir()] == [f"{NAME}.sock"]
    assert (victim / f"{NAME}.sock").read_text() == "precious"
