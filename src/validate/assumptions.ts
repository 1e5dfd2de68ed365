import type { Architecture } from '../arch/architecture.js';
import { FlowCode } from '../arch/instruction-table.js';
import { Status } from './claim-verdicts.js';
import { type Claim, type ClaimTable, describeClaim } from './claims.js';
import { type ClaimSource, type Finding, makeFinding } from './findings.js';
import type { JumpTables } from './jump-tables.js';
import type { Places } from './places.js';
import type { Program } from './program.js';
import { cfaValue, describeValue, entryValue, type Value } from './values.js';

/** What a proof takes on trust, by name: jumps that lead it does not know where, and rows that nothing shows. All are notes. */
export interface Assumptions {
  readonly architecture: Architecture;
  readonly program: Program;
  readonly places: Places;
  readonly jumpTables: JumpTables;
}

interface UnfollowedJumpsOf {
  readonly architecture: Architecture;
  readonly jumpTables: Pick<JumpTables, 'unfollowed'>;
}

/** The states in which control comes to the jumps that are not followed. */
export class UnfollowedJumps {
  static readonly transferMask = 1 << FlowCode.indirectJump;

  readonly #given: UnfollowedJumpsOf;
  readonly #registers: readonly number[];
  /** By index; undefined for a jump that leaves its function as a sibling call does. */
  readonly #derived = new Map<number, string | undefined>();

  /** `registers`: those that a function gives back, of those that the proof follows. */
  constructor(given: UnfollowedJumpsOf, registers: readonly number[]) {
    this.#given = given;
    this.#registers = registers;
  }

  /** Whether one was come to in another frame than that of a sibling call. */
  get hasFound(): boolean {
    for (const derived of this.#derived.values()) if (derived !== undefined) return true;
    return false;
  }

  /** `register`: what a register holds there. */
  look(i: number, register: (number: number) => Value): void {
    const { architecture, jumpTables } = this.#given;
    if (!jumpTables.unfollowed.has(i) || this.#derived.get(i) !== undefined) return;
    const { stackPointer, framePointer, idioms } = architecture;
    const name = (number: number) => idioms.registerName(number);
    const isWayOut =
      register(stackPointer) === cfaValue(-8) &&
      this.#registers.every((number) => register(number) === entryValue(number));
    const describe = (number: number) => `${name(number)}=${describeValue(register(number), name)}`;
    this.#derived.set(i, isWayOut ? undefined : `${describe(stackPointer)}, ${describe(framePointer)}`);
  }

  /**
   * One note for each jump in code with rows that does not leave its function: by its frame, or since the function has places that nothing else
   * leads to. Entries of linkage tables lead to the dynamic linker.
   */
  findings(
    source: ClaimSource,
    { program, places }: Assumptions,
    claimOf: (i: number) => Claim | undefined,
    isOpen: (i: number) => boolean,
  ): Finding[] {
    const { architecture, jumpTables } = this.#given;
    const { table, space } = program;
    const findings: Finding[] = [];
    for (const [i, why] of jumpTables.unfollowed) {
      const position = table.offsets[i] as number;
      if (!this.#derived.has(i) || space.regionAt(position)?.name.startsWith('.plt') === true) continue;
      const derived = this.#derived.get(i);
      const claim = claimOf(i);
      if (claim === undefined || (derived === undefined && !isOpen(i))) continue;
      findings.push(
        makeFinding('jump-not-followed', why, {
          source,
          place: places.at(position),
          claimed: describeOptional(claim, architecture),
          derived: derived ?? 'the frame of a sibling call',
        }),
      );
    }
    return findings;
  }
}

function describeOptional(claim: Claim | undefined, { idioms }: Architecture): string | undefined {
  return claim && describeClaim(claim, (register) => idioms.registerName(register));
}

/** Tables whose end nothing shows. */
export function findUnboundedTables({ program, places, jumpTables }: Assumptions): Finding[] {
  return [...jumpTables.unbounded].map(([i, why]) =>
    makeFinding('jump-table-unbounded', why, { place: places.at(program.table.offsets[i] as number) }),
  );
}

/** The first instruction of each function whose row was taken as given, or follows from one only that was. */
export function findAssumedRows(
  { architecture, program, places }: Assumptions,
  source: ClaimSource,
  claims: ClaimTable,
  claimIds: Int32Array,
  statuses: Uint8Array,
): Finding[] {
  const { offsets } = program.table;
  const findings: Finding[] = [];
  const counts: number[] = [];
  let lastOwner: number | undefined;
  // Hardly any file has many: the native search for the next is done before a loop would be compiled.
  for (let i = statuses.indexOf(Status.assumed); i >= 0; i = statuses.indexOf(Status.assumed, i + 1)) {
    const position = offsets[i] as number;
    const owner = program.functionAt(position)?.start ?? -1;
    if (owner === lastOwner) {
      counts[counts.length - 1] = (counts[counts.length - 1] as number) + 1;
      continue;
    }
    lastOwner = owner;
    const claim = claims.claims[claimIds[i] as number];
    counts.push(0);
    findings.push(
      makeFinding(
        'row-assumed',
        claim?.isSignalFrame === true
          ? 'a frame of saved registers is taken as given'
          : 'nothing that was followed shows this row, from the entry of a function on: it is taken as given',
        { source, place: places.at(position), claimed: describeOptional(claim, architecture) },
      ),
    );
  }
  return findings.map((finding, n) => ({ ...finding, repeats: counts[n] as number }));
}

/** Whether the function around an instruction has one whose row was taken as given. */
export function opensOnAssumed(program: Program, statuses: Uint8Array): (i: number) => boolean {
  const known = new Map<number, boolean>();
  return (i) => {
    const { table, index } = program;
    const f = program.functionAt(table.offsets[i] as number);
    if (f === undefined) return false;
    let isOpen = known.get(f.start);
    if (isOpen === undefined) {
      isOpen = statuses.subarray(index.rank(f.start), index.rank(f.end)).includes(Status.assumed);
      known.set(f.start, isOpen);
    }
    return isOpen;
  };
}
