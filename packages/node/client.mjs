// The client's side, for Node and browsers: an operation gets its key once and keeps it until its outcome is known, across
// lost replies, restarts and reloads.

// Node 18 has it in a module only.
const NODE_CRYPTO = 'node:crypto'
const crypto = globalThis.crypto ?? await import(NODE_CRYPTO)

const MINUTE = 60_000

/** Outcomes that say nothing final: the request is sent again under the same key. */
const isPassing = (status) => status === 408 || status === 409 || status === 425 || status === 429 || status >= 500

/** Waits of 1, 2, 4 and 8 minutes. */
export const minutes = [1, 2, 4, 8].map((n) => n * MINUTE)

/** Waits that double from base to cap, each drawn evenly between 0 and its bound. */
export function fullJitter({ base = 1000, cap = 60_000, tries = 8, random = Math.random } = {}) {
  return Array.from({ length: tries }, (_, n) => Math.round(random() * Math.min(cap, base * 2 ** n)))
}

/** Keeps operations in memory only. In a browser pass localStorage instead. */
export function memoryStorage() {
  const items = new Map()
  return {
    get length() { return items.size },
    key: (n) => [...items.keys()][n] ?? null,
    getItem: (name) => items.get(name) ?? null,
    setItem: (name, value) => { items.set(name, String(value)) },
    removeItem: (name) => { items.delete(name) },
  }
}

/** The outcome could not be learned in time. The operation is still stored: see pending(). */
export class OutcomeUnknown extends Error {
  constructor(operation, cause) {
    super(`the outcome of ${operation.name} is not known`, { cause })
    this.operation = operation
  }
}

/**
 * @param {object} [options]  see client.d.mts
 */
export function idempotentClient({
  fetch = globalThis.fetch, storage = memoryStorage(), prefix = 'idempotency:', retries = () => minutes, keyLife = 24 * 60 * MINUTE,
  timeout = 30_000, budget = Infinity, now = Date.now, sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms)),
} = {}) {
  let left = budget

  /** Names the operation and stores it with its key, or returns what is stored under the name. */
  function operation(name, url, { key = crypto.randomUUID(), method = 'POST', headers = {}, body } = {}) {
    const stored = storage.getItem(prefix + name)
    if (stored) return JSON.parse(stored)
    if (body !== undefined && typeof body !== 'string') throw new TypeError('body must be a string: it is stored and sent again unchanged')
    const made = { name, key, url: String(url), method, headers: { ...headers }, body, madeAt: now() }
    storage.setItem(prefix + name, JSON.stringify(made))
    return made
  }

  /** Sends the operation until its outcome is known. What is final is returned, and the operation is forgotten. */
  async function send(name, url, init) {
    const op = operation(name, url, init)
    const waits = [...retries()]
    let cause
    for (;;) {
      if (now() - op.madeAt >= keyLife) throw new OutcomeUnknown(op, cause ?? new Error('the key has expired'))
      const { response, error } = await poll(op, await attempt(op))
      if (response && !isUnsettled(response)) {
        forget(name)
        return response
      }
      cause = error ?? new Error(`status ${response.status}`)
      const wait = pause(waits, response)
      if (wait === undefined || left <= 0 || now() + wait - op.madeAt >= keyLife) throw new OutcomeUnknown(op, cause)
      left--
      await sleep(wait)
    }
  }

  async function attempt(op) {
    try {
      return { response: await fetch(op.url, { method: op.method, body: op.body, signal: AbortSignal.timeout(timeout),
        headers: { ...op.headers, 'Idempotency-Key': `"${op.key}"` } }) }
    } catch (error) {
      return { error }
    }
  }

  // 202 with a status resource: ask there until the work is done. Where that fails, the request itself is sent again. The
  // headers go along, credentials among them, so the resource must be of the same origin.
  async function poll(op, result) {
    if (!isAccepted(result.response)) return result
    const base = result.response.url || op.url
    const { href: url, origin } = new URL(result.response.headers.get('location'), base)
    if (origin !== new URL(base).origin) return { error: new Error('the status resource is of another origin') }
    while (result.response?.status === 202) {
      const wait = Math.max(1000, retryAfter(result.response))
      if (now() + wait - op.madeAt >= keyLife) return { error: new Error('the work goes on') }
      await sleep(wait)
      result = await attempt({ ...op, url, method: 'GET', body: undefined })
    }
    return result.response?.status === 404 ? { error: new Error('the operation is not known') } : result
  }

  const isAccepted = (response) => response?.status === 202 && response.headers.has('location')
    && response.headers.get('preference-applied') === 'respond-async'

  // The service may say that this very outcome is final. 423 is neither: somebody has to settle it.
  function isUnsettled(response) {
    if (response.headers.get('stripe-should-retry') === 'false' && response.status !== 423) return false
    return isPassing(response.status) || response.status === 423
  }

  function pause(waits, response) {
    if (response?.status === 423) return undefined
    const wait = waits.shift()
    return wait === undefined ? undefined : Math.max(wait, retryAfter(response))
  }

  function retryAfter(response) {
    const value = response?.headers.get('retry-after')
    if (!value) return 0
    const at = /^\d+$/.test(value) ? now() + value * 1000 : Date.parse(value)
    return Number.isNaN(at) ? 0 : Math.max(0, at - now())
  }

  /** What is left for the batch: operations whose outcome is not known, oldest first. */
  function pending() {
    const names = Array.from({ length: storage.length }, (_, n) => storage.key(n)).filter((name) => name?.startsWith(prefix))
    return names.map((name) => JSON.parse(storage.getItem(name))).sort((a, b) => a.madeAt - b.madeAt)
  }

  function forget(name) { storage.removeItem(prefix + name) }

  return { operation, send, pending, forget }
}
