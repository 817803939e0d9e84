'use strict'
const { keepRawBody, rawBody, bytesOf } = require('./body.js')

const SAFE = ['GET', 'HEAD', 'OPTIONS']

/** Middleware for Express 4 and 5, NestJS on Express, and whatever else calls (req, res, next). The handler finds req.db. */
function express(guard) {
  return (req, res, next) => SAFE.includes(req.method) ? next() : protect(guard, req, res, next).catch(next)
}

async function protect(guard, req, res, next) {
  const body = await rawBody(req, guard.options.bodyLimit)
  parseUnlessParsed(req, body)
  const request = { method: req.method, url: req.originalUrl ?? req.url, headers: req.headers, body, source: req }
  const begun = await guard.begin(request)
  if (begun.response) return send(res, begun.response)
  hold(res, begun, guard.options.patience, next)
  req.db = begun.db
  req.idempotent = begun
  next()
}

// Where the middleware itself has read the body, a parser behind it would wait for ever.
function parseUnlessParsed(req, body) {
  if (req.body !== undefined && req._body) return
  if (body.length === 0 || !req.readableEnded || (req.body !== undefined && Object.keys(req.body).length > 0)) return
  const isJson = /^application\/([\w.+-]+\+)?json\b/i.test(req.headers['content-type'] ?? '')
  req._body = true
  try {
    req.body = isJson ? JSON.parse(body) : body
  } catch {
    throw Object.assign(new Error('The body is no valid JSON.'), { status: 400, statusCode: 400 })
  }
}

function send(res, { status, headers, body }) {
  for (const name of res.getHeaderNames()) res.removeHeader(name)
  res.statusCode = status
  for (const [name, value] of Object.entries(headers)) res.setHeader(name, value)
  if (!res.hasHeader('content-length') && body.length > 0) res.setHeader('content-length', body.length)
  res.end(body)
}

// Hold back what the handler sends until it can be settled in one piece. When the client goes away the handler may go on,
// because its work is of use to the retry; a handler that never ends is given up after `patience` milliseconds.
function hold(res, begun, patience, next) {
  const { write, end, writeHead, flushHeaders } = res
  const chunks = []
  let open = true
  const keep = (chunk, encoding) => {
    if (open && chunk && typeof chunk !== 'function') chunks.push(Buffer.from(chunk, typeof encoding === 'string' ? encoding : undefined))
  }
  const finish = async () => {
    Object.assign(res, { write, end, writeHead, flushHeaders })
    send(res, await begun.settle({ status: res.statusCode, headers: { ...res.getHeaders() }, body: Buffer.concat(chunks) }))
  }

  res.writeHead = (status, ...rest) => {
    res.statusCode = status
    const headers = rest.at(-1)
    const pairs = Array.isArray(headers) ? chunked(headers) : Object.entries(typeof headers === 'object' ? headers ?? {} : {})
    for (const [name, value] of pairs) res.setHeader(name, value)
    return res
  }
  res.flushHeaders = () => {}
  res.write = (chunk, encoding, callback) => {
    keep(chunk, encoding)
    callback = [encoding, callback].find((f) => typeof f === 'function')
    if (callback) process.nextTick(callback)
    return true
  }
  res.end = (chunk, encoding, callback) => {
    keep(chunk, encoding)
    callback = [chunk, encoding, callback].find((f) => typeof f === 'function')
    if (callback) res.once('finish', callback)
    if (open) {
      open = false
      finish().catch(next)
    }
    return res
  }
  const leave = () => {
    if (!open) return
    setTimeout(() => {
      if (!open) return
      open = false
      begun.abandon(new Error('the client is gone and the handler did not end'))
    }, patience).unref()
  }
  if (res.destroyed) leave()                               // the client went while the key was being begun
  else res.once('close', leave)
}

const chunked = (list) => list.every(Array.isArray) ? list
  : Array.from({ length: list.length / 2 }, (_, i) => [list[2 * i], list[2 * i + 1]])

/** Middleware for Koa. The handler finds ctx.state.db. */
function koa(guard) {
  return async (ctx, next) => {
    if (SAFE.includes(ctx.method)) return next()
    ctx.req.rawBody ??= ctx.request.rawBody
    const body = await rawBody(ctx.req, guard.options.bodyLimit)
    const request = { method: ctx.method, url: ctx.originalUrl, headers: ctx.headers, body, source: ctx }
    ctx.request.rawBody ??= body
    const response = await guard.run(request, async (begun) => {
      ctx.state.db = begun.db
      ctx.state.idempotent = begun
      await next()
      const sent = await bytesOf(ctx.body)
      return { status: ctx.status, headers: { ...ctx.response.headers }, body: sent }
    })
    for (const name of Object.keys(ctx.response.headers)) ctx.remove(name)
    ctx.body = response.body.length > 0 ? response.body : null
    ctx.status = response.status
    for (const [name, value] of Object.entries(response.headers)) if (name !== 'content-length') ctx.set(name, value)
  }
}

/**
 * For Hono, Next.js route handlers and whatever else turns a Request into a Response:
 * handler(request, { db, attempt, step }, …what the framework passes) → Response
 */
function fetchHandler(guard, handler) {
  return async (incoming, ...rest) => {
    const body = Buffer.from(await incoming.arrayBuffer())
    const { pathname, search } = new URL(incoming.url)
    const headers = Object.fromEntries(incoming.headers)
    const request = { method: incoming.method, url: pathname + search, headers, body, source: incoming }
    const copy = new Request(incoming.url, { method: incoming.method, headers: incoming.headers,
      body: body.length > 0 ? body : undefined, signal: incoming.signal })
    const response = await guard.run(request, async (begun) => {
      const answer = await handler(copy, begun, ...rest)
      const cookies = answer.headers.getSetCookie?.() ?? []
      return { status: answer.status, body: Buffer.from(await answer.arrayBuffer()),
        headers: { ...Object.fromEntries(answer.headers), ...(cookies.length > 0 ? { 'set-cookie': cookies } : {}) } }
    })
    return new Response(response.body.length > 0 ? response.body : null, { status: response.status, headers: pairs(response.headers) })
  }
}

const pairs = (headers) => Object.entries(headers).filter(([name]) => name !== 'content-length')
  .flatMap(([name, value]) => [value].flat().map((one) => [name, String(one)]))

module.exports = { express, koa, fetchHandler, keepRawBody, SAFE }
