#!/usr/bin/python3
"""A payment service on FastAPI: POST /payments with an Idempotency-Key. Run by uvicorn: uvicorn service:app"""
import base64
import os
from contextlib import suppress

import asyncpg
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

from idempotency_postgres import Asyncpg, db, ietf
from idempotency_postgres.asgi import IdempotencyMiddleware

ACCOUNTS = {"sk_test_one": "acct_1", "sk_test_two": "acct_2"}


def account(request):
    """The account comes from the API key, the user name of Basic authentication. None is answered with 401."""
    kind, _, value = (request.header("Authorization") or "").partition(" ")
    with suppress(ValueError):
        if kind.lower() == "basic":
            return ACCOUNTS.get(base64.b64decode(value).decode().partition(":")[0])
    return None


class Payment(BaseModel):
    amount: int = Field(gt=0)
    currency: str


app = FastAPI()
app.add_middleware(
    IdempotencyMiddleware,
    driver=Asyncpg(lambda: asyncpg.connect()),      # or a pool; the rest is in PGHOST and so on
    options=ietf(account, documentation=os.environ.get("DOCUMENTATION")))


@app.post("/payments", status_code=201)
async def pay(payment: Payment):
    """db() is the connection inside the request's transaction: payment, key and response commit together."""
    if payment.amount > 1_000_000:
        raise HTTPException(402, "declined")        # an answer like any other: kept, and the work undone
    number = await db().fetchval("INSERT INTO payments (amount, currency) VALUES ($1, $2) RETURNING id",
                                 payment.amount, payment.currency)
    return {"id": number, "amount": payment.amount}
