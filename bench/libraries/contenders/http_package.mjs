// The same service with packages/node of this project: key, work and response in one transaction.
import express from 'express'
import { createRequire } from 'node:module'
import { overHttp } from '../http.mjs'
import { work } from '../shared.mjs'

const { express: protect, idempotency, keepRawBody, pgDriver } = createRequire(import.meta.url)('../../../packages/node/index.js')

export const open = overHttp('http_package')

export function application(pool) {
  const guard = idempotency({ connect: pgDriver(pool), account: () => 'acct_42' })
  const app = express().disable('x-powered-by').use(express.json({ verify: keepRawBody }))
  app.post('/v1/charges', protect(guard), async (req, res) => { res.status(201).json(await work(req.db)) })
  return app
}
