// What onEvent is told. The same cases are tested with packages/python: test/packages/events.json.
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { after, test } from 'node:test'
import { stripe, UnknownOutcome } from 'idempotency-postgres'
import { admin, guard, pool, sql } from './apps.js'

after(() => Promise.all([pool.end(), sql.end(), admin.end()]))

const failures = new Set()
const once = (key) => !failures.has(key) && failures.add(key)

// The handler of test/packages/python/service.py, as far as the cases need it.
const handler = (what, key) => async ({ db, step }) => {
  const answer = (status) => ({ status, headers: {}, body: Buffer.from('{}') })
  if (what === 'raise') throw new Error('a mistake in the handler')
  if (what === 'timeout') await db.query(`SET LOCAL statement_timeout = 50; SELECT pg_sleep(30)`)
  if (what?.startsWith('step')) await step('ship', async () => {
    if (what === 'step is unknown') throw new UnknownOutcome('no reply')
    if (once(key)) throw new Error('the carrier is down')
  })
  if (what === '500 once' && once(key)) return answer(500)
  return answer(what === '402' ? 402 : 201)
}

for (const { name, profile, claimed, lease, requests, events } of JSON.parse(readFileSync('events.json'))) {
  test(`events: ${name}`, async () => {
    const told = []
    const onEvent = ({ type, key, status, reason, error }) => told.push({ type, ...(key && { key: key.split(' ')[0] }), ...(status && { status }),
      ...(reason && { reason }), ...(error && { error: true }) })
    const used = guard({ onEvent, account: ({ account }) => account, ...(profile === 'stripe' && { profile: stripe }),
      ...(lease && { lease: '60s', status: '/operations' }) })
    const suffix = randomUUID()
    if (claimed) await admin.query(`SELECT idempotent_begin('ietf one', $1, lease => '1 hour')`, [`k ${suffix}`])
    let location = '/operations/nothing'
    for (const { key, header, account = 'one', body = '', do: what, later, poll } of requests) {
      const sent = key ? `"${key} ${suffix}"` : header
      const request = { method: poll ? 'GET' : 'POST', url: poll ? location : '/payments', body: Buffer.from(body), source: { account },
        headers: { ...(sent && { 'idempotency-key': sent }), ...(later && { prefer: 'respond-async' }) } }
      const response = poll ? await used.status(request) : await used.run(request, handler(what, suffix)).catch(() => undefined)
      await used.idle()
      location = response?.headers.location ?? location
    }
    assert.deepEqual(told, events)
  })
}
