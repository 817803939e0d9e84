"""WSGI, and Flask.

    app.wsgi_app = IdempotencyMiddleware(app.wsgi_app, driver, options)      any framework
    protect_flask(app, driver, options)                                      Flask: its routes and its errors are known
"""
from __future__ import annotations

import io
from http.client import responses as reasons
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Tuple

from .context import use
from .core import Attempt, Options, Request, Response, asks_status
from .drivers import Driver, context, run
from .later import go_on

Environ = Dict[str, Any]
Route = Optional[Tuple[str, Mapping[str, Any]]]
ERROR = "idempotency.error"                 # in environ: what the handler raised, where the framework made a response of it


class IdempotencyMiddleware:
    def __init__(self, app: Any, driver: Driver, options: Options, route: Optional[Callable[[Environ], Route]] = None) -> None:
        self.app = app
        self.driver = driver
        self.options = options
        self.route = route or (lambda environ: (environ.get("PATH_INFO", ""), {}))

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        if asks_status(self.options, environ["REQUEST_METHOD"], _path(environ)):
            response = run(Attempt(self.options, _request(environ, b"")).status(), self.driver.session())
            return _send(start_response, response, environ["REQUEST_METHOD"] == "HEAD")
        routed = self.route(environ) if environ["REQUEST_METHOD"] in self.options.methods else None
        if routed is None:
            return self.app(environ, start_response)     # type: ignore[no-any-return]
        body = _read(environ, self.options.body_limit)
        attempt = Attempt(self.options, _request(environ, body or b"", *routed))
        if body is None:
            return _send(start_response, attempt.refuse_large())
        environ["wsgi.input"] = io.BytesIO(body)
        environ["CONTENT_LENGTH"] = str(len(body))
        session = self.driver.session()
        response = run(attempt.begin(), session)
        if attempt.accepted is not None:
            response = attempt.accepted
            own = dict(environ)             # a server may use its own for the next request
            go_on(self.options, lambda: self._work(attempt, session, own))
        elif response is None:
            response = self._work(attempt, session, environ)
        return _send(start_response, response)

    def _work(self, attempt: Attempt, session: Any, environ: Environ) -> Response:
        """Runs the handler, and ends its transaction on every way out."""
        try:
            environ["idempotency"] = context(attempt, session)
            with use(environ["idempotency"]):
                response = _hold(self.app, environ)
        except BaseException as error:
            answer = run(attempt.settle(None, error), session)
            if answer is None:
                raise
            return answer                   # type: ignore[no-any-return]
        try:
            answer = run(attempt.settle(response, environ.get(ERROR)), session)
        except BaseException:
            run(attempt._end("rollback"), session)
            raise
        return answer                       # type: ignore[no-any-return]


def protect_flask(app: Any, driver: Driver, options: Options) -> None:
    """Flask makes a 500 of an error before a middleware sees it, so the error is noted here as well."""
    handle = app.handle_exception

    def note(error: Exception) -> Any:
        from flask import request
        request.environ[ERROR] = error
        return handle(error)

    def route(environ: Environ) -> Route:
        from werkzeug.exceptions import HTTPException
        from werkzeug.routing import RequestRedirect
        try:
            rule, params = app.url_map.bind_to_environ(environ).match(return_rule=True)
        except (HTTPException, RequestRedirect):
            return None                     # 404, 405 or a redirect: no work
        return rule.rule, params

    app.handle_exception = note
    app.wsgi_app = IdempotencyMiddleware(app.wsgi_app, driver, options, route)


def _path(environ: Environ) -> str:
    return str(environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", ""))


def _request(environ: Environ, body: bytes, route: str = "", params: Mapping[str, Any] = {}) -> Request:
    return Request(environ["REQUEST_METHOD"], _path(environ), environ.get("QUERY_STRING", ""), _headers(environ),
                   body, route, params, environ)


def _headers(environ: Environ) -> List[Tuple[str, str]]:
    headers = [(name[5:].replace("_", "-"), value) for name, value in environ.items() if name.startswith("HTTP_")]
    if environ.get("CONTENT_TYPE"):
        headers.append(("Content-Type", environ["CONTENT_TYPE"]))
    return headers


def _read(environ: Environ, limit: int) -> Optional[bytes]:
    """The whole body; without a length, to the end where the server says that the input ends."""
    given = environ.get("CONTENT_LENGTH") or ""
    if given.isdigit():
        return None if int(given) > limit else environ["wsgi.input"].read(int(given))
    if not environ.get("wsgi.input_terminated"):
        return b""
    body = environ["wsgi.input"].read(limit + 1)
    return None if len(body) > limit else body


def _hold(app: Any, environ: Environ) -> Response:
    """Takes the response instead of the client."""
    started: List[Any] = []
    chunks: List[bytes] = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], None]:
        started[:] = [int(status.split()[0]), list(headers)]
        return chunks.append

    result = app(environ, start_response)
    try:
        chunks.extend(result)
    finally:
        if hasattr(result, "close"):
            result.close()
    if not started:
        raise RuntimeError("the handler sent no response")
    return Response(started[0], started[1], b"".join(chunks))


def _send(start_response: Any, response: Response, head: bool = False) -> List[bytes]:
    headers = [(name, value) for name, value in response.headers if name.lower() not in ("content-length", "transfer-encoding")]
    if response.status not in (204, 304):
        headers.append(("Content-Length", str(len(response.body))))
    start_response(f"{response.status} {reasons.get(response.status, 'Status')}", headers)
    return [] if head else [response.body]
