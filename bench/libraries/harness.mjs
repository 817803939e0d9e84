// Contenders as processes of their own, so that neither their background work nor what one has made of the heap and the
// compiler is part of another's figures; Redis for those that need it; and an end that leaves nothing behind.
import { fork, spawn, spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const HERE = dirname(fileURLToPath(import.meta.url))
const children = new Set()
const folders = []

export const say = (...words) => process.stderr.write(`${words.join(' ')}\n`)
export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms))

process.on('exit', () => {
  for (const child of children) child.kill('SIGKILL')
  for (const folder of folders) rmSync(folder, { recursive: true, force: true })
})
for (const [signal, status] of [['SIGHUP', 129], ['SIGINT', 130], ['SIGTERM', 143]]) {
  process.on(signal, () => process.exit(status))
}

const adopt = (child) => {
  children.add(child)
  child.on('exit', () => children.delete(child))
  return child
}

// The packages, if they are not there. What is optional and cannot be had is missing afterwards, and no error.
export function installPackages() {
  if (existsSync(join(HERE, 'node_modules', 'pg'))) return
  const options = ['--prefer-offline', '--no-audit', '--no-fund', '--no-update-notifier', '--loglevel=error']
  const { status } = spawnSync('npm', ['ci', ...options], { cwd: HERE, stdio: ['ignore', 2, 2] })
  if (status !== 0) {
    say('npm could not install the packages: nothing is measured')
    process.exit(0)
  }
}

// The socket of a Redis that is thrown away, or nothing. It appends to its log and syncs that every second.
export async function startRedis() {
  const folder = mkdtempSync(join(tmpdir(), 'redis.'))
  folders.push(folder)
  const socket = join(folder, 'socket')
  const child = adopt(spawn('redis-server', ['--port', '0', '--unixsocket', socket, '--dir', folder, '--save', '',
    '--appendonly', 'yes', '--appendfsync', 'everysec'], { stdio: 'ignore' }))
  const failed = new Promise((resolve) => child.on('error', (error) => resolve(error.message)))
  for (let i = 0; i < 100; i++) {
    const error = await Promise.race([failed, sleep(50)])
    if (error) return say('no Redis:', error)
    if (existsSync(socket)) return socket
  }
  say('Redis did not start')
}

export class Contender {
  #asked = new Map()
  #events = []

  // Options: stop (after the work), patience (ms until a call in progress counts as dead), redis, and the contender's own.
  constructor(name, options = {}) {
    this.name = name
    this.process = adopt(fork(join(HERE, 'worker.mjs'), [name, JSON.stringify(options)], { stdio: ['ignore', 2, 2, 'ipc'] }))
    this.process.on('message', (message) => this.#hear(message))
    this.process.on('error', () => {})
    this.process.on('exit', () => this.#gone())
    this.opened = this.#answer('open', 60)
    this.opened.catch(() => {})
  }

  #hear({ id, result, error, event }) {
    if (event) return this.#events.splice(0).forEach((resolve) => resolve(event))
    const { resolve, reject } = this.#asked.get(id) ?? {}
    this.#asked.delete(id)
    if (error !== undefined) reject?.(new Error(error))
    else resolve?.(result)
  }

  #gone() {
    for (const { reject } of this.#asked.values()) reject(new Error('its process ended'))
    this.#asked.clear()
  }

  #answer(id, seconds) {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`no answer in ${seconds} s`)), seconds * 1000)
      const end = (settle) => (value) => { clearTimeout(timer); settle(value) }
      this.#asked.set(id, { resolve: end(resolve), reject: end(reject) })
    })
  }

  // Does a measure, within a time.
  ask(measure, args = {}, seconds = 60) {
    const id = crypto.randomUUID()
    const answer = this.#answer(id, seconds)
    if (this.process.connected) this.process.send({ id, measure, args }, () => {})
    else this.#gone()
    return answer
  }

  // The next call has done its work and stopped.
  worked(seconds = 20) {
    return Promise.race([
      new Promise((resolve) => this.#events.push(resolve)),
      sleep(seconds * 1000).then(() => { throw new Error('it did not come to its work') }),
    ])
  }

  goOn() {
    this.process.send({ event: 'go on' })
  }

  signal(name) {
    this.process.kill(name)
  }

  kill() {
    return new Promise((resolve) => {
      if (this.process.exitCode !== null || this.process.signalCode !== null) return resolve()
      this.process.once('exit', resolve)
      this.process.kill('SIGKILL')
    })
  }
}
