"""The handler's way to its transaction."""
from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Iterator

from .core import Context

_current: ContextVar[Context] = ContextVar("idempotency_postgres")


@contextmanager
def use(context: Context) -> Iterator[None]:
    token = _current.set(context)
    try:
        yield
    finally:
        _current.reset(token)


def current() -> Context:
    """The context of the request at work; LookupError outside one."""
    return _current.get()


def db() -> Any:
    """The connection inside the request's transaction."""
    return _current.get().db


def step(name: str, call: Any, save: Any = None) -> Any:
    """Under lease: calls outside under a derived key, once. Awaitable where the driver is asynchronous."""
    given = _current.get()
    if given.step is None:
        raise RuntimeError("steps need the option lease")
    return given.step(name, call, save)
