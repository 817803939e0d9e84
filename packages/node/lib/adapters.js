'use strict'
const { keepRawBody, rawBody, readAll, bytesOf } = require('./body.js')
const { detach } = require('./later.js')

const applies = (guard, method) => guard.options.methods.includes(method)

/** Middleware for Express 4 and 5, NestJS on Express, and whatever else calls (req, res, next). The handler finds req.db. */
function express(guard) {
  return (req, res, next) => {
    if (applies(guard, req.method)) return protect(guard, req, res, next).catch(next)
    if (!guard.options.status) return next()
    guard.status(asked(req)).then((response) => response ? send(res, response) : next()).catch(next)
  }
}

const asked = (req) => ({ method: req.method, url: req.originalUrl ?? req.url, headers: req.headers, source: req })

function whenGone(res, gone) {
  if (res.destroyed) return gone()                         // while the key was being begun
  res.once('close', () => { if (!res.writableFinished) gone() })
}

async function protect(guard, req, res, next) {
  const request = asked(req)
  const refused = await guard.read(request, (limit) => rawBody(req, limit))
  if (refused) return send(res, refused)
  parseUnlessParsed(req, request.body)
  const begun = await guard.begin(request)
  if (begun.response) return send(res, begun.response)
  if (begun.accepted) answerNow(res, begun.accepted)
  hold(res, begun, next)
  if (!begun.accepted) whenGone(res, () => guard.giveUpLater(begun))
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

// The client gets 202, and what the handler sends later is only recorded.
function answerNow(res, response) {
  send(res, response)
  detach(res)
}

// Hold back what the handler sends until it can be settled in one piece.
function hold(res, begun, next) {
  const { write, end, writeHead, flushHeaders } = res
  const chunks = []
  let open = true
  const keep = (chunk, encoding) => {
    if (open && chunk && typeof chunk !== 'function') chunks.push(Buffer.from(chunk, typeof encoding === 'string' ? encoding : undefined))
  }
  const finish = async () => {
    Object.assign(res, { write, end, writeHead, flushHeaders })
    const response = await begun.settle({ status: res.statusCode, headers: { ...res.getHeaders() }, body: Buffer.concat(chunks) })
    if (!begun.accepted) send(res, response)
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
}

const chunked = (list) => list.every(Array.isArray) ? list
  : Array.from({ length: list.length / 2 }, (_, i) => [list[2 * i], list[2 * i + 1]])

/** Middleware for Koa. The handler finds ctx.state.db. */
function koa(guard) {
  return async (ctx, next) => {
    if (!applies(guard, ctx.method)) {
      const response = await guard.status({ method: ctx.method, url: ctx.originalUrl, headers: ctx.headers, source: ctx })
      return response ? sendByKoa(ctx, response) : next()
    }
    ctx.req.rawBody ??= ctx.request.rawBody
    const request = { method: ctx.method, url: ctx.originalUrl, headers: ctx.headers, source: ctx }
    const refused = await guard.read(request, (limit) => rawBody(ctx.req, limit))
    if (refused) return sendByKoa(ctx, refused)
    ctx.request.rawBody ??= request.body
    const response = await guard.run(request, async (begun) => {
      ctx.state.db = begun.db
      ctx.state.idempotent = begun
      if (begun.accepted) {
        ctx.respond = false
        answerNow(ctx.res, begun.accepted)
        ctx.res.statusCode = 404                           // Koa's default
      }
      await next()
      const sent = await bytesOf(ctx.body)
      return { status: ctx.status, headers: { ...ctx.response.headers }, body: sent }
    }, (gone) => whenGone(ctx.res, gone))
    if (ctx.respond !== false) sendByKoa(ctx, response)
  }
}

function sendByKoa(ctx, { status, headers, body }) {
  for (const name of Object.keys(ctx.response.headers)) ctx.remove(name)
  ctx.body = body.length > 0 ? body : null
  ctx.status = status
  for (const [name, value] of Object.entries(headers)) if (name !== 'content-length') ctx.set(name, value)
}

/**
 * For Hono, Next.js route handlers and whatever else turns a Request into a Response:
 * handler(request, { db, attempt, step }, …what the framework passes) → Response
 */
function fetchHandler(guard, handler) {
  return async (incoming, ...rest) => {
    const { pathname, search } = new URL(incoming.url)
    const request = { method: incoming.method, url: pathname + search, headers: Object.fromEntries(incoming.headers), source: incoming }
    if (!applies(guard, incoming.method)) {
      const status = await guard.status(request)
      return status ? fetchResponse(status) : handler(incoming, {}, ...rest)
    }
    const refused = await guard.read(request, (limit) => incoming.body ? readAll(incoming.body, limit) : Buffer.alloc(0))
    if (refused) return fetchResponse(refused)
    const copy = new Request(incoming.url, { method: incoming.method, headers: incoming.headers,
      body: request.body.length > 0 ? request.body : undefined, signal: incoming.signal })
    const response = await guard.run(request, async (begun) => {
      const answer = await handler(copy, begun, ...rest)
      const cookies = answer.headers.getSetCookie?.() ?? []
      return { status: answer.status, body: Buffer.from(await answer.arrayBuffer()),
        headers: { ...Object.fromEntries(answer.headers), ...(cookies.length > 0 ? { 'set-cookie': cookies } : {}) } }
    }, (gone) => whenAborted(incoming.signal, gone))
    return fetchResponse(response)
  }
}

function whenAborted(signal, gone) {
  if (signal?.aborted) gone()
  else signal?.addEventListener('abort', gone, { once: true })
}

const fetchResponse = ({ status, headers, body }) => new Response(body.length > 0 ? body : null, { status, headers: pairs(headers) })

const pairs = (headers) => Object.entries(headers).filter(([name]) => name !== 'content-length')
  .flatMap(([name, value]) => [value].flat().map((one) => [name, String(one)]))

module.exports = { express, koa, fetchHandler, keepRawBody, answerNow, applies, whenGone }
