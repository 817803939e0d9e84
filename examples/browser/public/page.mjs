// The order has an id from the moment it is made, in this browser's storage, and that id is its Idempotency-Key: another tab,
// or this one after a reload, sends the same key.
import { fullJitter, idempotentClient, OutcomeUnknown } from './client.mjs'

const $ = (id) => document.getElementById(id)
const money = (cents) => new Intl.NumberFormat('en', { style: 'currency', currency: 'EUR' }).format(cents / 100)
const time = (at) => new Date(at).toLocaleTimeString('en-GB')
const read = (name) => JSON.parse(localStorage.getItem(name))
const write = (name, value) => localStorage.setItem(name, JSON.stringify(value))

const tries = []
const client = idempotentClient({
  storage: localStorage,
  retries: () => fullJitter({ base: 600, cap: 5000, tries: 12 }),
  async fetch(url, init) {
    const entry = { at: new Date(), said: 'sent, no reply yet', look: '' }
    tries.push(entry)
    show()
    try {
      const response = await fetch(url, { ...init, headers: { ...init.headers, ...($('lose').checked ? { 'X-Lose-Reply': 'yes' } : {}) } })
      const more = response.headers.get('idempotency-replayed') === 'true' ? ', the stored response' : response.status === 409 ? ', another request is at work' : ''
      Object.assign(entry, { said: response.status + more, look: response.ok ? 'good' : 'bad' })
      return response
    } catch (error) {
      Object.assign(entry, { said: 'the reply was lost', look: 'bad' })
      throw error
    } finally {
      show()
    }
  },
})

function order() {
  const known = read('order')
  if (known) return known
  const made = { id: crypto.randomUUID(), amount: 1000 + 50 * Math.floor(Math.random() * 100) }
  write('order', made)
  return made
}

async function pay({ id, amount }) {
  write('state', { id, is: 'paying' })
  show()
  try {
    const response = await client.send(id, '/payments', { key: id, body: JSON.stringify({ order: id, amount }),
      headers: { 'Content-Type': 'application/json' } })
    write('state', response.ok ? { id, is: 'paid', payment: (await response.json()).id } : { id, is: 'refused', status: response.status })
  } catch (error) {
    if (!(error instanceof OutcomeUnknown)) throw error
    write('state', { id, is: 'unknown' })
  }
  show()
}

const SAYS = {
  paying: () => 'Paying. The outcome is not known yet.',
  paid: ({ payment }) => `Paid: payment ${payment}.`,
  refused: ({ status }) => `Refused (${status}).`,
  unknown: () => 'Not known whether it is paid. Press Pay to ask again under the same key.',
}

function show() {
  const { id, amount } = order()
  const state = read('state')?.id === id ? read('state') : {}
  $('number').textContent = id.slice(0, 8)
  $('amount').textContent = money(amount)
  $('state').textContent = SAYS[state.is]?.(state) ?? 'Not paid.'
  $('state').className = `state ${state.is ?? ''}`
  $('pay').disabled = state.is === 'paid'
  $('another').disabled = state.is === 'paying' || state.is === 'unknown'
  $('key').textContent = id
  $('tries').replaceChildren(...tries.slice(-8).map(({ at, said, look }) => {
    const item = document.createElement('li')
    item.className = look
    item.append(Object.assign(document.createElement('time'), { textContent: time(at) }), said)
    return item
  }))
  $('no-tries').hidden = tries.length > 0
}

async function showLedger() {
  const payments = await fetch('/ledger').then((response) => response.json(), () => [])
  $('payments').replaceChildren(...payments.map(({ id, order_no, amount, paid_at, requests }) => {
    const row = document.createElement('tr')
    row.className = order_no === order().id ? 'current' : ''
    const sent = requests ? requests.started + requests.replayed + requests.refused : 0
    for (const [text, look] of [[id], [order_no.slice(0, 8)], [money(amount), 'figure'], [sent, 'figure'], [time(paid_at), 'figure']]) {
      row.append(Object.assign(document.createElement('td'), { textContent: text, className: look ?? '' }))
    }
    return row
  }))
  $('no-payments').hidden = payments.length > 0
}

$('pay').addEventListener('click', () => pay(order()))
$('another').addEventListener('click', () => {
  localStorage.removeItem('order')
  tries.length = 0
  show()
})
$('lose').checked = read('lose') ?? false
$('lose').addEventListener('change', () => write('lose', $('lose').checked))
addEventListener('storage', show)
show()
if (client.pending().some(({ name }) => name === order().id)) pay(order())      // a reload came in between
for (;;) {
  await showLedger()
  await new Promise((resolve) => setTimeout(resolve, 500))
}
