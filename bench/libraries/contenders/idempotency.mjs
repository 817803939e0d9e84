// This extension by the client's statements: begin, the work, finish, in one transaction.
import { SCOPE, statement, transaction, work } from '../shared.mjs'

const begin = statement('begin', 'SELECT replayed, response FROM idempotent_begin($1, $2)')
const finish = statement('finish', 'SELECT idempotent_finish($1, $2, $3)')

export async function open({ pool, worked }) {
  const call = (key) => transaction(pool, async (client) => {
    const { rows: [attempt] } = await begin(client, SCOPE, key)
    if (attempt.replayed) return attempt.response
    const response = await work(client)
    await worked()
    await finish(client, SCOPE, key, JSON.stringify(response))
    return response
  })
  return { call }
}
