import type { Architecture } from '../arch/architecture.js';
import { FlowCode, OpCode, opOf, secondOf } from '../arch/instruction-table.js';
import { type ClaimSource, type Finding, makeFinding } from './findings.js';
import type { CallsThatEnd } from './no-return.js';
import type { Places } from './places.js';
import type { Program } from './program.js';
import type { StateId, StateSpace } from './state-space.js';
import { baseOf, cfaValue, describeValue, entryValue, offsetOf, UNKNOWN, type Value } from './values.js';

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
  /** Returns that are jumps in a frame, and where the stack pointer is there. */
  readonly #jumps = new Map<number, Value>();
  /** 1 for each instruction that jumps lead to. Made when somebody asks. */
  #targeted: Uint8Array | undefined;

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
    // Of a mistake that was told of nothing more is told.
    if (states.wrongCfa(state) !== UNKNOWN) return;
    const { stackPointer } = this.#architecture;
    const address = states.register(state, stackPointer);
    const written = address === cfaValue(-8) ? undefined : this.#writesTarget(i);
    // An inline thunk of a call is called itself, in a frame that only claims tell of.
    if (written !== undefined && states.isAssumed(state)) return;
    if (written === 'stored' && isInsideFrame(address)) {
      this.#jumps.set(i, address);
      return;
    }
    const wrong = (register: number, wanted: Value): boolean => {
      const value = states.register(state, register);
      if (value === wanted || (value === UNKNOWN && states.isPartial(state))) return false;
      this.#found.set(i, { register, value });
      return true;
    };
    if (!(written !== undefined && address === cfaValue(-16)) && wrong(stackPointer, cfaValue(-8))) return;
    for (const register of this.#registers) if (wrong(register, entryValue(register))) return;
  }

  get hasFound(): boolean {
    return this.#found.size > 0 || this.#jumps.size > 0;
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

  /**
   * How the instruction right before a return wrote what that returns to, if it did: the return is a jump there. With the word gone, it leaves the frame as a sibling
   * call does. So do the thunks of indirect branches (`mov %rax,(%rsp); ret`), whatever they are called, and `push %rax; ret`. What is
   * stored deeper in a frame, over what a call in there has pushed, is a jump that stays: an inline thunk's.
   */
  #writesTarget(i: number): 'pushed' | 'stored' | undefined {
    const { table } = this.#program;
    const { offsets, lengths, effects, values, flows } = table;
    const before = i - 1;
    if (flows[i] !== FlowCode.return || values[i] !== 0 || before < 0) return undefined;
    if ((offsets[before] as number) + (lengths[before] as number) !== offsets[i]) return undefined;
    const effect = effects[before] as number;
    const op = opOf(effect);
    const isStored =
      op === OpCode.store && secondOf(effect) === this.#architecture.stackPointer && values[before] === 0;
    if ((!isStored && op !== OpCode.push && op !== OpCode.pushOther) || this.#isTargeted(i)) return undefined;
    return isStored ? 'stored' : 'pushed';
  }

  #isTargeted(i: number): boolean {
    const { table, targetIndexes } = this.#program;
    if (this.#targeted === undefined) {
      this.#targeted = new Uint8Array(table.count);
      for (let t = 0; t < table.transferCount; t++) {
        const target = targetIndexes[table.transfers[t] as number] as number;
        if (target >= 0) this.#targeted[target] = 1;
      }
    }
    return this.#targeted[i] === 1;
  }

  /** `isLooked`: whether the place of a return is one whose frame is a call's, and its row speaks of the register. */
  findings(
    source: ClaimSource,
    places: Places,
    isLooked: (i: number, register: number) => boolean,
  ): Finding[] {
    const { stackPointer, idioms } = this.#architecture;
    const findings: Finding[] = [];
    const name = (number: number) => idioms.registerName(number);
    for (const [i, value] of this.#jumps) {
      if (!isLooked(i, stackPointer)) continue;
      const place = places.at(this.#program.table.offsets[i] as number);
      const derived = `${name(stackPointer)}=${describeValue(value, name)}`;
      const why = 'this return jumps to what was stored right before it';
      findings.push(makeFinding('jump-not-followed', why, { source, place, derived }));
    }
    for (const [i, { register, value }] of this.#found) {
      if (!isLooked(i, register)) continue;
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

/** Whether a return there would leave more on the stack than a call's return address. */
function isInsideFrame(stackPointer: Value): boolean {
  return baseOf(stackPointer) === baseOf(cfaValue(0)) && offsetOf(stackPointer) < -16;
}
