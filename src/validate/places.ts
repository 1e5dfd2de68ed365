import { hex } from '../base/brand.js';
import type { FindingPlace } from './findings.js';
import type { Program } from './program.js';
import type { SourceLines } from './source-lines.js';

/** Names positions for people and machines. */
export class Places {
  readonly #program: Program;
  readonly #lines: SourceLines | undefined;

  constructor(program: Program, lines?: SourceLines) {
    this.#program = program;
    this.#lines = lines;
  }

  at(position: number): FindingPlace {
    const { space } = this.#program;
    const f = this.#program.functionAt(position);
    return {
      section: space.regionAt(position)?.name ?? '?',
      address: space.addressOf(position),
      function: f?.name,
      functionOffset: f === undefined ? undefined : position - f.start,
      line: this.#lines?.at(position),
    };
  }

  /** `name+0x12`, or `.text+0x1234`. */
  describe(position: number): string {
    return describePlace(this.at(position));
  }
}

export function describePlace(place: FindingPlace): string {
  if (place.function === undefined) return `${place.section}+${hex(place.address)}`;
  const offset = place.functionOffset ?? 0;
  return offset === 0 ? place.function : `${place.function}+${hex(offset)}`;
}
