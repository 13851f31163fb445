"""Takes the fields of a JSON object one by one, with errors that name the key, seen and wanted.

RocketMQ's files and answers are objects with camelCase keys; what a real broker wrote must be read
leniently (missing keys have defaults, null counts as missing, unknown keys are kept) and yet never
be misread (a text where a number belongs stops with its name).

Pure words: nothing is written, nothing blocks; a field of another kind raises ConfigError.
"""

from collections.abc import Mapping

from shmq.errors import ConfigError

__all__ = ["Fields"]


class Fields:
    """Reads one JSON object.

    Args:
        data: the object as orjson gave it.
        what: what it describes, for the error's first words; may be set later, once it is known.
    """

    __slots__ = ("_data", "_taken", "what")

    def __init__(self, data: Mapping[str, object], *, what: str) -> None:
        if not isinstance(data, Mapping):
            raise ConfigError(f"{what}: {_shown(data)}, wanted an object")
        self._data = data
        self._taken: set[str] = set()
        self.what = what

    def text(self, key: str, default: str | None = None) -> str:
        """The text under `key`; ConfigError if there is neither it nor a default."""
        value = self._take(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a text")
        return value

    def optional_text(self, key: str) -> str | None:
        """The text under `key`, or None where it is missing or null."""
        return None if self._take(key, None) is None else self.text(key)

    def number(self, key: str, default: int | None = None) -> int:
        """The whole number under `key`."""
        value = self._take(key, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong(key, value, "a whole number")
        return value

    def flag(self, key: str, default: bool | None = None) -> bool:
        """The boolean under `key`."""
        value = self._take(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def texts(self, key: str) -> dict[str, str]:
        """The object of texts under `key`; empty where it is missing or null."""
        value = self._take(key, {})
        if not isinstance(value, Mapping) or not all(isinstance(v, str) for v in value.values()):
            raise self._wrong(key, value, "an object of texts")
        return dict(value)

    def items(self, key: str) -> list[Mapping[str, object]]:
        """The list of objects under `key`; empty where it is missing or null."""
        value = self._take(key, [])
        if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
            raise self._wrong(key, value, "a list of objects")
        return value

    def rest(self) -> dict[str, object]:
        """Everything that no other method has asked for so far."""
        return {key: value for key, value in self._data.items() if key not in self._taken}

    def _take(self, key: str, default: object) -> object:
        self._taken.add(key)
        value = self._data.get(key)
        return default if value is None else value

    def _wrong(self, key: str, value: object, wanted: str) -> ConfigError:
        seen = "missing" if value is None else _shown(value)
        return ConfigError(f"{self.what}: {key}: {seen}, wanted {wanted}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
