// What does not depend on the framework: leases, waiting, comparison, pools, Stripe's client, package and types.
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { readFileSync, readdirSync, writeFileSync } from 'node:fs'
import http from 'node:http'
import { createRequire } from 'node:module'
import { dirname } from 'node:path'
import { after, test } from 'node:test'
import { setTimeout as pause } from 'node:timers/promises'
import pg from 'pg'
import postgres from 'postgres'
import Stripe from 'stripe'
import { express as adapter, idempotency, keepRawBody, pgDriver, postgresDriver, stripe, stripeV2, UnknownOutcome } from 'idempotency-postgres'
import express from 'express'
import { admin, guard, pool, serve, sql } from './apps.js'

const require = createRequire(import.meta.url)
const value = async (text, ...values) => Object.values((await admin.query(text, values)).rows[0])[0]
const until = async (text) => {
  for (let i = 0; i < 500; i++) {
    if (await value(text)) return
    await pause(20)
  }
  throw new Error(`waited in vain: ${text}`)
}
after(() => Promise.all([pool.end(), sql.end(), admin.end()]))

const request = (key = randomUUID(), body = '{"amount":1}', url = '/pay') => ({ method: 'POST', url, body: Buffer.from(body),
  headers: { 'idempotency-key': key, 'x-account': 'acct_1' }, source: { headers: { 'x-account': 'acct_1' } } })
const created = (body = 'done') => ({ status: 201, headers: { 'content-type': 'text/plain' }, body: Buffer.from(body) })

test('the account has no default', async () => {
  assert.throws(() => idempotency({ connect: pgDriver(pool) }), TypeError)
  const nobody = idempotency({ connect: pgDriver(pool), account: () => undefined })
  assert.equal((await nobody.run(request(), async () => assert.fail('ran'))).status, 401)
})

test('an sql on which a reserved connection would never come is refused', async () => {
  const other = postgres({ fetch_types: false })
  assert.throws(() => postgresDriver(other), TypeError)
  await other.end()
})

test('a body that was parsed without its bytes is an error', async () => {
  const app = await serve(() => {
    const app = express()
    app.use(express.json(), adapter(guard()))
    app.post('/pay', (req, res) => res.status(201).end())
    app.use((error, req, res, next) => res.status(500).end(error.message))
    return app
  })
  try {
    const res = await app.post('{"a":1}', { 'idempotency-key': randomUUID() })
    assert.equal(res.status, 500)
    assert.match(res.text, /keepRawBody/)
  } finally {
    app.stop()
  }
})

test('compare raw: bytes', async () => {
  const raw = guard({ compare: 'raw' })
  const key = randomUUID()
  for (const [body, status] of [['{"a":1}', 201], ['{"a": 1}', 422], ['{"a":1}', 201]]) {
    assert.equal((await raw.run(request(key, body), async () => created())).status, status)
  }
})

test('compare json: beyond 1 MiB a body is compared by its bytes', async () => {
  const key = randomUUID()
  const long = 'x'.repeat(1 << 20)
  for (const [body, status] of [[`{"a":1,"b":"${long}"}`, 201], [`{"b":"${long}","a":1}`, 422], [`{"a":1,"b":"${long}"}`, 201]]) {
    assert.equal((await guard().run(request(key, body), async () => created())).status, status)
  }
})

test('compare json: the order of a form does not matter, its fields do', async () => {
  const key = randomUUID()
  const form = (body) => ({ ...request(key, body), headers: { 'idempotency-key': key, 'content-type': 'application/x-www-form-urlencoded' } })
  for (const [body, status] of [['a=1&b=%C3%A9&b=2', 201], ['b=%c3%a9&a=1&b=2', 201], ['b=2&b=%C3%A9&a=1', 422], ['a=1&b=2', 422]]) {
    assert.equal((await guard().run(form(body), async () => created())).status, status, body)
  }
})

test('compare json: the default: order and white space do not matter, values do', async () => {
  const json = guard()
  const key = randomUUID()
  const status = async (body) => (await json.run(request(key, body), async () => created())).status
  assert.equal(await status('{"a":[1,{"x":"\\u0041"}],"b":9007199254740993}'), 201)
  assert.equal(await status('{ "b" : 9007199254740993, "a" : [1, {"x":"A"}] }'), 201)
  for (const other of ['{"a":[1,{"x":"A"}],"b":9007199254740992}', '{"a":[1],"b":9007199254740993}', '{}', 'nothing']) {
    assert.equal(await status(other), 422)
  }
})

test('wait: a retry waits for the first attempt and gets its response; lock_timeout is as before', async () => {
  const waiting = guard({ wait: '10s' })
  const key = randomUUID()
  let open, began
  const beginning = new Promise((resolve) => { began = resolve })
  const first = waiting.run(request(key), async () => {
    began()
    await new Promise((resolve) => { open = resolve })
    return created()
  })
  await beginning
  const second = waiting.run(request(key), async () => assert.fail('ran twice'))
  await until(`SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND usename = 'app'`)
  open()
  assert.equal((await first).status, 201)
  assert.equal((await second).headers['idempotency-replayed'], 'true')
  const shown = await waiting.run(request(), async ({ db }) => created((await db.query('SHOW lock_timeout')).rows[0].lock_timeout))
  assert.equal(shown.body.toString(), '0')
})

test('wait: when its time is over it is 409', async () => {
  const key = randomUUID()
  let open
  const first = guard().run(request(key), async () => {
    await new Promise((resolve) => { open = resolve })
    return created()
  })
  await until(`SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory'`)
  assert.equal((await guard({ wait: '50ms' }).run(request(key), async () => created())).status, 409)
  open()
  await first
})

test('retention by outcome', async () => {
  const brief = guard({ keep: ({ status }) => status < 400 ? true : '10 seconds' })
  const [good, bad] = [request(), request()]
  await brief.run(good, async () => created())
  await brief.run(bad, async () => ({ ...created(), status: 404 }))
  const life = (key) => value('SELECT expires_at - finished_at < $2::interval FROM idempotency_keys WHERE key = $1', key, '1 minute')
  assert.equal(await life(good.headers['idempotency-key']), false)
  assert.equal(await life(bad.headers['idempotency-key']), true)
})

test('a pool that has no connection left is 503', async () => {
  const small = new pg.Pool({ user: 'app', max: 1 })
  const held = await small.connect()
  small.options.connectionTimeoutMillis = 50
  try {
    const res = await guard({ connect: pgDriver(small) }).run(request(), async () => created())
    assert.equal(res.status, 503)
  } finally {
    held.release()
    await small.end()
  }
})

test('a handler that swallowed a failed statement is not answered as if it had worked', async () => {
  const req = request()
  const res = await guard().run(req, async ({ db }) => {
    await db.query('SELECT 1/0').catch(() => {})
    return created()
  })
  assert.equal(res.status, 500)
  assert.equal((await guard().run(req, async () => created())).headers['idempotency-replayed'], undefined)
})

test('the status of each SQLSTATE, and Retry-After where a retry may help', async () => {
  for (const [code, status] of Object.entries(JSON.parse(readFileSync('sqlstates.json')))) {
    const connect = async () => ({ release() {}, query: async (text) => {
      if (text.includes('idempotent_try_begin')) throw Object.assign(new Error('expected by the test'), { code })
      return []
    } })
    const res = await guard({ connect }).run(request(), async () => assert.fail('ran'))
    assert.deepEqual([code, res.status, res.headers['retry-after']], [code, status, status === 409 || status === 503 ? '1' : undefined])
  }
})

test('an error that the handler throws is thrown on, and nothing is kept', async () => {
  const req = request()
  await assert.rejects(guard().run(req, async () => { throw new RangeError('no') }), RangeError)
  assert.equal((await guard().run(req, async () => created())).status, 201)
})

test('Stripe API v2: a failure runs again, keys live 30 days', async () => {
  const v2 = guard({ profile: stripeV2 })
  const req = request()
  assert.equal((await v2.run(req, async () => ({ ...created(), status: 402 }))).status, 402)
  assert.equal((await v2.run(req, async () => created())).status, 201)
  assert.equal(await value(`SELECT expires_at - finished_at >= interval '30 days' FROM idempotency_keys WHERE key = $1`, req.headers['idempotency-key']), true)
})

test('another header', async () => {
  const own = guard({ header: 'X-Request-Key' })
  const headers = { 'x-account': 'acct_1', 'x-request-key': randomUUID() }
  const send = async () => (await own.run({ ...request(), headers }, async () => created())).headers['idempotency-replayed']
  assert.deepEqual([await send(), await send()], [undefined, 'true'])
  assert.equal((await own.run(request(), async () => created())).status, 400)
})

test('other methods go by', async () => {
  const protectedBy = { ietf: [undefined, ['POST', 'PATCH']], stripe: [stripe, ['POST']], stripeV2: [stripeV2, ['POST', 'DELETE']] }
  for (const [name, [profile, methods]] of Object.entries(protectedBy)) {
    const app = await serve(() => {
      const app = express()
      app.use(adapter(guard({ profile })))
      app.all('/pay', (req, res) => res.status(req.db ? 201 : 200).end())
      return app
    })
    try {
      for (const method of ['POST', 'PATCH', 'PUT', 'DELETE']) {
        assert.equal((await app.post('{}', { 'idempotency-key': randomUUID() }, '/pay', method)).status, methods.includes(method) ? 201 : 200, `${name} ${method}`)
      }
    } finally {
      app.stop()
    }
  }
})

test('keepHeaders are kept in addition, and Set-Cookie never', async () => {
  const own = guard({ keepHeaders: ['X-Own', 'Set-Cookie'] })
  const req = request()
  await own.run(req, async () => ({ ...created(), headers: { 'content-type': 'text/plain', 'x-own': '1', 'x-other': '2', 'set-cookie': 'a=1' } }))
  const { headers } = await own.run(req, async () => assert.fail('ran twice'))
  assert.deepEqual(headers, { 'content-type': 'text/plain', 'x-own': '1', 'idempotency-replayed': 'true' })
})

test('lease: a step that was recorded is not called again, and its key is the same on every attempt', async () => {
  const leased = guard({ lease: '60s' })
  const req = request()
  const keys = []
  const work = (last) => leased.run(req, async ({ step }) => {
    const charge = await step('charge', async (key) => { keys.push(key); return { id: 7 } })
    await step('ship', async (key) => { keys.push(key); if (last) return 1; throw new Error('the carrier is down') })
    return created(String(charge.id))
  })
  await assert.rejects(work(false), /carrier/)
  const res = await work(true)
  assert.deepEqual([res.status, res.body.toString()], [201, '7'])
  assert.equal(keys.length, 3)
  assert.equal(keys[1], keys[2])
  assert.match(keys[0], /^[0-9a-f]{64}$/)
  assert.equal((await work(true)).headers['idempotency-replayed'], 'true')
})

test('lease: a step that fails may say when the next attempt is due', async () => {
  const leased = guard({ lease: '60s' })
  const req = request()
  const later = Object.assign(new Error('closed'), { retryAfter: '1 hour' })
  await assert.rejects(leased.run(req, ({ step }) => step('charge', async () => { throw later })), /closed/)
  const res = await leased.run(req, async () => assert.fail('ran'))
  assert.equal(res.status, 409)
  assert.ok(Number(res.headers['retry-after']) > 3000)
})

test('lease: without a key each step is called once, under a key of its own, and what it saves commits', async () => {
  const leased = guard({ lease: '60s', required: false })
  const { 'idempotency-key': none, ...headers } = request().headers
  const was = await value('SELECT count(*)::int FROM payments')
  const keys = []
  const res = await leased.run({ ...request(), headers }, async ({ step }) => {
    await step('charge', async (key) => { keys.push(key) }, (db) => db.query(`INSERT INTO payments (account, amount) VALUES ('a', '1')`))
    await step('ship', async (key) => { keys.push(key) })
    return created()
  })
  assert.deepEqual([res.status, new Set(keys).size], [201, 2])
  assert.equal(await value('SELECT count(*)::int FROM payments') - was, 1)
  await assert.rejects(leased.run({ ...request(), headers }, ({ step }) => step('charge', async () => { throw new RangeError('no') })), RangeError)
})

test('lease: what a step saves commits with its checkpoint', async () => {
  const leased = guard({ lease: '60s' })
  const was = await value('SELECT count(*)::int FROM payments')
  await leased.run(request(), async ({ step }) => {
    await step('charge', async () => 1, (db) => db.query(`INSERT INTO payments (account, amount) VALUES ('a', '1')`))
    return created()
  })
  assert.equal(await value('SELECT count(*)::int FROM payments') - was, 1)
})

test('lease: an unknown outcome parks the claim, and nobody tries again', async () => {
  const leased = guard({ lease: '60s' })
  const req = request()
  let calls = 0
  const work = () => leased.run(req, ({ step }) => step('charge', async () => { calls++; throw new UnknownOutcome('no reply') }))
  assert.equal((await work()).status, 423)
  assert.equal((await work()).status, 423)
  assert.equal(calls, 1)
})

test('lease: an unknown outcome that a framework turned into a response parks as well', async () => {
  const app = await serve(() => {
    const app = express()
    app.use(adapter(guard({ lease: '60s' })))
    app.post('/pay', async (req, res) => {
      await req.idempotent.step('charge', async () => { throw new UnknownOutcome('no reply') })
    })
    app.use((error, req, res, next) => res.status(500).end())
    return app
  })
  const headers = { 'idempotency-key': randomUUID() }
  try {
    assert.deepEqual([(await app.post('{}', headers)).status, (await app.post('{}', headers)).status], [423, 423])
  } finally {
    app.stop()
  }
})

test('lease: a retry during the work is 409; a response that is not kept frees the key at once', async () => {
  const leased = guard({ lease: '60s' })
  const req = request()
  const first = await leased.run(req, async () => {
    assert.equal((await leased.run(request(req.headers['idempotency-key']), async () => created())).status, 409)
    return { ...created(), status: 503 }
  })
  assert.equal(first.status, 503)
  assert.equal((await leased.run(request(req.headers['idempotency-key']), async () => created())).status, 201)
})

test(`Stripe's own client through a line that loses replies: each charge exists once`, async () => {
  const app = await serve(() => {
    const app = express()
    app.use(express.urlencoded({ extended: true, verify: keepRawBody }))
    const account = (req) => req.get('authorization')
    app.post('/v1/charges', adapter(guard({ profile: stripe, account })), async (req, res) => {
      if (req.body.amount === '13') return res.status(500).json({ error: { type: 'api_error', message: 'no' } })
      const { rows: [{ id }] } = await req.db.query(`INSERT INTO payments (account, amount) VALUES ('stripe', $1) RETURNING id`, [req.body.amount])
      res.json({ id: `ch_${id}`, object: 'charge', amount: Number(req.body.amount) })
    })
    return app
  })
  const line = await lossyLine(app.port, ['reply', 'request', 'reply'])
  const client = new Stripe('sk_test', { host: '127.0.0.1', port: line.port, protocol: 'http', maxNetworkRetries: 5, telemetry: false })
  const was = await value('SELECT count(*)::int FROM payments')
  try {
    const made = await Promise.all(Array.from({ length: 6 }, (_, n) => client.charges.create({ amount: 100 + n, currency: 'eur', source: 'tok' })))
    assert.equal(await value('SELECT count(*)::int FROM payments') - was, 6)
    assert.equal(new Set(made.map(({ id }) => id)).size, 6)
    for (const { lastResponse } of made) {
      assert.ok(lastResponse.idempotencyKey)
      assert.match(lastResponse.requestId, /^req_/)
    }
    line.reset([])
    await assert.rejects(client.charges.create({ amount: 13, currency: 'eur' }), { statusCode: 500 })
    assert.equal(line.requests(), 1)
  } finally {
    line.stop()
    app.stop()
  }
})

// Of each key, the first exchanges lose their request or their reply.
async function lossyLine(port, fates) {
  let seen = new Map()
  const line = http.createServer(async (req, res) => {
    const key = req.headers['idempotency-key']
    const n = seen.get(key) ?? 0
    seen.set(key, n + 1)
    const chunks = []
    for await (const chunk of req) chunks.push(chunk)
    if (fates[n] === 'request') return req.socket.destroy()
    const onward = http.request({ port, host: '127.0.0.1', method: req.method, path: req.url, headers: req.headers, agent: false }, (reply) => {
      if (fates[n] === 'reply') return reply.resume().on('end', () => req.socket.destroy())
      res.writeHead(reply.statusCode, reply.headers)
      reply.pipe(res)
    })
    onward.end(Buffer.concat(chunks))
  })
  await new Promise((resolve) => line.listen(0, '127.0.0.1', resolve))
  return { port: line.address().port, requests: () => [...seen.values()].reduce((a, b) => a + b, 0),
    reset: (other) => { seen = new Map(); fates = other }, stop: () => { line.closeAllConnections(); line.close() } }
}

test('the package holds what it should, and CommonJS has the same names as ES modules', async () => {
  const home = dirname(require.resolve('idempotency-postgres'))
  assert.deepEqual(readdirSync(home).sort(), ['LICENSE', 'README.md', 'client.d.mts', 'client.d.ts', 'client.js', 'client.mjs', 'index.d.ts', 'index.js', 'lib', 'package.json'])
  for (const name of ['idempotency-postgres', 'idempotency-postgres/client']) {
    const names = Object.keys(await import(name)).filter((one) => one !== 'default' && one !== 'module.exports').sort()
    assert.deepEqual(Object.keys(require(name)).sort(), names)
  }
})

test('its types accept right use and refuse wrong use', () => {
  writeFileSync('use.ts', `
import { idempotency, pgDriver, ietf, express, fetchHandler } from 'idempotency-postgres'
import { idempotentClient, fullJitter } from 'idempotency-postgres/client'
const guard = idempotency({ connect: pgDriver({}), account: (req) => req.account, profile: ietf, lease: '60s' })
express(guard)
fetchHandler(guard, async (request, { step }) => new Response(await step('a', async (key) => key)))
idempotentClient({ storage: localStorage, retries: () => fullJitter() }).send('order 7', '/pay', { body: '{}' }).then((r) => r.status)
// @ts-expect-error the account is missing
idempotency({ connect: pgDriver({}) })
// @ts-expect-error a misspelled option
idempotency({ connect: pgDriver({}), account: () => 'a', compair: 'json' })
`)
  execFileSync(process.execPath, [require.resolve('typescript/bin/tsc'), '--noEmit', '--strict', '--module', 'nodenext', '--target', 'es2022',
    '--lib', 'es2022,dom', '--types', 'node', 'use.ts'], { stdio: 'pipe', encoding: 'utf8' })
})
