"""ASGI: Starlette, FastAPI, and every other framework.

    app.add_middleware(IdempotencyMiddleware, driver=AsyncPsycopg(pool), options=ietf(account=…))

The handler works on idempotency_postgres.db(). Its response is held back until COMMIT.
"""
from __future__ import annotations

import asyncio
from typing import Any, Awaitable, Callable, Dict, List, Mapping, MutableMapping, Optional, Tuple

from .context import use
from .core import Attempt, Options, Request, Response, asks_status
from .drivers import Driver, context, run_async
from .later import go_on_async

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class _Gone(Exception):
    pass


class IdempotencyMiddleware:
    def __init__(self, app: Any, driver: Driver, options: Options, applies: Optional[Callable[[Scope], bool]] = None) -> None:
        self.app = app
        self.driver = driver
        self.options = options
        self.applies = applies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and asks_status(self.options, scope["method"], scope["path"]):
            attempt = Attempt(self.options, _request(scope, b""))
            await _send(send, await run_async(attempt.status(), self.driver.session()))
            return
        routed = self._route(scope)
        if routed is None:
            await self.app(scope, receive, send)
            return
        try:
            body = await _read(receive, self.options.body_limit)
        except _Gone:
            return
        attempt = Attempt(self.options, _request(scope, body or b"", *routed))
        if body is None:
            await _send(send, attempt.refuse_large())
            return
        session = self.driver.session()
        response = await run_async(attempt.begin(), session)
        if attempt.accepted is not None:
            response = attempt.accepted
            go_on_async(self.options, self._work(attempt, session, scope, _again(body, _never)))
        elif response is None:
            response = await self._work(attempt, session, scope, _again(body, receive))
        await _send(send, response)

    async def _work(self, attempt: Attempt, session: Any, scope: Scope, receive: Receive) -> Response:
        """Runs the handler, and ends its transaction on every way out."""
        held = _Held()
        given = context(attempt, session)
        try:
            with use(given):
                await self.app({**scope, "idempotency": given}, receive, held)
        except BaseException as error:
            response: Response = await run_async(attempt.settle(None, error), session)
            if response is None:
                raise
            return response
        try:
            response = await run_async(attempt.settle(held.response(), held.error), session)
        except BaseException:
            await run_async(attempt._end("rollback"), session)
            raise
        return response

    def _route(self, scope: Scope) -> Optional[Tuple[str, Mapping[str, Any]]]:
        """The route's pattern and parameters; None where the middleware does not apply."""
        if scope["type"] != "http" or scope["method"] not in self.options.methods:
            return None
        if self.applies is not None and not self.applies(scope):
            return None
        routes = getattr(scope.get("app") or self.app, "routes", None)
        if routes is None:
            return scope["path"], {}
        return _match(routes, scope)


def _match(routes: Any, scope: Scope) -> Optional[Tuple[str, Mapping[str, Any]]]:
    """Starlette matches in the middleware's app; what no route takes is a 404 or a redirect, and does no work."""
    for route in routes:
        match, child = route.matches(scope)
        if match.name != "FULL":
            continue
        params: Dict[str, Any] = dict(child.get("path_params", {}))
        return str(getattr(route, "path", scope["path"])), params
    return None


def _request(scope: Scope, body: bytes, route: str = "", params: Mapping[str, Any] = {}) -> Request:
    return Request(scope["method"], scope["path"], scope["query_string"].decode("latin-1"),
                   [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]],
                   body, route, params, scope)


class _Held:
    """Takes the response instead of the client."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: List[Tuple[str, str]] = []
        self.chunks: List[bytes] = []
        self.complete = False
        self.error: Optional[BaseException] = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in message.get("headers", [])]
        elif message["type"] == "http.response.body":
            self.chunks.append(bytes(message.get("body", b"")))
            self.complete = not message.get("more_body", False)

    def response(self) -> Response:
        if not self.status or not self.complete:
            self.error = RuntimeError("the handler sent no complete response")
            return Response(500, [("Content-Type", "text/plain")], b"Internal Server Error")
        return Response(self.status, self.headers, b"".join(self.chunks))


async def _read(receive: Receive, limit: int) -> Optional[bytes]:
    chunks: List[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        chunk = message.get("body", b"")
        more = message.get("more_body", False)
        size += len(chunk)
        if size > limit:
            return None
        chunks.append(chunk)
    return b"".join(chunks)


async def _never() -> Message:
    """The client of a 202 has its response: nobody disconnects from work that goes on."""
    await asyncio.Event().wait()
    return {"type": "http.disconnect"}


def _again(body: bytes, receive: Receive) -> Receive:
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}
    return again


async def _send(send: Send, response: Response) -> None:
    headers = [(name, value) for name, value in response.headers if name.lower() not in ("content-length", "transfer-encoding")]
    if response.status >= 200 and response.status not in (204, 304):
        headers.append(("Content-Length", str(len(response.body))))
    await send({"type": "http.response.start", "status": response.status,
                "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]})
    await send({"type": "http.response.body", "body": response.body})
