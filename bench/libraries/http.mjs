// Contenders that are a service: Express in a process of its own, and a client over HTTP whose price all of them have.
import { fork } from 'node:child_process'
import http from 'node:http'
import { fileURLToPath } from 'node:url'
import { Conflict } from './shared.mjs'

const BODY = JSON.stringify({ account: 'acct_42', amount: 2000, currency: 'eur' })

export const overHttp = (name) => async () => {
  const service = fork(fileURLToPath(new URL('http-service.mjs', import.meta.url)), [name], { stdio: ['ignore', 2, 2, 'ipc'] })
  const port = await new Promise((resolve, reject) => {
    service.once('message', resolve)
    service.once('exit', () => reject(new Error('its service ended')))
  })
  const agent = new http.Agent({ keepAlive: true })
  const call = async (key) => {
    const { status, text } = await post(agent, port, key)
    if (status === 409) throw new Conflict(text)
    if (status >= 400) throw new Error(`${status} ${text}`)
    return JSON.parse(text)
  }
  return { call, close: () => service.kill() }
}

const post = (agent, port, key) => new Promise((resolve, reject) => {
  const headers = { 'content-type': 'application/json', 'content-length': Buffer.byteLength(BODY), 'idempotency-key': `"${key}"` }
  const request = http.request({ agent, port, host: '127.0.0.1', method: 'POST', path: '/v1/charges', headers }, (reply) => {
    let text = ''
    reply.setEncoding('utf8').on('data', (part) => { text += part })
    reply.on('end', () => resolve({ status: reply.statusCode, text })).on('error', reject)
  })
  request.on('error', reject).end(BODY)
})
