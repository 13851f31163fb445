"""Sends ten messages and receives them, with a private broker that ends with the program."""

import shmq

with shmq.local() as client:
    producer = client.producer()
    for number in range(10):
        producer.send("orders", f"order {number}", tag="new", keys=[f"o-{number}"])

    with client.consumer("orders", group="billing", filter="new || paid") as consumer:
        for message in consumer.receive(10, timeout=5.0):
            with message.process():
                print(message.queue_id, message.queue_offset, bytes(message).decode())
