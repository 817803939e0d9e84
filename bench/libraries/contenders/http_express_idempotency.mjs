// The same service with express-idempotency, and a data adapter over PostgreSQL: its own one is an array in memory that is
// searched from the start. What it does after the response was sent is not waited for.
import express from 'express'
import library from 'express-idempotency'
import { overHttp } from '../http.mjs'
import { statement, work } from '../shared.mjs'

const table = `CREATE TABLE IF NOT EXISTS express_idempotency (
  key text PRIMARY KEY, request jsonb NOT NULL, response jsonb, created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS express_idempotency_created_at ON express_idempotency (created_at)`

const find = statement('find', 'SELECT request, response FROM express_idempotency WHERE key = $1')
const insert = statement('insert', 'INSERT INTO express_idempotency (key, request) VALUES ($1, $2)')
const update = statement('update', 'UPDATE express_idempotency SET response = $2 WHERE key = $1')
const remove = statement('remove', 'DELETE FROM express_idempotency WHERE key = $1')

const adapter = (pool) => ({
  findByIdempotencyKey: async (idempotencyKey) => {
    const { rows: [row] } = await find(pool, idempotencyKey)
    return row ? { idempotencyKey, request: row.request, response: row.response ?? undefined } : null
  },
  create: async ({ idempotencyKey, request }) => { await insert(pool, idempotencyKey, JSON.stringify(request)) },
  update: async ({ idempotencyKey, response }) => { await update(pool, idempotencyKey, JSON.stringify(response)) },
  delete: async (idempotencyKey) => { await remove(pool, idempotencyKey) },
})

export const open = overHttp('http_express_idempotency')

export async function application(pool) {
  await pool.query(table)
  const app = express().disable('x-powered-by').use(express.json())
  app.post('/v1/charges', library.idempotency({ dataAdapter: adapter(pool) }), async (req, res) => {
    if (library.getSharedIdempotencyService().isHit(req)) return
    res.status(201).send(await work(pool))
  })
  return app
}
