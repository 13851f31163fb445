"""A producer or a consumer as a process: it is told what to do through a pipe, and answers each."""

import importlib
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any

from board import SLOT_WORDS, Board
from servers import end_with_parent


def work(
    pipe: Connection, folders: list[str], module: str, board_path: str, slot: int, topic: Any
) -> None:
    """The process: of a producer where slot is 0, else of the consumer `slot`. Ends with None."""
    end_with_parent()
    sys.path[:0] = folders
    try:
        peer = importlib.import_module(module).PEER
        if slot == 0:
            producer = peer.producer(topic)
            pipe.send("ready")
            while (order := pipe.recv()) is not None:
                pipe.send(producer.work(**order))
            producer.close()
        else:
            place, group = topic
            consumer = None
            board = Board(board_path)
            pipe.send("ready")
            while (order := pipe.recv()) is not None:
                # Not before: what there is may be pushed to it at once.
                consumer = consumer or peer.consumer(place, group)
                begun = consumer.work(board_path, board.words, slot * SLOT_WORDS, **order)
                next(begun)
                pipe.send("receiving")
                pipe.send(next(begun))
            if consumer is not None:
                consumer.close()
    except (EOFError, KeyboardInterrupt):
        return
    except BaseException:
        pipe.send(RuntimeError(traceback.format_exc()))
        raise
