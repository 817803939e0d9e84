// What services promise about the header Idempotency-Key, each in the words its clients know.
//
//   key(req)        { key }, {} where there is none, or { problem } with the header
//   scope(req)      whose key, and of what
//   request(req)    what must be the same when the key is; null: not compared
//   retention       how long a key is honoured
//   keeps(status)   is a response of 400 or more kept, too?
//   replayed        headers of a response that is a replay
//   refuse(res, reason, about)
//                   reason: missing, invalid, mismatch, in_progress, expired, failed

const seconds = (about) => String(about.retry_after ?? 1)

// What may succeed on a retry is not kept: the key is free for it. The handler's work was undone, so this is safe.
const unlessServerError = (status) => status < 500

// draft-ietf-httpapi-idempotency-key-header-07: the header is required, an Item of Structured Fields (RFC 9651) that is a
// String. A bare key is taken as well, since most clients send one. Problems are told as RFC 9457 says.
const QUOTED = /^[ ]*"((?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"[ ]*(?:;.*)?$/
const BARE = /^[\x21\x23-\x2b\x2d-\x3a\x3c-\x7e]+$/         // neither space, quote, comma nor semicolon

const PROBLEMS = {
  missing: [400, 'Idempotency-Key is missing', 'This operation requires a unique Idempotency-Key.'],
  invalid: [400, 'Idempotency-Key is invalid', 'It must be a quoted string of 1 to 255 characters.'],
  mismatch: [422, 'Idempotency-Key is already used', 'It was sent before with another request.'],
  in_progress: [409, 'A request is outstanding for this Idempotency-Key', 'Retry when the time in Retry-After has passed.'],
  expired: [412, 'The request is too old', 'Whether it was processed before can no longer be known.'],
  failed: [503, 'The request could not be completed', 'Retry with the same Idempotency-Key.'],
}

export const ietf = {
  key(req) {
    const header = req.get('Idempotency-Key')
    if (header === undefined) return { problem: 'missing' }
    const quoted = QUOTED.exec(header)
    const key = quoted ? quoted[1].replace(/\\(.)/g, '$1') : BARE.test(header) ? header : ''
    return key === '' || key.length > 255 ? { problem: 'invalid' } : { key }
  },
  scope: (req) => `ietf ${req.account} ${req.method} ${req.baseUrl}${req.path}`,
  request: (req) => req.body ?? null,
  retention: '24 hours',
  keeps: unlessServerError,
  replayed: {},
  refuse(res, reason, about) {
    const [status, title, detail] = PROBLEMS[reason]
    if (status === 409 || status === 503) res.set('Retry-After', seconds(about))
    res.status(status).type('application/problem+json').send(JSON.stringify({
      type: `/problems/idempotency-${reason.replace('_', '-')}`, title, status, detail }))
  },
}

// Stripe: optional, up to 255 characters, belongs to the account. The first request's status and body are kept whether it
// succeeded or failed, 500 included. 503 is not: nothing has run, says our error handler by it.
export const stripe = {
  key(req) {
    const key = req.get('Idempotency-Key')
    return key === undefined ? {} : key.length > 255 || key === '' ? { problem: 'invalid' } : { key }
  },
  scope: (req) => `stripe ${req.account}`,
  request: (req) => ({ endpoint: `${req.method} ${req.baseUrl}${req.path}`, parameters: req.body ?? null }),
  retention: '24 hours',
  keeps: (status) => status !== 503,
  replayed: { 'Idempotent-Replayed': 'true' },
  refuse(res, reason, about) {
    const idempotency = (message, code) => ({ type: 'idempotency_error', code, message })
    const [status, error] = {
      invalid: [400, idempotency('Idempotency keys must have 1 to 255 characters.')],
      mismatch: [400, idempotency('Keys for idempotent requests can only be used with the same endpoint and parameters they were first used with.')],
      in_progress: [409, idempotency('Another request with this idempotency key is still in progress.', 'idempotency_key_in_use')],
      expired: [400, idempotency('The request is older than the time for which idempotency keys are kept.')],
      failed: [503, { type: 'api_error', message: 'The request could not be completed. Retry it with the same idempotency key.' }],
    }[reason]
    if (status === 409) res.set('Retry-After', seconds(about))
    res.status(status).json({ error })
  },
}

// Toss Payments: optional, up to 300 characters (the service raises idempotency.max_key_length), 15 days from the first
// request, belongs to key, API key, URL and method. The request is not compared: the first response comes back.
export const toss = {
  key(req) {
    const key = req.get('Idempotency-Key')
    return key === undefined ? {} : key.length > 300 || key === '' ? { problem: 'invalid' } : { key }
  },
  scope: (req) => `toss ${req.apiKey} ${req.method} ${req.originalUrl}`,
  request: () => null,
  retention: '15 days',
  keeps: unlessServerError,
  replayed: {},
  refuse(res, reason, about) {
    const [status, code, message] = {
      invalid: [400, 'INVALID_IDEMPOTENCY_KEY', 'The idempotency key must have 1 to 300 characters.'],
      mismatch: [422, 'INVALID_IDEMPOTENCY_KEY', 'The idempotency key was used with another request.'],
      in_progress: [409, 'IDEMPOTENT_REQUEST_PROCESSING', 'The first request with this idempotency key is being processed.'],
      expired: [400, 'INVALID_IDEMPOTENCY_KEY', 'The request is older than the time for which idempotency keys are kept.'],
      failed: [503, 'FAILED_INTERNAL_SYSTEM_PROCESSING', 'The request could not be completed. Retry it with the same key.'],
    }[reason]
    if (status === 409) res.set('Retry-After', seconds(about))
    res.status(status).json({ code, message })
  },
}
