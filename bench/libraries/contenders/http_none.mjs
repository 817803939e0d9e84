// A service in Express that protects nothing.
import express from 'express'
import { overHttp } from '../http.mjs'
import { work } from '../shared.mjs'

export const protects = false
export const open = overHttp('http_none')

export function application(pool) {
  const app = express().disable('x-powered-by').use(express.json())
  app.post('/v1/charges', async (req, res) => { res.status(201).json(await work(pool)) })
  return app
}
