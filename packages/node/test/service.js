// A service in a process of its own, which a test can kill: prints its port.
import { frameworks, serve } from './apps.js'

const { port } = await serve(frameworks['Express 5'])
console.log(port)
