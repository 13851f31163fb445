"""The Controller room: which member of a replica set is master, in which epoch, who is in sync.

Purpose: gives members their broker_id, keeps SyncStateSet and epochs, elects masters and has hung
    ones fenced. Here is its state machine with its journal; the process around it comes next.
Process: the Controller's, in one thread: inputs come in one after the other.
Writes: `controller.journal` and `controller.lock` in the Controller's folder (formats page
    controller_journal.md), by right of the lock.
Reads: nothing but its journal; time, requests and what the host knows are passed in.
May import: remoting (response codes), store (files replaced as a whole), shm (the lock), the words,
    orjson, the standard library.
Never: decides by what its journal does not hold yet, elects while a living process holds
    mastership, waits, asks a clock.
"""

__all__: list[str] = []
