// The profile of Toss Payments.
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { after, before, test } from 'node:test'
import { isWaiting, start, stopPools, value, whileBlocked } from './harness.js'

let app
before(async () => { app = await start() })
after(async () => { app.stop(); await stopPools() })

const basic = (secret) => `Basic ${Buffer.from(`${secret}:`).toString('base64')}`
const confirm = (key, body = {}, { secret = 'sk_test_one', path = '/toss/v1/payments/confirm' } = {}) =>
  app.post(path, { paymentKey: randomUUID(), orderId: 'order-1', amount: 1000, ...body },
    { Authorization: basic(secret), ...(key === undefined ? {} : { 'Idempotency-Key': key }) })

test('the first response comes back, whatever the second request says', async () => {
  const key = randomUUID()
  const first = await confirm(key)
  const second = await confirm(key, { amount: 5 })
  assert.equal(first.status, 200)
  assert.equal(second.status, 200)
  assert.deepEqual(second.bytes, first.bytes)
  assert.equal(await value('SELECT count(*)::int FROM payments WHERE reference = $1', first.json.paymentKey), 1)
})

test('a key of 300 characters is taken, a longer one is 400 INVALID_IDEMPOTENCY_KEY', async () => {
  assert.equal((await confirm('x'.repeat(264) + randomUUID())).status, 200)
  const { status, json } = await confirm('x'.repeat(265) + randomUUID())
  assert.equal(status, 400)
  assert.equal(json.code, 'INVALID_IDEMPOTENCY_KEY')
})

test('while the first request is in flight a second is 409 IDEMPOTENT_REQUEST_PROCESSING', async () => {
  const key = randomUUID()
  let first
  await whileBlocked(async () => {
    first = confirm(key)
    await isWaiting()
    const { status, json } = await confirm(key)
    assert.equal(status, 409)
    assert.equal(json.code, 'IDEMPOTENT_REQUEST_PROCESSING')
  })
  assert.equal((await first).status, 200)
})

test('a key is kept for 15 days', async () => {
  const key = randomUUID()
  await confirm(key)
  assert.ok(await value(`SELECT expires_at - finished_at BETWEEN interval '15 days' AND interval '15 days 2 hours' FROM idempotency_keys WHERE key = $1`, key))
})

test('another API key and another URL are other keys', async () => {
  const key = randomUUID()
  const answers = [await confirm(key), await confirm(key, {}, { secret: 'sk_test_two' }),
    await confirm(key, {}, { path: '/toss/v1/payments/confirm?test=1' })]
  assert.equal(new Set(answers.map(({ json }) => json.paymentKey)).size, 3)
})

test('a refusal is kept', async () => {
  const key = randomUUID()
  const first = await confirm(key, { amount: 2_000_000 })
  assert.equal(first.status, 403)
  assert.deepEqual((await confirm(key, { amount: 1 })).bytes, first.bytes)
})

test('without a key each request is one of its own', async () => {
  assert.notDeepEqual((await confirm()).bytes, (await confirm()).bytes)
})
