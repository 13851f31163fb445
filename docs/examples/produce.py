"""Every way to send: waiting, with a future, not at all, many at once, and in place."""

import numpy as np

import shmq

with shmq.local() as client:
    client.create_topic("orders", queues=4)
    with client.producer() as producer:
        # Waits until the message is stored, and says where.
        result = producer.send("orders", "order 1", tag="new", keys=["o-1"])
        print("order 1 is in queue", result.message_queue.queue_id, "at", result.queue_offset)

        # All messages of a key go to one queue and stay in order.
        for step in ("order 2 made", "order 2 paid", "order 2 sent"):
            producer.send("orders", step, key="o-2")

        # A future instead of a wait; a callback, if you like.
        futures = [producer.send_async("orders", f"order {n}") for n in range(3, 100)]
        print(max(future.result().queue_offset for future in futures))

        # Into the ring and on; drain() waits for what was put.
        for n in range(100, 1000):
            producer.send_oneway("orders", f"order {n}")
        producer.drain()

        # Many to one queue in one go, with a result each.
        results = producer.send_many("orders", [f"order {n}" for n in range(1000, 1100)])
        print(len(results))

        # An array keeps its dtype and shape; a loan is filled in the ring itself.
        producer.send("orders", np.arange(6).reshape(2, 3), tag="matrix")
        with producer.loan("orders", dtype="f4", shape=(480, 640), tag="image") as slot:
            slot.array()[:] = 0.5
        print(slot.result.send_status)

        # A queue by hand, by a function, or where there is the least to do.
        first, *_ = producer.queues("orders")
        producer.send("orders", "order 2000", queue=first)
        producer.send("orders", "order 2001", queue=lambda queues: queues[-1])
        producer.send("orders", "order 2002", queue="least-loaded")
