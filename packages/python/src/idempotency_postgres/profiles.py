"""What services promise about the header, each in the words that its clients know. Each returns Options; any may be replaced."""
from __future__ import annotations

import re
import secrets
from typing import Any, Callable, Dict, Optional

from .core import RETRYABLE, Options, Problem, Request, Response, json_response

Account = Callable[[Request], Optional[str]]

# An Item of Structured Fields (RFC 9651) that is a String. Parameters must be well formed.
_STRING = r'"((?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"'
_VALUE = r'"(?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])*"|[A-Za-z0-9_.:?*/+=!#$%&\'^`|~@-]+'
_QUOTED = re.compile(rf"[ ]*{_STRING}(?:;[ ]*[a-z*][a-z0-9_.*-]*(?:=(?:{_VALUE}))?)*[ ]*")
_BARE = re.compile(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x7e]+")      # neither space, quote, comma nor semicolon


def _structured_key(text: str) -> Optional[str]:
    quoted = _QUOTED.fullmatch(text)
    if quoted:
        return re.sub(r"\\(.)", r"\1", quoted[1])
    return None


def _structured_or_bare_key(text: str) -> Optional[str]:
    return text if _BARE.fullmatch(text) else _structured_key(text)


DRAFT = "https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-idempotency-key-header-07"

_DETAILS: Dict[str, str] = {
    "missing": "Send the header with a unique, quoted string.",
    "invalid": "It must be a quoted string of printable ASCII characters within the length limit.",
    "request_invalid": "Nothing was done. Correct the request and send it with a new key.",
    "unauthenticated": "Authenticate and send the request again with the same key.",
    "unknown": "It was never begun, or it is older than the time for which it is kept.",
    "interrupted": "Send the request again with the same key.",
    "in_progress": "Retry when the time in Retry-After has passed.",
    "expired": "Look for the effect of the request instead of sending it again.",
    "request_too_large": "Nothing was done.",
    "mismatch": "It was sent before with another request.",
    "parked": "The outcome has to be settled before this key can be used again.",
    "failed": "Nothing was done. The service has to be corrected before a retry can succeed.",
    "response_too_large": "Nothing was done. The service has to be corrected before a retry can succeed.",
    "unavailable": "Retry with the same key.",
}


def _ietf_problem(options: Options, about: Problem) -> Response:
    """RFC 9457. type and Link point at the service's own documentation; without one, at the draft."""
    kind = options.documentation or DRAFT
    response = json_response(about.status, {"type": kind, "title": about.title, "status": about.status,
                                            "code": f"idempotency_{about.code}", "detail": _DETAILS[about.code]},
                             "application/problem+json", about.retry_after)
    response.headers.append(("Content-Language", "en"))
    response.headers.append(("Link", f'<{kind}>; rel="describedby"; type="text/html"'))
    return response


def _options(account: Account, changes: Dict[str, Any], **profile: Any) -> Options:
    given: Dict[str, Any] = {**profile, **changes}
    return Options(account=account, **given)


def plain(account: Account, **changes: Any) -> Options:
    return _options(account, changes)


def ietf(account: Account, bare_keys: bool = True, **changes: Any) -> Options:
    """draft-ietf-httpapi-idempotency-key-header-07: required, a quoted string; bare keys are accepted, as most send them."""
    parse_key = _structured_or_bare_key if bare_keys else _structured_key
    return _options(account, changes, profile="ietf", required=True, parse_key=parse_key,
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
    elif response.reason is not None:
        response.headers.append(("Stripe-Should-Retry", "true" if response.reason in RETRYABLE else "false"))


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
