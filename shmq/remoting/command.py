"""Commands and the frames they travel in: the control plane's protocol without any input or output.

A connection carries frames both ways, each a fixed head, then `fields` (JSON) and `body` (bytes):

    byte  size  field         little-endian
       0     2  magic         0x5153, "SQ"
       2     1  flags         1 response, 2 one-way (no response follows); other bits are zero
       3     1  fd_count      descriptors that came with the frame's first byte (SCM_RIGHTS)
       4     4  opaque        chosen by whoever asks, repeated in the response
       8     4  code          signed; a RequestCode, or a ResponseCode in a response
      12     4  fields_bytes  at most 64 KiB; 0: no fields, no remark
      16     4  body_bytes    fields and body together at most what the receiver allows
      20        fields        {"extFields": {name: text, number, flag or null}, "remark": text}
                body          what the code says: JSON where RocketMQ has JSON, else raw bytes

This is RocketMQ's RemotingCommand with its head made binary: extFields, remark and body mean what
they mean there. Its codes reach 200,151, so that 16 bits would not do.

A frame is valid if the head is, the fields are such an object, and exactly fd_count descriptors
have arrived by its first byte; everything else is a ProtocolError, after which nothing more is read
from that connection. Lengths are held against their limit before a byte of theirs is kept.

Who uses it: both ends of every connection, whatever waits for their sockets. Nothing blocks.
"""

import os
import struct
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import orjson

from shmq import errors
from shmq.errors import ConfigError, ProtocolError, ShmqError
from shmq.json_fields import Fields
from shmq.remoting.codes import RequestCode, ResponseCode, code_name

__all__ = [
    "Command",
    "FIELDS_BYTES_MAX",
    "FRAME_BYTES_MAX",
    "FrameHead",
    "FrameParser",
    "HEAD_BYTES",
    "LONG_FRAME_BYTES_MAX",
    "PROTOCOL_VERSION",
    "Scalar",
    "accept_no_fds",
    "encode",
    "error_of",
    "error_response",
    "go_away",
    "hello",
    "response_to",
]

PROTOCOL_VERSION: Final = 1
"""What HELLO carries; a server refuses every other with VERSION_NOT_SUPPORTED."""
MAGIC: Final = 0x5153
HEAD: Final = struct.Struct("<HBBIiII")
HEAD_BYTES: Final = HEAD.size
FIELDS_BYTES_MAX: Final = 64 << 10
"""Fields of one frame: names, ids and numbers; tables travel as body."""
FRAME_BYTES_MAX: Final = 1 << 20
"""Fields and body of one frame to a server: a chunk of 1,000 topics fits four times."""
LONG_FRAME_BYTES_MAX: Final = 8 << 20
"""Fields and body of one frame to a client: a pull answer with a body of 4 MiB and its record."""

_RESPONSE: Final = 1
_ONEWAY: Final = 2
_REMARK_LENGTH_MAX: Final = 4096
_ERROR_FIELD: Final = "error"
_HINT_FIELD: Final = "hint"

Scalar = str | int | float | bool | None
"""What an extField may be."""


@dataclass(slots=True)
class Command:
    """One request, one-way command or response.

    Owns the descriptors that came with it: whoever receives one takes them or closes it.
    """

    code: int
    """A RequestCode, or a ResponseCode in a response; other numbers travel unharmed."""
    ext_fields: Mapping[str, Scalar] = field(default_factory=dict)
    """Named arguments or results."""
    body: bytes = b""
    """Bulk data."""
    remark: str | None = None
    """A sentence for people, in a response that is no success."""
    opaque: int = 0
    """Pairs a response with its request, 0 to 2**32 - 1; set by the connection that asks."""
    is_response: bool = False
    """A response, not a request."""
    is_oneway: bool = False
    """Nobody waits for a response."""
    fds: list[int] = field(default_factory=list)
    """Descriptors that travel with it."""

    @property
    def name(self) -> str:
        """What it is, for logs and errors: GET_ROUTEINFO_BY_TOPIC."""
        return f"response {self.code}" if self.is_response else code_name(self.code)

    def fields(self) -> Fields:
        """The extFields one by one; a wrong one raises ConfigError (INVALID_PARAMETER)."""
        return Fields(self.ext_fields, what=self.name)

    def json(self) -> Mapping[str, object]:
        """The body as a JSON object; ConfigError (INVALID_PARAMETER) if it is none."""
        try:
            value = orjson.loads(self.body)
        except orjson.JSONDecodeError as error:
            raise ConfigError(f"{self.name}: body: {error}; wanted a JSON object") from None
        if not isinstance(value, dict):
            raise ConfigError(f"{self.name}: body: {type(value).__name__}, wanted a JSON object")
        return value

    def take_fds(self) -> tuple[int, ...]:
        """The descriptors, which are the caller's to close from now on."""
        fds, self.fds = tuple(self.fds), []
        return fds

    def close(self) -> None:
        """Close the descriptors that nobody took."""
        for fd in self.take_fds():
            os.close(fd)


def response_to(
    request: Command,
    *,
    code: int = ResponseCode.SUCCESS,
    ext_fields: Mapping[str, Scalar] | None = None,
    body: bytes = b"",
    remark: str | None = None,
    fds: Iterable[int] = (),
) -> Command:
    """The answer to a request; `fds` are the command's from now on and closed once sent."""
    return Command(
        code,
        {} if ext_fields is None else ext_fields,
        body,
        remark,
        request.opaque,
        is_response=True,
        fds=list(fds),
    )


def error_response(request: Command, error: ShmqError) -> Command:
    """The answer that makes `error_of` give the same class with the same message and hint."""
    ext_fields: dict[str, Scalar] = {_ERROR_FIELD: error.name}
    if error.hint != type(error).hint:
        ext_fields[_HINT_FIELD] = error.hint
    return response_to(request, code=error.code, ext_fields=ext_fields, remark=_sent(str(error)))


def error_of(command: Command) -> ShmqError | None:
    """What a response (or a GO_AWAY) tells of as an exception; None for SUCCESS.

    A code of RocketMQ that no class stands for gives a plain ShmqError; whoever can do something
    about such a code looks at the response itself.
    """
    if command.is_response and command.code == ResponseCode.SUCCESS:
        return None
    name = command.ext_fields.get(_ERROR_FIELD)
    kind = errors.for_name(name) if isinstance(name, str) else ShmqError
    if kind is ShmqError and command.is_response:
        kind = errors.for_code(command.code)
    hint = command.ext_fields.get(_HINT_FIELD)
    text = command.remark or f"the answer is code {command.code}, without a remark"
    return kind(text, hint=hint if isinstance(hint, str) else None)


_NUMBER_MIN, _NUMBER_MAX = -(1 << 63), (1 << 64) - 1


def _dumped(command: Command) -> bytes:
    try:
        return orjson.dumps({"extFields": command.ext_fields, "remark": command.remark})
    except TypeError:
        for name, value in command.ext_fields.items():
            if isinstance(value, int) and not _NUMBER_MIN <= value <= _NUMBER_MAX:
                raise errors.ConfigError(
                    f"send {command.name}: {name} {value}: wanted a number of 64 bits"
                ) from None
        raise


def encode(command: Command, *, frame_bytes_max: int = FRAME_BYTES_MAX) -> bytes:
    """The frame of a command, without its descriptors.

    Raises:
        ProtocolError: it is larger than the receiver allows; nothing was sent.
        ConfigError: a number does not fit.
    """
    fields = b""
    if command.ext_fields or command.remark is not None:
        fields = _dumped(command)
    body_bytes = len(command.body)
    if len(fields) > FIELDS_BYTES_MAX or len(fields) + body_bytes > frame_bytes_max:
        raise ProtocolError(
            f"send {command.name}: fields of {len(fields)} and a body of {body_bytes} bytes; wanted"
            f" at most {FIELDS_BYTES_MAX} and {frame_bytes_max} together"
        )
    flags = command.is_response * _RESPONSE | command.is_oneway * _ONEWAY
    head = HEAD.pack(
        MAGIC, flags, len(command.fds), command.opaque, command.code, len(fields), body_bytes
    )
    return b"".join((head, fields, command.body))


class FrameHead(NamedTuple):
    """The head of a frame whose rest may not be there yet."""

    flags: int
    """1 response, 2 one-way."""
    fd_count: int
    """Descriptors that belong to the frame."""
    opaque: int
    """Pairs a response with its request."""
    code: int
    """A RequestCode, or a ResponseCode in a response."""
    fields_bytes: int
    """Length of the fields."""
    body_bytes: int
    """Length of the body."""

    @property
    def is_response(self) -> bool:
        """A response, not a request."""
        return bool(self.flags & _RESPONSE)

    @property
    def rest_bytes(self) -> int:
        """What follows the head."""
        return self.fields_bytes + self.body_bytes


def accept_no_fds(_head: FrameHead) -> int:
    """The `fd_limit` of a parser whose peers may send no descriptors."""
    return 0


class FrameParser:
    """Takes bytes and descriptors as they come and gives whole commands.

    Args:
        frame_bytes_max: fields and body of one frame, at most.
        fd_limit: how many descriptors a frame with this head may carry; asked once per frame.

    Owns descriptors until a command takes them; `close` closes what is left.
    """

    __slots__ = ("_buffer", "_fd_limit", "_fds", "_frame_bytes_max", "_head")

    FD_COUNT_MAX = 64
    """Descriptors that may wait for their frame to be complete."""

    def __init__(
        self,
        *,
        frame_bytes_max: int = FRAME_BYTES_MAX,
        fd_limit: Callable[[FrameHead], int] = accept_no_fds,
    ) -> None:
        self._frame_bytes_max = frame_bytes_max
        self._fd_limit = fd_limit
        self._buffer = bytearray()
        self._fds: deque[int] = deque()
        self._head: FrameHead | None = None

    @property
    def buffered_bytes(self) -> int:
        """Bytes that came and belong to no complete command yet."""
        return len(self._buffer)

    def feed(self, data: bytes, fds: Iterable[int] = ()) -> None:
        """Take what one receive gave; descriptors are the parser's from now on.

        Raises:
            ProtocolError: more descriptors wait than any frame may carry.
        """
        self._buffer += data
        self._fds.extend(fds)
        if len(self._fds) > self.FD_COUNT_MAX:
            raise ProtocolError(f"receive: {len(self._fds)} descriptors that no frame has claimed")

    def next(self) -> Command | None:
        """The next complete command, None where more bytes must come first.

        Raises:
            ProtocolError: the bytes are no frame that may come here.
        """
        if self._head is None:
            if len(self._buffer) < HEAD_BYTES:
                if self._fds and not self._buffer:
                    raise ProtocolError(f"receive: {len(self._fds)} descriptors with no frame")
                return None
            self._head = self._checked_head()
        head = self._head
        end = HEAD_BYTES + head.rest_bytes
        if len(self._buffer) < end:
            return None
        with memoryview(self._buffer) as view:
            fields_end = HEAD_BYTES + head.fields_bytes
            fields = bytes(view[HEAD_BYTES:fields_end])
            body = bytes(view[fields_end:end])
        ext_fields, remark = _decode_fields(fields) if fields else ({}, None)
        del self._buffer[:end]
        self._head = None
        return Command(
            head.code,
            ext_fields,
            body,
            remark,
            head.opaque,
            head.is_response,
            bool(head.flags & _ONEWAY),
            [self._fds.popleft() for _ in range(head.fd_count)],
        )

    def close(self) -> None:
        """Close the descriptors that no command has taken; forget all bytes."""
        while self._fds:
            os.close(self._fds.popleft())
        self._buffer.clear()
        self._head = None

    def _checked_head(self) -> FrameHead:
        magic, *rest = HEAD.unpack_from(self._buffer)
        head = FrameHead(*rest)
        if magic != MAGIC:
            raise ProtocolError(f"receive: magic {magic:#06x}, wanted {MAGIC:#06x}")
        if head.flags not in (0, _RESPONSE, _ONEWAY):
            raise ProtocolError(f"receive: flags {head.flags:#x}, wanted 0, 1 or 2")
        if head.fields_bytes > FIELDS_BYTES_MAX or head.rest_bytes > self._frame_bytes_max:
            raise ProtocolError(
                f"receive: fields of {head.fields_bytes} and a body of {head.body_bytes} bytes;"
                f" wanted at most {FIELDS_BYTES_MAX} and {self._frame_bytes_max} together"
            )
        limit = self._fd_limit(head) if head.fd_count else 0
        if head.fd_count > limit or head.fd_count > len(self._fds):
            raise ProtocolError(
                f"receive {_shown(head)}: {head.fd_count} descriptors announced,"
                f" {len(self._fds)} came, {limit} allowed"
            )
        return head


def _shown(head: FrameHead) -> str:
    return f"response {head.code}" if head.is_response else code_name(head.code)


def _decode_fields(raw: bytes) -> tuple[Mapping[str, Scalar], str | None]:
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ProtocolError(f"receive: fields: {error}") from None
    if not isinstance(value, dict):
        raise ProtocolError(f"receive: fields are a {type(value).__name__}, wanted an object")
    ext_fields = value.get("extFields", {})
    remark = value.get("remark")
    if not isinstance(ext_fields, dict) or any(
        isinstance(item, dict | list) for item in ext_fields.values()
    ):
        raise ProtocolError("receive: extFields: wanted an object of texts and numbers")
    if remark is not None and not isinstance(remark, str):
        raise ProtocolError("receive: remark: wanted a text")
    return ext_fields, remark


def hello(role: str) -> Command:
    """The first frame of a connection.

    Args:
        role: what the connecting process is, for the server's log; it earns nothing.
    """
    return Command(RequestCode.HELLO, {"version": PROTOCOL_VERSION, "role": role})


def go_away(error: ShmqError) -> Command:
    """The last frame of a connection: why it ends."""
    return Command(
        RequestCode.GO_AWAY,
        {_ERROR_FIELD: error.name},
        remark=_sent(str(error)),
        is_oneway=True,
    )


def _sent(text: str) -> str:
    """An error's text as JSON can carry it: a path may hold bytes that are no UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()[:_REMARK_LENGTH_MAX]
