"""shmq: RocketMQ for one host, message queues in shared memory.

Public names and nothing else live here; each is imported when it is first used, so that a daemon of
shmq does not load what only clients need. Importing it fails in one line where the core cannot run.
"""

import sys
import sysconfig
from importlib import import_module
from typing import TYPE_CHECKING

if not sys.platform.startswith("linux"):
    raise ImportError(f"shmq runs on Linux only (futex, memfd, pidfd); this is {sys.platform}")
if sysconfig.get_config_var("Py_GIL_DISABLED"):
    raise ImportError("shmq needs a Python with the GIL; this one is free-threaded")

if TYPE_CHECKING:
    from shmq.client.admin import Admin
    from shmq.client.batch import MessageBatch
    from shmq.client.consumer import Consumer
    from shmq.client.instance import Client, connect
    from shmq.client.lite_pull_consumer import LitePullConsumer
    from shmq.client.local import local
    from shmq.client.orderly import ConsumeOrderlyContext
    from shmq.client.producer import Producer
    from shmq.client.pull_consumer import PullConsumer
    from shmq.client.push_consumer import PushConsumer
    from shmq.config import WaitingPolicy
    from shmq.core._core import Message
    from shmq.errors import ShmqError
    from shmq.result import MessageQueue, SendResult
    from shmq.status import ConsumeOrderlyStatus, ConsumeStatus, PullStatus, SendStatus
    from shmq.subscription import ConsumeFromWhere, MessageModel

__all__ = [
    "Admin",
    "Client",
    "ConsumeFromWhere",
    "ConsumeOrderlyContext",
    "ConsumeOrderlyStatus",
    "ConsumeStatus",
    "Consumer",
    "LitePullConsumer",
    "Message",
    "MessageBatch",
    "MessageModel",
    "MessageQueue",
    "Producer",
    "PullConsumer",
    "PullStatus",
    "PushConsumer",
    "SendResult",
    "SendStatus",
    "ShmqError",
    "WaitingPolicy",
    "connect",
    "local",
]

_HOMES = {
    "Admin": "shmq.client.admin",
    "Client": "shmq.client.instance",
    "ConsumeFromWhere": "shmq.subscription",
    "ConsumeOrderlyContext": "shmq.client.orderly",
    "ConsumeOrderlyStatus": "shmq.status",
    "ConsumeStatus": "shmq.status",
    "Consumer": "shmq.client.consumer",
    "LitePullConsumer": "shmq.client.lite_pull_consumer",
    "Message": "shmq.core._core",
    "MessageBatch": "shmq.client.batch",
    "MessageModel": "shmq.subscription",
    "MessageQueue": "shmq.result",
    "Producer": "shmq.client.producer",
    "PullConsumer": "shmq.client.pull_consumer",
    "PullStatus": "shmq.status",
    "PushConsumer": "shmq.client.push_consumer",
    "SendResult": "shmq.result",
    "SendStatus": "shmq.status",
    "ShmqError": "shmq.errors",
    "WaitingPolicy": "shmq.config",
    "connect": "shmq.client.instance",
    "local": "shmq.client.local",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'shmq' has no attribute {name!r}")
    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value
