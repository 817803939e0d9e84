// The same black-box suite over real HTTP for each framework.
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { after, before, describe, test } from 'node:test'
import { setTimeout as pause } from 'node:timers/promises'
import { stripe, toss } from 'idempotency-postgres'
import { admin, frameworks, pool, serve, sql } from './apps.js'

const count = async () => (await admin.query('SELECT count(*)::int AS n FROM payments')).rows[0].n
const until = async (text) => {
  for (let i = 0; i < 500; i++) {
    if ((await admin.query(text)).rows[0].t) return
    await pause(20)
  }
  throw new Error(`waited in vain: ${text}`)
}
before(() => admin.query('CREATE TABLE IF NOT EXISTS gate (); GRANT SELECT, UPDATE ON gate TO app'))
after(() => Promise.all([pool.end(), sql.end(), admin.end()]))

for (const [name, make] of Object.entries(frameworks)) {
  describe(name, () => {
    let app, key
    before(async () => { app = await serve(make) })
    after(() => app.stop())
    const fresh = () => { key = randomUUID() }
    const send = (body = '{"amount":1}', headers = {}, path, method) => app.post(body, { 'idempotency-key': key, ...headers }, path, method)
    // The response twice, and how often the handler's work is there.
    const twice = async (headers, body) => {
      fresh()
      const was = await count()
      const [first, second] = [await send(body, headers), await send(body, headers)]
      return { first, second, done: await count() - was }
    }

    test('a retry gets the first response, marked, and the work is done once', async () => {
      const { first, second, done } = await twice()
      assert.equal(first.status, 201)
      assert.equal(first.headers.get('idempotency-replayed'), null)
      assert.equal(second.status, 201)
      assert.equal(second.headers.get('idempotency-replayed'), 'true')
      assert.equal(second.headers.get('content-type'), first.headers.get('content-type'))
      assert.deepEqual(second.bytes, first.bytes)
      assert.equal(done, 1)
    })

    test('another body or query is a mismatch', async () => {
      fresh()
      await send()
      for (const [body, path] of [['{"amount":2}'], [undefined, '/pay?dry_run=1'], [undefined, '/pay?dry_run=1&']]) {
        assert.equal((await send(body, {}, path)).status, 422)
      }
    })

    test('numbers beyond 2^53 differ', async () => {
      fresh()
      await send('{"amount":9007199254740992}')
      assert.equal((await send('{"amount":9007199254740993}')).status, 422)
    })

    test('a NUL and a lone surrogate in the body are compared', async () => {
      for (const body of ['{"a":"\\u0000"}', '{"a":"\\ud800"}']) {
        const { first, second } = await twice({}, body)
        assert.deepEqual([first.status, second.status], [201, 201])
        assert.equal((await send('{"a":"\\ud801"}')).status, 422)
      }
    })

    test('a body of a type that no parser reads is compared', async () => {
      fresh()
      assert.equal((await send('a', { 'content-type': 'text/plain' })).status, 201)
      assert.equal((await send('b', { 'content-type': 'text/plain' })).status, 422)
    })

    test('a missing or malformed key is 400 with a code, a type and a link', async () => {
      for (const [header, code] of [[undefined, 'idempotency_missing'], ['"open', 'idempotency_invalid'], ['x'.repeat(256), 'idempotency_invalid']]) {
        const res = await app.post('{}', header === undefined ? {} : { 'idempotency-key': header })
        assert.equal(res.status, 400)
        assert.equal(JSON.parse(res.text).code, code)
        assert.match(JSON.parse(res.text).type, /^https:/)
        assert.match(res.headers.get('link'), /rel="describedby"/)
        assert.equal(res.headers.get('content-type'), 'application/problem+json')
      }
    })

    test('two accounts may use the same key', async () => {
      fresh()
      const was = await count()
      await send()
      assert.equal((await send(undefined, { 'x-account': 'acct_2' })).headers.get('idempotency-replayed'), null)
      assert.equal(await count() - was, 2)
    })

    test('a refusal of the handler is kept and its work undone', async () => {
      const { first, second, done } = await twice({ 'x-do': 'decline' })
      assert.deepEqual([first.status, second.status, done], [402, 402, 0])
      assert.equal(second.headers.get('idempotency-replayed'), 'true')
    })

    test('an error of the handler is not kept', async () => {
      const { first, second, done } = await twice({ 'x-do': 'broken' })
      assert.deepEqual([first.status, second.status, done], [500, 500, 0])
      assert.equal((await send()).status, 201)
    })

    test('429 is not kept', async () => {
      const { first, second, done } = await twice({ 'x-do': 'limited' })
      assert.deepEqual([first.status, second.status, done], [429, 201, 1])
    })

    test('statement_timeout is 503 and nothing is kept', async () => {
      const { first, second, done } = await twice({ 'x-do': 'timeout' })
      assert.deepEqual([first.status, second.status, done], [503, 201, 1])
      assert.equal(first.headers.get('retry-after'), '1')
    })

    test('compressed bytes come back with their encoding', async () => {
      const { first, second } = await twice({ 'x-do': 'gzip' })
      assert.equal(second.headers.get('content-encoding'), 'gzip')
      assert.equal(second.headers.get('vary'), 'Accept-Encoding')
      assert.equal(second.text, first.text)
      assert.ok(JSON.parse(second.text).id)
    })

    test('303, 202 and 204 come back with their Location', async () => {
      for (const [what, status] of [['other', 303], ['accepted', 202], ['empty', 204]]) {
        const { first, second, done } = await twice({ 'x-do': what })
        assert.deepEqual([first.status, second.status, done], [status, status, 1])
        assert.equal(second.headers.get('location'), first.headers.get('location'))
        assert.equal(second.text, first.text)
      }
    })

    test('a streamed response comes back whole', async () => {
      const { first, second } = await twice({ 'x-do': 'large' })
      assert.equal(first.bytes.length, 500_000)
      assert.deepEqual(second.bytes, first.bytes)
    })

    test('a response over max_response_size is 500 without a hint to retry, and nothing is kept', async () => {
      const { first, second, done } = await twice({ 'x-do': 'oversize' })
      assert.deepEqual([first.status, second.status, done], [500, 500, 0])
      assert.equal(first.headers.get('retry-after'), null)
    })

    test('Set-Cookie reaches the first client and is not kept', async () => {
      const { first, second } = await twice({ 'x-do': 'cookie' })
      assert.equal(first.headers.get('set-cookie'), 'a=1')
      assert.equal(second.headers.get('set-cookie'), null)
    })

    test('a retry during the work is 409, and so is nothing kept of it', async () => {
      fresh()
      const holder = await admin.connect()
      let first
      try {
        await holder.query('BEGIN; LOCK TABLE gate')
        first = send(undefined, { 'x-do': 'block' })
        await until(`SELECT count(*) > 0 AS t FROM pg_locks WHERE relation = 'gate'::regclass AND NOT granted`)
        const second = await send(undefined, { 'x-do': 'block' })
        assert.equal(second.status, 409)
        assert.ok(Number(second.headers.get('retry-after')) >= 1)
      } finally {
        await holder.query('ROLLBACK')
        holder.release()
      }
      assert.equal((await first).status, 201)
      assert.equal((await send(undefined, { 'x-do': 'block' })).headers.get('idempotency-replayed'), 'true')
    })

    test('a read-only database is 503, and nothing is kept', async () => {
      fresh()
      await admin.query(`ALTER ROLE app SET default_transaction_read_only = on`)
      const [[{ n }]] = [(await admin.query(`SELECT count(pg_terminate_backend(pid, 5000)) AS n FROM pg_stat_activity WHERE usename = 'app'`)).rows]
      assert.ok(n >= 0)
      try {
        assert.equal((await send()).status, 503)
      } finally {
        await admin.query('ALTER ROLE app RESET default_transaction_read_only')
        await admin.query(`SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'app'`)
      }
      let last
      for (let i = 0; i < 5 && last?.status !== 201; i++) last = await send()
      assert.equal(last.status, 201)
    })

    test('a database that cannot be reached is 503', async () => {
      const down = await serve(make, { connect: async () => { throw Object.assign(new Error('refused'), { code: 'ECONNREFUSED' }) } })
      try {
        const res = await down.post('{}', { 'idempotency-key': randomUUID() })
        assert.equal(res.status, 503)
        assert.equal(res.headers.get('retry-after'), '1')
      } finally {
        down.stop()
      }
    })

    test('the Stripe profile: echo, request ids, Stripe-Should-Retry, a kept 500', async () => {
      const s = await serve(make, { profile: stripe })
      try {
        const headers = { 'idempotency-key': randomUUID(), 'x-do': 'broken' }
        const [first, second] = [await s.post('{}', headers), await s.post('{}', headers)]
        assert.deepEqual([first.status, second.status], [500, 500])
        assert.equal(second.headers.get('idempotent-replayed'), 'true')
        assert.equal(second.headers.get('original-request'), first.headers.get('request-id'))
        assert.equal(second.headers.get('idempotency-key'), headers['idempotency-key'])
        for (const res of [first, second]) assert.equal(res.headers.get('stripe-should-retry'), 'false')
        assert.equal((await s.post('{"a":1}', headers)).status, 400)
        const limited = { 'idempotency-key': randomUUID(), 'x-do': 'timeout' }
        assert.deepEqual([(await s.post('{}', limited)).status, (await s.post('{}', limited)).status], [503, 201])
        assert.equal((await s.post('{}')).status, 201)
      } finally {
        s.stop()
      }
    })

    test('the Toss profile: another body gets the first response, a key has 300 characters', async () => {
      const t = await serve(make, { profile: toss })
      try {
        const headers = { 'idempotency-key': 'x'.repeat(264) + randomUUID() }
        assert.equal((await t.post('{}', headers)).text, (await t.post('{"a":1}', headers)).text)
        assert.equal((await t.post('{}', { 'idempotency-key': 'x'.repeat(301) })).status, 400)
      } finally {
        t.stop()
      }
    })
  })
}
