// Prisma against the contract of all clients.
import pg from 'pg'
import { contract } from '../../node-clients/test/contract.js'
import * as client from '../prisma.js'

contract(pg, 'prisma', client)
