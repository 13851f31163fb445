"""The NameServer room: which broker has which topic, and, where asked to, whether it lives.

Purpose: keeps the routes that brokers register and gives them to whoever asks; as supervisor,
    starts the brokers of a cluster file, restarts the dead, fences the hung, and tells a member of
    a replica set to become master when there is none.
Process: shmq-namesrv. Several may run and never talk to each other; brokers register with all.
Writes: its socket and lock in the runtime folder; as supervisor `supervisor.lock`,
    `supervisor.d/` (who runs, and what brokers print); the file of the key-value configuration.
Reads: what brokers register; the cluster file.
May import: remoting, store (files replaced as a whole), shm (incarnations, the record of
    mastership), the words, orjson, the standard library; `__main__` also the Controller, which may
    live in its process.
Never: talks to another NameServer, opens a store, touches shared memory, takes a broker with it
    when it dies.
"""

__all__: list[str] = []
