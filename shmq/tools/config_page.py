"""Writes docs/reference/configuration.md: every setting, from the dataclasses that hold it.

Run as `python -m shmq.tools.config_page > docs/reference/configuration.md`. Reads shmq.config and
the docstrings in its source, writes standard output, fails with nothing.
"""

from __future__ import annotations

import ast
import inspect
from dataclasses import MISSING, fields
from enum import Enum
from typing import TYPE_CHECKING, Any

from shmq import config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from dataclasses import Field

__all__ = ["config_page"]

_HEAD = """# Configuration

Made by `python -m shmq.tools.config_page` from `shmq/config.py`.

A setting has its own name and, where RocketMQ has it, RocketMQ's; files and `--set KEY=VALUE` take
either. What a command line says counts before the file, the file before the default. A key that
nobody knows, a value out of its range and a key given under both names are refused in one line.
*Live* settings may change while a broker runs: `shmq broker config set`.
A size takes B, KiB, MiB or GiB. Where the default is `auto`, nobody asks for a value, and what is
chosen shrinks to what the machine has; a value that is given is kept or refused.

```toml
# shmq-broker --config broker.toml; in a cluster file the same keys stand under [broker.NAME]
store_path = "/var/lib/shmq/broker-a"
brokerName = "broker-a"
flushDiskType = "SYNC_FLUSH"
```
"""
_ROLES: tuple[tuple[str, str, type], ...] = (
    ("The store", "Of every broker.", config.StoreConfig),
    ("The broker", "Besides those of the store.", config.BrokerConfig),
    ("The NameServer", "Table [namesrv] of the cluster file.", config.NamesrvConfig),
    (
        "The Controller",
        "Table [controller] of the file of `shmq-controller --config FILE`, and of the cluster file"
        " with `enableControllerInNamesrv`.",
        config.ControllerConfig,
    ),
    ("The supervisor", "Table [cluster] of `shmq-namesrv --cluster FILE`.", config.ClusterConfig),
)


def config_page() -> str:
    """The page as Markdown."""
    parts = [_HEAD]
    for title, intro, role in _ROLES:
        parts.append(f"## {title}\n\n{intro}\n")
        parts.append("| setting | RocketMQ's | default | what |\n|---|---|---|---|")
        docs = _docstrings(role)
        for spec in fields(role):
            if spec.name in docs:
                rocketmq = ", ".join(spec.metadata.get("rocketmq", ()))
                what = " ".join(docs[spec.name].split()).replace("|", "\\|")
                what += _range(spec) + _live(spec)
                parts.append(f"| {spec.name} | {rocketmq} | {_default(spec)} | {what} |")
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def _docstrings(role: type) -> dict[str, str]:
    """What stands below each field of the class itself."""
    body = ast.parse(inspect.getsource(role)).body[0]
    assert isinstance(body, ast.ClassDef)
    return dict(_documented(body))


def _documented(body: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for before, after in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(before, ast.AnnAssign)
            and isinstance(before.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            yield before.target.id, str(after.value.value)


def _default(spec: Field[Any]) -> str:
    if spec.default is MISSING:
        return "(must be given)" if spec.default_factory is MISSING else "(none)"
    if spec.default is None:
        return "not set" if "Path" in str(spec.type) else "auto"
    if isinstance(spec.default, Enum):
        return str(spec.default.value)
    if isinstance(spec.default, bool):
        return str(spec.default).lower()
    return str(spec.default)


def _range(spec: Field[Any]) -> str:
    least, most = spec.metadata.get("least"), spec.metadata.get("most")
    if least is None:
        return ""
    bounds = f"at least {least}" if most is None else f"{least} to {most}"
    multiple = spec.metadata.get("multiple_of", 1)
    more = f", a multiple of {multiple}" if multiple != 1 else ""
    more += ", a power of two" if spec.metadata.get("power_of_two") else ""
    return f" ({bounds}{more})"


def _live(spec: Field[Any]) -> str:
    return " *Live.*" if spec.metadata.get("live") else ""


if __name__ == "__main__":
    print(config_page(), end="")
