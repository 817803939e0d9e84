#!/usr/bin/python3
"""The same service on each framework and driver: service.py FRAMEWORK PORT PROFILE.

POST /payments/{account}: the field "do" of the body (JSON or form) names what goes wrong. Who asks is in X-Account.
"""
import asyncio
import json
import os
import signal
import sys
import urllib.parse

from idempotency_postgres import (Asyncpg, AsyncPsycopg, AsyncSqlalchemy, Psycopg, Psycopg2, Sqlalchemy, UnknownOutcome, current,
                                  ietf, plain, step, stripe, stripe_v2, toss)

FRAMEWORK, PORT, PROFILE = sys.argv[1], int(sys.argv[2]), sys.argv[3]
SEEN = set()


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def on_event(event):
    if "EVENTS" in os.environ:
        told = {"type": event.type, "key": event.key, "status": event.status, "reason": event.reason, "error": event.error is not None}
        with open(os.environ["EVENTS"], "a") as file:
            print(json.dumps({name: value for name, value in told.items() if value}), file=file)
    if event.type == "kept" and b"die after" in event.request.body:
        die()


OPTIONS = {"ietf": ietf, "stripe": stripe, "stripe_v2": stripe_v2, "toss": toss, "plain": plain}[PROFILE](
    account=lambda request: request.header("X-Account"), on_event=on_event, lease=os.environ.get("LEASE"),
    status=os.environ.get("STATUS"), respond_async="RESPOND_ASYNC" in os.environ)
if PROFILE == "ietf":
    OPTIONS.documentation = "https://pay.example/keys"


def fields(kind, body):
    if kind.startswith("application/json"):
        return json.loads(body)
    if kind.startswith("application/x-www-form-urlencoded"):
        return dict(urllib.parse.parse_qsl(body.decode()))
    return {"reference": body.decode("latin-1")}


def answer(key, given, number):
    """status, headers, body: what the handler makes of a payment that has been inserted."""
    what = given.get("do")
    if what == "die before":
        die()
    if what in ("429 once", "500 once"):
        first = key not in SEEN
        SEEN.add(key)
        if first:
            return int(what[:3]), {"Retry-After": "1"}, b"{}"
    if what == "303":
        return 303, {"Location": f"/payments/{number}"}, b""
    if what == "402":
        return 402, {}, json.dumps({"declined": number}).encode()
    if what == "large":
        return 201, {}, b"x" * (10 * 1024 * 1024)
    if what == "raise":
        raise RuntimeError("a mistake in the handler")
    return 201, {"Set-Cookie": "secret=1", "Content-Disposition": "inline"}, json.dumps(
        {"id": number, "object": "charge"}).encode()


INSERT = "INSERT INTO payments (account, reference) VALUES ({}, {}) RETURNING id"
SLEEP = ("SET LOCAL statement_timeout = 50", "SELECT pg_sleep(30)", "SET LOCAL statement_timeout = 0")


def waits(given):
    return "SELECT pg_advisory_xact_lock(4711)" if given.get("do") == "wait" else None


def sync_execute(db):
    """For DB-API connections, and for SQLAlchemy's."""
    if "sqlalchemy" in FRAMEWORK:
        return lambda sql, *values: db.exec_driver_sql(sql, values or None)
    if hasattr(db, "execute") and not FRAMEWORK.startswith("django"):
        return lambda sql, *values: db.execute(sql, values or None)

    def execute(sql, *values):
        cursor = db.cursor()
        cursor.execute(sql, values or None)
        return cursor
    return execute


def sync_insert(db, account, given):
    return sync_execute(db)(INSERT.format("%s", "%s"), account, str(given.get("reference", given.get("amount")))).fetchone()[0]


async def async_insert(db, account, given):
    reference = str(given.get("reference", given.get("amount")))
    if FRAMEWORK.endswith("asyncpg"):
        return await db.fetchval(INSERT.format("$1", "$2"), account, reference)
    if "sqlalchemy" in FRAMEWORK:
        from sqlalchemy import text
        return (await db.execute(text(INSERT.format(":a", ":b")), {"a": account, "b": reference})).scalar_one()
    return (await (await db.execute(INSERT.format("%s", "%s"), [account, reference])).fetchone())[0]


# Under lease: a charge and a shipment at other services, which note each call.

def outside(name, given):
    import psycopg

    def call(derived):
        with psycopg.connect("", autocommit=True) as db:
            db.execute("INSERT INTO calls VALUES (%s, %s, %s)", [(current().key or "").strip('"'), name, derived])
        what = given.get("do")
        if name == "ship" and what == "wait":
            with psycopg.connect("") as db:
                db.execute("SELECT pg_advisory_xact_lock(4711)")
        if name == "ship" and what in ("step fails once", "step is killed once") and once(current().key):
            if what.endswith("killed once"):
                die()
            raise RuntimeError("the carrier is down")
        if name == "ship" and what == "step fails until later":
            error = RuntimeError("the carrier is closed")
            error.retry_after = "1 hour"
            raise error
        if name == "ship" and what in ("step is unknown", "step is unknown and caught"):
            raise UnknownOutcome("no reply")
        return {"done": name}
    return call


def once(key):
    """Over restarts of the process, too."""
    import psycopg
    with psycopg.connect("", autocommit=True) as db:
        return db.execute("SELECT count(*) = 1 FROM calls WHERE key = %s AND step = 'ship'", [(key or "").strip('"')]).fetchone()[0]


def ordered(given, charge, ship):
    if given.get("do") == "402":
        return 402, {}, b"{}"
    return 201, {"Location": "/orders/7"}, json.dumps([charge, ship]).encode()


def sync_order(account, given):
    charge = step("charge", outside("charge", given), lambda db, result: sync_insert(db, account, given))
    try:
        return ordered(given, charge, step("ship", outside("ship", given)))
    except UnknownOutcome:
        if given["do"].endswith("caught"):
            return 500, {}, b"{}"           # as an error handler of the application would
        raise


async def async_order(account, given):
    def elsewhere(name):
        return lambda derived: asyncio.to_thread(outside(name, given), derived)

    charge = await step("charge", elsewhere("charge"), lambda db, result: async_insert(db, account, given))
    try:
        return ordered(given, charge, await step("ship", elsewhere("ship")))
    except UnknownOutcome:
        if given["do"].endswith("caught"):
            return 500, {}, b"{}"
        raise


def sync_payment(account, given):
    if OPTIONS.lease:
        return sync_order(account, given)
    db = current().db
    execute = sync_execute(db)
    number = sync_insert(db, account, given)
    if given.get("do") == "timeout":
        for sql in SLEEP:
            execute(sql)
    if waits(given):
        execute(waits(given))
    return answer(current().key, given, number)


async def async_payment(account, given):
    if OPTIONS.lease:
        return await async_order(account, given)
    db = current().db
    number = await async_insert(db, account, given)

    async def execute(sql):
        if "sqlalchemy" in FRAMEWORK:
            from sqlalchemy import text
            sql = text(sql)
        await db.execute(sql)
    if given.get("do") == "timeout":
        for sql in SLEEP:
            await execute(sql)
    if waits(given):
        await execute(waits(given))
    return answer(current().key, given, number)


def driver():
    kind = FRAMEWORK.partition("-")[2]
    if kind == "psycopg2":
        import psycopg2
        return Psycopg2(lambda: psycopg2.connect(""))
    if kind in ("psycopg", "apsycopg"):
        import psycopg
        if kind == "psycopg":
            return Psycopg(lambda: psycopg.connect(""))
        return AsyncPsycopg(lambda: psycopg.AsyncConnection.connect(""))
    if kind == "sqlalchemy":
        from sqlalchemy import create_engine
        return Sqlalchemy(create_engine("postgresql+psycopg2://", future=True))
    if kind == "asqlalchemy":
        from sqlalchemy.ext.asyncio import create_async_engine
        return AsyncSqlalchemy(create_async_engine("postgresql+asyncpg://", connect_args={
            "server_settings": {"default_transaction_read_only": "on"} if "READONLY" in os.environ else {},
            "host": os.environ["PGHOST"], "port": int(os.environ["PGPORT"]), "user": os.environ["PGUSER"],
            "database": os.environ["PGDATABASE"]}))
    import asyncpg
    return Asyncpg(lambda: asyncpg.connect(
        server_settings={"default_transaction_read_only": "on"} if "READONLY" in os.environ else None))


def starlette():
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.responses import Response
    from starlette.routing import Route

    from idempotency_postgres.asgi import IdempotencyMiddleware

    async def payments(request):
        given = fields(request.headers.get("Content-Type", ""), await request.body())
        status, headers, body = await async_payment(request.headers["X-Account"], given)
        return Response(body, status, headers, "application/json")
    return Starlette(routes=[Route(path, payments, methods=["POST", "PATCH"]) for path in ("/payments", "/payments/{id}", "/v1/charges")],
                     middleware=[Middleware(IdempotencyMiddleware, driver=driver(), options=OPTIONS)])


def fastapi():
    from fastapi import Depends, FastAPI, Request, Response

    from idempotency_postgres.asgi import IdempotencyMiddleware
    app = FastAPI()
    app.add_middleware(IdempotencyMiddleware, driver=driver(), options=OPTIONS)

    async def read(request: Request):
        return await request.body()

    if FRAMEWORK == "fastapi-psycopg":
        def endpoint(request: Request, body: bytes = Depends(read)):
            given = fields(request.headers.get("Content-Type", ""), body)
            status, headers, answered = sync_payment(request.headers["X-Account"], given)
            return Response(answered, status, headers, "application/json")
    else:
        async def endpoint(request: Request):
            given = fields(request.headers.get("Content-Type", ""), await request.body())
            status, headers, answered = await async_payment(request.headers["X-Account"], given)
            return Response(answered, status, headers, "application/json")
    for path in ("/payments", "/payments/{id}", "/v1/charges"):
        app.add_api_route(path, endpoint, methods=["POST", "PATCH"])
    return app


def flask():
    from flask import Flask, Response, request

    from idempotency_postgres.wsgi import protect_flask
    app = Flask(__name__)

    def payments(id=None):
        status, headers, body = sync_payment(request.headers["X-Account"], fields(request.content_type or "", request.get_data()))
        return Response(body, status, headers, content_type="application/json")
    for path in ("/payments", "/payments/<id>", "/v1/charges"):
        app.add_url_rule(path, path, payments, methods=["POST", "PATCH"])
    protect_flask(app, driver(), OPTIONS)
    return app


def django(decorated):
    import django
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application
    from django.http import HttpResponse
    from django.urls import path

    name = __name__
    options = "-c default_transaction_read_only=on" if "READONLY" in os.environ else ""
    settings.configure(
        SECRET_KEY="only for the test", ALLOWED_HOSTS=["*"], ROOT_URLCONF=name, IDEMPOTENCY=OPTIONS,
        MIDDLEWARE=[] if decorated else ["idempotency_postgres.django.IdempotencyMiddleware"],
        DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "HOST": os.environ["PGHOST"], "PORT": os.environ["PGPORT"],
                               "NAME": os.environ["PGDATABASE"], "USER": os.environ["PGUSER"], "ATOMIC_REQUESTS": decorated,
                               "OPTIONS": {"options": options}}})
    django.setup()
    from idempotency_postgres.django import idempotent, status_view

    def payments(request, id=None):
        status, headers, body = sync_payment(request.headers["X-Account"], fields(request.content_type or "", request.body))
        response = HttpResponse(body, status=status, content_type="application/json")
        for header, value in headers.items():
            response[header] = value
        return response
    if decorated:
        payments = idempotent(OPTIONS)(payments)
    global urlpatterns
    urlpatterns = [path("payments", payments), path("payments/<id>", payments), path("v1/charges", payments)]
    if decorated:
        urlpatterns.append(path("operations/<name>", status_view(OPTIONS)))
    return get_wsgi_application()


if __name__ == "__main__":
    kind = FRAMEWORK.partition("-")[0]
    if kind in ("starlette", "fastapi"):
        app = {"starlette": starlette, "fastapi": fastapi}[kind]()
        if kind == "starlette":
            import uvicorn
            uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="error", lifespan="off")
        else:
            import hypercorn.asyncio
            import hypercorn.config
            config = hypercorn.config.Config()
            config.bind = [f"127.0.0.1:{PORT}"]
            asyncio.run(hypercorn.asyncio.serve(app, config))
    else:
        import logging

        from werkzeug.serving import run_simple
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        if kind == "flask":
            app = flask()
        else:
            app = django(FRAMEWORK == "django-decorator")
        run_simple("127.0.0.1", PORT, app, threaded=True)
