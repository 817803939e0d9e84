// A unit test of charge.js without a server: PGlite is PostgreSQL in this process, with the SQL edition in it.
import { test, before } from 'node:test';
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { PGlite } from '@electric-sql/pglite';
import { charge } from '../charge.js';

const script = process.env.IDEMPOTENCY_SQL ?? new URL('../../../sql/idempotency.sql', import.meta.url);
let db;

before(async () => {
  db = await PGlite.create();
  // What stands above this line is psql's.
  await db.exec((await readFile(script, 'utf8')).split('-- SQL from here')[1]);
  await db.exec('CREATE TABLE charges (id serial PRIMARY KEY, account text, amount int)');
});

const fails = (code) => (error) => error.code === code;
const one = async (sql, values) => (await db.query(sql, values)).rows[0];

test('a retry gets the first answer, and the work runs once', async () => {
  const first = await charge(db, 'acct_1', 'k1', 100);
  const retry = await charge(db, 'acct_1', 'k1', 100);
  assert.equal(first.replayed, false);
  assert.deepEqual(retry, { ...first, replayed: true });
  assert.equal((await one('SELECT count(*)::int AS n FROM charges')).n, 1);
});

test('the same key with another request is refused', async () => {
  await assert.rejects(charge(db, 'acct_1', 'k1', 200), fails('IK422'));
});

test('a transaction that does not finish cannot commit', async () => {
  await assert.rejects(db.query("SELECT idempotency.idempotent_begin('s', 'open')"), fails('IK500'));
});

test('ROLLBACK TO over a finish makes the attempt unfinished again', async () => {
  await assert.rejects(db.exec(`BEGIN; SELECT idempotency.idempotent_begin('s', 'sp'); SAVEPOINT a;
    SELECT idempotency.idempotent_finish('s', 'sp'); ROLLBACK TO a; COMMIT`), fails('IK500'));
});

test('a lease is parked, and settled from outside', async () => {
  const begin = "SELECT outcome, attempt FROM idempotency.idempotent_try_begin('s', 'l', lease => '1 hour')";
  assert.equal((await one(begin)).outcome, 'started');
  assert.equal((await one(begin)).outcome, 'in_progress');
  await db.query("SELECT idempotency.idempotent_park('s', 'l', 1, 'no answer')");
  assert.equal((await one(begin)).outcome, 'parked');
  const { what } = await one("SELECT idempotency.idempotent_resolve('s', 'l', 'it was done', '{\"ok\": true}', attempt => 1) AS what");
  assert.equal(what, 'settled');
  assert.equal((await one(begin)).outcome, 'replayed');
});
