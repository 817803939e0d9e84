// The profile of Stripe, and Stripe's own client against it through a network that loses answers.
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { after, before, test } from 'node:test'
import Stripe from 'stripe'
import { isWaiting, network, query, start, stopPools, value, whileBlocked } from './harness.js'

let app
before(async () => { app = await start() })
after(async () => { app.stop(); await stopPools() })

const client = (port, options = {}) => new Stripe('sk_test_one', {
  host: '127.0.0.1', port, protocol: 'http', maxNetworkRetries: 0, telemetry: false, ...options })

const charge = (params = {}) => ({ amount: 1000, currency: 'eur', source: 'tok_visa', ...params })
const keyed = (key = randomUUID()) => ({ idempotencyKey: key })
const raw = (headers, path = '/v1/charges', body = 'amount=1000&currency=eur') => fetch(`http://127.0.0.1:${app.port}${path}`, {
  method: 'POST', body, headers: { Authorization: 'Bearer sk_test_one', 'Content-Type': 'application/x-www-form-urlencoded', ...headers } })

test('a replay is the first response, marked as replayed', async () => {
  const key = keyed()
  const first = await client(app.port).charges.create(charge(), key)
  const second = await client(app.port).charges.create(charge(), key)
  assert.equal(second.id, first.id)
  assert.equal(first.lastResponse.headers['idempotent-replayed'], undefined)
  assert.equal(second.lastResponse.headers['idempotent-replayed'], 'true')
  assert.equal(second.lastResponse.statusCode, 200)
})

test('the bytes of a replay are those of the first response', async () => {
  const headers = { 'Idempotency-Key': randomUUID() }
  const [first, second] = [await (await raw(headers)).text(), await (await raw(headers)).text()]
  assert.equal(second, first)
})

test('without a key each request is one of its own', async () => {
  const [first, second] = [await (await raw({})).json(), await (await raw({})).json()]
  assert.notEqual(second.id, first.id)
})

test('other parameters are 400 idempotency_error', async () => {
  const key = keyed()
  await client(app.port).charges.create(charge(), key)
  await assert.rejects(client(app.port).charges.create(charge({ amount: 1001 }), key), (error) => {
    assert.ok(error instanceof Stripe.errors.StripeIdempotencyError)
    assert.equal(error.statusCode, 400)
    return true
  })
})

test('another endpoint under the same key is 400 idempotency_error', async () => {
  const key = keyed()
  await client(app.port).charges.create({ amount: 1, currency: 'eur' }, key)
  await assert.rejects(client(app.port).paymentIntents.create({ amount: 1, currency: 'eur' }, key), { type: 'StripeIdempotencyError' })
})

test('a key of 255 characters is taken, a longer one is 400', async () => {
  assert.equal((await raw({ 'Idempotency-Key': 'x'.repeat(219) + randomUUID() })).status, 200)
  assert.equal((await raw({ 'Idempotency-Key': 'x'.repeat(220) + randomUUID() })).status, 400)
})

test('while the first request is in flight a second is 409 idempotency_key_in_use, and nothing of that is kept', async () => {
  const key = keyed()
  let first
  await whileBlocked(async () => {
    first = client(app.port).charges.create(charge(), key)
    await isWaiting()
    await assert.rejects(client(app.port).charges.create(charge(), key), { statusCode: 409, code: 'idempotency_key_in_use' })
  })
  first = await first
  assert.equal((await client(app.port).charges.create(charge(), key)).id, first.id)
})

test('a declined card is kept', async () => {
  const key = keyed()
  const count = await value('SELECT count(*)::int FROM payments')
  for (const replayed of [undefined, 'true']) {
    await assert.rejects(client(app.port).charges.create(charge({ amount: 2_000_000 }), key), (error) => {
      assert.equal(error.type, 'StripeCardError')
      assert.equal(error.headers['idempotent-replayed'], replayed)
      return true
    })
  }
  assert.equal(await value('SELECT count(*)::int FROM payments'), count)
})

test('a 500 is kept, too', async () => {
  const key = keyed()
  await query('ALTER TABLE payments ADD CONSTRAINT broken CHECK (amount <> 5) NOT VALID')
  try {
    await assert.rejects(client(app.port).charges.create(charge({ amount: 5 }), key), { statusCode: 500 })
  } finally {
    await query('ALTER TABLE payments DROP CONSTRAINT broken')
  }
  await assert.rejects(client(app.port).charges.create(charge({ amount: 5 }), key), (error) => {
    assert.equal(error.statusCode, 500)
    assert.equal(error.headers['idempotent-replayed'], 'true')
    return true
  })
})

test('failed validation is not kept', async () => {
  const key = keyed()
  await assert.rejects(client(app.port).charges.create({ currency: 'eur' }, key), { statusCode: 400 })
  assert.equal((await client(app.port).charges.create(charge(), key)).lastResponse.statusCode, 200)
})

test('the scope is the account', async () => {
  const key = keyed()
  const first = await client(app.port).charges.create(charge(), key)
  const other = new Stripe('sk_test_two', { host: '127.0.0.1', port: app.port, protocol: 'http', maxNetworkRetries: 0 })
  assert.notEqual((await other.charges.create(charge(), key)).id, first.id)
})

test('keys are kept for at least 24 hours', async () => {
  const key = keyed()
  await client(app.port).charges.create(charge(), key)
  assert.ok(await value(`SELECT expires_at - first_seen_at >= interval '24 hours' FROM idempotency_keys WHERE key = $1`, key.idempotencyKey))
})

for (const [kind, resource] of [['charge', 'charges'], ['payment_intent', 'paymentIntents']]) {
  test(`the official client through a network that loses answers: each ${kind} exists once`, async () => {
    // Of each request the first and the third exchange go wrong after the service has acted, the second before.
    const net = await network(app.port, ['answer lost', 'request lost', 'answer lost'])
    try {
      const stripe = client(net.port, { maxNetworkRetries: 5 })
      const run = randomUUID()
      const made = await Promise.all(Array.from({ length: 12 }, (_, i) =>
        stripe[resource].create({ amount: 100 + i, currency: 'eur', description: `${run} ${i}` })))
      const stored = await query('SELECT id, reference FROM payments WHERE reference LIKE $1 AND kind = $2', `${run} %`, kind)
      assert.equal(stored.length, 12)
      assert.equal(new Set(stored.map((p) => p.reference)).size, 12)
      assert.deepEqual(new Set(made.map((m) => m.id.split('_')[1])), new Set(stored.map((p) => p.id)))
      assert.equal(net.lost.filter((what) => what === 'answer lost').length, 24)
    } finally {
      net.stop()
    }
  })
}
