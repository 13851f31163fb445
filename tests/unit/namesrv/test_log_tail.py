"""What brokers print, forwarded whole, by line and by name."""

from pathlib import Path

import pytest

from shmq.namesrv import log_tail
from shmq.namesrv.log_tail import LogTail, LogTails


def test_lines_come_whole_with_the_name_before_them(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"old\n")
    got: list[str] = []
    tail = LogTail(path, "a", from_end=True)
    with path.open("ab", buffering=0) as file:
        file.write(b"one\ntw")
        tail.forward(got.append)
        assert got == ["[a] one\n"]
        file.write(b"o\n\xff\n")
        tail.forward(got.append)
        file.write(b"last words")
    tail.forward(got.append)
    assert got == ["[a] one\n", "[a] two\n", "[a] \\xff\n"]
    tail.close(got.append)
    assert got[3:] == ["[a] last words\n"]


def test_from_the_beginning_includes_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\n" * 100_000)
    got: list[str] = []
    tail = LogTail(path, "a", from_end=False)
    tail.forward(got.append)
    tail.close(got.append)
    assert got == ["[a] one\n"] * 100_000


def test_line_without_end_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * 200_000)
    got: list[str] = []
    tail = LogTail(path, "a", from_end=False)
    tail.forward(got.append)
    assert sum(map(len, got)) >= 150_000
    tail.close(got.append)


def test_large_file_is_emptied_once_all_was_forwarded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_tail, "_EMPTY_AT_BYTES", 100)
    path = tmp_path / "log"
    got: list[str] = []
    with path.open("ab", buffering=0) as file:  # as a broker has it: O_APPEND
        tail = LogTail(path, "a", from_end=False)
        for number in range(100):
            file.write(b"line %d\n" % number)
            tail.forward(got.append)
            assert path.stat().st_size < 200
    tail.close(got.append)
    assert got == [f"[a] line {number}\n" for number in range(100)]


def test_file_of_a_new_broker_follows_the_end_of_the_old_one(tmp_path: Path) -> None:
    got: list[str] = []
    tails = LogTails(got.append)
    for number in range(3):
        path = tmp_path / f"log{number}"
        path.touch()
        tails.add("a", LogTail(path, "a", from_end=False))
        path.write_text(f"{number}\nend of {number}")
    tails.start()
    tails.stop()
    tails.stop()
    assert sorted(got) == sorted(f"[a] {t}\n" for n in range(3) for t in (n, f"end of {n}"))


def test_stderr_that_is_gone_stops_nothing(tmp_path: Path) -> None:
    def broken(_line: str) -> None:
        raise BrokenPipeError

    path = tmp_path / "log"
    path.write_text("a line\n")
    tails = LogTails(broken)
    tails.add("a", LogTail(path, "a", from_end=False))
    tails.start()
    tails.stop()
