export interface Operation {
  name: string
  key: string
  url: string
  method: string
  headers: Record<string, string>
  body?: string
  madeAt: number
}

/** localStorage and sessionStorage are such stores. */
export interface OperationStorage {
  readonly length: number
  key(n: number): string | null
  getItem(name: string): string | null
  setItem(name: string, value: string): void
  removeItem(name: string): void
}

export interface ClientOptions {
  fetch?: typeof globalThis.fetch
  /** Where operations are kept until their outcome is known. Default: in memory. */
  storage?: OperationStorage
  prefix?: string
  /** The waits between the tries of one send, in milliseconds. Default: 1, 2, 4 and 8 minutes. */
  retries?: () => number[]
  /** How long the service honours a key, in milliseconds. Nothing is sent afterwards. Default: 24 hours. */
  keyLife?: number
  /** How long one try may take, in milliseconds. */
  timeout?: number
  /** How many retries this client may make for all its operations together. */
  budget?: number
  now?: () => number
  sleep?: (milliseconds: number) => Promise<unknown>
}

export interface RequestOptions {
  /** The operation's own id, where it has had one since it was made. Default: a new UUID. */
  key?: string
  method?: string
  headers?: Record<string, string>
  body?: string
}

export interface Client {
  /** Stores the operation with a new key, or returns what is stored under its name. */
  operation(name: string, url: string | URL, init?: RequestOptions): Operation
  /** Sends the operation until its outcome is known; throws OutcomeUnknown where that does not succeed in time. */
  send(name: string, url: string | URL, init?: RequestOptions): Promise<Response>
  /** Operations whose outcome is not known, oldest first. */
  pending(): Operation[]
  forget(name: string): void
}

export declare function idempotentClient(options?: ClientOptions): Client
export declare function memoryStorage(): OperationStorage
export declare const minutes: number[]
export declare function fullJitter(options?: { base?: number, cap?: number, tries?: number, random?: () => number }): number[]
export declare class OutcomeUnknown extends Error {
  operation: Operation
}
