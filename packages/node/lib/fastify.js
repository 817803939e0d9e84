'use strict'
const { Readable } = require('node:stream')
const { bytesOf, readAll } = require('./body.js')
const { applies, answerNow, whenGone } = require('./adapters.js')

/** A plugin for Fastify 5. It protects the routes of the context in which it is registered; they find request.db. */
function fastify(guard) {
  async function plugin(app) {
    for (const name of ['db', 'rawBody', 'idempotent']) if (!app.hasRequestDecorator(name)) app.decorateRequest(name, null)
    app.addHook('preParsing', (request, reply, payload) => keepBytes(guard, request, reply, payload))
    app.addHook('preHandler', (request, reply) => beginAttempt(guard, request, reply))
    app.addHook('onError', async (request, reply, error) => request.idempotent?.note(error))
    app.addHook('onSend', settle)
    if (guard.options.status) app.get(`${guard.options.status}/:operation`, (request, reply) => look(guard, request, reply))
  }
  plugin[Symbol.for('skip-override')] = true
  return plugin
}

async function keepBytes(guard, request, reply, payload) {
  if (!applies(guard, request.method)) return payload
  const asked = { method: request.method, headers: request.headers, source: request }
  const refused = await guard.read(asked, (limit) => readAll(payload, Math.min(limit, request.routeOptions.bodyLimit)))
  if (refused) return answer(reply, refused)
  request.rawBody = asked.body
  const again = Readable.from([request.rawBody], { objectMode: false })
  again.receivedEncodedLength = request.rawBody.length
  return again
}

async function beginAttempt(guard, request, reply) {
  if (!applies(guard, request.method)) return
  const begun = await guard.begin({ method: request.method, url: request.originalUrl, headers: request.headers,
    body: request.rawBody ?? Buffer.alloc(0), source: request })
  if (begun.response) return answer(reply, begun.response)
  request.idempotent = begun
  request.db = begun.db
  if (begun.accepted) answerNow(reply.raw, begun.accepted)
  else whenGone(reply.raw, () => guard.giveUpLater(begun))
}

const answer = (reply, { status, headers, body }) => reply.code(status).headers(headers).send(body)

async function look(guard, request, reply) {
  return answer(reply, await guard.status({ method: request.method, url: request.originalUrl, headers: request.headers, source: request }))
}

async function settle(request, reply, payload) {
  const begun = request.idempotent
  if (!begun) return payload
  request.idempotent = null
  const response = await begun.settle({ status: reply.statusCode, headers: { ...reply.getHeaders() }, body: await bytesOf(payload) })
  for (const name of Object.keys(reply.getHeaders())) reply.removeHeader(name)
  reply.code(response.status).headers(response.headers)
  return response.body
}

module.exports = { fastify }
