// @dbos-inc/dbos-sdk: a workflow whose ID is the key, with the work as one transactional step. Its system database is the
// schema dbos of the same database, with a pool of its own, as large as the others'.
import { DBOS } from '@dbos-inc/dbos-sdk'
import { openPool, work } from '../shared.mjs'
import { client, openSource } from '../dbos-source.mjs'

const silent = { info() {}, debug() {}, warn() {}, error() {} }

// Where the crash program stops a call: in the step's transaction, after its commit, or after the work as a step that is
// not transactional.
function workflow(variant, pool, worked) {
  if (variant === 'step') {
    return () => DBOS.runStep(async () => {
      const response = await work(pool)
      await worked()
      return response
    }, { name: 'charge' })
  }
  const charge = openSource('charges', pool).register(async () => {
    const response = await work(client())
    if (variant !== 'committed') await worked()
    return response
  }, 'charge')
  return async () => {
    const response = await charge()
    if (variant === 'committed') await worked()
    return response
  }
}

export async function open({ pool, worked, variant, executor = 'local' }) {
  DBOS.setConfig({
    name: 'bench', logger: silent, executorID: executor, applicationVersion: '1',
    // A URL is asked for, and not used where there is a pool.
    systemDatabaseUrl: 'postgresql://not@used/here', systemDatabasePool: openPool(),
  })
  const pay = DBOS.registerWorkflow(workflow(variant, pool, worked), { name: 'pay' })
  await DBOS.launch()
  const call = async (key) => {
    const handle = await DBOS.startWorkflow(pay, { workflowID: `acct_42 POST /v1/charges (eur) ${key}` })()
    return handle.getResult({ pollingIntervalMs: 10 })
  }
  return { call, close: () => DBOS.shutdown() }
}
