/**
 * The one error type that leaves a livegraft module on purpose. Anything else that is thrown is a bug of ours.
 *
 * `code` is stable and meant for machines (kebab-case), `message` says what is wrong and where, `remedy` what the
 * operator can do. `details` holds the same facts for `--json`.
 */
export class LivegraftError extends Error {
  readonly code: string;
  readonly remedy: string | undefined;
  readonly details: Readonly<Record<string, string | number | boolean>>;

  constructor(
    code: string,
    message: string,
    options: {
      remedy?: string;
      details?: Readonly<Record<string, string | number | boolean>>;
      cause?: unknown;
    } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = new.target.name;
    this.code = code;
    this.remedy = options.remedy;
    this.details = options.details ?? {};
  }
}

/** Malformed input: the only error a parser throws, whatever the bytes. `offset` counts from the start of `source`. */
export class ParseError extends LivegraftError {
  readonly source: string;
  readonly offset: number;

  constructor(source: string, offset: number, problem: string, options: { remedy?: string } = {}) {
    super('malformed-input', `${source}: offset ${offset}: ${problem}`, {
      ...options,
      details: { source, offset },
    });
    this.source = source;
    this.offset = offset;
  }
}

/** For branches that the types rule out and for our own broken invariants. */
export function expectNever(value: never, what: string): never {
  throw new Error(`internal error: unexpected ${what}: ${JSON.stringify(value)}`);
}
