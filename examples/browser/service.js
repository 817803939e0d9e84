// A shop with one page. What the page sends twice is paid once.
import { randomUUID } from 'node:crypto'
import { fileURLToPath } from 'node:url'
import express from 'express'
import { express as protect, idempotency, keepRawBody, pgDriver } from 'idempotency-postgres'

export function service(pool) {
  const seen = new Map()                                    // what the ledger shows of each key
  const guard = idempotency({
    connect: pgDriver(pool), account: (req) => req.account,
    onEvent({ type, request }) {
      const name = request.headers['idempotency-key']?.replaceAll('"', '')
      const counts = seen.get(name) ?? { started: 0, replayed: 0, refused: 0 }
      if (type in counts) seen.set(name, { ...counts, [type]: counts[type] + 1 })
    },
  })
  const app = express()
  app.disable('x-powered-by')
  app.use(session)
  app.use(express.static(fileURLToPath(new URL('public', import.meta.url))))
  app.get('/client.mjs', (req, res) => res.sendFile(fileURLToPath(import.meta.resolve('idempotency-postgres/client'))))

  app.post('/payments', express.json({ verify: keepRawBody }), loseReply, protect(guard), async (req, res) => {
    const { rows: [payment] } = await req.db.query('INSERT INTO payments (account, order_no, amount) VALUES ($1, $2, $3) RETURNING *',
      [req.account, req.body.order, req.body.amount])
    res.status(201).json(payment)
  })
  app.get('/ledger', async (req, res) => {
    const { rows } = await pool.query('SELECT * FROM payments WHERE account = $1 ORDER BY id DESC', [req.account])
    res.json(rows.map((payment) => ({ ...payment, requests: seen.get(payment.order_no) })))
  })
  return app
}

// Whose key it is comes from the session, never from the client's word.
function session(req, res, next) {
  req.account = /(?:^|; )session=([0-9a-f-]{36})/.exec(req.get('cookie') ?? '')?.[1]
  if (!req.account) res.setHeader('set-cookie', `session=${req.account = randomUUID()}; HttpOnly; SameSite=Strict; Path=/`)
  next()
}

// The demonstration's fault: the work is committed, and the connection breaks before the reply.
function loseReply(req, res, next) {
  if (req.get('x-lose-reply')) {
    res.end = () => {
      req.socket.destroy()
      return res
    }
  }
  next()
}
