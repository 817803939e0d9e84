"""What happens to a request with a key, without any input or output.

The generators of Attempt yield commands for a session of the database and receive the results, so that synchronous
and asynchronous servers run the same code.
"""
from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import threading
import urllib.parse
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Dict, Generator, List, Mapping, Optional, Sequence, Tuple, Union

Headers = List[Tuple[str, str]]
Command = Tuple[Any, ...]
Steps = Generator[Command, Any, Any]


@dataclass
class Request:
    """What the options' functions see of a request. route and params come from the framework's router, where it has one."""
    method: str
    path: str
    query: str
    headers: Headers
    body: bytes
    route: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    native: Any = None                      # ASGI scope, WSGI environ, or Django's request

    def header(self, name: str) -> Optional[str]:
        values = self.header_list(name)
        return values[0] if values else None

    def header_list(self, name: str) -> List[str]:
        return [value for known, value in self.headers if known.lower() == name.lower()]


@dataclass
class Response:
    status: int
    headers: Headers
    body: bytes
    reason: Optional[str] = None            # of a response of the package's own: the code of its problem

    def header(self, name: str) -> Optional[str]:
        return next((value for known, value in self.headers if known.lower() == name.lower()), None)


@dataclass
class Context:
    """What the handler sees: the key, and the connection inside the request's transaction; under lease None, and step instead.

    step(name, call, save=None) calls call(derived key) once and records its result; save(db, result) writes in the same
    transaction. With an asynchronous driver it is awaited, and so are call and save where they are asynchronous.
    """
    db: Any
    key: Optional[str]
    step: Any = None


class UnknownOutcome(Exception):
    """Raised in a step: the other service may or may not have acted, and asking again would not be safe. Parks the key."""


# What may succeed on a retry, or was never the operation's answer, is not kept; keep is not asked.
NEVER_KEPT = frozenset({401, 408, 409, 425, 429})

KEPT_HEADERS = ("Content-Type", "Content-Encoding", "Content-Language", "Content-Location", "Content-Disposition",
                "Cache-Control", "ETag", "Last-Modified", "Link", "Location", "Retry-After", "Vary")


# The types of events, and the reasons of the type "refused". packages/node has the same.
EVENTS = ("started", "recovered", "unkeyed", "accepted", "replayed", "refused", "kept", "not_kept", "threw", "released",
          "parked")
REASONS = ("missing", "invalid", "mismatch", "in_progress", "expired", "parked", "unavailable", "failed", "response_too_large",
           "unauthenticated", "unknown", "interrupted", "request_invalid", "request_too_large")


@dataclass
class Event:
    """For metrics and logs. "kept" and "not_kept" come once the transaction has ended."""
    type: str
    request: Request
    key: Optional[str] = None
    status: Optional[int] = None
    reason: Optional[str] = None
    error: Optional[BaseException] = None


class Running:
    """The work that goes on behind responses of 202."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0

    def begin(self) -> None:
        with self._changed:
            self._count += 1

    def end(self) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()

    def wait(self, timeout: Optional[float] = None) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._count == 0, timeout)


def keep_below_500(response: Response) -> bool:
    return response.status < 500


@dataclass
class Options:
    """account is required: it names who is asking, from the authentication. Keys of two accounts never meet."""
    account: Callable[[Request], Optional[str]]
    profile: str = "plain"
    header: str = "Idempotency-Key"
    required: bool = False
    methods: Sequence[str] = ("POST", "PATCH")
    max_key_length: int = 255
    parse_key: Callable[[str], Optional[str]] = lambda text: text
    scope: Optional[Callable[[Request, str], str]] = None
    compare: Union[str, Callable[[Request], bytes]] = "json"     # "json", "raw", "nothing", or a function: bytes to compare
    keep: Callable[[Response], Union[bool, str]] = keep_below_500   # True, False, or an interval: how long
    retention: str = "24 hours"
    keep_headers: Sequence[str] = ()        # besides KEPT_HEADERS
    replay_headers: Mapping[str, str] = field(default_factory=lambda: {"Idempotency-Replayed": "true"})
    lease: Optional[str] = None             # an interval: work with outside calls, whose claim is committed first
    status: Optional[str] = None            # with a lease: the path of the status resources, such as "/operations"
    respond_async: bool = False             # 202 also without Prefer: respond-async
    poll_after: int = 2                     # Retry-After of 202, in seconds
    wait: Optional[float] = None            # seconds to wait for a request at work; None: 409 at once
    body_limit: int = 16 * 1024 * 1024
    documentation: Optional[str] = None     # URL of the service's own page about its keys
    problem: Optional[Callable[["Options", "Problem"], Response]] = None
    decorate: Optional[Callable[["Options", Request, Response, Optional[str], bool], None]] = None
    on_event: Optional[Callable[[Event], None]] = None
    running: Running = field(default_factory=Running, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.status is not None and self.lease is None:
            raise ValueError("status needs a lease: in one transaction nothing can be seen of work that goes on")

    def idle(self, timeout: Optional[float] = None) -> bool:
        """Waits until no work goes on behind a 202: for a process that is about to end. False after the time-out."""
        return self.running.wait(timeout)


@dataclass
class Problem:
    code: str
    status: int
    title: str
    retry_after: Optional[int] = None


PROBLEMS: Dict[str, Tuple[int, str]] = {
    "missing": (400, "This operation requires an Idempotency-Key"),
    "invalid": (400, "The Idempotency-Key is malformed or too long"),
    "request_invalid": (400, "The request contains characters that cannot be stored"),
    "unauthenticated": (401, "The request does not say whose key this is"),
    "unknown": (404, "There is no such operation"),
    "interrupted": (409, "The work was interrupted; send the request again with the same Idempotency-Key"),
    "in_progress": (409, "A request with this Idempotency-Key is being processed"),
    "expired": (412, "The request is older than its key is kept; whether it was processed is not known"),
    "request_too_large": (413, "The request is too large"),
    "mismatch": (422, "The Idempotency-Key was used with another request"),
    "parked": (423, "The outcome of an earlier attempt is not known; it must be settled first"),
    "failed": (500, "The service does not use its keys correctly"),
    "response_too_large": (500, "The response is too large to be kept"),
    "unavailable": (503, "The request could not be completed; retry with the same Idempotency-Key"),
}

RETRYABLE = frozenset({"in_progress", "unavailable"})


def problem(code: str, retry_after: Optional[int] = None) -> Problem:
    status, title = PROBLEMS[code]
    return Problem(code, status, title, (retry_after if retry_after is not None else 1) if code in RETRYABLE else None)


# ---- errors of the database ----

def sqlstate(error: Optional[BaseException]) -> Optional[str]:
    """The SQLSTATE, wherever psycopg, psycopg2, asyncpg, SQLAlchemy or Django has put it."""
    seen = 0
    while error is not None and seen < 8:
        for name in ("sqlstate", "pgcode"):
            value = getattr(error, name, None)
            if isinstance(value, str) and len(value) == 5:
                return value
        inner = getattr(error, "orig", None)
        error = inner if isinstance(inner, BaseException) else error.__cause__
        seen += 1
    return None


_STATES = {
    "IK400": "invalid", "IK409": "in_progress", "55P03": "in_progress", "IK410": "unavailable", "IK412": "expired",
    "IK413": "response_too_large", "IK422": "mismatch", "IK423": "parked", "IK500": "failed", "0A000": "failed",
}
# These classes may succeed on a retry: connection, rollback, resources, lock, operator, system, foreign server, internal.
_PASSING = re.compile(r"(08|40|53|55|57|58|F0|HV|XX)|25006|25P03")
_JSON_STATES = frozenset({"22P02", "22P05", "22003", "54001"})
_DRIVERS = frozenset({"psycopg", "psycopg2", "psycopg_pool", "asyncpg", "sqlalchemy", "django"})


def is_passing(error: Optional[BaseException]) -> bool:
    """True for a failure of the database that a retry may cure: no connection, cancelled, read-only, out of resources."""
    seen = 0
    state = sqlstate(error)
    if state is not None:
        return _PASSING.match(state) is not None
    while error is not None and seen < 8:
        name = type(error).__name__
        if type(error).__module__.partition(".")[0] in _DRIVERS and name in (
                "OperationalError", "InterfaceError", "PoolTimeout", "PoolClosed", "TooManyRequests", "TimeoutError",
                "ConnectionDoesNotExistError"):
            return True
        error = error.__cause__
        seen += 1
    return False


def problem_of(error: BaseException, beginning: bool = False) -> Problem:
    """For an error of the middleware's own statements. Without a SQLSTATE nobody knows: 503."""
    state = sqlstate(error)
    if state in _STATES:
        return problem(_STATES[state])
    if beginning and state in _JSON_STATES:
        return problem("request_invalid")
    if state is None or is_passing(error):
        return problem("unavailable")
    return problem("failed")


# ---- what is compared ----

def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _endpoint(request: Request) -> Dict[str, Any]:
    query = sorted(urllib.parse.parse_qsl(request.query, keep_blank_values=True))
    params = {name: str(value) for name, value in request.params.items()}
    return {"method": request.method, "route": request.route or request.path, "params": params, "query": query}


def compared(options: Options, request: Request) -> Tuple[Optional[str], Optional[bytes]]:
    """The arguments request and fingerprint of begin.

    A JSON body goes to the database as it is: jsonb has numbers of any size, so two that differ beyond 2^53 stay two.
    """
    if options.compare == "nothing":
        return None, None
    endpoint = json.dumps(_endpoint(request), sort_keys=True)
    if callable(options.compare):
        return None, _digest(endpoint, options.compare(request))
    kind = (request.header("Content-Type") or "").partition(";")[0].strip().lower()
    if options.compare == "json" and (kind == "application/json" or kind.endswith("+json")):
        try:
            text = request.body.decode("utf-8")
            json.loads(text, parse_constant=_refuse_constant)
            return f'{{"endpoint": {endpoint}, "body": {text}}}', None
        except (ValueError, RecursionError):
            pass                            # no JSON: compared byte by byte, and for the handler to refuse
    body = request.body
    if options.compare == "json" and kind == "application/x-www-form-urlencoded":
        body = repr(sorted(urllib.parse.parse_qsl(body.decode("latin-1"), keep_blank_values=True))).encode("utf-8")
    return None, _digest(endpoint, body)


def _digest(endpoint: str, body: bytes) -> bytes:
    first = endpoint.encode("utf-8")
    return hashlib.sha256(len(first).to_bytes(8, "big") + first + body).digest()


# ---- one request ----

_BEGIN = ("SELECT outcome, replayed, status, CAST(headers AS text) AS headers, body, retry_after, attempt, CAST(state AS text) AS state"
          " FROM {}(CAST(%s AS text), CAST(%s AS text), request => CAST(CAST(%s AS text) AS jsonb), fingerprint => CAST(%s AS bytea),"
          " retention => CAST(CAST(%s AS text) AS interval), lease => CAST(CAST(%s AS text) AS interval))")
_LOOKUP = ("SELECT outcome, replayed, status, CAST(headers AS text) AS headers, body, retry_after, checkpoint"
           " FROM idempotent_lookup(CAST(%s AS text), CAST(%s AS text))")
_LOCK_TIMEOUT = "SELECT set_config('lock_timeout', CAST(%s AS text), true) AS setting"
_PREFERS = re.compile(r"(?:^|,)\s*respond-async\s*(?:[,;]|$)", re.IGNORECASE)
_FINISH = ("SELECT idempotent_finish(CAST(%s AS text), CAST(%s AS text), status => CAST(%s AS integer),"
           " headers => CAST(CAST(%s AS text) AS jsonb), body => CAST(%s AS bytea),"
           " retention => CAST(CAST(%s AS text) AS interval), attempt => CAST(%s AS integer)) AS finished")
_RELEASE = "SELECT idempotent_release(CAST(%s AS text), CAST(%s AS text)) AS released"
_DERIVE = "SELECT idempotent_derive(CAST(%s AS text), CAST(%s AS text), CAST(%s AS text)) AS derived"
_CHECKPOINT = ("SELECT idempotent_checkpoint(CAST(%s AS text), CAST(%s AS text), CAST(%s AS integer), CAST(%s AS text),"
               " CAST(CAST(%s AS text) AS jsonb)) AS lease_until")
_GIVE_BACK = ("SELECT idempotent_release(CAST(%s AS text), CAST(%s AS text), CAST(%s AS integer), error => CAST(%s AS text),"
              " retry_after => CAST(CAST(%s AS text) AS interval)) AS released")
_PARK = "SELECT idempotent_park(CAST(%s AS text), CAST(%s AS text), CAST(%s AS integer), CAST(%s AS text)) AS parked"


class Attempt:
    """One request: the handler runs between begin() and settle(), if begin() returned None."""

    def __init__(self, options: Options, request: Request) -> None:
        self.options = options
        self.request = request
        self.key: Optional[str] = None
        self.scope = ""
        self.opened = False
        self.number: Optional[int] = None       # the attempt under lease
        self.results: Dict[str, Any] = {}       # of its steps, by their names
        self.failure: Optional[BaseException] = None    # of a step: a framework may turn it into a response
        self.accepted: Optional[Response] = None        # 202: to be sent at once, while the handler runs

    @property
    def leased(self) -> bool:
        return self.options.lease is not None

    def begin(self) -> Steps:
        """Returns the response to send, or None: then a transaction is open and the handler must run.

        If accepted is set as well, that is to be sent before the handler runs, and what settle() returns goes to nobody.
        """
        refused = self._read_key()
        if refused is not None:
            return self._refuse(refused)
        try:
            yield ("open",)
            self.opened = True
            yield ("begin",)
            if self.key is None:
                self._tell("unkeyed")
            else:
                answered = yield from self._ask()
                if answered is not None:
                    yield from self._end("rollback")
                    return answered
            if self.leased:
                yield from self._end("commit", strict=True)
                if self._wants_later():
                    self.accepted = self._accept()
            else:
                yield ("query", "SAVEPOINT idempotent_work", ())
        except Exception as error:
            yield from self._end("rollback")
            return self._refuse(problem_of(error, beginning=True), error)
        return None

    def settle(self, response: Optional[Response], error: Optional[BaseException] = None) -> Steps:
        """Returns what to send, after COMMIT. None: the handler's own error goes on to the framework, nothing was kept."""
        if self.leased:
            return (yield from self._settle_leased(response, error))
        if error is not None and not isinstance(error, Exception):
            yield from self._end("rollback")
            return None
        if response is None or response.status >= 500:
            broken = yield from self._is_broken()
            if is_passing(error) or response is None or broken or error is not None:
                yield from self._end("rollback")
                if is_passing(error):
                    return self._refuse(problem("unavailable"), error)
                if response is None:
                    self._tell("threw", error=error)
                    return None
                self._tell("not_kept", response.status)
                return self._decorate(response, False)
        try:
            failed = response.status >= 400
            if failed:
                yield ("query", "ROLLBACK TO SAVEPOINT idempotent_work", ())
            kept = self._kept(response)
            if kept:
                self._decorate(response, True)
                yield ("query", _FINISH, self._finish_arguments(response, kept))
            if self.key is not None and not failed and not kept:
                yield ("query", _RELEASE, (self.scope, self.key))
            yield from self._end("rollback" if failed and not kept else "commit", strict=True)
        except Exception as failure:
            # Not committed, or nobody knows: in both cases a retry finds out.
            yield from self._end("rollback")
            return self._refuse(problem_of(failure), failure)
        self._tell("kept" if kept else "not_kept", response.status)
        return response if kept else self._decorate(response, False)

    # -- under lease: no transaction is open while the handler calls outside --

    def step(self, name: str, call: Callable[[str], Any], save: Optional[Callable[[Any, Any], Any]] = None) -> Steps:
        """Calls outside under the derived key, once, and records the result. What is recorded is not called again."""
        try:
            return (yield from self._step(name, call, save))
        except Exception as error:
            self.failure = error
            raise

    def _step(self, name: str, call: Callable[[str], Any], save: Optional[Callable[[Any, Any], Any]]) -> Steps:
        if name in self.results:
            return self.results[name]
        derived = secrets.token_hex(32)
        if self.key is not None:
            derived = (yield from self._in_transaction(_DERIVE, (self.scope, self.key, name)))["derived"]
        result = yield ("call", call, derived)
        text = json.dumps({**self.results, name: result})
        if self.key is not None:
            yield from self._in_transaction(_CHECKPOINT, (self.scope, self.key, self.number, name, text), save, result)
        elif save is not None:
            yield from self._in_transaction("SELECT 1 AS saved", (), save, result)
        self.results = json.loads(text)         # as the attempt after a crash finds it
        return self.results[name]

    def _in_transaction(self, sql: str, arguments: Tuple[Any, ...], save: Optional[Callable[[Any, Any], Any]] = None,
                        result: Any = None) -> Steps:
        try:
            yield ("open",)
            self.opened = True
            yield ("begin",)
            if save is not None:
                yield ("save", save, result)
            row = yield ("query", sql, arguments)
            yield from self._end("commit", strict=True)
        except Exception:
            yield from self._end("rollback")
            raise
        return row

    def _settle_leased(self, response: Optional[Response], error: Optional[BaseException]) -> Steps:
        failure = error or self.failure
        if failure is not None and (response is None or response.status >= 500):
            return (yield from self._give_up(failure, response))
        if response is None:
            return None
        kept = self._kept(response)
        try:
            if kept:
                self._decorate(response, True)
                yield from self._in_transaction(_FINISH, self._finish_arguments(response, kept))
            elif self.key is not None:
                yield from self._in_transaction(_GIVE_BACK, (self.scope, self.key, self.number, f"status {response.status}", "0"))
        except Exception as failed:
            return self._refuse(problem_of(failed), failed)
        self._tell("kept" if kept else "not_kept", response.status)
        return response if kept else self._decorate(response, False)

    def _give_up(self, failure: BaseException, response: Optional[Response]) -> Steps:
        """Parks or releases. If the claim can be neither, its lease ends by itself."""
        unknown = isinstance(failure, UnknownOutcome)
        reason = str(failure) or type(failure).__name__
        if self.key is not None:
            who = (self.scope, self.key, self.number, reason)
            try:
                if unknown:
                    yield from self._in_transaction(_PARK, who)
                else:
                    yield from self._in_transaction(_GIVE_BACK, (*who, getattr(failure, "retry_after", None) or "0"))
            except Exception:
                pass
        self._tell("parked" if unknown else "released", error=failure)
        if unknown:
            return self._refuse(problem("parked"))
        if isinstance(failure, Exception) and (is_passing(failure) or sqlstate(failure) in _STATES):
            return self._refuse(problem_of(failure), failure)
        return None if response is None else self._decorate(response, False)

    def _kept(self, response: Response) -> Union[bool, str]:
        """False, True, or how long."""
        if self.key is None or response.status in NEVER_KEPT:
            return False
        return self.options.keep(response)

    def _read_key(self) -> Optional[Problem]:
        given = self.request.header_list(self.options.header)
        if not given and self.options.required:
            return problem("missing")
        if given:
            key = self.options.parse_key(given[0]) if len(given) == 1 else None
            if not key or len(key) > self.options.max_key_length:
                return problem("invalid")
            self.key = key
        account = self.options.account(self.request)
        if not account:
            return problem("unauthenticated")
        self.scope = (self.options.scope or _account_scope)(self.request, f"{self.options.profile} {account}")
        return None

    def _ask(self) -> Steps:
        """Begins the attempt. Returns the response where the handler must not run."""
        row = yield from self._begin()
        if row["outcome"] in ("started", "recovered"):
            self.number = row["attempt"]
            self.results = json.loads(row["state"]) if row["state"] else {}
            self._tell(row["outcome"])
            return None
        if row["outcome"] == "in_progress" and self._wants_later():
            return self._accept()
        return self._answered(row)

    def _begin(self) -> Steps:
        request, fingerprint = compared(self.options, self.request)
        arguments = (self.scope, self.key, request, fingerprint, self.options.retention, self.options.lease)
        if self.options.wait is None:
            return (yield ("query", _BEGIN.format("idempotent_try_begin"), arguments))
        before = (yield ("query", "SELECT current_setting('lock_timeout') AS before", ()))["before"]
        yield ("query", _LOCK_TIMEOUT, (f"{max(1, int(self.options.wait * 1000))}ms",))
        row = yield ("query", _BEGIN.format("idempotent_begin"), arguments)
        yield ("query", _LOCK_TIMEOUT, (before,))
        return row

    def _answered(self, row: Mapping[str, Any]) -> Response:
        if not row["replayed"]:
            return self._refuse(problem(row["outcome"], row["retry_after"]))
        self._tell("replayed", row["status"])
        return self._replay(row)

    # -- 202 and its status resource --

    def _wants_later(self) -> bool:
        return self.options.status is not None and self.key is not None and (self.options.respond_async or self._prefers())

    def _prefers(self) -> bool:
        """RFC 7240: Prefer is a list of preferences, and may come in several fields."""
        return _PREFERS.search(",".join(self.request.header_list("Prefer"))) is not None

    def _accept(self) -> Response:
        headers = [("Location", f"{self.options.status}/{operation_name(self.request, str(self.key))}")]
        if self._prefers():
            headers.append(("Preference-Applied", "respond-async"))
        self._tell("accepted", 202)
        return self._progress(headers)

    def _progress(self, headers: Headers, checkpoint: Optional[str] = None) -> Response:
        response = json_response(202, {"status": "in_progress", "checkpoint": checkpoint}, retry_after=self.options.poll_after)
        response.headers += [("Cache-Control", "no-store"), *headers]
        return self._decorate(response, False)

    def status(self) -> Steps:
        """The response of the status resource: 202 while the work goes on, then what a retry of the request gets."""
        operation = _operation(self.request.path[len(self.options.status or "") + 1:])
        account = self.options.account(self.request)
        if not account:
            return self._refuse(problem("unauthenticated"))
        if operation is None:
            return self._refuse(problem("unknown"))
        key, method, path, query = operation
        asked = replace(self.request, method=method, path=path, query=query, route=path, params={})
        scope = (self.options.scope or _account_scope)(asked, f"{self.options.profile} {account}")
        try:
            yield ("open",)
            self.opened = True
            yield ("begin",)
            row = yield ("query", _LOOKUP, (scope, key))
            yield from self._end("rollback")
        except Exception as error:
            yield from self._end("rollback")
            return self._refuse(problem_of(error), error)
        if row is None:
            return self._refuse(problem("unknown"))
        if row["outcome"] == "in_progress":
            return self._progress([], row["checkpoint"])
        return self._refuse(problem("interrupted")) if row["outcome"] == "recovered" else self._answered(row)

    def _replay(self, row: Mapping[str, Any]) -> Response:
        headers: Headers = []
        for name, value in (json.loads(row["headers"]) if row["headers"] else {}).items():
            headers += [(name, str(one)) for one in (value if isinstance(value, list) else [value])]
        headers += list(self.options.replay_headers.items())
        return self._decorate(Response(row["status"], headers, bytes(row["body"] or b"")), True, replayed=True)

    def _is_broken(self) -> Steps:
        """Has a statement failed, so that the transaction is aborted? Then a 5xx is the database's, not the handler's."""
        try:
            yield ("query", "SELECT 1 AS usable", ())
        except Exception:
            return True
        return False

    def _finish_arguments(self, response: Response, how: Union[bool, str]) -> Tuple[Any, ...]:
        kept: Dict[str, Any] = {}
        wanted = {name.lower() for name in (*KEPT_HEADERS, *self.options.keep_headers)} | {"original-request"}
        for name, value in response.headers:
            if name.lower() in wanted and name.lower() != "set-cookie":
                known = kept.get(name)
                kept[name] = value if known is None else (known if isinstance(known, list) else [known]) + [value]
        return (self.scope, self.key, response.status, json.dumps(kept), response.body, how if isinstance(how, str) else None,
                self.number if self.leased else None)

    def _end(self, how: str, strict: bool = False) -> Steps:
        """Ends the transaction and gives the connection back; strict lets an error of COMMIT out."""
        if not self.opened:
            return
        try:
            yield (how,)
        except Exception:
            if strict:
                raise
            self.opened = False
            yield ("close", True)
            return
        self.opened = False
        yield ("close", False)

    def refuse_large(self) -> Response:
        """For a body over body_limit, which nobody has read."""
        return self._refuse(problem("request_too_large"))

    def _refuse(self, about: Problem, error: Optional[BaseException] = None) -> Response:
        response = (self.options.problem or plain_problem)(self.options, about)
        response.reason = about.code
        self._tell("refused", response.status, about.code, error)
        return self._decorate(response, False)

    def _decorate(self, response: Response, kept: bool, replayed: bool = False) -> Response:
        if self.options.decorate is not None:
            self.options.decorate(self.options, self.request, response, self.key, kept)
        return response

    def _tell(self, event: str, status: Optional[int] = None, reason: Optional[str] = None,
              error: Optional[BaseException] = None) -> None:
        if self.options.on_event is not None:
            self.options.on_event(Event(event, self.request, self.key, status, reason, error))


def asks_status(options: Options, method: str, path: str) -> bool:
    """Is this a request for a status resource, which the package answers itself?"""
    return options.status is not None and method in ("GET", "HEAD") and path.startswith(f"{options.status}/")


def operation_name(request: Request, key: str) -> str:
    """What the scope is made of, and the key. It is no secret: the account is not in it."""
    url = f"{request.path}?{request.query}" if request.query else request.path
    text = json.dumps([key, request.method, url], ensure_ascii=False, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode("utf-8", "surrogatepass")).rstrip(b"=").decode("ascii")


def _operation(name: str) -> Optional[Tuple[str, str, str, str]]:
    """key, method, path and query."""
    try:
        key, method, url = json.loads(base64.b64decode(name + "=" * (-len(name) % 4), b"-_", validate=True))
        path, _, query = url.partition("?")
        asked = Request(method, path, query, [], b"")
        return (key, method, path, query) if operation_name(asked, key) == name and isinstance(key, str) else None
    except (ValueError, TypeError, AttributeError):
        return None


def _account_scope(request: Request, base: str) -> str:
    return base


def json_response(status: int, value: Any, kind: str = "application/json", retry_after: Optional[int] = None) -> Response:
    headers = [("Content-Type", kind)]
    if retry_after is not None:
        headers.append(("Retry-After", str(retry_after)))
    return Response(status, headers, json.dumps(value).encode("utf-8"))


def plain_problem(options: Options, about: Problem) -> Response:
    return json_response(about.status, {"error": about.code, "message": about.title}, retry_after=about.retry_after)
