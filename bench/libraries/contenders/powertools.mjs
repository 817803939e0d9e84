// @aws-lambda-powertools/idempotency over Redis. It needs a Lambda context to know when a call that is in progress must be
// dead: without one its cache layer takes every call in progress for dead, and does the work again at once.
import { Conflict, work } from '../shared.mjs'
import { IdempotencyConfig, makeIdempotent } from '@aws-lambda-powertools/idempotency'
import { CachePersistenceLayer } from '@aws-lambda-powertools/idempotency/cache'
import { createClient } from '@redis/client'

export const needsRedis = true

export async function open({ pool, worked, redis, patience = 29_000 }) {
  const client = createClient({ socket: { path: redis } })
  client.on('error', () => {})
  await client.connect()

  const charge = makeIdempotent(async () => {
    const response = await work(pool)
    await worked()
    return response
  }, {
    persistenceStore: new CachePersistenceLayer({ client }),
    keyPrefix: 'acct_42 POST /v1/charges (eur)',
    config: new IdempotencyConfig({
      eventKeyJmesPath: 'key', throwOnNoIdempotencyKey: true, expiresAfterSeconds: 24 * 3600,
    }),
  })
  const context = { getRemainingTimeInMillis: () => patience }

  const call = (key) => charge({ key }, context).catch((error) => {
    throw error.name === 'IdempotencyAlreadyInProgressError' ? new Conflict(error.message) : error
  })
  return { call, close: () => client.close() }
}
