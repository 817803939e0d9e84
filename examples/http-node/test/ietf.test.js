// The profile of the IETF draft: header, problem details, outcomes.
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { after, before, test } from 'node:test'
import { isWaiting, query, start, stopPools, value, whileBlocked } from './harness.js'

let app
before(async () => { app = await start() })
after(async () => { app.stop(); await stopPools() })

const quoted = (key) => ({ 'Idempotency-Key': `"${key}"` })
const pay = (headers, body = { amount: 1000, currency: 'eur' }) => app.post('/ietf/payments', body, headers)
const payments = () => value('SELECT count(*)::int FROM payments')

test('a replay has the same status, bytes and headers, and does no work', async () => {
  const headers = quoted(randomUUID())
  const count = await payments()
  const first = await pay(headers)
  const second = await pay(headers)
  assert.equal(first.status, 201)
  assert.match(first.headers.get('location'), /^\/ietf\/payments\/\d+$/)
  assert.equal(second.status, 201)
  assert.equal(second.headers.get('idempotency-replayed'), 'true')
  assert.deepEqual(second.bytes, first.bytes)
  for (const name of ['location', 'etag', 'content-type', 'content-length']) {
    assert.equal(second.headers.get(name), first.headers.get(name), name)
  }
  assert.equal(await payments(), count + 1)
})

test('a quoted and a bare key are the same key', async () => {
  const key = randomUUID()
  const first = await pay(quoted(key))
  const second = await pay({ 'Idempotency-Key': key })
  assert.deepEqual(second.bytes, first.bytes)
})

test('an escape inside a quoted key is read', async () => {
  const part = randomUUID()
  await pay({ 'Idempotency-Key': `"a\\"b\\\\c${part}"` })
  assert.equal(await value('SELECT count(*)::int FROM idempotency_keys WHERE key = $1', `a"b\\c${part}`), 1)
})

test('a missing key is 400, with problem details', async () => {
  const { status, headers, json } = await pay({})
  assert.equal(status, 400)
  assert.match(headers.get('content-type'), /^application\/problem\+json/)
  assert.equal(json.status, 400)
  assert.equal(json.code, 'idempotency_missing')
  assert.ok(json.type && json.title && json.detail)
})

for (const [what, header] of Object.entries({
  empty: '""', 'half quoted': '"abc', 'two keys': '"a", "b"', 'a bare list': 'a, b', 'too long': `"${'x'.repeat(256)}"`,
})) {
  test(`a malformed key is 400: ${what}`, async () => {
    assert.equal((await pay({ 'Idempotency-Key': header })).status, 400)
  })
}

test('another payload under the same key is 422 and does no work', async () => {
  const headers = quoted(randomUUID())
  await pay(headers)
  const count = await payments()
  const { status, json } = await pay(headers, { amount: 1001, currency: 'eur' })
  assert.equal(status, 422)
  assert.equal(json.code, 'idempotency_mismatch')
  assert.equal(await payments(), count)
})

test('the order of members does not make another payload', async () => {
  const headers = quoted(randomUUID())
  const first = await pay(headers, { amount: 7, currency: 'eur' })
  const second = await pay(headers, { currency: 'eur', amount: 7 })
  assert.deepEqual(second.bytes, first.bytes)
})

test('while the first request is in flight a second is 409 with Retry-After; then it is replayed', async () => {
  const headers = quoted(randomUUID())
  let first
  await whileBlocked(async () => {
    first = pay(headers)
    await isWaiting()
    const second = await pay(headers)
    assert.equal(second.status, 409)
    assert.ok(Number(second.headers.get('retry-after')) >= 1)
    assert.equal(second.json.code, 'idempotency_in_progress')
  })
  first = await first
  assert.equal(first.status, 201)
  assert.deepEqual((await pay(headers)).bytes, first.bytes)
})

test('another query under the same key is 422 and does no work', async () => {
  const headers = quoted(randomUUID())
  const body = { amount: 1000, currency: 'eur' }
  assert.equal((await app.post('/ietf/payments?dry_run=1', body, headers)).status, 201)
  const count = await payments()
  assert.equal((await pay(headers)).status, 422)
  assert.equal(await payments(), count)
})

test('the same key of two accounts is two keys', async () => {
  const headers = quoted(randomUUID())
  const first = await pay(headers)
  const second = await pay({ ...headers, Authorization: 'Bearer sk_test_two' })
  assert.equal(second.status, 201)
  assert.notEqual(second.headers.get('location'), first.headers.get('location'))
})

test('a refusal is kept, its work is not', async () => {
  const headers = quoted(randomUUID())
  const count = await payments()
  const first = await pay(headers, { amount: 2_000_000, currency: 'eur' })
  const second = await pay(headers, { amount: 2_000_000, currency: 'eur' })
  assert.equal(first.status, 402)
  assert.equal(second.status, 402)
  assert.deepEqual(second.bytes, first.bytes)
  assert.equal(await value('SELECT status FROM idempotency_keys WHERE key = $1', headers['Idempotency-Key'].slice(1, -1)), 402)
  assert.equal(await payments(), count)
})

test('failed validation is not kept', async () => {
  const headers = quoted(randomUUID())
  assert.equal((await pay(headers, { amount: -1, currency: 'eur' })).status, 422)
  assert.equal((await pay(headers)).status, 201)
})

test('a server error is not kept, nor is its work: the retry runs', async () => {
  const headers = quoted(randomUUID())
  await query(`ALTER TABLE payments ADD CONSTRAINT broken CHECK (amount <> 5) NOT VALID`)
  try {
    assert.equal((await pay(headers, { amount: 5, currency: 'eur' })).status, 500)
  } finally {
    await query('ALTER TABLE payments DROP CONSTRAINT broken')
  }
  assert.equal((await pay(headers, { amount: 5, currency: 'eur' })).status, 201)
})
