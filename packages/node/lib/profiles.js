'use strict'
// What a service promises about the header Idempotency-Key, in the words that its clients know. Every member can be replaced
// by an option of the same name.
//
//   required, maxKeyLength, bareKeys
//   key(request)              { key }, {} where there is none, or { problem: 'missing' | 'invalid' }
//   scope(request, account)   whose key, and of what
//   compare                   'json' or 'raw' body together with method, path and query; 'nothing'
//   retention                 how long a key is honoured
//   keep(response)            true, false, or how long: asked for every status but 401, 408, 409, 425 and 429
//   refuse(reason, about)     { status, headers, body }
//   stored(request)           further headers that are kept
//   decorate(request, response, { kept, replayed, reason })

const isPassing = (reason) => reason === 'in_progress' || reason === 'unavailable'
const retryAfter = (about) => ({ 'retry-after': String(about.retry_after ?? 1) })

function plainKey(request) {
  const key = request.headers[this.header]
  if (key === undefined) return this.required ? { problem: 'missing' } : {}
  return key === '' || key.length > this.maxKeyLength ? { problem: 'invalid' } : { key }
}

// draft-ietf-httpapi-idempotency-key-header-07: an Item of Structured Fields (RFC 9651) that is a String. A bare key is
// accepted as well, because most clients send one, unless the option bareKeys is false. Parameters must be well formed.
const STRING = '"((?:[\\x20-\\x21\\x23-\\x5b\\x5d-\\x7e]|\\\\["\\\\])*)"'
const PARAMETER = ';[ ]*[a-z*][a-z0-9_.*-]*(?:=(?:"(?:[\\x20-\\x21\\x23-\\x5b\\x5d-\\x7e]|\\\\["\\\\])*"|[\\w.:?*/+=!#$%&\'^`|~@-]+))?'
const QUOTED = new RegExp(`^[ ]*${STRING}(?:${PARAMETER})*[ ]*$`)
const BARE = /^[\x21\x23-\x2b\x2d-\x3a\x3c-\x7e]+$/         // neither space, quote, comma nor semicolon

const PROBLEMS = {
  missing: [400, 'Idempotency-Key is missing', 'This operation requires a unique Idempotency-Key.'],
  invalid: [400, 'Idempotency-Key is invalid', 'It must be a quoted string of printable ASCII characters within the length limit.'],
  mismatch: [422, 'Idempotency-Key is already used', 'It was sent before with another request.'],
  in_progress: [409, 'A request is outstanding for this Idempotency-Key', 'Retry when the time in Retry-After has passed.'],
  expired: [412, 'The request is too old', 'Whether it was processed before can no longer be known.'],
  parked: [423, 'The outcome is not known', 'It has to be settled before this Idempotency-Key can be used again.'],
  unknown: [404, 'There is no such operation', 'It was never begun, or it is older than the time for which it is kept.'],
  interrupted: [409, 'The work was interrupted', 'Send the request again with the same Idempotency-Key.'],
  unavailable: [503, 'The request could not be completed', 'Retry with the same Idempotency-Key.'],
  failed: [500, 'The request could not be completed', 'Nothing was done. The service has to be corrected before a retry can succeed.'],
  response_too_large: [500, 'The response is too large to be kept', 'Nothing was done. The service has to be corrected before a retry can succeed.'],
  request_too_large: [413, 'The request is too large', 'Nothing was done.'],
  unauthenticated: [401, 'The request does not say whose key this is', 'Authenticate and send the request again with the same Idempotency-Key.'],
}

const ietf = {
  name: 'ietf', required: true, bareKeys: true, maxKeyLength: 255, compare: 'json', retention: '24 hours',
  documentation: 'https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-idempotency-key-header-07',
  key(request) {
    const header = request.headers[this.header]
    if (header === undefined) return this.required ? { problem: 'missing' } : {}
    const quoted = QUOTED.exec(header)
    const key = quoted ? quoted[1].replace(/\\(.)/g, '$1') : this.bareKeys && BARE.test(header) ? header : ''
    return key === '' || key.length > this.maxKeyLength ? { problem: 'invalid' } : { key }
  },
  // Method and path are compared, not part of the scope: a route that is spelled otherwise is refused, not run again.
  scope: (request, account) => `ietf ${account}`,
  keep: ({ status }) => status < 500,
  refuse(reason, about) {
    const [status, title, detail] = PROBLEMS[reason]
    const headers = { 'content-type': 'application/problem+json', 'content-language': 'en',
      link: `<${this.documentation}>; rel="describedby"; type="text/html"` }
    if (isPassing(reason)) Object.assign(headers, retryAfter(about))
    return { status, headers, body: { type: this.documentation, code: `idempotency_${reason}`, title, status, detail } }
  },
  decorate(request, response, { replayed }) {
    return replayed ? { ...response, headers: { ...response.headers, 'idempotency-replayed': 'true' } } : response
  },
}

// Stripe's API v1: optional, belongs to the account. The first response is kept whether it succeeded or failed, 500 included.
// 503 is not kept: nothing has run.
const stripe = {
  name: 'stripe', methods: ['POST'], required: false, maxKeyLength: 255, compare: 'json', retention: '24 hours',
  key: plainKey,
  scope: (request, account) => `stripe ${account}`,
  keep: ({ status }) => status !== 503,
  refuse(reason, about) {
    const idempotency = (message, code) => ({ type: 'idempotency_error', code, message })
    const api = (message) => ({ type: 'api_error', message })
    const [status, error] = {
      missing: [400, idempotency('An Idempotency-Key is required.')],
      invalid: [400, idempotency(`Idempotency keys must have 1 to ${this.maxKeyLength} characters.`)],
      mismatch: [400, idempotency('Keys for idempotent requests can only be used with the same endpoint and parameters they were first used with.')],
      in_progress: [409, idempotency('Another request with this idempotency key is still in progress.', 'idempotency_key_in_use')],
      expired: [400, idempotency('The request is older than the time for which idempotency keys are kept.')],
      parked: [423, idempotency('The outcome of the first request is not known.')],
      unknown: [404, idempotency('There is no such operation.')],
      interrupted: [409, idempotency('The work was interrupted. Send the request again with the same idempotency key.')],
      unavailable: [503, api('The request could not be completed. Retry it with the same idempotency key.')],
      failed: [500, api('The request could not be completed, and nothing was done.')],
      response_too_large: [500, api('The response is too large to be kept, and nothing was done.')],
      request_too_large: [413, { type: 'invalid_request_error', message: 'The request is too large.' }],
      unauthenticated: [401, { type: 'invalid_request_error', message: 'The request does not say whose key this is.' }],
    }[reason]
    const headers = { 'content-type': 'application/json', ...(isPassing(reason) ? retryAfter(about) : {}) }
    return { status, headers, body: { error } }
  },
  stored: (request) => ({ 'request-id': request.id }),
  decorate(request, response, { kept, replayed, reason }) {
    const headers = { ...response.headers }
    if (replayed) Object.assign(headers, { 'idempotent-replayed': 'true', 'original-request': headers['request-id'] })
    headers['request-id'] = request.id
    const key = request.headers[this.header]
    if (key !== undefined) headers['idempotency-key'] = key
    if (reason === 'in_progress' || reason === 'unavailable') headers['stripe-should-retry'] = 'true'
    else if (reason || (kept && response.status >= 400)) headers['stripe-should-retry'] = 'false'
    return { ...response, headers }
  },
}

// Stripe's API v2: a request that failed runs again under its key, and keys are kept for 30 days.
const stripeV2 = { ...stripe, name: 'stripeV2', methods: ['POST', 'DELETE'], retention: '30 days', scope: (request, account) => `stripe-v2 ${account}`,
  keep: ({ status }) => status < 400 }

// Toss Payments: optional, up to 300 characters (SET idempotency.max_key_length), 15 days, belongs to the API key, URL and
// method. The request is not compared: the first response is returned.
const toss = {
  name: 'toss', required: false, maxKeyLength: 300, compare: 'nothing', retention: '15 days',
  key: plainKey,
  scope: (request, account) => `toss ${account} ${request.method} ${request.url}`,
  keep: ({ status }) => status < 500,
  refuse(reason, about) {
    const [status, code, message] = {
      missing: [400, 'INVALID_IDEMPOTENCY_KEY', 'An idempotency key is required.'],
      invalid: [400, 'INVALID_IDEMPOTENCY_KEY', `The idempotency key must have 1 to ${this.maxKeyLength} characters.`],
      mismatch: [422, 'INVALID_IDEMPOTENCY_KEY', 'The idempotency key was used with another request.'],
      in_progress: [409, 'IDEMPOTENT_REQUEST_PROCESSING', 'The first request with this idempotency key is being processed.'],
      expired: [400, 'INVALID_IDEMPOTENCY_KEY', 'The request is older than the time for which idempotency keys are kept.'],
      parked: [423, 'INVALID_IDEMPOTENCY_KEY', 'The outcome of the first request is not known.'],
      unknown: [404, 'INVALID_IDEMPOTENCY_KEY', 'There is no such operation.'],
      interrupted: [409, 'INVALID_IDEMPOTENCY_KEY', 'The work was interrupted. Send the request again with the same key.'],
      unavailable: [503, 'FAILED_INTERNAL_SYSTEM_PROCESSING', 'The request could not be completed. Retry it with the same key.'],
      failed: [500, 'FAILED_INTERNAL_SYSTEM_PROCESSING', 'The request could not be completed, and nothing was done.'],
      response_too_large: [500, 'FAILED_INTERNAL_SYSTEM_PROCESSING', 'The response is too large to be kept, and nothing was done.'],
      request_too_large: [413, 'INVALID_REQUEST', 'The request is too large.'],
      unauthenticated: [401, 'UNAUTHORIZED_KEY', 'The request does not say whose key this is.'],
    }[reason]
    const headers = { 'content-type': 'application/json', ...(isPassing(reason) ? retryAfter(about) : {}) }
    return { status, headers, body: { code, message } }
  },
  decorate: (request, response) => response,
}

module.exports = { ietf, stripe, stripeV2, toss }
