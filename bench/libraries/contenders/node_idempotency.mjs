// @node-idempotency/core, with a storage adapter over PostgreSQL that does what its own one for Redis does: SET NX with a
// time to live, SET, GET. It waits for a request that is in progress, and looks every 10 ms.
import { Conflict, statement, work } from '../shared.mjs'
import core from '@node-idempotency/core'

const table = `CREATE TABLE IF NOT EXISTS node_idempotency (
  key text PRIMARY KEY, value text NOT NULL, expires_at timestamptz NOT NULL
);
CREATE INDEX IF NOT EXISTS node_idempotency_expires_at ON node_idempotency (expires_at)`

const insert = statement('insert', `INSERT INTO node_idempotency AS n (key, value, expires_at)
  VALUES ($1, $2, now() + $3 * interval '1 millisecond')
  ON CONFLICT (key) DO UPDATE SET value = excluded.value, expires_at = excluded.expires_at WHERE n.expires_at <= now()`)
const upsert = statement('upsert', `INSERT INTO node_idempotency (key, value, expires_at)
  VALUES ($1, $2, now() + $3 * interval '1 millisecond')
  ON CONFLICT (key) DO UPDATE SET value = excluded.value, expires_at = excluded.expires_at`)
const select = statement('select', 'SELECT value FROM node_idempotency WHERE key = $1 AND expires_at > now()')

const storage = (pool) => ({
  setIfNotExists: async (key, value, { ttl }) => (await insert(pool, key, value, ttl)).rowCount === 1,
  set: async (key, value, { ttl }) => { await upsert(pool, key, value, ttl) },
  get: async (key) => (await select(pool, key)).rows[0]?.value,
})

// Prefix, method and path are together the scope.
const request = (key) => ({ method: 'POST', path: '/v1/charges (eur)', headers: { 'idempotency-key': key } })

export async function open({ pool, worked, patience = 24 * 3_600_000 }) {
  await pool.query(table)
  const idempotency = new core.Idempotency(storage(pool), {
    cacheKeyPrefix: 'acct_42', cacheTTLMS: patience, enforceIdempotency: true,
    inProgressStrategy: { wait: true, pollingIntervalMs: 10, maxWaitMs: 5000 },
  })
  const call = async (key) => {
    const known = await idempotency.onRequest(request(key)).catch((error) => {
      throw error.code === 'REQUEST_IN_PROGRESS' ? new Conflict(error.message) : error
    })
    if (known) return known.body
    const body = await work(pool)
    await worked()
    await idempotency.onResponse(request(key), { body, additional: { status: 201 } })
    return body
  }
  return { call }
}
