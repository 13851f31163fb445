"""The store room: messages as files, in the folder that Apache RocketMQ would open too.

Purpose: CommitLog files, config/*.json and what is derived from them; recovery after a reboot; the
    facade through which a broker owns its log.
Process: the broker, which owns the store; tools, while no broker has it open.
Writes: `commitlog/`, `config/`, `abort`, `lock`, `broker.conf` as RocketMQ does, and everything
    else under `shmq/` with a checksum. One writer at a time: whoever holds the lock file.
Reads: the same files, those of a store that a real RocketMQ left, and the manifest of the shm room.
May import: shm, the words, the core, orjson, the standard library.
Never: deletes what is damaged (it is set aside), cuts a log whose end it has not kept (cuts.py),
    recycles a file, imports numpy, keeps a RocketMQ `checkpoint`, `consumequeue/` or `index/`
    beside a log that it has written.
"""

__all__: list[str] = []
