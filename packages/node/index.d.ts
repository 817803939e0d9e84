/// <reference types="node" />
export interface IdempotentRequest<Source = any> {
  method: string
  /** Path and query, as they were sent. */
  url: string
  /** By names in lower case. */
  headers: Record<string, string | string[] | undefined>
  body: Buffer
  /** The framework's own request. */
  source: Source
  id?: string
  key?: string
}

export interface IdempotentResponse {
  status: number
  headers: Record<string, any>
  body: Buffer
}

export interface Attempt {
  outcome: 'started' | 'recovered'
  attempt?: number
  checkpoint?: string | null
  state?: unknown
  error?: string | null
}

export interface Begun<Db = any> {
  /** The connection inside the request's transaction; undefined under lease. */
  db: Db
  attempt: Attempt
  /** Under lease, one after the other: calls outside under a derived key, once, and records the result; `save` writes in the same transaction. */
  step<T>(name: string, call: (key: string) => Promise<T>, save?: (db: Db, result: T) => Promise<unknown>): Promise<T>
}

export type Reason = 'missing' | 'invalid' | 'mismatch' | 'in_progress' | 'expired' | 'parked' | 'unavailable' | 'failed'
  | 'request_too_large' | 'response_too_large' | 'unauthenticated' | 'unknown' | 'interrupted'

export type EventType = 'started' | 'recovered' | 'unkeyed' | 'accepted' | 'replayed' | 'refused' | 'kept' | 'not_kept' | 'threw'
  | 'released' | 'parked'

/** packages/python has the same. `kept` and `not_kept` come once the transaction has ended. */
export interface Event {
  type: EventType
  request: IdempotentRequest
  key?: string
  status?: number
  reason?: Reason
  error?: unknown
}

export interface Profile {
  name?: string
  methods?: string[]
  required: boolean
  maxKeyLength: number
  /** ietf: whether a key without quotes is accepted. */
  bareKeys?: boolean
  compare: 'json' | 'raw' | 'nothing'
  retention: string
  /** ietf: the URL of the service's page about its keys: type and Link of the errors. */
  documentation?: string
  key(request: IdempotentRequest): { key?: string, problem?: 'missing' | 'invalid' }
  scope(request: IdempotentRequest, account: string): string
  /** True, false, or an interval. Never asked for 401, 408, 409, 425 and 429, which are never kept. */
  keep(response: IdempotentResponse): boolean | string
  refuse(reason: Reason, about: any): { status: number, headers?: Record<string, string>, body: unknown }
  stored?(request: IdempotentRequest): Record<string, string>
  decorate(request: IdempotentRequest, response: IdempotentResponse,
    about: { kept: boolean | string, replayed: boolean, reason?: Reason }): IdempotentResponse
}

export interface Options extends Partial<Profile> {
  connect: Driver
  /** Whose key it is. There is no default: keys of two accounts are two keys. Gets the framework's own request. */
  account(source: any): string | number | bigint | Promise<string | number | bigint>
  /** Default: ietf. */
  profile?: Profile
  /** Default: Idempotency-Key. */
  header?: string
  /** Default: POST and PATCH. Other requests go by. */
  methods?: string[]
  /** An interval: work with outside calls, whose claim is committed before the handler runs. */
  lease?: string
  /** With a lease: the path of the status resources, such as '/operations'. A client that sends Prefer: respond-async gets 202. */
  status?: string
  /** 202 also without the preference. */
  respondAsync?: boolean
  /** Retry-After of 202, in seconds. Default: 2. */
  pollAfter?: number
  /** Wait so long for another attempt to end, such as '2s'. Default: answer 409 at once. */
  wait?: string
  /** Further response headers that are kept. Never Set-Cookie. */
  keepHeaders?: string[]
  onEvent?(event: Event): void
  /** How long a handler may go on after its client has gone, in milliseconds. */
  patience?: number
  /** The largest body that the package itself reads, in bytes. */
  bodyLimit?: number
}

export interface Driver { (): Promise<any> }

export interface Guard {
  options: Options & Profile
  begin(request: IdempotentRequest): Promise<any>
  /** Sets the request's body; a response where that is over bodyLimit. */
  read(request: Omit<IdempotentRequest, 'body'>, body: (limit: number) => Buffer | Promise<Buffer>): Promise<IdempotentResponse | undefined>
  /** whenGone calls its argument when the client has gone before it has the response. */
  run(request: IdempotentRequest, work: (begun: Begun) => Promise<IdempotentResponse>,
    whenGone?: (gone: () => void) => void): Promise<IdempotentResponse>
  /** After `patience` the attempt is given up, unless its handler has ended. */
  giveUpLater(begun: any): void
  /** The response of the status resource; undefined where the request is for another path. */
  status(request: IdempotentRequest): Promise<IdempotentResponse | undefined>
  /** Resolves when no work goes on behind a 202: for a process that is about to end. */
  idle(): Promise<void>
}

export declare function idempotency(options: Options): Guard
export declare class UnknownOutcome extends Error {}
export declare const ietf: Profile
export declare const stripe: Profile
export declare const stripeV2: Profile
export declare const toss: Profile
/** For a Pool of `pg`. */
export declare function pgDriver(pool: any): Driver
/** For an `sql` of `postgres`. */
export declare function postgresDriver(sql: any): Driver
export declare function express(guard: Guard): (req: any, res: any, next: (error?: any) => void) => unknown
export declare function koa(guard: Guard): (ctx: any, next: () => Promise<any>) => Promise<void>
export declare function fastify(guard: Guard): (app: any) => Promise<void>
export declare function fetchHandler<Rest extends any[]>(guard: Guard,
  handler: (request: Request, begun: Begun, ...rest: Rest) => Promise<Response> | Response): (request: Request, ...rest: Rest) => Promise<Response>
/** For body parsers: express.json({ verify: keepRawBody }). */
export declare function keepRawBody(req: any, res: any, buffer: Buffer): void
