// draft-ietf-httpapi-idempotency-key-header-07, sentence by sentence. doc/ietf-draft.md names each test by its title.
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { after, before, test } from 'node:test'
import { setTimeout as pause } from 'node:timers/promises'
import express from 'express'
import { express as adapter, keepRawBody } from 'idempotency-postgres'
import { idempotentClient } from 'idempotency-postgres/client'
import { admin, guard, pool, serve, sql } from './apps.js'

const documentation = 'https://payments.example/docs/idempotency'
const value = async (text, ...values) => Object.values((await admin.query(text, values)).rows[0])[0]
const payments = () => value('SELECT count(*)::int FROM payments')
const quoted = (key = randomUUID()) => ({ 'idempotency-key': `"${key}"` })
const stored = (key) => value('SELECT count(*)::int FROM idempotency_keys WHERE key = $1', key)

let app, strict
const application = (options) => () => {
  const routes = express()
  routes.use(express.json({ verify: keepRawBody }))
  routes.all('/pay', adapter(guard({ documentation, retention: '7 days', ...options })), async (req, res) => {
    const { rows: [{ id }] } = await req.db.query(`INSERT INTO payments (account, amount) VALUES ('draft', '1') RETURNING id`)
    if (req.get('x-do') === 'block') await req.db.query('LOCK TABLE gate IN SHARE MODE')
    if (req.get('x-do') === 'decline') return res.status(402).json({ error: 'declined' })
    res.status(201).location(`/payments/${id}`).json({ id })
  })
  return routes
}
before(async () => {
  await admin.query('CREATE TABLE IF NOT EXISTS gate (); GRANT SELECT, UPDATE ON gate TO app')
  app = await serve(application())
  strict = await serve(application({ bareKeys: false }))
})
after(async () => { app.stop(); strict.stop(); await Promise.all([pool.end(), sql.end(), admin.end()]) })

const isProblem = (res, status, code) => {
  const body = JSON.parse(res.text)
  assert.deepEqual([res.status, body.status, body.code, body.type], [status, status, code, documentation])
  assert.ok(body.title && body.detail)
  assert.equal(res.headers.get('content-type'), 'application/problem+json')
  assert.equal(res.headers.get('content-language'), 'en')
  assert.equal(res.headers.get('link'), `<${documentation}>; rel="describedby"; type="text/html"`)
}

test('2.1 the value is a String', async () => {
  for (const header of ['"a', 'a"', '"a" b', '"a"b', '"a\\b"', '"a", "b"', '("a")', '"a";', '"a";=1', '"a";B=1', '"\u00e9"', '""', '']) {
    const res = await strict.post('{}', { 'idempotency-key': Buffer.from(header).toString('latin1') })
    assert.equal(res.status, 400, header)
  }
  for (const header of ['12', '?1', ':YWJj:', 'token']) assert.equal((await strict.post('{}', { 'idempotency-key': header })).status, 400, header)
})

test('2.1 escapes are read, parameters are ignored', async () => {
  const part = randomUUID()
  const first = await strict.post('{}', { 'idempotency-key': `"a\\"b\\\\${part}"` })
  assert.equal(await stored(`a"b\\${part}`), 1)
  for (const parameters of [';v=1', '; a;b=?1', ';a="x;y"']) {
    assert.equal((await strict.post('{}', { 'idempotency-key': `"a\\"b\\\\${part}"${parameters}` })).text, first.text)
  }
})

test('2.1 a key without quotes is the same key, unless bareKeys is false', async () => {
  const key = randomUUID()
  const first = await app.post('{}', quoted(key))
  assert.equal((await app.post('{}', { 'idempotency-key': key })).text, first.text)
  assert.equal((await strict.post('{}', { 'idempotency-key': key })).status, 400)
})

test('2.2 a key is not reused with another payload', async () => {
  const [headers, was] = [quoted(), await payments()]
  await app.post('{"a":1}', headers)
  for (const [body, path, method] of [['{"a":2}'], ['{"a":1}', '/pay?b=1'], ['{"a":1}', '/pay', 'PATCH']]) {
    assert.equal((await app.post(body, headers, path, method)).status, 422)
  }
  assert.equal(await payments(), was + 1)
})

test('2.2 uniqueness is per account', async () => {
  const headers = quoted()
  const first = await app.post('{}', headers)
  const other = await app.post('{}', { ...headers, 'x-account': 'acct_2' })
  assert.deepEqual([other.status, other.text === first.text], [201, false])
})

test('2.3 a key expires after the published time', async () => {
  const key = randomUUID()
  await app.post('{}', quoted(key))
  assert.equal(await value(`SELECT expires_at - finished_at BETWEEN interval '7 days' AND interval '7 days 1 hour' FROM idempotency_keys WHERE key = $1`, key), true)
})

test('2.3 an expired key is as good as new', async () => {
  const brief = await serve(application({ retention: '1 millisecond' }))
  try {
    const headers = quoted()
    const first = await brief.post('{}', headers)
    await pause(5)
    const again = await brief.post('{}', headers)
    assert.deepEqual([again.status, again.text === first.text], [201, false])
  } finally {
    brief.stop()
  }
})

test('2.4 the fingerprint covers method, path, query and the whole body', async () => {
  const headers = { ...quoted(), 'content-type': 'text/plain' }
  const body = 'x'.repeat(5000)
  assert.equal((await app.post(body, headers)).status, 201)
  assert.equal((await app.post(`${body.slice(0, -1)}y`, headers)).status, 422)
  assert.equal((await app.post(body, headers)).status, 201)
})

test('2.5.1 the client sends a unique key, as a String', async () => {
  const keys = []
  const client = idempotentClient({ fetch: async (url, { headers }) => { keys.push(headers['Idempotency-Key']); return new Response(null, { status: 201 }) } })
  for (const name of ['a', 'b', 'a']) await client.send(name, '/pay')
  assert.equal(new Set(keys).size, 3)
  for (const key of keys) assert.match(key, /^"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"$/)
})

test('2.6 the first request is processed normally', async () => {
  const was = await payments()
  const res = await app.post('{}', quoted())
  assert.deepEqual([res.status, res.headers.get('idempotency-replayed'), await payments()], [201, null, was + 1])
})

test('2.6 a retry gets the result of the first request, success or error', async () => {
  for (const what of ['pay', 'decline']) {
    const headers = { ...quoted(), 'x-do': what }
    const first = await app.post('{}', headers)
    const was = await payments()
    const again = await app.post('{}', headers)
    assert.deepEqual([again.status, again.text, again.headers.get('location')], [first.status, first.text, first.headers.get('location')])
    assert.equal(again.headers.get('idempotency-replayed'), 'true')
    assert.equal(await payments(), was)
  }
})

test('2.7 a missing key is 400 with a link to the documentation', async () => {
  const was = await payments()
  isProblem(await app.post('{}'), 400, 'idempotency_missing')
  assert.equal(await payments(), was)
})

test('2.7 another payload is 422 with a link to the documentation', async () => {
  const headers = quoted()
  await app.post('{}', headers)
  isProblem(await app.post('{"a":1}', headers), 422, 'idempotency_mismatch')
})

test('2.6, 2.7 a retry during the work is 409 with a problem description', async () => {
  const headers = { ...quoted(), 'x-do': 'block' }
  const holder = await admin.connect()
  let first
  try {
    await holder.query('BEGIN; LOCK TABLE gate')
    first = app.post('{}', headers)
    for (let i = 0; i < 500 && !await value(`SELECT count(*) > 0 FROM pg_locks WHERE relation = 'gate'::regclass AND NOT granted`); i++) await pause(20)
    isProblem(await app.post('{}', headers), 409, 'idempotency_in_progress')
  } finally {
    await holder.query('ROLLBACK')
    holder.release()
  }
  assert.equal((await first).status, 201)
})

test('2.7 a request that was not corrected fails again; corrected, it is processed', async () => {
  const headers = quoted()
  await app.post('{}', headers)
  for (let i = 0; i < 2; i++) assert.equal((await app.post('{"a":1}', headers)).status, 422)
  assert.equal((await app.post('{"a":1}', quoted())).status, 201)
})

test('2.7 the client acts on other errors as documented', async () => {
  for (const [status, tries] of [[401, 1], [403, 1], [429, 2], [500, 2], [502, 2], [503, 2], [504, 2]]) {
    const keys = []
    const client = idempotentClient({ sleep: async () => {}, fetch: async (url, { headers }) => {
      keys.push(headers['Idempotency-Key'])
      return new Response(null, { status: keys.length === 1 ? status : 201 })
    } })
    await client.send('a', '/pay')
    assert.deepEqual([keys.length, new Set(keys).size], [tries, 1], String(status))
  }
})

test('5 a key is validated before anything is processed', async () => {
  const was = await payments()
  for (const key of ['', 'x'.repeat(256)]) isProblem(await app.post('{}', quoted(key)), 400, 'idempotency_invalid')
  assert.equal(await payments(), was)
})

test('5 the look-up key is composed of the account and the key', async () => {
  const key = randomUUID()
  await app.post('{}', quoted(key))
  assert.equal(await value('SELECT scope FROM idempotency_keys WHERE key = $1', key), 'ietf acct_1')
})
