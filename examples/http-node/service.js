// A payments service with three front doors: one as the IETF draft has it, one as Stripe's clients, one as Toss Payments'
// clients expect it.
import { createHash } from 'node:crypto'
import express from 'express'
import { idempotent } from './idempotency.js'
import { ietf, stripe, toss } from './profiles.js'

export function service(pool) {
  const app = express()
  app.disable('x-powered-by')
  app.use('/ietf', authenticate(pool), ietfPayments(pool), problems(ietf))
  app.use('/v1', authenticate(pool), stripePayments(pool), stripeErrors)
  app.use('/toss', authenticate(pool), tossPayments(pool), problems(toss))
  return app
}

// Bearer KEY, or Basic with the key as the user's name.
function authenticate(pool) {
  return async (req, res, next) => {
    const [scheme, credentials = ''] = (req.get('Authorization') ?? '').split(' ')
    const secret = scheme === 'Basic' ? Buffer.from(credentials, 'base64').toString().split(':')[0] : credentials
    const { rows: [known] } = await pool.query('SELECT id, account FROM api_keys WHERE secret_hash = $1',
      [createHash('sha256').update(secret).digest()])
    if (!known) return res.status(401).json({ error: { type: 'authentication_error', message: 'The API key is unknown.' } })
    req.account = known.account
    req.apiKey = known.id
    next()
  }
}

async function pay(req, kind, { amount, currency, reference = null }) {
  const { rows: [payment] } = await req.db.query(
    'INSERT INTO payments (account, kind, amount, currency, reference) VALUES ($1, $2, $3, $4, $5) RETURNING *',
    [req.account, kind, amount, currency, reference])
  return payment
}

// The limit is the example's stand-in for a card that is declined.
const isDeclined = (amount) => amount > 1_000_000

const isAmount = (amount) => Number.isSafeInteger(Number(amount)) && Number(amount) > 0

function ietfPayments(pool) {
  const router = express.Router()

  const validate = (req, res, next) => {
    if (isAmount(req.body?.amount) && /^[a-z]{3}$/.test(req.body.currency)) return next()
    res.status(422).type('application/problem+json').send(JSON.stringify({ title: 'amount or currency is wrong', status: 422 }))
  }
  router.post('/payments', express.json(), validate, idempotent(pool, ietf), async (req, res) => {
    const payment = await pay(req, 'payment', req.body)
    if (isDeclined(req.body.amount)) {
      return res.status(402).type('application/problem+json').send(JSON.stringify({ title: 'the card is declined', status: 402 }))
    }
    res.status(201).location(`/ietf/payments/${payment.id}`).json(payment)
  })

  router.get('/payments/:id', async (req, res) => {
    const { rows: [payment] } = await pool.query('SELECT * FROM payments WHERE id::text = $1 AND account = $2',
      [req.params.id, req.account])
    res.status(payment ? 200 : 404).json(payment ?? null)
  })
  return router
}

function stripePayments(pool) {
  const router = express.Router()
  router.use(express.urlencoded({ extended: true }))

  const validate = (req, res, next) => {
    if (isAmount(req.body?.amount) && req.body.currency) return next()
    res.status(400).json({ error: { type: 'invalid_request_error', message: 'amount or currency is missing or wrong.' } })
  }
  const create = (object, prefix) => async (req, res) => {
    const payment = await pay(req, object, { ...req.body, reference: req.body.description })
    if (isDeclined(req.body.amount)) {
      return res.status(402).json({ error: { type: 'card_error', code: 'card_declined', message: 'Your card was declined.' } })
    }
    res.json({
      id: `${prefix}_${payment.id}`, object, amount: Number(payment.amount), currency: payment.currency,
      description: payment.reference, created: Math.floor(payment.created_at / 1000), livemode: false,
      status: object === 'charge' ? 'succeeded' : 'requires_payment_method',
    })
  }
  router.post('/charges', validate, idempotent(pool, stripe), create('charge', 'ch'))
  router.post('/payment_intents', validate, idempotent(pool, stripe), create('payment_intent', 'pi'))
  return router
}

function tossPayments(pool) {
  const router = express.Router()

  router.post('/v1/payments/confirm', express.json(), idempotent(pool, toss), async (req, res) => {
    const { paymentKey, orderId, amount } = req.body
    const payment = await pay(req, 'confirm', { amount, currency: 'krw', reference: paymentKey })
    if (isDeclined(amount)) return res.status(403).json({ code: 'REJECT_CARD_COMPANY', message: 'The card company refused.' })
    res.json({ paymentKey, orderId, totalAmount: amount, status: 'DONE', approvedAt: payment.created_at })
  })
  return router
}

// Errors that say "try again" are 503, which no profile keeps; everything else that nobody expected is 500.
const TRANSIENT = /^(40001|40P01|55P03|57P0.|08...)$/
const statusOf = (error) => error.status ?? (TRANSIENT.test(error.code ?? '') ? 503 : 500)

function problems(profile) {
  return (error, req, res, next) => {
    if (res.headersSent) return next(error)
    const status = statusOf(error)
    if (status === 503) return profile.refuse(res, 'failed', {})
    res.status(status).json(profile === toss ? { code: 'FAILED_INTERNAL_SYSTEM_PROCESSING', message: 'Internal error.' }
      : { title: 'Internal error', status })
  }
}

function stripeErrors(error, req, res, next) {
  if (res.headersSent) return next(error)
  res.status(statusOf(error)).json({ error: { type: 'api_error', message: 'Something went wrong on our side.' } })
}
