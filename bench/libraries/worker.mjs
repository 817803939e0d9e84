// A contender's process: opens the contender that it is named, and does what its parent says until that is gone.
import { measures } from './measures.mjs'
import { drained, openPool } from './shared.mjs'

const [name, json] = process.argv.slice(2)
const options = JSON.parse(json)

// Where the parent wants it, a call stops between its work and whatever comes then, until the parent lets it go on.
let goOn
const released = new Promise((resolve) => { goOn = resolve })
const stop = () => {
  process.send({ event: 'worked' })
  return released
}

const tell = (id, promise) => promise.then(
  (result) => process.send({ id, result: result ?? null }),
  (error) => process.send({ id, error: error.message || String(error) }))

async function open() {
  const pool = openPool()
  const module = await import(`./contenders/${name}.mjs`)
  const { call, close } = await module.open({ ...options, pool, worked: options.stop ? stop : async () => {} })
  return { call, close, pool, protects: module.protects ?? true }
}

const opened = open()
tell('open', opened.then(() => {}))

// A turn is over when its connections are gone; a single call has its answer at once.
const take = async (measure, args) => {
  const result = await measures[measure](await opened, args)
  if (measure !== 'once') await drained()
  return result
}

process.on('message', ({ id, measure, args, event }) => {
  if (event === 'go on') goOn()
  else tell(id, take(measure, args))
})
process.on('disconnect', () => process.exit())
// A connection that the parent has cut, or a library's own: the call that needed it fails by itself.
process.on('unhandledRejection', (error) => process.stderr.write(`${name}: ${error?.message ?? error}\n`))
