'use strict'
// What must be the same when the key is the same: method, path, query and body, as one digest.
const { createHash } = require('node:crypto')

const TOKEN = /"(?:[^"\\]|\\.)*"|[{}[\]:,]|[^\s{}[\]:,"]+/g

/** JSON with its object keys sorted and without white space. Numbers stay as they were written, beyond 2^53 too. */
function canonicalJson(text) {
  JSON.parse(text)                                         // what follows relies on valid JSON
  const tokens = text.match(TOKEN)
  let next = 0
  const scalar = (token) => token[0] === '"' ? JSON.stringify(JSON.parse(token)) : token
  const list = (close, item) => {
    const items = []
    while (tokens[next] !== close) {
      if (tokens[next] === ',') next++
      items.push(item())
    }
    next++
    return items
  }
  const member = () => {
    const name = scalar(tokens[next])
    next += 2                                              // the name and its colon
    return [name, value()]
  }
  const object = () => [...new Map(list('}', member))].sort(([a], [b]) => a < b ? -1 : 1).map((pair) => pair.join(':')).join()
  function value() {
    const token = tokens[next++]
    if (token === '{') return `{${object()}}`
    if (token === '[') return `[${list(']', value).join()}]`
    return scalar(token)
  }
  return value()
}

// Larger JSON is compared by its bytes: to put it into order would hold up other requests.
const JSON_LIMIT = 1 << 20

const isForm = (headers) => /^application\/x-www-form-urlencoded\b/i.test(headers['content-type'] ?? '')

// The order of a form's fields does not matter, but that of two with the same name does.
const canonicalForm = (body) => JSON.stringify([...new URLSearchParams(body.toString('latin1'))].sort(([a], [b]) => a < b ? -1 : a > b ? 1 : 0))

// A body that is neither a form nor JSON of valid UTF-8 is compared byte by byte.
function comparable({ body, headers }, how) {
  if (how !== 'json' || body.length > JSON_LIMIT) return body
  if (isForm(headers)) return Buffer.from(canonicalForm(body))
  try {
    return Buffer.from(canonicalJson(new TextDecoder('utf-8', { fatal: true }).decode(body)))
  } catch {
    return body
  }
}

function fingerprint(request, how) {
  const hash = createHash('sha256')
  const parts = [how, request.method, request.url, comparable(request, how)]
  for (const part of parts) hash.update(`${Buffer.byteLength(part)} `).update(part)
  return hash.digest()
}

module.exports = { canonicalJson, fingerprint }
