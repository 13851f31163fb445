"""Every way to consume: one by one, in batches, as columns, pushed to a function, by offset."""

import threading

import shmq

with shmq.local() as client:
    producer = client.producer()
    producer.send_many("orders", [f"order {n:04}" for n in range(1000)], tag="new")

    # One by one. process() settles at its end; after an exception the message comes again.
    with client.consumer("orders", "one-by-one", filter="new", auto_settle=False) as consumer:
        for message in consumer:
            with message.process():
                print(message.queue_offset, bytes(message).decode())
            if message.queue_offset == 9:
                break

    # In batches: what was received is settled when the next are asked for.
    with client.consumer("orders", "batches") as consumer:
        while messages := consumer.receive(256, timeout=0.2):
            print(len(messages))

    # As columns, for numpy: the quickest.
    with client.consumer("orders", "columns") as consumer, consumer.receive_many() as batch:
        print(batch.queue_offsets[-1], batch.stack("S10")[0, 0].decode())

    # Pushed to a function, in up to four threads.
    done = threading.Event()

    def listener(message: shmq.Message) -> None:
        """Called with each message; None settles it."""
        if bytes(message) == b"order 0999":
            done.set()

    with client.push_consumer("pushed", listener, threads=4) as push:
        push.subscribe("orders", "new || paid")
        done.wait(10.0)

    # By queue and queue_offset, without a group.
    with client.pull_consumer("orders") as pull:
        for queue in pull.queues():
            if pull.max_offset(queue):
                result = pull.pull(queue, 500, 3)
                print(result.pull_status, [bytes(m).decode() for m in result.messages])
