// Each client against the contract.
import pg from 'pg'
import { contract } from './contract.js'

for (const name of ['pg', 'knex', 'sequelize', 'typeorm', 'drizzle']) {
  contract(pg, name, await import(`../${name}.js`))
}
