import { LivegraftError } from '../base/errors.js';
import { type Colors, createColors } from './colors.js';
import type { Io } from './io.js';
import type { JsonLine } from './json-schema.js';
import { SCHEMA_VERSION } from './json-version.js';

/** A line of `--json` without the version that every line carries. */
export type JsonBody = JsonLine extends infer Line
  ? Line extends JsonLine
    ? Omit<Line, 'schemaVersion'>
    : never
  : never;

/** How results are shown: for people, or as lines of JSON. */
export interface Output {
  readonly isJson: boolean;
  /** A live view may redraw lines. */
  readonly isLive: boolean;
  /** Progress may be drawn beside the results: on the standard error, whatever becomes of the output. */
  readonly isProgressShown: boolean;
  /** For {@link text}. */
  readonly colors: Colors;
  /** For what goes to the standard error. */
  readonly errorColors: Colors;
  readonly io: Io;
  /** For people; nothing with --json or --quiet. */
  text(line: string): void;
  /** With --json only. */
  json(body: JsonBody): void;
  error(error: unknown): void;
}

export function createOutput(
  io: Io,
  options: { readonly json?: boolean; readonly quiet?: boolean; readonly color?: boolean },
): Output {
  const isJson = options.json === true;
  const isQuiet = options.quiet === true;
  const isColorWanted = !io.noColor && options.color !== false;
  const colors = createColors(io.isTerminal && isColorWanted);
  const errorColors = () => createColors(isColorWanted && io.errorColumns !== undefined);
  const json = (body: JsonBody) => {
    if (isJson) io.out(`${JSON.stringify({ schemaVersion: SCHEMA_VERSION, ...body })}\n`);
  };
  return {
    isJson,
    isLive: io.isTerminal && !isJson && !isQuiet,
    get isProgressShown() {
      return !isJson && !isQuiet && io.errorColumns !== undefined;
    },
    colors,
    get errorColors() {
      return errorColors();
    },
    io,
    text(line) {
      if (!isJson && !isQuiet) io.out(`${line}\n`);
    },
    json,
    error(error) {
      const known = error instanceof LivegraftError;
      const message = error instanceof Error ? error.message : String(error);
      if (isJson) {
        json({
          event: 'error',
          code: known ? error.code : 'internal-error',
          message,
          remedy: known ? (error.remedy ?? null) : null,
          details: known ? { ...error.details } : {},
        });
        return;
      }
      io.err(`${errorColors().red('livegraft: error:')} ${message}\n`);
      if (known && error.remedy !== undefined) io.err(`  what to do: ${error.remedy}\n`);
      const bug = known && error.code === 'transition-interrupted' ? error.cause : error;
      if (bug instanceof Error && !(bug instanceof LivegraftError))
        io.err(`${bug.stack ?? ''}\n  what to do: this is a bug of livegraft; please report it\n`);
    },
  };
}
