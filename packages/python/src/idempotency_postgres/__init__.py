"""Idempotency-Key for Python services on the PostgreSQL extension idempotency. See README.md."""
from .context import current, db, step
from .core import (EVENTS, KEPT_HEADERS, NEVER_KEPT, REASONS, Context, Event, Options, Problem, Request, Response,
                   UnknownOutcome, is_passing, sqlstate)
from .drivers import Asyncpg, AsyncPsycopg, AsyncSqlalchemy, Driver, Psycopg, Psycopg2, Sqlalchemy
from .profiles import ietf, plain, stripe, stripe_v2, toss

__all__ = ["Asyncpg", "AsyncPsycopg", "AsyncSqlalchemy", "Context", "Driver", "EVENTS", "Event", "KEPT_HEADERS",
           "NEVER_KEPT", "Options", "Problem", "Psycopg", "Psycopg2", "REASONS", "Request", "Response", "Sqlalchemy",
           "UnknownOutcome", "current", "db", "ietf", "is_passing", "plain", "sqlstate", "step", "stripe", "stripe_v2", "toss"]
