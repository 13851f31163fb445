"""What the pages of docs/operate have a person type, and the files that they show."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.support.repository import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGES = ROOT / "docs/operate"
_DAEMONS = ("shmq-broker ", "shmq-controller ", "shmq-exporter ", "shmq-namesrv ", "shmq dev ")
_PROGRAMS = (
    "bin/", "cp ", "dmesg", "gpasswd ", "journalctl ", "kill ", "mount ", "mqadmin ", "mqbroker ",
    "prlimit ", "promtool ", "runuser ", "shmq ", "swapoff ", "systemctl ", "top -", "touch ",
    *_DAEMONS,
)  # fmt: skip
_COMMENT = re.compile(r" +# .*$")


@dataclass(frozen=True)
class Page:
    """One page, taken apart."""

    commands: tuple[str, ...]
    """Blocks of them whole, those within a sentence or a table one by one; each once."""
    texts: tuple[str, ...]
    """Other blocks: a file, a message."""

    @classmethod
    def read(cls, name: str) -> Page:
        commands: dict[str, None] = {}
        texts: dict[str, None] = {}
        text = (PAGES / f"{name}.md").read_text("utf-8")
        rest = re.sub(r"^```(\w*)\n(.*?)^```$", "", text, flags=re.DOTALL | re.MULTILINE)
        for language, block in re.findall(
            r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE
        ):
            (commands if language == "sh" else texts)[block.rstrip()] = None
        for block in _indented(rest):
            lines = [_COMMENT.sub("", line) for line in block]
            if lines[0].startswith("$ "):
                commands |= dict.fromkeys(line.removeprefix("$ ") for line in lines)
            elif lines[0].startswith(_PROGRAMS):
                commands["\n".join(lines)] = None
            else:
                texts["\n".join(block)] = None
        for paragraph in re.sub(r"(?m)^    .*$", "", rest).split("\n\n"):
            for code in re.findall(r"`([^`]+)`", paragraph):
                if code.startswith(_PROGRAMS):
                    commands[" ".join(code.split())] = None
        return cls(tuple(commands), tuple(texts))


def page_names() -> list[str]:
    """All pages."""
    return sorted(path.stem for path in PAGES.glob("*.md"))


def lines_of(command: str) -> tuple[list[str], list[str]]:
    """A command's lines: those that run until they are stopped, and the others."""
    lines = [" ".join(line.split()) for line in command.splitlines()]
    staying = [line for line in lines if line.startswith(_DAEMONS)]
    return staying, [line for line in lines if line not in staying]


def _indented(text: str) -> Iterator[list[str]]:
    """Blocks of lines with four blanks before them, behind an empty line."""
    for block in re.findall(r"(?<=\n\n)((?:    .*\n|\n(?=    ))+)", text):
        yield [line.removeprefix("    ") for line in block.rstrip().splitlines()]
