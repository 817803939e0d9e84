// Each client against the contract.
import pg from 'pg'
import { contract } from './contract.js'

for (const name of ['pg', 'postgres', 'knex', 'kysely', 'sequelize', 'typeorm', 'drizzle']) {
  contract(pg, name, await import(`../${name}.js`))
}
