'use strict'
// Work with outside calls. The claim is committed before the handler runs. Each named step calls outside under a derived
// key and is recorded when it returns, so the attempt after a crash goes on behind the last recorded step.
const { randomBytes } = require('node:crypto')
const { reasonOf, isPassing } = require('./errors.js')
const { tell } = require('./events.js')

/** Thrown in a step: the other service may or may not have acted, and asking again under the same key would not be safe. */
class UnknownOutcome extends Error {}

async function leased(context, isKept, keptHeaders) {
  const { settings, request, call: { scope, key }, connection, attempt, refuse } = context
  await connection.query('COMMIT')
  connection.release()
  const steps = { ...attempt.state }
  // Where a profile lets a request run without a key, its steps are called once, under keys of their own, and not recorded.
  const keyed = key !== undefined

  // An error handler of the framework may turn the error of a step into a response: settle has to know of it.
  let failure
  const step = (name, call, save) => runStep(name, call, save).catch((error) => {
    failure = error
    throw error
  })

  async function runStep(name, call, save = async () => {}) {
    if (Object.hasOwn(steps, name)) return steps[name]
    const result = await call(keyed ? await derive(name) : randomBytes(32).toString('hex')) ?? null
    await inTransaction(async (db) => {
      await save(db.handle, result)
      if (keyed) await db.query('SELECT idempotent_checkpoint($1, $2, $3, $4, $5::text::jsonb)',
        [scope, key, attempt.attempt, name, JSON.stringify({ ...steps, [name]: result })])
    })
    return steps[name] = result
  }

  const derive = async (name) => (await inTransaction((db) => db.query('SELECT idempotent_derive($1, $2, $3) AS derived',
    [scope, key, name])))[0].derived

  async function inTransaction(work) {
    const db = await settings.connect()
    try {
      await db.query('BEGIN')
      const result = await work(db)
      await db.query('COMMIT')
      db.release()
      return result
    } catch (error) {
      await db.query('ROLLBACK').then(() => db.release(), () => db.release(error))
      throw error
    }
  }

  const release = (error) => inTransaction((db) => db.query(
    `SELECT idempotent_release($1, $2, $3, error => $4, retry_after => $5::text::interval)`,
    [scope, key, attempt.attempt, String(error?.message ?? error), error?.retryAfter ?? '0']))
  const park = (error) => inTransaction((db) => db.query('SELECT idempotent_park($1, $2, $3, $4)',
    [scope, key, attempt.attempt, error.message || 'unknown outcome']))

  let open = true

  // The response and the effects of `save` commit together with the key.
  async function settle(response, save = async () => {}) {
    open = false
    if (failure && response.status >= 500) return giveUp(failure, response)
    const kept = keyed && isKept(settings, response)
    try {
      if (!keyed) await inTransaction((db) => save(db.handle))
      else if (!kept) await release(`status ${response.status}`)
      else await inTransaction(async (db) => {
        await save(db.handle)
        await db.query(`SELECT idempotent_finish($1, $2, status => $3, headers => $4::text::jsonb, body => $5::bytea,
          attempt => $6, retention => $7::text::interval)`, [scope, key, response.status, keptHeaders(settings, request, response.headers),
          response.body, attempt.attempt, typeof kept === 'string' ? kept : null])
      })
    } catch (error) {
      return refuse(error)
    }
    tell(settings, request, kept ? 'kept' : 'not_kept', { status: response.status })
    return settings.decorate(request, response, { kept, replayed: false })
  }

  async function fail(error) {
    open = false
    const response = await giveUp(error)
    if (response) return response
    throw error
  }

  // If the claim can be neither released nor parked, its lease ends by itself.
  async function giveUp(error, response) {
    const unknown = error instanceof UnknownOutcome
    if (keyed) await (unknown ? park(error) : release(error)).catch(() => {})
    tell(settings, request, unknown ? 'parked' : 'released', { error })
    if (unknown) return refuse({ code: 'IK423' })
    if (isPassing(error) || reasonOf(error) !== 'failed') return refuse(error)
    return response && settings.decorate(request, response, { kept: false, replayed: false })
  }
  async function abandon(error) {
    if (!open) return
    open = false
    await giveUp(error)
  }
  return { attempt, step, settle, fail, abandon, note() {} }
}

module.exports = { leased, UnknownOutcome }
