#!/usr/bin/python3
"""SQLAlchemy, ORM session: begin and finish are text() in the session's transaction."""
import json
import os
import sys

from sqlalchemy import Column, Integer, Text, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import declarative_base, sessionmaker

engine = create_engine("postgresql+psycopg2://", future=True)      # the rest is in PGHOST and so on
Session = sessionmaker(engine, future=True)
Base = declarative_base()


class Order(Base):
    __tablename__ = "orders"
    id = Column(Integer, primary_key=True)
    item = Column(Text)
    quantity = Column(Integer)


# "::jsonb" would read as a bind parameter to text().
BEGIN = text("SELECT * FROM idempotent_begin(:scope, :key, request => CAST(:request AS jsonb))")
FINISH = text("SELECT idempotent_finish(:scope, :key, CAST(:response AS jsonb))")


def place_order(account, key, order):
    scope = f"{account} orders"         # the account from the authentication, never from the client's word
    with Session.begin() as session:
        attempt = session.execute(BEGIN, {"scope": scope, "key": key, "request": json.dumps(order)}).one()
        if attempt.replayed:
            return attempt.response
        row = Order(**order)
        session.add(row)
        session.flush()
        response = {"id": row.id}
        session.execute(FINISH, {"scope": scope, "key": key, "response": json.dumps(response)})
        return response


def sqlstate(error):
    """psycopg 3 and asyncpg call it sqlstate, psycopg2 pgcode."""
    return getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)


# For the test.
def begin_and_commit(key):
    with Session.begin() as session:
        session.execute(BEGIN, {"scope": "acct_1 orders", "key": key, "request": None})


def begin_in_autocommit(key):
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(BEGIN, {"scope": "acct_1 orders", "key": key, "request": None})


def main(what, key, item=None, quantity=None):
    try:
        if what == "place":
            print(place_order(os.environ["ACCOUNT"], key, {"item": item, "quantity": int(quantity)})["id"])
        elif what == "begin":
            begin_and_commit(key)
        else:
            begin_in_autocommit(key)
    except DBAPIError as error:
        print(sqlstate(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
