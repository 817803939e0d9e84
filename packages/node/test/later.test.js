// 202 with a status resource, for each framework over real HTTP.
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { after, before, describe, test } from 'node:test'
import { setTimeout as pause } from 'node:timers/promises'
import { idempotency, pgDriver, stripe } from 'idempotency-postgres'
import { idempotentClient } from 'idempotency-postgres/client'
import { admin, guard, orders, pool, serve, sql, work } from './apps.js'

const value = async (text, ...values) => Object.values((await admin.query(text, values)).rows[0])[0]
after(() => Promise.all([pool.end(), sql.end(), admin.end()]))

const asks = (key = randomUUID()) => ({ 'idempotency-key': key, prefer: 'respond-async, wait=10' })

for (const [name, make] of Object.entries(orders)) {
  describe(name, () => {
    let app, used
    before(async () => { app = await serve((options) => make(used = guard({ lease: '60s', status: '/operations', patience: 1, ...options }))) })
    after(() => app.stop())
    const order = (headers) => app.post('{}', headers, '/orders')
    const poll = async (location, more = {}) => {
      const res = await fetch(`http://127.0.0.1:${app.port}${location}`, { headers: { 'x-account': 'acct_1', ...more }, redirect: 'manual' })
      return { status: res.status, headers: res.headers, text: await res.text() }
    }

    // The client has gone for longer than `patience`, and the work goes on.
    test('202 at once, 202 while the work goes on, then the stored response', async () => {
      const open = work.start()
      const headers = asks()
      const first = await order(headers)
      assert.equal(first.status, 202)
      assert.equal(first.headers.get('preference-applied'), 'respond-async')
      assert.match(first.headers.get('retry-after'), /^\d+$/)
      const location = first.headers.get('location')
      await work.begun
      const meanwhile = await poll(location)
      assert.deepEqual([meanwhile.status, JSON.parse(meanwhile.text)], [202, { status: 'in_progress', checkpoint: 'charge' }])
      assert.match(meanwhile.headers.get('retry-after'), /^\d+$/)
      const again = await order(headers)
      assert.deepEqual([again.status, again.headers.get('location')], [202, location])
      open()
      await used.idle()
      const done = await poll(location)
      assert.deepEqual([done.status, done.text, done.headers.get('location')], [201, '{"order":7}', '/orders/7'])
      const replay = await order(headers)
      assert.deepEqual([replay.status, replay.text, replay.headers.get('idempotency-replayed')], [201, '{"order":7}', 'true'])
      assert.equal(work.runs, 1)
    })

    test('without the preference the client waits', async () => {
      work.start()()
      const res = await order({ 'idempotency-key': randomUUID() })
      assert.deepEqual([res.status, res.text], [201, '{"order":7}'])
    })

    test('work that fails shows as interrupted, and the request may be sent again', async () => {
      const open = work.start({ fails: true })
      const headers = asks()
      const location = (await order(headers)).headers.get('location')
      open()
      await used.idle()
      const res = await poll(location)
      assert.deepEqual([res.status, JSON.parse(res.text).code, res.headers.get('retry-after')], [409, 'idempotency_interrupted', null])
      work.start()()
      assert.equal((await order(headers)).status, 202)
      await used.idle()
      assert.equal((await poll(location)).status, 201)
    })

    test('an unknown outcome shows as parked', async () => {
      const open = work.start({ unknown: true })
      const location = (await order(asks())).headers.get('location')
      open()
      await used.idle()
      const res = await poll(location)
      assert.deepEqual([res.status, JSON.parse(res.text).code], [423, 'idempotency_parked'])
    })

    test('a refusal is the stored response', async () => {
      const open = work.start({ declines: true })
      const location = (await order(asks())).headers.get('location')
      open()
      await used.idle()
      assert.equal((await poll(location)).status, 402)
    })

    test('another account and another name find nothing', async () => {
      work.start()()
      const location = (await order(asks())).headers.get('location')
      await used.idle()
      assert.equal((await poll(location, { 'x-account': 'acct_2' })).status, 404)
      for (const other of ['/operations/nothing', '/operations/bnVsbA', `${location}x`]) assert.equal((await poll(other)).status, 404)
      assert.equal((await poll(location)).status, 201)
    })

    test('another request under the key is a mismatch, not 202', async () => {
      const open = work.start()
      const headers = asks()
      await order(headers)
      assert.equal((await app.post('{"other":1}', headers, '/orders')).status, 422)
      open()
      await used.idle()
    })

    test('the connection serves the next request', async () => {
      work.start()()
      for (let i = 0; i < 5; i++) assert.equal((await order(asks())).status, 202)
      await used.idle()
    })

    test('the client polls', async () => {
      const open = work.start()
      const client = idempotentClient({ sleep: async () => { open(); await used.idle() } })
      const res = await client.send('order', `http://127.0.0.1:${app.port}/orders`, { body: '{}',
        headers: { 'content-type': 'application/json', 'x-account': 'acct_1', prefer: 'respond-async' } })
      assert.deepEqual([res.status, await res.text()], [201, '{"order":7}'])
      assert.deepEqual(client.pending(), [])
    })
  })
}

test('respondAsync: 202 is always the answer; the Stripe profile decorates it', async () => {
  const always = guard({ lease: '60s', status: '/operations', respondAsync: true, profile: stripe })
  const request = { method: 'POST', url: '/orders', headers: { 'idempotency-key': randomUUID(), 'x-account': 'a' }, body: Buffer.from('{}'),
    source: { headers: { 'x-account': 'a' } } }
  const res = await always.run(request, async () => ({ status: 201, headers: {}, body: Buffer.from('done') }))
  assert.equal(res.status, 202)
  assert.equal(res.headers['preference-applied'], undefined)
  assert.match(res.headers['request-id'], /^req_/)
  await always.idle()
  const done = await always.status({ ...request, method: 'GET', url: res.headers.location })
  assert.deepEqual([done.status, done.body.toString(), done.headers['idempotent-replayed']], [201, 'done', 'true'])
})

test('work whose process died shows as interrupted once its lease is over', async () => {
  const short = guard({ lease: '1ms', status: '/operations', respondAsync: true })
  const request = { method: 'POST', url: '/orders', headers: { 'idempotency-key': randomUUID(), 'x-account': 'a' }, body: Buffer.from('{}'),
    source: { headers: { 'x-account': 'a' } } }
  const { headers: { location } } = await short.run(request, () => new Promise(() => {}))
  let res
  for (let i = 0; i < 100 && res?.status !== 409; i++) {
    res = await short.status({ ...request, method: 'GET', url: location })
    await pause(20)
  }
  assert.equal(JSON.parse(res.body).code, 'idempotency_interrupted')
})

test('a status resource needs a lease', () => {
  assert.throws(() => idempotency({ connect: pgDriver(pool), account: () => 'a', status: '/operations' }), TypeError)
})

test('a database that is down is 503 for the status resource as well', async () => {
  const down = guard({ lease: '60s', status: '/operations', connect: async () => { throw Object.assign(new Error('refused'), { code: 'ECONNREFUSED' }) } })
  const name = Buffer.from(JSON.stringify(['k', 'POST', '/orders'])).toString('base64url')
  assert.equal((await down.status({ method: 'GET', url: `/operations/${name}`, headers: {}, source: { headers: { 'x-account': 'a' } } })).status, 503)
  assert.equal(await value('SELECT 1'), 1)
})
