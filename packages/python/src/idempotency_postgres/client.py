"""The client's side: a key that is made once and kept with its operation, and retries that end before the key expires."""
from __future__ import annotations

import email.utils
import json
import os
import random
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from dataclasses import asdict, dataclass
from typing import Any, Callable, Dict, Iterator, List, Mapping, MutableMapping, Optional, Tuple

Answer = Tuple[int, Mapping[str, str], bytes]
Transport = Callable[[str, str, Dict[str, str], Optional[bytes], float], Answer]

RETRIED = frozenset({408, 409, 425, 429})   # and from 500 on
PARKED = 423


@dataclass
class Operation:
    """state is pending, done (any final answer) or left: the batch must look for its effect.

    poll is the status resource of work that the service goes on with.
    """
    name: str
    key: str
    method: str
    url: str
    headers: Dict[str, str]
    body: Optional[str]
    created: float
    expires: float
    attempts: int = 0
    due: float = 0.0
    state: str = "pending"
    status: Optional[int] = None
    answer: Optional[str] = None
    poll: Optional[str] = None


class FileStorage(MutableMapping[str, Dict[str, Any]]):
    """Operations in one JSON file, replaced as a whole and synced before it counts. For one process at a time."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.known: Dict[str, Dict[str, Any]] = {}
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                self.known = json.load(file)

    def _write(self) -> None:
        folder = os.path.dirname(os.path.abspath(self.path))
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False, encoding="utf-8") as file:
            json.dump(self.known, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, self.path)

    def __getitem__(self, name: str) -> Dict[str, Any]:
        return self.known[name]

    def __setitem__(self, name: str, value: Dict[str, Any]) -> None:
        self.known[name] = value
        self._write()

    def __delitem__(self, name: str) -> None:
        del self.known[name]
        self._write()

    def __iter__(self) -> Iterator[str]:
        return iter(self.known)

    def __len__(self) -> int:
        return len(self.known)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def urllib_transport(method: str, url: str, headers: Dict[str, str], body: Optional[bytes], timeout: float) -> Answer:
    request = urllib.request.Request(url, data=body, headers=headers, method=method)
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=timeout) as reply:
            return reply.status, dict(reply.headers.items()), reply.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers.items()), error.read()


class Client:
    """budget: how many attempts run() makes in all; after that, or shortly before the key expires, the operation is left.

    The wait after the n-th failure is base * 2^(n-1), at most cap: 1, 2, 4, 8 minutes by default. jitter=1 is full
    jitter. Retry-After is a minimum. After 202 with a status resource run() polls that, as often as it says.
    """

    def __init__(self, storage: MutableMapping[str, Dict[str, Any]], *, base: float = 60, cap: float = 3600, jitter: float = 0,
                 budget: int = 5, retention: float = 86400, margin: float = 60, timeout: float = 30,
                 header: str = "Idempotency-Key", quoted: bool = True, transport: Transport = urllib_transport,
                 clock: Callable[[], float] = time.time, sleep: Callable[[float], None] = time.sleep,
                 chance: Callable[[], float] = random.random) -> None:
        self.storage = storage
        self.base, self.cap, self.jitter, self.budget = base, cap, jitter, budget
        self.retention, self.margin, self.timeout = retention, margin, timeout
        self.header, self.quoted, self.transport = header, quoted, transport
        self.clock, self.sleep, self.chance = clock, sleep, chance

    def prepare(self, name: str, method: str, url: str, body: Optional[str] = None,
                headers: Optional[Dict[str, str]] = None) -> Operation:
        """Stores the operation with a new key. The name is the application's: asked for again, the same key comes back."""
        if name in self.storage:
            return self.load(name)
        now = self.clock()
        operation = Operation(name, str(uuid.uuid4()), method, url, headers or {}, body, now, now + self.retention)
        self._save(operation)
        return operation

    def load(self, name: str) -> Operation:
        return Operation(**self.storage[name])

    def run(self, name: str) -> Operation:
        """Sends until there is a final answer, or the operation is left."""
        operation = self.load(name)
        while operation.state == "pending":
            spent = operation.poll is None and operation.attempts >= self.budget
            if spent or max(self.clock(), operation.due) > operation.expires - self.margin:
                operation.state = "left"
                self._save(operation)
                break
            wait = operation.due - self.clock()
            if wait > 0:
                self.sleep(wait)
            self.attempt(operation)
        return operation

    def attempt(self, operation: Operation) -> None:
        """One try. It is counted before it is sent: a crash in between must not make it free. A poll is none."""
        if operation.poll is None:
            operation.attempts += 1
        operation.due = self.clock() + self.backoff(operation.attempts)
        self._save(operation)
        try:
            status, received, content = self._send(operation)
        except OSError:
            operation.status = operation.poll = None        # nobody knows
        else:
            operation.status = status
            operation.answer = content.decode("utf-8", "replace")
            self._judge(operation, status, {name.lower(): value for name, value in received.items()})
        self._save(operation)

    def _send(self, operation: Operation) -> Answer:
        headers = {**operation.headers, self.header: f'"{operation.key}"' if self.quoted else operation.key}
        if operation.poll is not None:
            return self.transport("GET", operation.poll, headers, None, self.timeout)
        body = None if operation.body is None else operation.body.encode("utf-8")
        return self.transport(operation.method, operation.url, headers, body, self.timeout)

    def _judge(self, operation: Operation, status: int, headers: Mapping[str, str]) -> None:
        wait = _retry_after(headers, self.clock())
        if status == 202 and (operation.poll or headers.get("preference-applied") == "respond-async" and "location" in headers):
            self._follow(operation, headers)
            if operation.poll is not None:
                operation.due = self.clock() + max(1.0, wait)
            return
        unknown = operation.poll is not None and status == 404      # the request itself is sent again
        operation.poll = None
        if status == PARKED:
            operation.state = "left"
        elif unknown or self._is_retried(status, headers):
            operation.due = max(operation.due, self.clock() + wait)
        else:
            operation.state = "done"

    def _follow(self, operation: Operation, headers: Mapping[str, str]) -> None:
        """Only to the request's own origin, since its headers go along, credentials among them."""
        if operation.poll is None:
            poll = urllib.parse.urljoin(operation.url, headers["location"])
            if urllib.parse.urlsplit(poll)[:2] == urllib.parse.urlsplit(operation.url)[:2]:
                operation.poll = poll

    def backoff(self, attempts: int) -> float:
        wait = min(self.base * 2.0 ** min(attempts - 1, 60), self.cap)
        return wait * (1 - self.jitter * self.chance())

    def left(self) -> List[Operation]:
        """Everything without a final answer: the batch's work."""
        return [operation for operation in map(self.load, list(self.storage)) if operation.state != "done"]

    def _is_retried(self, status: int, headers: Mapping[str, str]) -> bool:
        said = headers.get("stripe-should-retry", "").lower()
        return said == "true" if said in ("true", "false") else status in RETRIED or status >= 500

    def _save(self, operation: Operation) -> None:
        self.storage[operation.name] = asdict(operation)


def _retry_after(headers: Mapping[str, str], now: float) -> float:
    text = headers.get("retry-after", "").strip()
    if text.isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - now)
    except (TypeError, ValueError, IndexError):
        return 0.0
