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

// A body that is no JSON of valid UTF-8 is compared byte by byte.
function comparable(body, how) {
  if (how !== 'json') return body
  try {
    return Buffer.from(canonicalJson(new TextDecoder('utf-8', { fatal: true }).decode(body)))
  } catch {
    return body
  }
}

function fingerprint(request, how) {
  const hash = createHash('sha256')
  const parts = [how, request.method, request.url, comparable(request.body, how)]
  for (const part of parts) hash.update(`${Buffer.byteLength(part)} `).update(part)
  return hash.digest()
}

module.exports = { canonicalJson, fingerprint }
