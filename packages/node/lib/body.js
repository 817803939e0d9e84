'use strict'
// The bytes of a request's body. A body whose bytes nobody kept is an error: it must never count as "not compared".

/** For body parsers: express.json({ verify: keepRawBody }). */
function keepRawBody(req, res, buffer) {
  req.rawBody = Buffer.from(buffer)
}

const hasBody = (req) => req.headers['transfer-encoding'] !== undefined || Number(req.headers['content-length'] ?? 0) > 0

async function rawBody(req, limit) {
  if (Buffer.isBuffer(req.rawBody)) return req.rawBody
  if (typeof req.rawBody === 'string') return Buffer.from(req.rawBody)
  if (Buffer.isBuffer(req.body)) return req.body
  if (!hasBody(req)) return Buffer.alloc(0)
  if (req.readableDidRead ?? req.readableEnded) {
    throw new Error('The body was parsed and its bytes were not kept. Give the body parser { verify: keepRawBody }, or in NestJS { rawBody: true }.')
  }
  return req.rawBody = await readAll(req, limit)
}

class BodyTooLarge extends Error {}

// A request is not destroyed at the limit: its connection has to bring the response.
const partsOf = (stream) => stream.iterator?.({ destroyOnReturn: false }) ?? stream.values?.({ preventCancel: true }) ?? stream

async function readAll(stream, limit = Infinity) {
  const chunks = []
  let size = 0
  for await (const chunk of partsOf(stream)) {
    const bytes = Buffer.from(chunk)
    if ((size += bytes.length) > limit) throw new BodyTooLarge('The body is too large.')
    chunks.push(bytes)
  }
  return Buffer.concat(chunks)
}

/** What a framework lets a handler return, as bytes. */
async function bytesOf(body) {
  if (body === undefined || body === null) return Buffer.alloc(0)
  if (typeof body === 'string' || Buffer.isBuffer(body) || body instanceof Uint8Array) return Buffer.from(body)
  if (typeof body[Symbol.asyncIterator] === 'function') return readAll(body)
  if (typeof body.arrayBuffer === 'function') return Buffer.from(await body.arrayBuffer())
  return Buffer.from(JSON.stringify(body))
}

module.exports = { BodyTooLarge, keepRawBody, rawBody, readAll, bytesOf }
