"""Sessions of each driver. A driver is a factory of sessions, and a session is used for one request.

Sessions run the commands of core.Attempt. db is what the handler works on: it is inside the request's transaction, and
the handler must not commit it (the extension would refuse that with IK500).
"""
from __future__ import annotations

import asyncio
import inspect
from typing import Any, Dict, Generator, Optional, Sequence

from .core import Attempt, Context

Row = Optional[Dict[str, Any]]


class Session:
    """Synchronous. Subclasses implement open, begin, query, commit, rollback and close(broken)."""
    db: Any = None

    def do(self, command: str, *arguments: Any) -> Any:
        return getattr(self, command)(*arguments)

    def call(self, function: Any, argument: Any) -> Any:
        return function(argument)

    def save(self, function: Any, result: Any) -> Any:
        return function(self.db, result)


class AsyncSession:
    db: Any = None

    async def do(self, command: str, *arguments: Any) -> Any:
        return await getattr(self, command)(*arguments)

    async def call(self, function: Any, argument: Any) -> Any:
        result = function(argument)
        return await result if inspect.isawaitable(result) else result

    async def save(self, function: Any, result: Any) -> Any:
        saved = function(self.db, result)
        return await saved if inspect.isawaitable(saved) else saved


class Driver:
    is_async = False

    def session(self) -> Any:
        raise NotImplementedError


def run(steps: Generator[Any, Any, Any], session: Session) -> Any:
    """Runs the commands of a generator of core.Attempt."""
    try:
        command = next(steps)
        while True:
            try:
                result = session.do(*command)
            except Exception as error:
                command = steps.throw(error)
            else:
                command = steps.send(result)
    except StopIteration as end:
        return end.value


async def run_async(steps: Generator[Any, Any, Any], session: Any) -> Any:
    """The same; the commands of a synchronous session run in a thread."""
    try:
        command = next(steps)
        while True:
            try:
                if isinstance(session, Session):
                    result = await asyncio.to_thread(session.do, *command)
                else:
                    result = await session.do(*command)
            except Exception as error:
                command = steps.throw(error)
            else:
                command = steps.send(result)
    except StopIteration as end:
        return end.value


def context(attempt: Attempt, session: Any) -> Context:
    """For the handler of an attempt that has begun."""
    if not attempt.leased:
        return Context(session.db, attempt.key)

    def step(*arguments: Any, **named: Any) -> Any:
        return (run if isinstance(session, Session) else run_async)(attempt.step(*arguments, **named), session)
    return Context(None, attempt.key, step)


def _row(cursor: Any, row: Any) -> Row:
    return None if row is None else {column[0]: value for column, value in zip(cursor.description, row)}


class _Pooled:
    """Where connections come from: a pool with getconn and putconn, or a function that connects."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def get(self) -> Any:
        return self.source.getconn() if hasattr(self.source, "getconn") else self.source()

    def put(self, db: Any, broken: bool) -> Any:
        if broken:
            db.close()
        if hasattr(self.source, "putconn"):
            return self.source.putconn(db)
        return db.close()


class _PsycopgSession(Session):
    """psycopg 3 and psycopg2: their first statement begins the transaction."""

    def __init__(self, pooled: _Pooled) -> None:
        self.pooled = pooled
        self.autocommit = False

    def open(self) -> None:
        self.db = self.pooled.get()

    def begin(self) -> None:
        self.autocommit = self.db.autocommit
        if self.autocommit:
            self.db.autocommit = False

    def _cursor(self) -> Any:
        if type(self.db).__module__.partition(".")[0] == "psycopg2":
            from psycopg2.extensions import cursor
            return self.db.cursor(cursor_factory=cursor)
        from psycopg.rows import tuple_row
        return self.db.cursor(row_factory=tuple_row)

    def query(self, sql: str, arguments: Sequence[Any]) -> Row:
        with self._cursor() as cursor:
            cursor.execute(sql, arguments or None)
            return _row(cursor, cursor.fetchone()) if cursor.description else None

    def commit(self) -> None:
        self.db.commit()

    def rollback(self) -> None:
        self.db.rollback()

    def close(self, broken: bool) -> None:
        if self.autocommit and not broken:
            self.db.autocommit = True
        self.pooled.put(self.db, broken)


class Psycopg(Driver):
    """psycopg 3: Psycopg(pool), or Psycopg(lambda: psycopg.connect(…))."""

    def __init__(self, source: Any) -> None:
        self.pooled = _Pooled(source)

    def session(self) -> Session:
        return _PsycopgSession(self.pooled)


class Psycopg2(Psycopg):
    """psycopg2: Psycopg2(pool), or Psycopg2(lambda: psycopg2.connect(…))."""


class _AsyncPsycopgSession(AsyncSession):
    def __init__(self, source: Any) -> None:
        self.source = source
        self.autocommit = False

    async def open(self) -> None:
        self.db = await (self.source.getconn() if hasattr(self.source, "getconn") else self.source())

    async def begin(self) -> None:
        self.autocommit = self.db.autocommit
        if self.autocommit:
            await self.db.set_autocommit(False)

    async def query(self, sql: str, arguments: Sequence[Any]) -> Row:
        from psycopg.rows import tuple_row
        async with self.db.cursor(row_factory=tuple_row) as cursor:
            await cursor.execute(sql, arguments or None)
            return _row(cursor, await cursor.fetchone()) if cursor.description else None

    async def commit(self) -> None:
        await self.db.commit()

    async def rollback(self) -> None:
        await self.db.rollback()

    async def close(self, broken: bool) -> None:
        if self.autocommit and not broken:
            await self.db.set_autocommit(True)
        if broken or not hasattr(self.source, "putconn"):
            await self.db.close()
        if hasattr(self.source, "putconn"):
            await self.source.putconn(self.db)


class AsyncPsycopg(Driver):
    """psycopg 3: AsyncPsycopg(pool), or AsyncPsycopg(lambda: psycopg.AsyncConnection.connect(…))."""
    is_async = True

    def __init__(self, source: Any) -> None:
        self.source = source

    def session(self) -> AsyncSession:
        return _AsyncPsycopgSession(self.source)


def _numbered(sql: str, form: str) -> str:
    parts = sql.split("%s")
    return parts[0] + "".join(form.format(i) + part for i, part in enumerate(parts[1:], 1))


class _AsyncpgSession(AsyncSession):
    def __init__(self, source: Any) -> None:
        self.source = source

    async def open(self) -> None:
        self.db = await (self.source.acquire() if hasattr(self.source, "acquire") else self.source())

    async def begin(self) -> None:
        self.transaction = self.db.transaction()
        await self.transaction.start()

    async def query(self, sql: str, arguments: Sequence[Any]) -> Row:
        if not arguments and not sql.startswith("SELECT"):
            await self.db.execute(sql)
            return None
        row = await self.db.fetchrow(_numbered(sql, "${}"), *arguments)
        return None if row is None else dict(row)

    async def commit(self) -> None:
        await self.transaction.commit()

    async def rollback(self) -> None:
        await self.transaction.rollback()

    async def close(self, broken: bool) -> None:
        if broken:
            self.db.terminate()
        if hasattr(self.source, "release"):
            await self.source.release(self.db)
        elif not broken:
            await self.db.close()


class Asyncpg(Driver):
    """asyncpg: Asyncpg(pool), or Asyncpg(lambda: asyncpg.connect(…))."""
    is_async = True

    def __init__(self, source: Any) -> None:
        self.source = source

    def session(self) -> AsyncSession:
        return _AsyncpgSession(self.source)


def _named(sql: str, arguments: Sequence[Any]) -> Any:
    from sqlalchemy import text
    return text(_numbered(sql, ":p{}")), {f"p{i}": value for i, value in enumerate(arguments, 1)}


class _SqlalchemySession(Session):
    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def open(self) -> None:
        self.db = self.engine.connect()

    def begin(self) -> None:
        self.transaction = self.db.begin()

    def query(self, sql: str, arguments: Sequence[Any]) -> Row:
        result = self.db.execute(*_named(sql, arguments))
        if not result.returns_rows:
            return None
        row = result.mappings().first()
        return None if row is None else dict(row)

    def commit(self) -> None:
        self.transaction.commit()

    def rollback(self) -> None:
        self.transaction.rollback()

    def close(self, broken: bool) -> None:
        if broken:
            self.db.invalidate()
        self.db.close()


class Sqlalchemy(Driver):
    """SQLAlchemy 1.4 and 2: Sqlalchemy(engine). The handler gets a Connection: Session(bind=db) works in its transaction."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def session(self) -> Session:
        return _SqlalchemySession(self.engine)


class _AsyncSqlalchemySession(AsyncSession):
    def __init__(self, engine: Any) -> None:
        self.engine = engine

    async def open(self) -> None:
        self.db = await self.engine.connect()

    async def begin(self) -> None:
        self.transaction = await self.db.begin()

    async def query(self, sql: str, arguments: Sequence[Any]) -> Row:
        result = await self.db.execute(*_named(sql, arguments))
        if not result.returns_rows:
            return None
        row = result.mappings().first()
        return None if row is None else dict(row)

    async def commit(self) -> None:
        await self.transaction.commit()

    async def rollback(self) -> None:
        await self.transaction.rollback()

    async def close(self, broken: bool) -> None:
        if broken:
            await self.db.invalidate()
        await self.db.close()


class AsyncSqlalchemy(Driver):
    """SQLAlchemy's create_async_engine: AsyncSqlalchemy(engine)."""
    is_async = True

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def session(self) -> AsyncSession:
        return _AsyncSqlalchemySession(self.engine)
