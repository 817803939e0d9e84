// The same service with the shape of most middleware: three_transactions.mjs around its handler.
import express from 'express'
import { overHttp } from '../http.mjs'
import { Conflict } from '../shared.mjs'
import { open as openThree } from './three_transactions.mjs'

export const open = overHttp('http_three_transactions')

export async function application(pool) {
  const { call } = await openThree({ pool, worked: async () => {} })
  const app = express().disable('x-powered-by').use(express.json())
  app.post('/v1/charges', async (req, res) => {
    try {
      res.status(201).json(await call(req.get('idempotency-key')))
    } catch (error) {
      if (!(error instanceof Conflict)) throw error
      res.status(409).end(error.message)
    }
  })
  return app
}
