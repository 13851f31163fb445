"""shmq where broker and clients spin for what comes: for hosts with a core for each of them."""

from typing import ClassVar

from shmq_itself import Shmq

import shmq


class ShmqBusySpin(Shmq):
    NAME = "shmq-busy-spin"
    POLICY: ClassVar = shmq.WaitingPolicy.BUSY_SPIN
    SETTINGS: ClassVar = {
        **Shmq.SETTINGS,
        "waiting": "busy_spin: broker, producer and consumer give up no core",
    }


PEER = ShmqBusySpin
