// Written by hand: INSERT ... ON CONFLICT DO NOTHING, the work, UPDATE, in one transaction. A second caller waits in INSERT.
import { SCOPE, statement, transaction, work } from '../shared.mjs'

const claim = statement('claim', `INSERT INTO by_hand (scope, key, expires_at) VALUES ($1, $2, now() + interval '24 hours')
  ON CONFLICT DO NOTHING`)
const stored = statement('stored', 'SELECT response FROM by_hand WHERE scope = $1 AND key = $2')
const store = statement('store', 'UPDATE by_hand SET response = $3 WHERE scope = $1 AND key = $2')

export async function open({ pool, worked }) {
  const call = (key) => transaction(pool, async (client) => {
    const { rowCount } = await claim(client, SCOPE, key)
    if (rowCount === 0) return (await stored(client, SCOPE, key)).rows[0].response
    const response = await work(client)
    await worked()
    await store(client, SCOPE, key, JSON.stringify(response))
    return response
  })
  return { call }
}
