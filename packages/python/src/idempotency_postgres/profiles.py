"""What services promise about the header, each in the words that its clients know. Each returns Options; any may be replaced."""
from __future__ import annotations

import re
import secrets
from typing import Any, Callable, Dict, Optional

from .core import Options, Problem, Request, Response, json_response

Account = Callable[[Request], Optional[str]]

_QUOTED = re.compile(r'[ ]*"((?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"[ ]*(?:;[ ]*[a-z*][a-z0-9_.*-]*(?:=[^;,\s]+)?[ ]*)*')
_BARE = re.compile(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x7e]+")      # neither space, quote, comma nor semicolon


def _structured_key(text: str) -> Optional[str]:
    quoted = _QUOTED.fullmatch(text)
    if quoted:
        return re.sub(r"\\(.)", r"\1", quoted[1])
    return text if _BARE.fullmatch(text) else None


def _ietf_problem(options: Options, about: Problem) -> Response:
    """RFC 9457. type and Link point at the service's own documentation; without one, type is about:blank."""
    kind = options.documentation or "about:blank"
    response = json_response(about.status, {"type": kind, "title": about.title, "status": about.status,
                                            "code": f"idempotency_{about.code}"},
                             "application/problem+json", about.retry_after)
    response.headers.append(("Content-Language", "en"))
    if options.documentation:
        response.headers.append(("Link", f'<{options.documentation}>; rel="describedby"; type="text/html"'))
    return response


def _options(account: Account, changes: Dict[str, Any], **profile: Any) -> Options:
    given: Dict[str, Any] = {**profile, **changes}
    return Options(account=account, **given)


def plain(account: Account, **changes: Any) -> Options:
    return _options(account, changes)


def ietf(account: Account, **changes: Any) -> Options:
    """draft-ietf-httpapi-idempotency-key-header-07: required, a quoted string; a bare key is accepted too."""
    return _options(account, changes, profile="ietf", required=True, parse_key=_structured_key,
                    problem=_ietf_problem)


def _stripe_problem(options: Options, about: Problem) -> Response:
    status = 400 if about.code in ("mismatch", "expired") else about.status
    kind = "api_error" if status >= 500 else "idempotency_error"
    error = {"type": kind, "message": about.title}
    if about.code == "in_progress":
        error["code"] = "idempotency_key_in_use"
    if about.code == "unauthenticated":
        error["type"] = "invalid_request_error"
    return json_response(status, {"error": error}, retry_after=about.retry_after)


def _stripe_headers(options: Options, request: Request, response: Response, key: Optional[str], kept: bool) -> None:
    """Request-Id, the key echoed, Original-Request of a replay, and whether the client's library should retry."""
    replayed = response.header("Original-Request") is not None
    own = "req_" + secrets.token_hex(8)
    response.headers = [(name, value) for name, value in response.headers
                        if name.lower() not in ("request-id", "idempotency-key", "stripe-should-retry")]
    response.headers.append(("Request-Id", own))
    if key is not None:
        response.headers.append(("Idempotency-Key", key))
        if kept and not replayed:
            response.headers.append(("Original-Request", own))
    if kept and response.status >= 400:
        response.headers.append(("Stripe-Should-Retry", "false"))
    elif response.status in (409, 503):
        response.headers.append(("Stripe-Should-Retry", "true"))


def stripe(account: Account, **changes: Any) -> Options:
    """Stripe's API v1: optional, 24 hours, status and body are kept whether the request succeeded or failed."""
    return _options(account, changes, profile="stripe", methods=("POST",), problem=_stripe_problem, decorate=_stripe_headers,
                    keep=lambda response: response.status != 503, replay_headers={"Idempotent-Replayed": "true"})


def stripe_v2(account: Account, **changes: Any) -> Options:
    """Stripe's API v2: 30 days, only successes are kept; what failed is executed again."""
    return _options(account, changes, profile="stripe_v2", methods=("POST", "DELETE"), problem=_stripe_problem,
                    decorate=_stripe_headers, retention="30 days", keep=lambda response: response.status < 400,
                    replay_headers={})


def _toss_problem(options: Options, about: Problem) -> Response:
    code = {"in_progress": "IDEMPOTENT_REQUEST_PROCESSING", "unavailable": "FAILED_INTERNAL_SYSTEM_PROCESSING",
            "unauthenticated": "UNAUTHORIZED_KEY"}.get(about.code)
    if code is None:
        code = "INVALID_IDEMPOTENCY_KEY" if about.status < 500 else "FAILED_INTERNAL_SYSTEM_PROCESSING"
    status = 400 if about.code == "expired" else about.status
    return json_response(status, {"code": code, "message": about.title}, retry_after=about.retry_after)


def _toss_scope(request: Request, base: str) -> str:
    query = f"?{request.query}" if request.query else ""
    return f"{base} {request.method} {request.path}{query}"


def toss(account: Account, **changes: Any) -> Options:
    """Toss Payments: 15 days; key, API key, method and URL belong together, and nothing is compared.

    Keys may have 300 characters: set idempotency.max_key_length = 300 for the database.
    """
    return _options(account, changes, profile="toss", max_key_length=300, scope=_toss_scope, compare="nothing",
                    retention="15 days", problem=_toss_problem, replay_headers={})
