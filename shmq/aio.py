"""shmq for asyncio: the names of shmq, to be awaited.

What lives here: the public names of the event-loop client and nothing else. A client belongs to the
loop that it was connected in; loops of asyncio and of uvloop will do. Nothing that is awaited keeps
a thread or polls. May fail: what the classes say.

Example:
    async with shmq.aio.connect() as client:
        await client.producer().send("orders", b"one")
        async with client.consumer("orders", "billing") as consumer:
            async for message in consumer:
                print(bytes(message))
"""

from __future__ import annotations

from shmq.client.aio_client import AsyncClient as Client
from shmq.client.aio_client import connect, local
from shmq.client.aio_consumer import AsyncConsumer as Consumer
from shmq.client.aio_lite_pull_consumer import AsyncLitePullConsumer as LitePullConsumer
from shmq.client.aio_producer import AsyncProducer as Producer
from shmq.client.aio_push_consumer import AsyncPushConsumer as PushConsumer

__all__ = ["Client", "Consumer", "LitePullConsumer", "Producer", "PushConsumer", "connect", "local"]
