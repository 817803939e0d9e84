#!/usr/bin/python3
"""Django: a decorator for views. ATOMIC_REQUESTS makes each request a transaction, which ends before the response leaves.

Where ATOMIC_REQUESTS is off, put @transaction.atomic around @idempotent.
"""
import functools
import json
import os
import sys

import django
from django.conf import settings
from django.db import DatabaseError, connection, transaction
from django.http import HttpResponse, JsonResponse

if not settings.configured:
    settings.configure(
        SECRET_KEY="only for the example", ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__,
        DATABASES={"default": {
            "ENGINE": "django.db.backends.postgresql", "HOST": os.environ["PGHOST"], "PORT": os.environ["PGPORT"],
            "NAME": os.environ["PGDATABASE"], "USER": os.environ["PGUSER"],
            "ATOMIC_REQUESTS": True,
            "DISABLE_SERVER_SIDE_CURSORS": True,            # for PgBouncer in transaction mode
        }})
    django.setup()


def sqlstate(error):
    """psycopg 3 (Django 4.2 and later) calls it sqlstate, psycopg2 pgcode."""
    cause = error.__cause__
    return getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)


def idempotent(scope):
    """The view runs once for an Idempotency-Key; what it answered is answered again. scope(request) is whose key it is."""
    def decorate(view):
        @functools.wraps(view)
        def wrapper(request, *args, **kwargs):
            key = request.headers.get("Idempotency-Key")
            if not key:
                return JsonResponse({"error": "Idempotency-Key is missing"}, status=400)
            try:
                with transaction.atomic(), connection.cursor() as cursor:
                    cursor.execute("SELECT replayed, status, headers->>'Content-Type', body"
                                   " FROM idempotent_begin(%s, %s, fingerprint => sha256(%s))",
                                   [scope(request), key, request.body])
                    replayed, status, content_type, body = cursor.fetchone()
            except DatabaseError as error:
                if not (sqlstate(error) or "").startswith("IK4"):
                    raise
                transaction.set_rollback(True)
                return JsonResponse({"error": sqlstate(error)}, status=int(sqlstate(error)[2:]))
            if replayed:
                return HttpResponse(body, status=status, content_type=content_type)

            response = view(request, *args, **kwargs)
            if response.status_code >= 500:
                transaction.set_rollback(True)              # not kept, and the work undone: a retry runs
                return response
            with connection.cursor() as cursor:
                cursor.execute("SELECT idempotent_finish(%s, %s, status => %s, headers => %s, body => %s)",
                               [scope(request), key, response.status_code,
                                json.dumps({"Content-Type": response["Content-Type"]}), response.content])
            return response
        return wrapper
    return decorate


# The account comes from the authentication: request.user where Django's own is used. The scope names the operation, not
# the path as it was spelled.
@idempotent(scope=lambda request: f"{request.META['REMOTE_USER']} POST orders")
def place_order(request):
    order = json.loads(request.body)
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO orders (item, quantity) VALUES (%s, %s) RETURNING id", [order["item"], order["quantity"]])
        return JsonResponse({"id": cursor.fetchone()[0]}, status=201)


from django.urls import path  # noqa: E402

urlpatterns = [path("orders", place_order)]


# For the test: its scope is that of the view above.
SCOPE = "acct_1 POST orders"


def begin(key):
    with connection.cursor() as cursor:
        cursor.execute("SELECT idempotent_begin(%s, %s)", [SCOPE, key])


def main(what, key, item=None, quantity=None):
    from django.test import Client
    try:
        if what == "place":
            response = Client().post("/orders", {"item": item, "quantity": int(quantity)}, content_type="application/json",
                                     HTTP_IDEMPOTENCY_KEY=key, REMOTE_USER=os.environ["ACCOUNT"]).json()
            print(response.get("id") or response["error"])
        elif what == "begin":
            with transaction.atomic():
                begin(key)
        else:
            begin(key)
    except DatabaseError as error:
        print(sqlstate(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
