// The page in headless Chromium: BROWSER is its path, /usr/bin/chromium unless told. With SCREENSHOTS a folder gets what was seen.
import assert from 'node:assert/strict'
import http from 'node:http'
import { after, before, test } from 'node:test'
import pg from 'pg'
import { chromium } from 'playwright-core'
import { service } from '../service.js'

const admin = new pg.Pool({ max: 2 })
const pool = new pg.Pool({ user: 'shop', max: 8 })
let browser, server, home
before(async () => {
  server = http.createServer(service(pool))
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
  home = `http://127.0.0.1:${server.address().port}/`
  browser = await chromium.launch({ executablePath: process.env.BROWSER ?? '/usr/bin/chromium', args: ['--no-sandbox', '--disable-gpu'] })
})
after(async () => {
  await browser?.close()
  server.closeAllConnections()
  server.close()
  await Promise.all([pool.end(), admin.end()])
})

// A customer of his own: storage and session are the context's.
async function customer() {
  const context = await browser.newContext({ viewport: { width: 1280, height: 620 } })
  const errors = []
  const open = async () => {
    const page = await context.newPage()
    page.on('pageerror', (error) => errors.push(error))
    await page.goto(home)
    return page
  }
  return { open, close: () => context.close(), errors }
}

const key = (page) => page.locator('#key').textContent()
const payments = async (order) => (await admin.query('SELECT id::text FROM payments WHERE order_no = $1', [order])).rows.map(({ id }) => id)
const state = (page, text) => page.locator('#state', { hasText: text }).waitFor()
const tried = (page, text) => page.locator('#tries li', { hasText: text }).first().waitFor()
const shows = (page, n) => page.waitForFunction((n) => document.querySelectorAll('#payments tr').length === n, n)
const picture = (page, name) => process.env.SCREENSHOTS && page.screenshot({ path: `${process.env.SCREENSHOTS}/${name}.png` })

test('an order is paid, and the ledger has it', async () => {
  const { open, close, errors } = await customer()
  const page = await open()
  await picture(page, '1-before')
  await page.click('#pay')
  await state(page, 'Paid')
  await shows(page, 1)
  const [payment] = await payments(await key(page))
  assert.equal(await page.locator('#state').textContent(), `Paid: payment ${payment}.`)
  assert.ok(await page.locator('#pay').isDisabled())
  await picture(page, '2-paid')
  assert.deepEqual(errors, [])
  await close()
})

test('a reply is lost, the page is reloaded, and the order is paid once', async () => {
  const { open, close, errors } = await customer()
  const page = await open()
  const order = await key(page)
  await page.check('#lose')
  await page.click('#pay')
  await tried(page, 'the reply was lost')
  await shows(page, 1)                                       // paid, and the page does not know
  await state(page, 'not known yet')
  await picture(page, '3-reply-lost')
  await page.evaluate(() => localStorage.setItem('lose', 'false'))
  await page.reload()
  assert.equal(await key(page), order)
  await state(page, 'Paid')
  await tried(page, '201, the stored response')
  await shows(page, 1)
  assert.equal((await payments(order)).length, 1)
  assert.equal(await page.evaluate(() => Object.keys(localStorage).filter((name) => name.startsWith('idempotency:')).length), 0)
  await picture(page, '4-after-reload')
  assert.deepEqual(errors, [])
  await close()
})

test('two tabs pay the same order at once: one waits for the other, and it is paid once', async () => {
  const { open, close, errors } = await customer()
  const [one, two] = [await open(), await open()]
  const order = await key(one)
  assert.equal(await key(two), order)
  const holder = await admin.connect()
  try {
    await holder.query('BEGIN; LOCK TABLE payments IN SHARE MODE')
    for (const page of [one, two]) await page.evaluate(() => document.getElementById('pay').click())
    await Promise.race([tried(one, '409'), tried(two, '409')])
  } finally {
    await holder.query('ROLLBACK')
    holder.release()
  }
  for (const page of [one, two]) await tried(page, '201')
  await Promise.all([state(one, 'Paid'), state(two, 'Paid')])
  assert.equal((await payments(order)).length, 1)
  await shows(two, 1)
  await picture(two, '5-two-tabs')
  assert.deepEqual(errors, [])
  await close()
})

test('the other tab shows what became of the order, and a new order is another payment', async () => {
  const { open, close, errors } = await customer()
  const [one, two] = [await open(), await open()]
  await one.click('#pay')
  await state(two, 'Paid')
  const first = await key(one)
  await one.click('#another')
  await state(one, 'Not paid')
  assert.notEqual(await key(one), first)
  await one.click('#pay')
  await state(one, 'Paid')
  await shows(one, 2)
  assert.deepEqual(errors, [])
  await close()
})

test('two customers do not see each other', async () => {
  const [one, two] = [await customer(), await customer()]
  const [page, other] = [await one.open(), await two.open()]
  await page.click('#pay')
  await state(page, 'Paid')
  assert.notEqual(await key(other), await key(page))
  assert.equal(await other.locator('#payments tr').count(), 0)
  await Promise.all([one.close(), two.close()])
})
