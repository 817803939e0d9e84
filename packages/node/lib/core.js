'use strict'
// The framework-neutral core. A request is { method, url, headers, body, source }, a response { status, headers, body }:
// header names in lower case, bodies as Buffers, `source` whatever the framework calls its request.
const { randomUUID } = require('node:crypto')
const { BodyTooLarge } = require('./body.js')
const { isPassing, reasonOf, Unauthenticated } = require('./errors.js')
const { tell } = require('./events.js')
const { fingerprint } = require('./fingerprint.js')
const { ietf } = require('./profiles.js')
const { leased, UnknownOutcome } = require('./lease.js')
const { accepted, statusOf, wantsLater } = require('./later.js')

// Headers that belong to the response and not to the moment at which it was sent. Never Set-Cookie or Date.
const KEPT_HEADERS = ['content-type', 'content-language', 'content-location', 'content-encoding', 'content-disposition',
  'cache-control', 'vary', 'etag', 'last-modified', 'link', 'location', 'retry-after']

// These say "not now" or "not you": a retry must be able to fare better.
const NEVER_KEPT = [401, 408, 409, 425, 429]

/**
 * @param {object} options  see index.d.ts
 * @returns {{ begin: Function, run: Function, options: object }}
 */
function idempotency(options) {
  if (typeof options?.connect !== 'function') throw new TypeError('connect must be a driver: pgDriver(pool) or postgresDriver(sql)')
  if (typeof options.account !== 'function') throw new TypeError('account must be a function: keys of two accounts are two keys')
  if (options.status && !options.lease) throw new TypeError('status needs a lease: in one transaction nothing can be seen of work that goes on')
  const settings = { header: 'Idempotency-Key', methods: ['POST', 'PATCH'], compare: 'json', keepHeaders: [], onEvent() {},
    patience: 30_000, bodyLimit: 16 << 20, pollAfter: 2, ...(options.profile ?? ietf), ...options }
  settings.header = settings.header.toLowerCase()
  const running = new Set()
  const self = { options: settings, begin: (request) => begin(settings, request, running), read, run, giveUpLater, status, idle }

  // Reads the body; returns a response where it is too large.
  async function read(request, body) {
    request.id = newId()
    try {
      request.body = await body(settings.bodyLimit)
    } catch (error) {
      if (!(error instanceof BodyTooLarge)) throw error
      const response = refusal(settings, request, 'request_too_large')
      return { ...response, headers: { ...response.headers, connection: 'close' } }
    }
  }

  // whenGone calls its argument when the client has gone before it has the response.
  async function run(request, work, whenGone = () => {}) {
    const begun = await self.begin(request)
    if (begun.response) return begun.response
    const done = perform(begun, work)
    if (begun.accepted) {
      done.catch(() => {})                                 // onEvent has been told
      return begun.accepted
    }
    whenGone(() => giveUpLater(begun))
    return done
  }

  // The handler may go on for a while, because its work is of use to the retry. One that never ends must not keep its transaction.
  function giveUpLater(begun) {
    setTimeout(() => begun.abandon(new Error('the client is gone and the handler did not end')), settings.patience).unref()
  }

  // The response of the status resource that a 202 named; undefined for any other request.
  async function status(request) {
    request.id = newId()
    try {
      return await statusOf({ settings, request, answered, refusal, accountOf })
    } catch (error) {
      return refuseError(settings, request, error)
    }
  }

  async function idle() {
    while (running.size > 0) await Promise.all(running)
  }
  return self
}

async function perform(begun, work) {
  let response
  try {
    response = await work(begun)
  } catch (error) {
    return begun.fail(error)
  }
  return begun.settle(response)
}

const newId = () => `req_${randomUUID().replaceAll('-', '')}`

// Returns { response } where the request is answered already, and else what the handler works with.
async function begin(settings, request, running) {
  request.id ??= newId()
  const { key, problem } = settings.key(request)
  request.key = key
  if (problem) return { response: refusal(settings, request, problem) }
  let connection
  try {
    const call = await describe(settings, request, key)
    connection = await settings.connect()
    await connection.query('BEGIN')
    const attempt = key === undefined ? { outcome: 'started' } : await beginAttempt(settings, connection, call)
    if (attempt.outcome !== 'started' && attempt.outcome !== 'recovered') {
      await connection.query('ROLLBACK')
      connection.release()
      if (attempt.outcome === 'in_progress' && wantsLater(settings, request)) return { response: accepted(settings, request, key) }
      return { response: answered(settings, request, attempt) }
    }
    tell(settings, request, key === undefined ? 'unkeyed' : attempt.outcome)
    const context = { settings, request, call, connection, attempt, refuse: (error) => refuseError(settings, request, error) }
    if (settings.lease) {
      const begun = await leased(context, isKept, keptHeaders)
      return key !== undefined && wantsLater(settings, request) ? { ...track(running, begun), accepted: accepted(settings, request, key) } : begun
    }
    await connection.query('SAVEPOINT work')
    return inOneTransaction(context)
  } catch (error) {
    await rollBack(connection, error)
    return { response: refuseError(settings, request, error) }
  }
}

// Work that goes on behind a 202 is in `running` until it has ended.
function track(running, begun) {
  let end
  const ended = new Promise((resolve) => { end = resolve })
  running.add(ended)
  const tracked = (work) => async (...args) => {
    try {
      return await work(...args)
    } finally {
      running.delete(ended)
      end()
    }
  }
  return { ...begun, settle: tracked(begun.settle), fail: tracked(begun.fail), abandon: tracked(begun.abandon) }
}

async function accountOf(settings, request) {
  const account = await settings.account(request.source)
  if (account === undefined || account === null || account === '') throw new Unauthenticated('account() returned nothing: keys would be shared among accounts')
  return encodeURIComponent(account)
}

async function describe(settings, request, key) {
  if (key === undefined) return {}
  return { scope: settings.scope(request, await accountOf(settings, request)), key,
    fingerprint: settings.compare === 'nothing' ? null : fingerprint(request, settings.compare) }
}

async function beginAttempt(settings, connection, { scope, key, fingerprint }) {
  const values = [scope, key, fingerprint, settings.retention ?? null, settings.lease ?? null]
  const call = (name) => connection.query(
    `SELECT * FROM ${name}($1, $2, fingerprint => $3::bytea, retention => $4::text::interval, lease => $5::text::interval)`, values)
  if (!settings.wait) return (await call('idempotent_try_begin'))[0]
  const [{ before }] = await connection.query(`SELECT current_setting('lock_timeout') AS before`)
  await connection.query(`SELECT set_config('lock_timeout', $1, true)`, [settings.wait])
  const [attempt] = await call('idempotent_begin')
  await connection.query(`SELECT set_config('lock_timeout', $1, true)`, [before])
  return attempt
}

function inOneTransaction({ settings, request, call, connection, attempt, refuse }) {
  let open = true
  const close = (how) => {
    if (!open) throw new Error('this attempt has been settled')
    open = false
    return how
  }

  async function settle(response) {
    close()
    try {
      const failed = response.status >= 400
      if (failed && connection.error && response.status >= 500) throw connection.error
      const kept = call.key !== undefined && isKept(settings, response)
      if (failed) await connection.query('ROLLBACK TO work')
      if (kept) await finish(settings, request, connection, call, response, kept)
      else if (!failed && call.key !== undefined) await connection.query('SELECT idempotent_release($1, $2)', [call.scope, call.key])
      await connection.query(failed && !kept ? 'ROLLBACK' : 'COMMIT')
      connection.release()
      tell(settings, request, kept ? 'kept' : 'not_kept', { status: response.status })
      return settings.decorate(request, response, { kept, replayed: false })
    } catch (error) {
      // Either nothing was committed, or the reply to COMMIT was lost. A retry finds out which.
      await rollBack(connection, error)
      return refuse(error)
    }
  }

  // The handler threw. Its work is undone and nothing is kept: a retry runs it again.
  async function fail(error) {
    close()
    const { error: passing } = connection
    await rollBack(connection, error)
    if (passing || reasonOf(error) !== 'failed') return refuse(passing ?? error)
    tell(settings, request, 'threw', { error })
    throw error
  }
  async function abandon(error) {
    if (!open) return
    close()
    await rollBack(connection, error)
    tell(settings, request, 'threw', { error })
  }
  const note = (error) => { if (isPassing(error)) connection.error = error }
  return { db: connection.handle, attempt, settle, fail, note, abandon }
}

// True, false, or an interval: how long.
function isKept(settings, response) {
  return NEVER_KEPT.includes(response.status) ? false : settings.keep(response)
}

function keptHeaders(settings, request, headers) {
  const names = [...KEPT_HEADERS, ...settings.keepHeaders.map((name) => name.toLowerCase())]
  const kept = names.filter((name) => headers[name] !== undefined && name !== 'set-cookie').map((name) => [name, headers[name]])
  return JSON.stringify({ ...Object.fromEntries(kept), ...settings.stored?.(request) })
}

const finish = (settings, request, connection, { scope, key }, { status, headers, body }, kept) => connection.query(
  'SELECT idempotent_finish($1, $2, status => $3, headers => $4::text::jsonb, body => $5::bytea, retention => $6::text::interval)',
  [scope, key, status, keptHeaders(settings, request, headers), body, typeof kept === 'string' ? kept : null])

function answered(settings, request, attempt) {
  if (!attempt.replayed) return refusal(settings, request, attempt.outcome, attempt)
  tell(settings, request, 'replayed', { status: attempt.status })
  const response = { status: attempt.status, headers: { ...attempt.headers }, body: attempt.body ?? Buffer.alloc(0) }
  return settings.decorate(request, response, { kept: true, replayed: true })
}

function refusal(settings, request, reason, about = {}) {
  const { status, headers = {}, body } = settings.refuse(reason, about)
  const error = about instanceof Error && !(about instanceof Unauthenticated) ? about : undefined
  tell(settings, request, 'refused', { status, reason, error })
  const response = { status, headers, body: Buffer.from(JSON.stringify(body)) }
  return settings.decorate(request, response, { kept: false, replayed: false, reason })
}

const refuseError = (settings, request, error) => refusal(settings, request, reasonOf(error), error)

// A connection whose ROLLBACK fails is not given back to the pool.
async function rollBack(connection, error) {
  if (!connection) return
  try {
    await connection.query('ROLLBACK')
    connection.release()
  } catch {
    connection.release(error instanceof Error ? error : new Error('rollback failed'))
  }
}

module.exports = { idempotency, UnknownOutcome }
