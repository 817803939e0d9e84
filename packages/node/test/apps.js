// One payment service, written for each framework. What a request makes the handler do stands in its header X-Do.
import 'reflect-metadata'
import { randomUUID } from 'node:crypto'
import { createServer } from 'node:http'
import { Readable } from 'node:stream'
import { gzipSync } from 'node:zlib'
import { All, Controller, Module, Post, Req, Res } from '@nestjs/common'
import { NestFactory } from '@nestjs/core'
import { getRequestListener } from '@hono/node-server'
import express5 from 'express'
import express4 from 'express4'
import Fastify from 'fastify'
import { Hono } from 'hono'
import Koa from 'koa'
import pg from 'pg'
import postgres from 'postgres'
import { express, fastify, fetchHandler, idempotency, keepRawBody, koa, pgDriver, postgresDriver, UnknownOutcome } from 'idempotency-postgres'

export const pool = new pg.Pool({ user: 'app', max: 8, application_name: 'service', connectionTimeoutMillis: 5000 })
pool.on('error', () => {})
export const sql = postgres({ user: 'app', max: 8, connection: { application_name: 'service' }, onnotice() {} })
export const admin = new pg.Pool({ max: 4 })
admin.on('error', () => {})

const pgInsert = (db, account, amount) => db.query('INSERT INTO payments (account, amount) VALUES ($1, $2) RETURNING id', [account, amount])
  .then(({ rows }) => rows[0].id)
const pgRun = (db, text) => db.query(text)
const sqlInsert = async (db, account, amount) => (await db`INSERT INTO payments (account, amount) VALUES (${account}, ${amount}) RETURNING id`)[0].id
const sqlRun = (db, text) => db.unsafe(text)

let failures = new Map()
const once = (key) => failures.has(key) ? false : failures.set(key, true)

/** The handler itself, of no framework: { status, headers, body }. */
async function act({ db, insert = pgInsert, run = pgRun, headers, body }) {
  const what = headers['x-do'] ?? 'pay'
  const key = headers['idempotency-key']
  if (what === 'limited' && once(key)) return { status: 429, headers: { 'retry-after': '1' }, body: 'slow down' }
  if (what === 'hang') return new Promise(() => {})
  if (what === 'throw') throw new Error('expected by the test')
  const id = await insert(db, headers['x-account'], JSON.stringify(body.length > 100 ? 'long' : body.toString()).replaceAll('\\u0000', ''))
  const json = (status, value, more = {}) => ({ status, headers: { 'content-type': 'application/json', ...more }, body: JSON.stringify(value) })
  switch (what) {
    case 'timeout':
      if (once(key)) {
        await run(db, `SET LOCAL statement_timeout = '20ms'`)
        await run(db, 'SELECT pg_sleep(10)')
      }
      return json(201, { id })
    case 'decline': return json(402, { error: 'declined' })
    case 'broken': return json(500, { error: 'broken' })
    case 'gzip': return { status: 200, headers: { 'content-type': 'application/json', 'content-encoding': 'gzip', vary: 'Accept-Encoding' }, body: gzipSync(JSON.stringify({ id })) }
    case 'other': return { status: 303, headers: { location: `/payments/${id}` }, body: '' }
    case 'accepted': return json(202, { id }, { location: `/status/${id}` })
    case 'empty': return { status: 204, headers: {}, body: '' }
    case 'chunks': return { status: 201, chunks: [Buffer.from('one, '), Buffer.from('two, '), Buffer.from('\xff', 'latin1')],
      headers: { 'content-type': 'application/x-test', link: '</x>; rel=next', 'set-cookie': 'secret=1', 'x-run': randomUUID(),
        'content-disposition': 'attachment', 'cache-control': 'no-store' } }
    case 'commit': await run(db, 'COMMIT'); return json(201, { id })
    case 'die': await Promise.resolve(run(db, 'SELECT pg_terminate_backend(pg_backend_pid())')).catch(() => {}); return json(201, { id })
    case 'large': return { chunks: Array.from({ length: 10 }, () => Buffer.alloc(50_000, `${id} `)), status: 200, headers: { 'content-type': 'application/octet-stream' } }
    case 'oversize': return { status: 200, headers: { 'content-type': 'application/octet-stream' }, body: Buffer.alloc(2_000_000, 'x') }
    case 'cookie': return json(200, { id }, { 'set-cookie': 'a=1' })
    case 'block': await run(db, 'LOCK TABLE gate IN SHARE MODE'); return json(201, { id })
    default: return json(once(`${key} ${what}`) && Number(what.split(' ')[1]) || 201, { id })    // "status 401": the first time
  }
}

export const guard = (options = {}) => idempotency({ connect: pgDriver(pool), account: accountOf, ...options })
const accountOf = (source) => source.get?.('x-account') ?? source.headers?.['x-account'] ?? source.headers.get('x-account')

const nodeHandler = async (req, res, next) => {
  try {
    const { status, headers, body, chunks = [] } = await act({ db: req.db, headers: req.headers, body: req.rawBody ?? Buffer.alloc(0) })
    res.writeHead(status, headers)
    for (const chunk of chunks) res.write(chunk)
    res.end(body)
  } catch (error) {
    next(error)
  }
}

const expressApp = (make) => (options) => {
  const app = make()
  const protect = express(guard(options))
  app.use(make.json({ verify: keepRawBody }))
  app.use(protect)
  for (const path of ['/pay', '/p%61y']) app.all(path, nodeHandler)
  app.use((error, req, res, next) => { res.status(error.status ?? 500).json({ error: 'internal' }) })
  return app
}

const fastifyApp = async (options) => {
  const app = Fastify({ bodyLimit: 16 << 20 })
  await app.register(fastify(guard(options)))
  app.addContentTypeParser(['text/plain', 'application/octet-stream'], { parseAs: 'buffer' }, (request, body, done) => done(null, body))
  for (const url of ['/pay', '/pay/', '/PAY']) app.route({ url, method: ['POST', 'PATCH'], handler: async (request, reply) => {
    const { status, headers, body, chunks } = await act({ db: request.db, headers: request.headers, body: request.rawBody })
    return reply.code(status).headers(headers).send(chunks ? Readable.from(chunks) : body)
  } })
  await app.ready()
  return app.routing
}

const koaApp = (options) => {
  const app = new Koa()
  app.silent = true
  app.use(koa(guard(options)))
  app.use(async (ctx) => {
    const { status, headers, body, chunks } = await act({ db: ctx.state.db, headers: ctx.headers, body: ctx.request.rawBody })
    ctx.body = chunks ? Readable.from(chunks) : body
    ctx.status = status
    ctx.set(headers)
  })
  return app.callback()
}

const streamOf = (chunks) => new ReadableStream({
  start(controller) {
    for (const chunk of chunks) controller.enqueue(chunk)
    controller.close()
  },
})

const honoApp = (options) => {
  const app = new Hono()
  const pay = fetchHandler(guard({ connect: postgresDriver(sql), ...options, ...(options?.sql && { connect: postgresDriver(options.sql) }) }), async (request, { db }) => {
    const { status, headers, body, chunks } = await act({ db, insert: sqlInsert, run: sqlRun, headers: Object.fromEntries(request.headers),
      body: Buffer.from(await request.arrayBuffer()) })
    return new Response(status === 204 ? null : chunks ? streamOf(chunks) : body, { status, headers })
  })
  for (const path of ['/pay', '/pay/', '/PAY', '/p%61y']) app.on(['POST', 'PATCH'], path, (c) => pay(c.req.raw))
  return getRequestListener(app.fetch, { overrideGlobalObjects: false })
}

// Decorators without a compiler.
class Payments {
  async pay(req, res) { await nodeHandler(req, res, (error) => { throw error }) }
}
Reflect.decorate([All(['pay', 'p%61y'])], Payments.prototype, 'pay', Object.getOwnPropertyDescriptor(Payments.prototype, 'pay'))
Req()(Payments.prototype, 'pay', 0)
Res()(Payments.prototype, 'pay', 1)
Controller()(Payments)

const nestApp = async (options) => {
  class App {
    configure(consumer) { consumer.apply(express(guard(options))).forRoutes(Payments) }
  }
  Module({ controllers: [Payments] })(App)
  const app = await NestFactory.create(App, { rawBody: true, logger: false })
  await app.init()
  return app.getHttpAdapter().getInstance()
}

// Fastify 5 and NestJS 11 need Node 20.
const newer = Number(process.versions.node.split('.')[0]) >= 20 ? { 'Fastify 5': fastifyApp, 'NestJS 11': nestApp } : {}
export const frameworks = { 'Express 5': expressApp(express5), 'Express 4': expressApp(express4), 'Koa': koaApp,
  'Hono and postgres.js': honoApp, ...newer }

// Orders under lease, for a client that polls. The test opens the gate in front of the second step.
export const work = {
  start(how = {}) {
    let open, begin
    Object.assign(work, { how, runs: 0, gate: new Promise((resolve) => { open = resolve }), begun: new Promise((resolve) => { begin = resolve }),
      begin: () => begin() })
    return open
  },
}

async function order(step) {
  await step('charge', async () => ++work.runs)
  work.begin()
  await step('ship', async () => {
    await work.gate
    if (work.how.fails) throw new Error('expected by the test')
    if (work.how.unknown) throw new UnknownOutcome('no reply')
    return 'shipped'
  })
  return work.how.declines ? { status: 402, headers: {}, body: 'declined' }
    : { status: 201, headers: { 'content-type': 'application/json', location: '/orders/7' }, body: '{"order":7}' }
}

const expressOrders = (make) => (used) => {
  const app = make()
  const handler = async (req, res, next) => {
    try {
      const { status, headers, body } = await order(req.idempotent.step)
      res.status(status).set(headers).send(body)
    } catch (error) {
      next(error)
    }
  }
  app.post('/orders', make.json({ verify: keepRawBody }), express(used), handler)
  app.get('/operations/:name', express(used))
  app.use((error, req, res, next) => { res.status(500).json({ error: 'internal' }) })
  return app
}

const fastifyOrders = async (used) => {
  const app = Fastify()
  await app.register(fastify(used))
  app.post('/orders', async (request, reply) => {
    const { status, headers, body } = await order(request.idempotent.step)
    return reply.code(status).headers(headers).send(body)
  })
  await app.ready()
  return app.routing
}

const koaOrders = (used) => {
  const app = new Koa()
  app.silent = true
  app.use(koa(used))
  app.use(async (ctx) => {
    const { status, headers, body } = await order(ctx.state.idempotent.step)
    ctx.body = body
    ctx.status = status
    ctx.set(headers)
  })
  return app.callback()
}

const honoOrders = (used) => {
  const app = new Hono()
  const handler = fetchHandler(used, async (request, { step }) => {
    const { status, headers, body } = await order(step)
    return new Response(body, { status, headers })
  })
  app.post('/orders', (c) => handler(c.req.raw))
  app.get('/operations/:name', (c) => handler(c.req.raw))
  return getRequestListener(app.fetch, { overrideGlobalObjects: false })
}

class Orders {
  async order(req, res) {
    const { status, headers, body } = await order(req.idempotent.step)
    res.status(status).set(headers).send(body)
  }
}
Reflect.decorate([Post('orders')], Orders.prototype, 'order', Object.getOwnPropertyDescriptor(Orders.prototype, 'order'))
Req()(Orders.prototype, 'order', 0)
Res()(Orders.prototype, 'order', 1)
Controller()(Orders)

const nestOrders = async (used) => {
  class App {
    configure(consumer) { consumer.apply(express(used)).forRoutes(Orders, 'operations/:name') }
  }
  Module({ controllers: [Orders] })(App)
  const app = await NestFactory.create(App, { rawBody: true, logger: false })
  await app.init()
  return app.getHttpAdapter().getInstance()
}

export const orders = { 'Express 5': expressOrders(express5), 'Express 4': expressOrders(express4), 'Fastify 5': fastifyOrders, 'Koa': koaOrders,
  'Hono': honoOrders, 'NestJS 11': nestOrders }

export async function serve(make, options) {
  const server = createServer(await make(options))
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address()
  const post = async (body, headers = {}, path = '/pay', method = 'POST') => {
    const res = await fetch(`http://127.0.0.1:${port}${path}`, { method, body, redirect: 'manual',
      headers: { 'content-type': 'application/json', 'x-account': 'acct_1', ...headers } })
    const bytes = Buffer.from(await res.arrayBuffer())
    return { status: res.status, headers: res.headers, text: bytes.toString(), bytes }
  }
  return { port, post, stop: () => { server.closeAllConnections(); server.close() } }
}
