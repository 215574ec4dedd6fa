"""The next batches, made in a thread while the present one is trained on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import Empty, Queue
from typing import TypeVar

Item = TypeVar("Item")
Made = tuple[Item] | BaseException | None  # an item, the error that ended the source, or its end


def prefetch(source: Iterator[Item], ahead: int = 2) -> Iterator[Item]:
    """The items of `source`, up to `ahead` of them made in advance; its errors are raised here.

    Closing the iterator, or dropping it, ends the thread.
    """
    queue: Queue[Made[Item]] = Queue(ahead)
    stopped = threading.Event()
    thread = threading.Thread(target=_fill, args=(source, queue, stopped), daemon=True)
    thread.start()
    try:
        while (made := queue.get()) is not None:
            if isinstance(made, BaseException):
                raise made
            yield made[0]
    finally:
        stopped.set()
        _drain(queue)  # a thread that waits for room goes on, and sees that it is to stop
        thread.join()


def _fill(source: Iterator[Item], queue: Queue[Made[Item]], stopped: threading.Event) -> None:
    try:
        for item in source:
            queue.put((item,))
            if stopped.is_set():
                return
    except BaseException as error:  # all of them: the thread that waits must hear of it
        queue.put(error)
    else:
        queue.put(None)


def _drain(queue: Queue[Made[Item]]) -> None:
    try:
        while True:
            queue.get_nowait()
    except Empty:
        return
