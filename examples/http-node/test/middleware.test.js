// What the middleware owes its transaction, whatever handler, client and server do.
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { after, before, test } from 'node:test'
import express from 'express'
import { idempotent } from '../idempotency.js'
import { ietf } from '../profiles.js'
import { isIdle, isWaiting, pool, query, start, stopPools, until, value, whileBlocked } from './harness.js'

let app, runs = 0
before(async () => {
  app = await start((routes) => {
    const once = [(req, res, next) => { req.account = 'test'; next() }, express.json(), idempotent(pool, ietf, { patience: 100 })]
    routes.post('/hang', once, () => {})
    routes.post('/die', once, async (req, res) => {
      await req.db.query('SELECT pg_terminate_backend(pg_backend_pid())').catch(() => {})
      res.status(201).json({ paid: true })
    })
    routes.post('/chunks', once, (req, res) => {
      res.status(201).set({ 'Content-Type': 'application/x-test', Link: '</x>; rel=next', 'Set-Cookie': 'secret=1', 'X-Run': String(++runs) })
      res.write('one, ')
      res.write(Buffer.from('two, '))
      res.end('\xff', 'latin1')
    })
    routes.post('/throw', once, () => { throw new Error('expected by the test') })
    routes.post('/empty', once, (req, res) => res.status(204).end())
    routes.use((error, req, res, next) => { res.status(500).json({ failed: true }) })
  })
})
after(async () => { app.stop(); await stopPools() })

const keyed = (key = randomUUID()) => ({ 'Idempotency-Key': key })
const pay = (headers, body = { amount: 1000, currency: 'eur' }, options) => app.post('/ietf/payments', body, headers, options)
const isKept = (headers) => value('SELECT count(*) > 0 FROM idempotency_keys WHERE key = $1', headers['Idempotency-Key'])

test('the response is sent after COMMIT: one that fails is no success', async () => {
  const headers = keyed()
  await query(`CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'at commit'; END$$`)
  await query(`CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON payments DEFERRABLE INITIALLY DEFERRED
               FOR EACH ROW EXECUTE FUNCTION refuse()`)
  try {
    const { status, headers: sent } = await pay(headers)
    assert.equal(status, 503)
    assert.equal(sent.get('location'), null)
    assert.equal(await isKept(headers), false)
  } finally {
    await query('DROP FUNCTION refuse CASCADE')
  }
  assert.equal((await pay(headers)).status, 201)
})

test('a client that goes away finds its response when it comes back', async () => {
  const headers = keyed()
  const count = await value('SELECT count(*)::int FROM payments')
  await whileBlocked(async () => {
    const patience = new AbortController()
    const gone = assert.rejects(pay(headers, undefined, { signal: patience.signal }), { name: 'AbortError' })
    await isWaiting()
    patience.abort()
    await gone
  })
  await until(() => isKept(headers), 'the work is committed')
  assert.equal((await pay(headers)).status, 201)
  assert.equal(await value('SELECT count(*)::int FROM payments'), count + 1)
})

test('a handler that never answers leaves no transaction behind when its client has gone', async () => {
  const headers = keyed()
  await assert.rejects(app.post('/hang', {}, headers, { signal: AbortSignal.timeout(200) }))
  await isIdle()
  assert.equal(await isKept(headers), false)
  assert.equal(pool.totalCount - pool.idleCount, 0)
})

test('a lost connection to the database is no success, and the service lives on', async () => {
  const headers = keyed()
  assert.equal((await app.post('/die', {}, headers)).status, 503)
  assert.equal(await isKept(headers), false)
  assert.equal((await pay(keyed())).status, 201)
})

test('an exception in a handler ends the transaction and frees the key', async () => {
  const headers = keyed()
  assert.equal((await app.post('/throw', {}, headers)).status, 500)
  await isIdle()
  assert.equal(await isKept(headers), false)
})

test('a replay keeps bytes that are no text, and only headers that belong to the response', async () => {
  const headers = keyed()
  const [first, second] = [await fetchRaw('/chunks', headers), await fetchRaw('/chunks', headers)]
  assert.deepEqual(first.bytes, Buffer.from('one, two, \xff', 'latin1'))
  assert.deepEqual(second.bytes, first.bytes)
  assert.equal(second.headers.get('content-type'), 'application/x-test')
  assert.equal(second.headers.get('link'), '</x>; rel=next')
  assert.equal(first.headers.get('set-cookie'), 'secret=1')
  assert.equal(second.headers.get('set-cookie'), null)
  assert.equal(second.headers.get('x-run'), null)
  assert.equal(await value(`SELECT headers ?| ARRAY['set-cookie', 'date'] FROM idempotency_keys WHERE key = $1`, headers['Idempotency-Key']), false)
})

test('an empty response is replayed empty', async () => {
  const headers = keyed()
  for (let i = 0; i < 2; i++) {
    const { status, bytes } = await fetchRaw('/empty', headers)
    assert.equal(status, 204)
    assert.equal(bytes.length, 0)
  }
})

test('many requests with one key at once: one runs, all that are answered get its response', async () => {
  const headers = keyed()
  const answers = await Promise.all(Array.from({ length: 20 }, () => pay(headers)))
  const paid = answers.filter(({ status }) => status === 201)
  assert.ok(paid.length >= 1)
  assert.equal(new Set(paid.map(({ headers }) => headers.get('location'))).size, 1)
  assert.ok(answers.every(({ status }) => status === 201 || status === 409))
})

async function fetchRaw(path, headers) {
  const res = await fetch(`http://127.0.0.1:${app.port}${path}`, {
    method: 'POST', body: '{}', headers: { 'Content-Type': 'application/json', ...headers } })
  return { status: res.status, headers: res.headers, bytes: Buffer.from(await res.arrayBuffer()) }
}
