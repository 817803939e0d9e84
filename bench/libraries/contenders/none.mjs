// No protection: the floor.
import { transaction, work } from '../shared.mjs'

export const protects = false

export async function open({ pool, worked }) {
  const call = () => transaction(pool, async (client) => {
    const response = await work(client)
    await worked()
    return response
  })
  return { call }
}
