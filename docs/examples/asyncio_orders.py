"""asyncio: a thousand sends at once, and consumers that cost no thread while they wait."""

import asyncio

import shmq.aio


async def consume(client: shmq.aio.Client, group: str, count: int) -> None:
    """Settle `count` messages, one by one."""
    async with client.consumer("orders", group, auto_settle=False) as consumer:
        async for message in consumer:
            with message.process():  # after an exception it comes again
                text = bytes(message).decode()
            count -= 1
            if count == 0:
                print(f"{group}: {text} was the last")
                return


async def main() -> None:
    """Send and consume in one loop; asyncio.run and uvloop.run will both do."""
    async with shmq.aio.local() as client:
        await client.create_topic("orders", queues=4)
        producer = client.producer()
        groups = [asyncio.create_task(consume(client, f"group-{n}", 1000)) for n in range(5)]
        async with asyncio.TaskGroup() as sends:
            for number in range(1000):  # those of a key are stored in this order
                sends.create_task(
                    producer.send("orders", f"order {number:04}", key=f"customer-{number % 10}")
                )
        await asyncio.gather(*groups)


asyncio.run(main())
