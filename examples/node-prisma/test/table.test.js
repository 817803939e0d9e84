// The table of doc/clients.md: a retention as text and a body as a Buffer, the way Prisma passes them.
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { test } from 'node:test'
import { close, connect } from '../prisma.js'

test('prisma: retention as text, body as a Buffer', async () => {
  const prisma = connect({ host: process.env.PGHOST, port: Number(process.env.PGPORT), user: process.env.PGUSER, database: process.env.PGDATABASE, password: '' })
  const [scope, key] = ['acct_1 table', randomUUID()]
  try {
    await prisma.$transaction(async (tx) => {
      await tx.$queryRaw`SELECT * FROM idempotent_begin(${scope}, ${key}, retention => ${'15 days'}::text::interval)`
      await tx.$queryRaw`SELECT idempotent_finish(${scope}, ${key}, body => ${Buffer.from([0, 0x5c, 0xff])})`
    })
    const rows = await prisma.$queryRaw`SELECT encode(body, 'hex') AS body, expires_at - finished_at BETWEEN '15 days' AND '16 days' AS kept
      FROM idempotency_keys WHERE key = ${key}`
    assert.deepEqual(rows, [{ body: '005cff', kept: true }])
  } finally {
    await close(prisma)
  }
})
