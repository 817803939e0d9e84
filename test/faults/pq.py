# A connection through libpq, by ctypes: as little of it as the clients need.
#
# libpq is what the users' drivers are made of, it is there wherever a server is, and calling it lets the other threads
# run. A driver on top would add a package and half the time of a request.

import ctypes
import ctypes.util
import select

BAD = 1
READING, WRITING, CONNECTED = 1, 2, 3
CONNECT_SECONDS = 30
EMPTY_QUERY, COMMAND_OK, TUPLES_OK, COPY_OUT, COPY_IN = 0, 1, 2, 3, 4

# The server says so, or the pooler, when the session has ended: FATAL, whatever the client does next.
SESSION_ENDED = ("08", "57P", "25P03", "25P04")


class Lost(Exception):
    """The connection is gone. What was sent last may or may not have happened."""

    def __init__(self, sqlstate, message):
        super().__init__(f"{sqlstate or 'no answer'}: {message}")
        self.sqlstate = sqlstate
        self.message = message


class Failed(Exception):
    """The server refused a statement."""

    def __init__(self, sqlstate, message):
        super().__init__(f"{sqlstate}: {message}")
        self.sqlstate = sqlstate
        self.message = message


def _load(libdir):
    for name in (f"{libdir}/libpq.so.5", "libpq.so.5", ctypes.util.find_library("pq")):
        try:
            return ctypes.CDLL(name)
        except (OSError, TypeError):
            pass
    raise SystemExit("libpq is not to be found")


_pq = None
_ignore_notice = None


def load(libdir):
    global _pq, _ignore_notice
    _pq = _load(libdir)
    pointer, string, integer = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    strings = ctypes.POINTER(string)
    receiver = ctypes.CFUNCTYPE(None, pointer, pointer)
    for name, result, arguments in (
            ("PQconnectStart", pointer, [string]),
            ("PQconnectPoll", integer, [pointer]),
            ("PQsocket", integer, [pointer]),
            ("PQstatus", integer, [pointer]),
            ("PQfinish", None, [pointer]),
            ("PQerrorMessage", string, [pointer]),
            ("PQbackendPID", integer, [pointer]),
            ("PQsetNoticeReceiver", pointer, [pointer, receiver, pointer]),
            ("PQexec", pointer, [pointer, string]),
            ("PQexecParams", pointer, [pointer, string, integer, pointer, strings, pointer, pointer, integer]),
            ("PQsendQuery", integer, [pointer, string]),
            ("PQgetResult", pointer, [pointer]),
            ("PQgetCopyData", integer, [pointer, ctypes.POINTER(pointer), integer]),
            ("PQputCopyEnd", integer, [pointer, string]),
            ("PQfreemem", None, [pointer]),
            ("PQresultStatus", integer, [pointer]),
            ("PQresultErrorField", string, [pointer, integer]),
            ("PQcmdStatus", string, [pointer]),
            ("PQntuples", integer, [pointer]),
            ("PQnfields", integer, [pointer]),
            ("PQgetvalue", string, [pointer, integer, integer]),
            ("PQgetisnull", integer, [pointer, integer, integer]),
            ("PQclear", None, [pointer])):
        function = getattr(_pq, name)
        function.restype, function.argtypes = result, arguments
    # Kept, so that it is not collected while libpq may call it.
    _ignore_notice = receiver(lambda argument, result: None)


def _text(value):
    return (value or b"").decode("utf-8", "replace").strip()


class Connection:
    def __init__(self, **settings):
        info = " ".join(f"{name}='{value}'" for name, value in settings.items())
        # Step by step, since a server that is being killed sends notices while one connects.
        self._conn = _pq.PQconnectStart(info.encode())
        _pq.PQsetNoticeReceiver(self._conn, _ignore_notice, None)
        state = WRITING
        while _pq.PQstatus(self._conn) != BAD and state in (READING, WRITING):
            ready = select.poll()
            ready.register(_pq.PQsocket(self._conn), select.POLLIN if state == READING else select.POLLOUT)
            if not ready.poll(1000 * CONNECT_SECONDS):
                break
            state = _pq.PQconnectPoll(self._conn)
        if state != CONNECTED:
            message = _text(_pq.PQerrorMessage(self._conn))
            self.close()
            raise Lost(None, message)
        self.pid = _pq.PQbackendPID(self._conn)

    def close(self):
        if self._conn:
            _pq.PQfinish(self._conn)
            self._conn = None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def command(self, sql):
        """Run statements without parameters; the command tag of the last."""
        result = self._check(_pq.PQexec(self._conn, sql.encode()))
        tag = _text(_pq.PQcmdStatus(result))
        _pq.PQclear(result)
        return tag

    def query(self, sql, *parameters):
        """Run one statement; its rows, of text or None."""
        n = len(parameters)
        if n == 0:
            result = _pq.PQexec(self._conn, sql.encode())
        else:
            values = (ctypes.c_char_p * n)(*(None if p is None else str(p).encode() for p in parameters))
            result = _pq.PQexecParams(self._conn, sql.encode(), n, None, values, None, None, 0)
        result = self._check(result)
        rows = self._rows(result)
        _pq.PQclear(result)
        return rows

    @staticmethod
    def _rows(result):
        columns = range(_pq.PQnfields(result))
        return [tuple(None if _pq.PQgetisnull(result, row, column)
                      else _pq.PQgetvalue(result, row, column).decode("utf-8", "replace") for column in columns)
                for row in range(_pq.PQntuples(result))]

    def anything(self, sql):
        """Run whatever it is, COPY and several statements too; all it returned, in one text."""
        parts, failure = [], None
        if not _pq.PQsendQuery(self._conn, sql.encode()):
            self._check(None)
        while True:
            result = _pq.PQgetResult(self._conn)
            if not result:
                break
            status = _pq.PQresultStatus(result)
            if status == COPY_OUT:
                parts += self._copied()
            elif status == COPY_IN:
                _pq.PQputCopyEnd(self._conn, b"nothing to copy")
            if status in (EMPTY_QUERY, COPY_OUT, COPY_IN):
                _pq.PQclear(result)
                continue
            try:
                self._check(result)
                parts += [str(row) for row in self._rows(result)]
                _pq.PQclear(result)
            except Lost:
                raise
            except Failed as failed:
                failure = failed
        if failure:
            raise failure
        if _pq.PQstatus(self._conn) == BAD:
            self._check(None)
        return "\n".join(parts)

    def _copied(self):
        buffer = ctypes.c_void_p()
        while True:
            size = _pq.PQgetCopyData(self._conn, ctypes.byref(buffer), 0)
            if size < 0:
                break
            yield ctypes.string_at(buffer, size).decode("utf-8", "replace")
            _pq.PQfreemem(buffer)

    def value(self, sql, *parameters):
        rows = self.query(sql, *parameters)
        return rows[0][0] if rows else None

    def _check(self, result):
        if result and _pq.PQresultStatus(result) in (COMMAND_OK, TUPLES_OK):
            return result
        sqlstate, message = None, _text(_pq.PQerrorMessage(self._conn))
        if result:
            sqlstate = _text(_pq.PQresultErrorField(result, ord("C"))) or None
            message = _text(_pq.PQresultErrorField(result, ord("M"))) or message
            _pq.PQclear(result)
        ended = sqlstate is None or sqlstate.startswith(SESSION_ENDED) or _pq.PQstatus(self._conn) == BAD
        # A cancel is of the same class as the ends of sessions, and is none.
        if ended and sqlstate != "57014":
            self.close()
            raise Lost(sqlstate, message)
        raise Failed(sqlstate, message)
