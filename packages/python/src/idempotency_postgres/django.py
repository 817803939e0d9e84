"""Django: a middleware, and a decorator for single views.

    MIDDLEWARE = [..., "django.contrib.auth.middleware.AuthenticationMiddleware", "shop.idempotency.middleware"]
    IDEMPOTENCY = ietf(account=lambda request: request.native.user.get_username())

The view works on Django's own connection, inside one durable atomic block, which ends before the response leaves.
"""
from __future__ import annotations

import functools
from typing import Any, Callable, Mapping, Optional, Sequence, Tuple

from django.conf import settings
from django.db import connections, transaction
from django.http import HttpResponse
from django.urls import Resolver404, resolve
from django.views.decorators.http import require_safe

from .context import use
from .core import Attempt, Options, Request, Response, asks_status
from .drivers import Row, Session, _row, context, run
from .later import go_on


class DjangoSession(Session):
    def __init__(self, using: str) -> None:
        self.using = using

    def open(self) -> None:
        self.db = connections[self.using]
        self.db.ensure_connection()

    def begin(self) -> None:
        self.atomic = transaction.atomic(using=self.using, durable=True)
        self.atomic.__enter__()

    def query(self, sql: str, arguments: Sequence[Any]) -> Row:
        if sql.startswith("ROLLBACK TO"):
            transaction.set_rollback(False, using=self.using)
        with self.db.cursor() as cursor:
            cursor.execute(sql, arguments or None)
            return _row(cursor, cursor.fetchone()) if cursor.description else None

    def commit(self) -> None:
        self.atomic.__exit__(None, None, None)

    def rollback(self) -> None:
        if self.db.in_atomic_block:
            transaction.set_rollback(True, using=self.using)
            self.atomic.__exit__(None, None, None)

    def close(self, broken: bool) -> None:
        if broken:
            self.db.close()


def _headers(request: Any) -> Any:
    return [(name, value) for name, value in request.headers.items()]


def _work(view: Callable[[], Any], attempt: Attempt, session: DjangoSession, native: Any) -> Any:
    """Runs the view, and ends its transaction on every way out. Returns Django's response."""
    response = None
    try:
        with use(context(attempt, session)):
            response = view()
            if hasattr(response, "render") and callable(response.render):
                response = response.render()
        body = b"".join(response.streaming_content) if getattr(response, "streaming", False) else response.content
        held = Response(response.status_code, list(response.items()), body)
    except BaseException as error:
        answer = run(attempt.settle(None, error), session)
        if answer is None:
            raise
        return _django(answer, None)
    try:
        answer = run(attempt.settle(held, getattr(native, "_idempotency_error", None)), session)
    except BaseException:
        run(attempt._end("rollback"), session)
        raise
    return _django(answer, response)


def _django(answer: Response, response: Any) -> Any:
    """The view's own response where it stands, so that cookies and its class stay."""
    result = HttpResponse(answer.body, status=answer.status)
    del result["Content-Type"]
    for name, value in answer.headers:
        if name.lower() != "content-length":
            result[name] = value
    if response is not None:
        result.cookies = response.cookies
    return result


def _protect(view: Callable[[], Any], native: Any, routed: Tuple[str, Mapping[str, Any]], options: Options, using: str) -> Any:
    attempt = Attempt(options, _request(native, *routed))
    if len(native.body) > options.body_limit:
        return _django(attempt.refuse_large(), None)
    session = DjangoSession(using)
    answer = run(attempt.begin(), session)
    if attempt.accepted is not None:
        _go_on(view, attempt, session, native)
        answer = attempt.accepted
    return _work(view, attempt, session, native) if answer is None else _django(answer, None)


def _go_on(view: Callable[[], Any], attempt: Attempt, session: DjangoSession, native: Any) -> None:
    """In a thread, which has connections of its own. The end of the response must not close what the view still reads."""
    close, native.close = native.close, lambda: None
    native.META = dict(native.META)         # a server may use its own for the next request

    def work() -> None:
        try:
            _work(view, attempt, session, native)
        finally:
            close()
            connections.close_all()
    go_on(attempt.options, work)


def _request(native: Any, route: str = "", params: Mapping[str, Any] = {}) -> Request:
    return Request(native.method, native.path, native.META.get("QUERY_STRING", ""), _headers(native), native.body,
                   route, params, native)


def _status(request: Any, options: Options, using: str) -> Any:
    response = _django(run(Attempt(options, _request(request)).status(), DjangoSession(using)), None)
    if request.method == "HEAD":            # not every server leaves the body out
        response["Content-Length"] = str(len(response.content))
        response.content = b""
    return response


def status_view(options: Options, using: str = "default") -> Callable[..., Any]:
    """The view of the status resources, beside the decorator; the middleware answers for them itself."""
    def view(request: Any, **_: Any) -> Any:
        return _status(request, options, using)
    return require_safe(transaction.non_atomic_requests(using=using)(view))  # type: ignore[no-any-return]


class IdempotencyMiddleware:
    """Behind the authentication. settings.IDEMPOTENCY holds the Options, IDEMPOTENCY_DATABASE the alias."""

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self.get_response = get_response
        self.options: Options = settings.IDEMPOTENCY
        self.using: str = getattr(settings, "IDEMPOTENCY_DATABASE", "default")

    def __call__(self, request: Any) -> Any:
        if asks_status(self.options, request.method, request.path):
            return _status(request, self.options, self.using)
        routed = self._route(request)
        if routed is None:
            return self.get_response(request)
        return _protect(lambda: self.get_response(request), request, routed, self.options, self.using)

    def process_exception(self, request: Any, error: Exception) -> None:
        """Django makes a response of it before the middleware sees it."""
        request._idempotency_error = error

    def _route(self, request: Any) -> Optional[Tuple[str, Mapping[str, Any]]]:
        if request.method not in self.options.methods:
            return None
        try:
            match = resolve(request.path_info)
        except Resolver404:
            return None
        return match.route, match.kwargs


def idempotent(options: Options, using: str = "default") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The decorator. It must not stand inside ATOMIC_REQUESTS, since COMMIT must come before the response: the view is exempt."""
    def decorate(view: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(view)
        def wrapper(request: Any, *args: Any, **kwargs: Any) -> Any:
            if request.method not in options.methods:
                return view(request, *args, **kwargs)
            match = request.resolver_match
            routed = (match.route, match.kwargs) if match else (request.path, {})
            return _protect(lambda: view(request, *args, **kwargs), request, routed, options, using)
        return transaction.non_atomic_requests(using=using)(wrapper)     # type: ignore[no-any-return]
    return decorate
