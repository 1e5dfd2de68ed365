import type { Architecture } from '../arch/architecture.js';
import { FlowCode } from '../arch/instruction-table.js';
import { type ClaimSource, type Finding, makeFinding } from './findings.js';
import type { CallsThatEnd } from './no-return.js';
import type { Places } from './places.js';
import type { Program } from './program.js';
import type { StateId, StateSpace } from './state-space.js';
import { cfaValue, describeValue, entryValue, UNKNOWN, type Value } from './values.js';

/**
 * What tables can't say: that a function gives back the stack pointer and the callee-saved registers, at returns and before
 * sibling calls. Feed it every transfer that control reaches; one that is reached in several states is judged by the first
 * wrong one.
 */
export class ReturnCheck {
  /** The transfers that {@link look} wants to see. */
  static readonly transferMask = (1 << FlowCode.return) | (1 << FlowCode.jump) | (1 << FlowCode.branch);

  readonly #architecture: Architecture;
  readonly #program: Program;
  readonly #registers: readonly number[];
  readonly #noReturn: CallsThatEnd;
  readonly #found = new Map<number, { register: number; value: Value }>();

  /** `registers`: those that the table of this source speaks of. */
  constructor(
    architecture: Architecture,
    program: Program,
    registers: readonly number[],
    noReturn: CallsThatEnd,
  ) {
    this.#noReturn = noReturn;
    this.#architecture = architecture;
    this.#program = program;
    this.#registers = registers;
  }

  look(i: number, states: StateSpace, state: StateId): void {
    if (!this.#isWayOut(i) || this.#found.has(i)) return;
    const { stackPointer } = this.#architecture;
    const wrong = (register: number, wanted: Value): boolean => {
      const value = states.register(state, register);
      if (value === wanted || (value === UNKNOWN && states.isPartial(state))) return false;
      this.#found.set(i, { register, value });
      return true;
    };
    if (wrong(stackPointer, cfaValue(-8))) return;
    for (const register of this.#registers) if (wrong(register, entryValue(register))) return;
  }

  get hasFound(): boolean {
    return this.#found.size > 0;
  }

  #isWayOut(i: number): boolean {
    const { table, functionStarts, isEntry, linkageNames, targetIndexes } = this.#program;
    const flow = table.flows[i];
    if (flow === FlowCode.return) return true;
    if (flow !== FlowCode.jump && flow !== FlowCode.branch) return false;
    const target = table.targets[i] as number;
    const index = targetIndexes[i] as number;
    // Nearly all jumps stay inside: to a place that is known and no entry.
    if (index >= 0 && isEntry[index] === 0 && (linkageNames.size === 0 || !linkageNames.has(target)))
      return false;
    if (this.#noReturn.has(target)) return false;
    if (linkageNames.has(target)) return true;
    if (!functionStarts.has(target)) return index < 0 && target < 0;
    const own = this.#program.functionAt(table.offsets[i] as number);
    return own !== undefined && own.start !== target;
  }

  /** `isLooked`: whether the place of a return is one whose frame is a call's. */
  findings(source: ClaimSource, places: Places, isLooked: (i: number) => boolean): Finding[] {
    const { stackPointer, idioms } = this.#architecture;
    const findings: Finding[] = [];
    for (const [i, { register, value }] of this.#found) {
      if (!isLooked(i)) continue;
      const name = (number: number) => idioms.registerName(number);
      const derived = `${name(register)}=${describeValue(value, name)}`;
      const place = places.at(this.#program.table.offsets[i] as number);
      findings.push(
        register === stackPointer
          ? makeFinding('stack-not-restored', `${derived} where the function is left, not CFA-8`, {
              source,
              place,
              derived,
            })
          : makeFinding('register-not-restored', `${derived} where the function is left`, {
              source,
              place,
              derived,
            }),
      );
    }
    return findings;
  }
}
