// Prisma: an interactive transaction and $queryRaw; never $executeRaw, which throws the attempt away.
import { PrismaPg } from '@prisma/adapter-pg'
import { PrismaClient } from './generated/index.js'

export const connect = (config) => new PrismaClient({ adapter: new PrismaPg(config) })
export const close = (prisma) => prisma.$disconnect()
// The driver's error is in meta; that of COMMIT comes as it is.
export const sqlstate = (error) => (error.meta?.driverAdapterError ?? error).cause?.originalCode

export function placeOrder(prisma, account, key, order) {
  const scope = `${account} orders`
  return prisma.$transaction(async (tx) => {
    const [attempt] = await tx.$queryRaw`
      SELECT * FROM idempotent_begin(${scope}, ${key}, request => ${JSON.stringify(order)}::jsonb)`
    if (attempt.replayed) return attempt.response

    const { id } = await tx.order.create({ data: order })
    const response = { id }
    await tx.$queryRaw`SELECT idempotent_finish(${scope}, ${key}, ${JSON.stringify(response)}::jsonb)`
    return response
  })
}

// For the test of the commit guard.
export const beginAndCommit = (prisma, key) => prisma.$transaction((tx) => tx.$queryRaw`SELECT * FROM idempotent_begin('acct_1 orders', ${key})`)
export const beginInAutocommit = (prisma, key) => prisma.$queryRaw`SELECT * FROM idempotent_begin('acct_1 orders', ${key})`
