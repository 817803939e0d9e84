// A payments service with three front doors: one as the IETF draft has it, one as Stripe's clients, one as Toss Payments'
// clients expect it. A retry gets the first response, and the payment is made once.
import express from 'express'
import { express as protect, idempotency, ietf, keepRawBody, pgDriver, stripe, toss } from 'idempotency-postgres'

const ACCOUNTS = { sk_test_one: 'acct_1', sk_test_two: 'acct_2' }

export function service(pool) {
  const once = (profile, more) => protect(idempotency({ connect: pgDriver(pool), account: (req) => req.account, profile, ...more }))
  const app = express()
  app.disable('x-powered-by')
  app.use(express.json({ verify: keepRawBody }), express.urlencoded({ extended: true, verify: keepRawBody }), authenticate)

  // What is refused before `once`, such as failed validation, is not kept. What the handler refuses is kept, and its work undone.
  app.post('/ietf/payments', validate(422), once(ietf, { compare: 'json' }), async (req, res) => {
    const payment = await pay(req, 'payment', req.body)
    if (isDeclined(payment)) return res.status(402).json({ title: 'The card is declined', status: 402 })
    res.status(201).location(`/ietf/payments/${payment.id}`).json(payment)
  })
  app.get('/ietf/payments/:id', async (req, res) => {
    const { rows: [payment] } = await pool.query('SELECT * FROM payments WHERE id::text = $1 AND account = $2', [req.params.id, req.account])
    res.status(payment ? 200 : 404).json(payment ?? null)
  })

  const create = (object, prefix) => async (req, res) => {
    const payment = await pay(req, object, { ...req.body, reference: req.body.description })
    if (isDeclined(payment)) return res.status(402).json({ error: { type: 'card_error', code: 'card_declined', message: 'Your card was declined.' } })
    res.json({ id: `${prefix}_${payment.id}`, object, amount: Number(payment.amount), currency: payment.currency, description: payment.reference })
  }
  app.post('/v1/charges', validate(400), once(stripe), create('charge', 'ch'))
  app.post('/v1/payment_intents', validate(400), once(stripe), create('payment_intent', 'pi'))

  app.post('/toss/v1/payments/confirm', once(toss), async (req, res) => {
    const { paymentKey, orderId, amount } = req.body
    const payment = await pay(req, 'confirm', { amount, currency: 'krw', reference: paymentKey })
    if (isDeclined(payment)) return res.status(403).json({ code: 'REJECT_CARD_COMPANY', message: 'The card company refused.' })
    res.json({ paymentKey, orderId, totalAmount: amount, status: 'DONE', approvedAt: payment.created_at })
  })

  app.use((error, req, res, next) => {
    res.status(error.status ?? 500).json({ error: { type: 'api_error', message: 'Something went wrong on our side.' } })
  })
  return app
}

// Bearer KEY, or Basic with the key as the user's name. The account is the service's word, never the client's.
function authenticate(req, res, next) {
  const [scheme, credentials = ''] = (req.get('Authorization') ?? '').split(' ')
  req.account = ACCOUNTS[scheme === 'Basic' ? Buffer.from(credentials, 'base64').toString().split(':')[0] : credentials]
  if (!req.account) return res.status(401).json({ error: { type: 'authentication_error', message: 'The API key is unknown.' } })
  next()
}

const isAmount = (amount) => Number.isSafeInteger(Number(amount)) && Number(amount) > 0

const validate = (status) => ({ body }, res, next) => isAmount(body?.amount) && /^[a-z]{3}$/.test(body.currency) ? next()
  : res.status(status).json({ error: { type: 'invalid_request_error', message: 'amount or currency is missing or wrong.' } })

const isDeclined = ({ amount }) => amount > 1_000_000       // stands in for a card that is declined

// req.db: the connection inside the request's transaction.
const pay = async (req, kind, { amount, currency, reference }) => (await req.db.query(
  'INSERT INTO payments (account, kind, amount, currency, reference) VALUES ($1, $2, $3, $4, $5) RETURNING *',
  [req.account, kind, amount, currency, reference])).rows[0]
