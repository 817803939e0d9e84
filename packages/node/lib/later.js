'use strict'
// Work whose client polls: 202 with a status resource, while the handler goes on under its lease.
const { ServerResponse } = require('node:http')
const { tell } = require('./events.js')

// RFC 7240: Prefer is a list of preferences, and may come in several fields.
const PREFERS = /(?:^|,)\s*respond-async\s*(?:[,;]|$)/i
const prefers = (request) => PREFERS.test([request.headers.prefer ?? []].flat().join())

/** A client of a service with a status resource may ask for 202, or the service always answers so. */
const wantsLater = (settings, request) => Boolean(settings.status) && (settings.respondAsync === true || prefers(request))

// The operation's name in the URL is what its scope is made of, and its key. It is no secret: the account is not in it.
const nameOf = ({ method, url }, key) => Buffer.from(JSON.stringify([key, method, url])).toString('base64url')

function operationOf(name) {
  try {
    const [key, method, url] = JSON.parse(Buffer.from(name, 'base64url').toString())
    return nameOf({ method, url }, key) === name && typeof key === 'string' ? { key, method, url } : undefined
  } catch {
    return undefined
  }
}

function accepted(settings, request, key) {
  const location = `${settings.status}/${nameOf(request, key)}`
  tell(settings, request, 'accepted', { status: 202 })
  const headers = { location, ...(prefers(request) ? { 'preference-applied': 'respond-async' } : {}) }
  return settings.decorate(request, progress(settings, headers, {}), { kept: false, replayed: false })
}

function progress(settings, headers, { checkpoint = null }) {
  return { status: 202, headers: { 'content-type': 'application/json', 'retry-after': String(settings.pollAfter), 'cache-control': 'no-store', ...headers },
    body: Buffer.from(JSON.stringify({ status: 'in_progress', checkpoint })) }
}

/** The status resource: 202 while the work goes on, then the stored response; undefined for another path. */
async function statusOf({ settings, request, answered, refusal, accountOf }) {
  const path = request.url.split('?')[0]
  if (!settings.status || !['GET', 'HEAD'].includes(request.method) || !path.startsWith(`${settings.status}/`)) return undefined
  const operation = operationOf(path.slice(settings.status.length + 1))
  if (!operation) return refusal(settings, request, 'unknown')
  const scope = settings.scope({ ...request, method: operation.method, url: operation.url }, await accountOf(settings, request))
  const [attempt] = await look(settings, scope, operation.key)
  if (!attempt) return refusal(settings, request, 'unknown')
  if (attempt.outcome === 'in_progress') return settings.decorate(request, progress(settings, {}, attempt), { kept: false, replayed: false })
  if (attempt.outcome === 'recovered') return refusal(settings, request, 'interrupted', attempt)
  return answered(settings, request, attempt)
}

async function look(settings, scope, key) {
  const connection = await settings.connect()
  try {
    const rows = await connection.query('SELECT * FROM idempotent_lookup($1, $2)', [scope, key])
    connection.release()
    return rows
  } catch (error) {
    connection.release(error)
    throw error
  }
}

const HEADER_METHODS = ['setHeader', 'setHeaders', 'appendHeader', 'getHeader', 'getHeaders', 'getHeaderNames', 'hasHeader', 'removeHeader']

// After 202 was sent through it, a response of Node's becomes one that nobody receives: the handler may go on to use it.
function detach(res) {
  const nobody = new ServerResponse(res.req)
  for (const name of HEADER_METHODS) if (nobody[name]) res[name] = nobody[name].bind(nobody)
  for (const name of ['headersSent', 'writableEnded']) Object.defineProperty(res, name, { get: () => false, configurable: true })
  Object.assign(res, { statusCode: 200, writeHead: () => res, flushHeaders() {}, write: () => true, end: () => res })
}

module.exports = { accepted, detach, statusOf, wantsLater }
