"""The remoting room: the control plane's sockets, frames and peers.

Purpose: carries RocketMQ's request and response codes between processes over Unix stream sockets,
    with file descriptors beside them; knows who the other side is from the kernel alone.
Process: every one: NameServer and broker serve, clients, brokers and tools call.
Writes: socket files and their locks in the runtime folder; sockets.
Reads: what peers send, which is hostile until it has been parsed; `/proc/<pid>/stat` of peers.
May import: shm (incarnations), the words, orjson, the standard library.
Never: carries a message body on the mapped path, lets a request name a path, a command, a module or
    a class, believes a peer about who it is, waits for a peer without a bound.
"""

__all__: list[str] = []
