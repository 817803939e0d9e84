# A connection through libpq, by ctypes: as little of it as the clients need.
#
# libpq is what the users' drivers are made of, it is there wherever a server is, and calling it lets the other threads
# run. A driver on top would add a package and half the time of a request.

import ctypes
import ctypes.util

BAD = 1
COMMAND_OK, TUPLES_OK = 1, 2

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
            ("PQconnectdb", pointer, [string]),
            ("PQstatus", integer, [pointer]),
            ("PQfinish", None, [pointer]),
            ("PQerrorMessage", string, [pointer]),
            ("PQbackendPID", integer, [pointer]),
            ("PQsetNoticeReceiver", pointer, [pointer, receiver, pointer]),
            ("PQexec", pointer, [pointer, string]),
            ("PQexecParams", pointer, [pointer, string, integer, pointer, strings, pointer, pointer, integer]),
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
        self._conn = _pq.PQconnectdb(info.encode())
        if _pq.PQstatus(self._conn) == BAD:
            message = _text(_pq.PQerrorMessage(self._conn))
            self.close()
            raise Lost(None, message)
        _pq.PQsetNoticeReceiver(self._conn, _ignore_notice, None)
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
        columns = range(_pq.PQnfields(result))
        rows = [tuple(None if _pq.PQgetisnull(result, row, column)
                      else _pq.PQgetvalue(result, row, column).decode() for column in columns)
                for row in range(_pq.PQntuples(result))]
        _pq.PQclear(result)
        return rows

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
