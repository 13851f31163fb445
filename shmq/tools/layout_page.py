"""Writes docs/formats/layout.md: the shared layouts, from the tables the core was compiled with.

Run as `python -m shmq.tools.layout_page > docs/formats/layout.md`. Reads `core.LAYOUT`, writes
standard output, fails with nothing.
"""

from __future__ import annotations

from shmq.core import core

__all__ = ["layout_page"]

_HEAD = """# Shared memory layouts

Layout version {version}. Made by `python -m shmq.tools.layout_page` from
`shmq/core/include/shmq/layout.h`, whose comments say who writes what and what a crash leaves. All
integers are little-endian; `shmq_word32` and `shmq_word64` are atomic words.
"""


def layout_page() -> str:
    """The page as Markdown."""
    parts = [_HEAD.format(version=core.LAYOUT_VERSION)]
    for name, (size, fields) in core.LAYOUT.items():
        parts.append(f"## {name} ({size} bytes)\n")
        parts.append("| place | type | field | meaning |\n|---|---|---|---|")
        for field, place, kind, count, doc in fields:
            shown = f"{kind}[{count}]" if count > 1 else kind
            parts.append(f"| {place} | {shown} | {field} | {doc} |")
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    print(layout_page(), end="")
