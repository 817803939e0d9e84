// A data source for DBOS on the pool that all contenders use: a step's work and the record of its result commit together.
// It fulfils the interface of @dbos-inc/dbos-sdk/datasource, since the packages of data sources on npm are for older
// versions of the SDK and do not run with this one. The clean-up of records when a workflow is complete is optional there,
// and left out: it would be one transaction more.
import { AsyncLocalStorage } from 'node:async_hooks'
import { DBOS } from '@dbos-inc/dbos-sdk'
import * as api from '@dbos-inc/dbos-sdk/datasource'
import SuperJSON from 'superjson'
import { statement, transaction } from './shared.mjs'

const current = new AsyncLocalStorage()
const find = statement('dbos_find', `SELECT output, error FROM dbos.transaction_completion
  WHERE workflow_id = $1 AND function_num = $2`)
const record = statement('dbos_record', `INSERT INTO dbos.transaction_completion (workflow_id, function_num, output)
  VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`)

class Source {
  constructor(name, pool) {
    this.name = name
    this.pool = pool
  }

  initialize() {
    return transaction(this.pool, (client) => api.migrateDataSourcePG(async (sql) => (await client.query(sql)).rows))
  }

  async destroy() {}

  async #known(workflow, step) {
    const { rows: [row] } = await find(this.pool, workflow, step)
    return row && { replayed: api.replayRecordedStep(row) }
  }

  async #run(workflow, step, body) {
    return transaction(this.pool, async (client) => {
      const result = await current.run(client, body)
      const { rowCount } = await record(client, workflow, step, SuperJSON.stringify(result))
      if (rowCount === 0) throw new api.DBOSStepAlreadyRecordedError(workflow, step)
      await api.assertStillOwnsWorkflow(workflow)
      return result
    })
  }

  async invokeTransactionFunction(config, target, func, ...args) {
    const { workflowID, stepID } = DBOS
    for (;;) {
      const known = await this.#known(workflowID, stepID)
      if (known) return known.replayed
      try {
        return await this.#run(workflowID, stepID, () => func.call(target, ...args))
      } catch (error) {
        if (!(error instanceof api.DBOSStepAlreadyRecordedError) && !api.isPGRetriableTransactionError(error)) throw error
      }
    }
  }
}

// The client of the transaction that the caller is in.
export const client = () => current.getStore()

export function openSource(name, pool) {
  api.registerDataSource(new Source(name, pool))
  return { register: (func, functionName) => api.registerTransaction(name, func, { name: functionName }) }
}
