// The client's side, against a service that misbehaves by a script.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { fullJitter, idempotentClient, memoryStorage, minutes, OutcomeUnknown } from 'idempotency-postgres/client'

// Each try takes the next reply: a status, [status, headers], or 'lost'. Time passes only while the client sleeps.
function world(replies, options = {}) {
  const keys = [], urls = [], slept = []
  let time = 0
  const client = idempotentClient({
    now: () => time,
    sleep: async (wait) => { slept.push(wait); time += wait },
    fetch: async (url, { headers }) => {
      keys.push(headers['Idempotency-Key'])
      urls.push(url)
      const reply = replies.shift() ?? 200
      if (reply === 'lost') throw new TypeError('fetch failed')
      const [status, more] = [reply].flat()
      return new Response(null, { status, headers: more })
    }, ...options })
  return { client, keys, urls, slept, pass: (wait) => { time += wait } }
}

test('lost replies are asked for again under the same key, after 1, 2, 4 and 8 minutes', async () => {
  const { client, keys, slept } = world(['lost', 503, 409, 429, 201])
  assert.equal((await client.send('order 7', '/pay', { body: '{}' })).status, 201)
  assert.equal(new Set(keys).size, 1)
  assert.deepEqual(slept, minutes)
  assert.deepEqual(client.pending(), [])
})

test('an operation that has an id sends that as its key', async () => {
  const { client, keys } = world(['lost', 201])
  await client.send('order 7', '/pay', { key: '8e03978e' })
  assert.deepEqual(keys, ['"8e03978e"', '"8e03978e"'])
})

test('an outcome of the service is final', async () => {
  for (const status of [201, 402, 422]) assert.equal((await world([status]).client.send('a', '/pay')).status, status)
  assert.equal((await world([[500, { 'stripe-should-retry': 'false' }]]).client.send('a', '/pay')).status, 500)
})

test('Retry-After is obeyed where it is longer', async () => {
  const { client, slept } = world([[503, { 'retry-after': '100' }], 201])
  await client.send('a', '/pay')
  assert.deepEqual(slept, [100_000])
})

test('what is not known is left for the batch, and goes on under its key after a restart', async () => {
  const storage = memoryStorage()
  const before = world(Array(5).fill('lost'), { storage })
  await assert.rejects(before.client.send('a', '/pay', { body: '1' }), OutcomeUnknown)
  assert.deepEqual(before.client.pending().map(({ name }) => name), ['a'])
  const later = world([201], { storage })
  await later.client.send('a', '/pay', { body: '2' })
  assert.equal(later.keys[0], before.keys[0])
  assert.deepEqual(later.client.pending(), [])
})

test('nothing is sent once the key may have expired', async () => {
  const { client, keys, pass } = world(['lost'], { keyLife: 90_000, retries: () => [60_000, 60_000] })
  client.operation('a', '/pay')
  pass(80_000)
  await assert.rejects(client.send('a', '/pay'), OutcomeUnknown)
  const sent = keys.length
  pass(100_000)
  await assert.rejects(client.send('a', '/pay'), OutcomeUnknown)
  assert.equal(keys.length, sent)
})

const accepted = [202, { location: '/operations/7', 'preference-applied': 'respond-async', 'retry-after': '3' }]

test('after 202 the status resource is polled, as often as it says', async () => {
  const { client, slept } = world([accepted, [202, { 'retry-after': '5' }], 201])
  assert.equal((await client.send('a', 'http://service/pay')).status, 201)
  assert.deepEqual(slept, [3000, 5000])
})

test('202 without a status resource is final', async () => {
  assert.equal((await world([202]).client.send('a', 'http://service/pay')).status, 202)
})

test('where the poll is lost, or finds nothing or interrupted work, the request is sent again', async () => {
  for (const reply of ['lost', 404, 409]) {
    const { client, keys } = world([accepted, reply, 201])
    assert.equal((await client.send('a', 'http://service/pay')).status, 201)
    assert.equal(keys.length, 3)
    assert.equal(new Set(keys).size, 1)
  }
})

test('a status resource of another origin gets neither the key nor the credentials', async () => {
  const { client, urls } = world([[202, { ...accepted[1], location: 'http://elsewhere/operations/7' }], 201])
  assert.equal((await client.send('a', 'http://service/pay')).status, 201)
  assert.deepEqual(urls, ['http://service/pay', 'http://service/pay'])
})

test('no poll once the key may have expired', async () => {
  const { client } = world([accepted, ...Array(9).fill([202, { 'retry-after': '5' }])], { keyLife: 20_000, retries: () => [] })
  await assert.rejects(client.send('a', 'http://service/pay'), OutcomeUnknown)
  assert.equal(client.pending().length, 1)
})

test('423 is left for the batch at once', async () => {
  const { client, keys } = world([423])
  await assert.rejects(client.send('a', '/pay'), OutcomeUnknown)
  assert.equal(keys.length, 1)
})

test('the budget ends retries', async () => {
  const { client, keys } = world(Array(9).fill('lost'), { budget: 2 })
  await assert.rejects(client.send('a', '/pay'), OutcomeUnknown)
  await assert.rejects(client.send('b', '/pay'), OutcomeUnknown)
  assert.equal(keys.length, 4)
})

test('full jitter stays below its doubling bound', () => {
  assert.deepEqual(fullJitter({ base: 10, cap: 50, tries: 4, random: () => 1 }), [10, 20, 40, 50])
  assert.deepEqual(fullJitter({ base: 10, cap: 50, tries: 2, random: () => 0 }), [0, 0])
})
