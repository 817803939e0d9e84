"""Work that goes on in this process behind a response of 202."""
from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from typing import Any, Callable, Coroutine, Set

from .core import Options

_log = logging.getLogger("idempotency_postgres")
_tasks: Set[Any] = set()                    # asyncio itself keeps only weak references


def go_on(options: Options, work: Callable[[], Any]) -> None:
    """In a thread, which the interpreter waits for when it ends."""
    def target() -> None:
        try:
            work()
        except Exception:
            _log.exception("the work behind a 202 failed")
        finally:
            options.running.end()

    options.running.begin()
    try:
        threading.Thread(target=contextvars.copy_context().run, args=(target,), name="idempotency").start()
    except BaseException:
        options.running.end()
        raise


def go_on_async(options: Options, work: Coroutine[Any, Any, Any]) -> None:
    """In a task of the running loop."""
    def ended(task: Any) -> None:
        _tasks.discard(task)
        options.running.end()
        if not task.cancelled() and task.exception() is not None:
            _log.error("the work behind a 202 failed", exc_info=task.exception())

    task = asyncio.get_running_loop().create_task(work)
    options.running.begin()
    _tasks.add(task)
    task.add_done_callback(ended)
