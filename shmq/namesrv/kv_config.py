"""The key-value configuration of a NameServer: what administrators keep there, by namespace.

RocketMQ uses it for order topics: namespace ORDER_TOPIC_CONFIG, key a topic, value
"broker:queues;broker:queues", which goes into the topic's route. Each NameServer has its own;
whoever sets a value sets it in all of them (RocketMQ KVConfigManager).

In the NameServer, in its loop's thread. Writes the file, if it was given one, in RocketMQ's shape
{"configTable": {namespace: {key: value}}}, replaced as a whole with each change: a change blocks
for two fsyncs. What may fail: the file (StoreError, DiskFullError, ConfigError), too much of it
(QuotaError).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import orjson

from shmq.errors import ConfigError, QuotaError
from shmq.store.durable_file import make_folder, read_file, replace_file

__all__ = ["KvConfig", "ORDER_TOPIC_CONFIG"]

ORDER_TOPIC_CONFIG: Final = "ORDER_TOPIC_CONFIG"
"""The namespace of order topics."""
_NAME_LENGTH_MAX: Final = 255
_VALUE_LENGTH_MAX: Final = 32_768
_ENTRY_COUNT_MAX: Final = 200_000
_FILE_BYTES_MAX: Final = 1 << 30


class KvConfig:
    """All namespaces.

    Args:
        path: of the file; None: kept in memory only.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._tables: dict[str, dict[str, str]] = {} if path is None else _load(path)

    def get(self, namespace: str, key: str) -> str | None:
        """A value, None if there is none."""
        return self._tables.get(namespace, {}).get(key)

    def put(self, namespace: str, key: str, value: str) -> None:
        """Keep a value; raises as `put_all`."""
        self.put_all(namespace, {key: value})

    def put_all(self, namespace: str, values: Mapping[str, str]) -> None:
        """Keep values by key: all of them or none. The file is written once.

        Raises:
            ConfigError: a name is empty or too long, or a value is too long.
            QuotaError: more than 200,000 values would be kept.
            StoreError, DiskFullError: the file cannot be written; nothing changed.
        """
        for name in (namespace, *values):
            if not 0 < len(name) <= _NAME_LENGTH_MAX:
                raise ConfigError(
                    f"put {name[:40]!r}: {len(name)} characters, wanted 1 to {_NAME_LENGTH_MAX}"
                )
        for key, value in values.items():
            if len(value) > _VALUE_LENGTH_MAX:
                raise ConfigError(
                    f"put {namespace}/{key}: {len(value)} characters;"
                    f" wanted at most {_VALUE_LENGTH_MAX}"
                )
        changed = {name: dict(table) for name, table in self._tables.items()}
        changed.setdefault(namespace, {}).update(values)
        if sum(len(table) for table in changed.values()) > _ENTRY_COUNT_MAX:
            raise QuotaError(
                f"put {len(values)} values in {namespace}: more than {_ENTRY_COUNT_MAX} would be"
                " kept; delete what nobody needs"
            )
        self._keep(changed)

    def delete(self, namespace: str, key: str) -> None:
        """Forget a value, if there is one.

        Raises:
            StoreError, DiskFullError: the file cannot be written; nothing changed.
        """
        if self.get(namespace, key) is None:
            return
        changed = {name: dict(table) for name, table in self._tables.items()}
        del changed[namespace][key]
        if not changed[namespace]:
            del changed[namespace]
        self._keep(changed)

    def namespace(self, namespace: str) -> Mapping[str, str]:
        """All keys and values of a namespace; empty where it is unknown."""
        return dict(self._tables.get(namespace, {}))

    def _keep(self, tables: dict[str, dict[str, str]]) -> None:
        if self._path is not None:
            make_folder(self._path.parent)
            raw = orjson.dumps({"configTable": tables}, option=orjson.OPT_INDENT_2)
            replace_file(self._path, raw + b"\n", keep_backup=True)
        self._tables = tables


def _load(path: Path) -> dict[str, dict[str, str]]:
    raw = read_file(path, size_max=_FILE_BYTES_MAX)
    if not raw:
        return {}
    try:
        data = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"{path}: {error}; its older version is beside it as .bak") from None
    tables = data.get("configTable") if isinstance(data, dict) else None
    if not isinstance(tables, dict) or not all(
        isinstance(table, dict) and all(isinstance(value, str) for value in table.values())
        for table in tables.values()
    ):
        raise ConfigError(f"{path}: wanted configTable with namespaces of texts")
    return tables
