"""Writes docs/reference/cli.md: every verb and option, from the command line itself.

Run as `python -m shmq.tools.cli.page > docs/reference/cli.md`. Reads the commands, writes standard
output, fails with nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shmq.tools.cli.main import EXIT_FAILED, EXIT_USAGE, cli

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["cli_page"]

_HEAD = f"""# The command line

Made by `python -m shmq.tools.cli.page`. In a checkout it is `bin/shmq`, installed `shmq`.

- Which cluster: `--namesrv FOLDER`, else `$SHMQ_NAMESRV`, else the default runtime folder,
  else `/run/shmq`.
- `--json` prints JSON with RocketMQ's names; `sub` and `pub` print one object for each message.
- Exit codes: 0 done, {EXIT_FAILED} it could not be done (one line says why and what to do next),
  {EXIT_USAGE} the command line is wrong. `fsck` and `inspect` have their own.
- Completion: `eval "$(shmq completion bash)"`, or zsh, or fish.
- What cannot be undone asks first; `--yes` answers, and is wanted where nobody can be asked.
"""


def cli_page() -> str:
    """The page as Markdown."""
    parts = [_HEAD]
    for path, command in _commands("shmq", cli):
        with click.Context(command, info_name=path) as context:
            usage = " ".join(command.collect_usage_pieces(context))
            parts.append(f"## `{path} {usage}`\n")
            parts.append(_text(command.help))
            rows = [
                record
                for parameter in command.get_params(context)
                if (record := parameter.get_help_record(context)) and "--help" not in record[0]
            ]
            if rows:
                parts.append("| option | |\n|---|---|")
                parts += [f"| `{_cell(name)}` | {_cell(text)} |" for name, text in rows]
                parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def _commands(path: str, group: click.Group) -> Iterator[tuple[str, click.Command]]:
    with click.Context(group, info_name=path) as context:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            if isinstance(command, click.Group):
                yield from _commands(f"{path} {name}", command)
            elif command is not None:
                yield f"{path} {name}", command


def _text(text: str | None) -> str:
    lines = [line.strip() for line in (text or "").splitlines()]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    print(cli_page(), end="")
