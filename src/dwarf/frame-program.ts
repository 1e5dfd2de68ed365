import { ByteReader } from '../base/byte-reader.js';
import { PairMap } from '../base/pair-map.js';
import type { CfaRule, CfiRow, RegisterRule } from '../cfi/row.js';
import type { Cie, Fde } from './frame-section.js';

/** Rows of one FDE never need more remembered states than a compiler nests scopes. */
const MAX_REMEMBERED = 64;
const TOO_MANY_REMEMBERED = 'too many remembered states';

/** Above every register number in use; bounds what a row can hold, whatever the section says. */
const MAX_REGISTER = 255;

interface State {
  cfa: CfaRule;
  registers: Map<number, RegisterRule>;
}

/**
 * Runs the call frame instructions of an FDE (DWARF 5 section 6.4.2, and the GNU extensions of LSB 5.0) and yields its
 * rows in address order. Throws a ParseError for a malformed program.
 */
export function* frameRows(fde: Fde, source: string): IterableIterator<CfiRow> {
  const machine = new FrameMachine(fde, source);
  machine.runInitial();
  yield* machine.run();
}

/** What a row says, but for its place and the bytes of arguments. */
type FrameRule = Pick<CfiRow, 'cfa' | 'registers' | 'signalFrame'>;

/** A call frame instruction in two numbers; what it does in a state follows from them and the CIE. */
interface CieStates {
  readonly initial: number;
  readonly transitions: PairMap;
}

/** More would have to be a made-up section; they are worked out anew then. */
const MAX_TRANSITIONS = 1 << 20;
/** State and instruction share a number. */
const MAX_STATES = 1 << 22;
/** Operands up to here are packed into one number. */
const MAX_PACKED = 1 << 20;

/**
 * Runs the call frame instructions of many FDEs. Compilers write the same few over and over: what each instruction makes of each
 * state is worked out once, by the machine that {@link frameRows} runs on, and looked up afterwards.
 */
export class FrameStates {
  readonly #source: string;
  /** By number. */
  readonly #states: State[] = [];
  readonly #ids = new Map<string, number>();
  readonly #byCie = new Map<Cie, CieStates>();
  #transitionCount = 0;

  constructor(source: string) {
    this.#source = source;
  }

  ruleOf(state: number, { signalFrame }: Cie): FrameRule {
    return { ...(this.#states[state] as State), signalFrame };
  }

  /** Calls back with each row in address order, as {@link frameRows} yields them. Throws a ParseError for a malformed program. */
  run(fde: Fde, onRow: (start: number, end: number, state: number) => void): void {
    const { cie, instructions } = fde;
    const { codeAlignment } = cie;
    const known = this.#statesOf(fde);
    const remembered: number[] = [];
    let state = known.initial;
    let location = fde.start;
    let at = 0;
    let machine: FrameMachine | undefined;
    while (at < instructions.length) {
      const byte = instructions[at] as number;
      let next = location;
      if (byte >> 6 === 1) {
        next = location + (byte & 0x3f) * codeAlignment;
        at++;
      } else if (byte === DW_CFA_advance_loc1 && at + 1 < instructions.length) {
        next = location + (instructions[at + 1] as number) * codeAlignment;
        at += 2;
      } else if (byte === DW_CFA_nop) {
        at++;
        continue;
      } else if (byte === DW_CFA_remember_state) {
        at++;
        if (remembered.length >= MAX_REMEMBERED)
          new FrameMachine(fde, this.#source).failAt(at, TOO_MANY_REMEMBERED);
        remembered.push(state);
        continue;
      } else if (byte === DW_CFA_restore_state && remembered.length > 0) {
        state = remembered.pop() as number;
        at++;
        continue;
      } else {
        const key = state < MAX_STATES ? packOperands(instructions, at) : -1;
        let after = key < 0 ? -1 : known.transitions.get((state << 8) | byte, key);
        if (after < 0) {
          machine ??= new FrameMachine(fde, this.#source);
          const result = machine.stepFrom(this.#states[state] as State, location, at);
          after = this.#intern(result.state);
          if (key >= 0 && this.#transitionCount++ < MAX_TRANSITIONS)
            known.transitions.set((state << 8) | byte, key, after);
          if (result.location !== undefined) next = result.location;
          at = result.offset;
        } else at += packedBytes;
        state = after;
        if (next === location) continue;
      }
      if (next === location) continue;
      if (next < location) {
        new FrameMachine(fde, this.#source).failAt(at, 'the location moves backwards');
      }
      const end = Math.min(next, fde.end);
      // An entry for no code has no row.
      if (end > location) onRow(location, end, state);
      location = next;
      if (next >= fde.end) return;
    }
    if (location < fde.end) onRow(location, fde.end, state);
  }

  #statesOf(fde: Fde): CieStates {
    let states = this.#byCie.get(fde.cie);
    if (states === undefined) {
      const machine = new FrameMachine(fde, this.#source);
      machine.runInitial();
      states = { initial: this.#intern(machine.state), transitions: new PairMap() };
      this.#byCie.set(fde.cie, states);
    }
    return states;
  }

  #intern(state: State): number {
    let key = describeCfa(state.cfa);
    for (const [register, rule] of state.registers) key += `;${register}${describeRule(rule)}`;
    let id = this.#ids.get(key);
    if (id === undefined) {
      id = this.#states.push(state) - 1;
      this.#ids.set(key, id);
    }
    return id;
  }
}

/** How many bytes the instruction takes that was packed last. */
let packedBytes = 0;

/** The operands of the frequent instructions in one number; -1 for others. The machine says what is wrong with one that is cut off. */
function packOperands(instructions: Uint8Array, at: number): number {
  const byte = instructions[at] as number;
  if (byte >> 6 === 3) {
    packedBytes = 1;
    return 0;
  }
  const isPair = byte === DW_CFA_def_cfa;
  const isSingle =
    byte >> 6 === 2 ||
    byte === DW_CFA_def_cfa_register ||
    byte === DW_CFA_def_cfa_offset ||
    byte === DW_CFA_GNU_args_size;
  if (!isSingle && !isPair) return -1;
  let next = at + 1;
  let packed = 0;
  if (isPair) {
    packed = instructions[next++] ?? 0x80;
    if (packed > 0x1f) return -1;
  }
  let shift = isPair ? 5 : 0;
  for (;;) {
    const part = instructions[next++];
    if (part === undefined) return -1;
    packed += (part & 0x7f) * 2 ** shift;
    if (packed >= MAX_PACKED) return -1;
    if (part < 0x80) break;
    shift += 7;
    if (shift > 32) return -1;
  }
  packedBytes = next - at;
  return packed;
}

const DW_CFA_nop = 0x00;
const DW_CFA_advance_loc1 = 0x02;
const DW_CFA_remember_state = 0x0a;
const DW_CFA_restore_state = 0x0b;
const DW_CFA_def_cfa = 0x0c;
const DW_CFA_def_cfa_register = 0x0d;
const DW_CFA_def_cfa_offset = 0x0e;
const DW_CFA_GNU_args_size = 0x2e;

function describeCfa(cfa: CfaRule): string {
  return cfa.kind === 'register' ? `${cfa.register},${cfa.offset}` : `e${cfa.expression.join()}`;
}

function describeRule(rule: RegisterRule): string {
  if (rule.kind === 'expression' || rule.kind === 'valExpression')
    return `${rule.kind}${rule.expression.join()}`;
  if (rule.kind === 'register') return `r${rule.register}`;
  return rule.kind === 'offset' || rule.kind === 'valOffset' ? `${rule.kind}${rule.offset}` : rule.kind;
}

class FrameMachine {
  /** What the CIE's instructions yield: many FDEs share one. */
  static readonly #initialStates = new WeakMap<Cie, State & { readonly argsSizeBytes: number }>();
  readonly #fde: Fde;
  readonly #source: string;
  #state: State = { cfa: { kind: 'register', register: 7, offset: 8 }, registers: new Map() };
  #initial: ReadonlyMap<number, RegisterRule> = new Map();
  #remembered: State[] = [];
  #argsSizeBytes = 0;
  #location: number;

  constructor(fde: Fde, source: string) {
    this.#fde = fde;
    this.#source = source;
    this.#location = fde.start;
  }

  get state(): State {
    return this.#state;
  }

  /** What the instruction at an offset makes of a state, where the next one begins, and the location that it sets. */
  stepFrom(
    { cfa, registers }: State,
    location: number,
    offset: number,
  ): { readonly state: State; readonly offset: number; readonly location: number | undefined } {
    this.runInitial();
    this.#state = { cfa, registers: new Map(registers) };
    this.#location = location;
    const reader = this.#reader().seek(offset);
    const next = this.#step(reader);
    return { state: this.#state, offset: reader.offset, location: next };
  }

  failAt(offset: number, problem: string): never {
    return this.#reader().seek(offset).fail(problem);
  }

  #reader(): ByteReader {
    return new ByteReader(this.#fde.instructions, `${this.#source}(FDE ${this.#fde.offset})`);
  }

  runInitial(): void {
    const { cie } = this.#fde;
    let initial = FrameMachine.#initialStates.get(cie);
    if (initial === undefined) {
      const reader = new ByteReader(cie.instructions, `${this.#source}(CIE ${cie.offset})`);
      while (!reader.atEnd) if (this.#step(reader) !== undefined) reader.fail('a CIE advances the location');
      initial = { ...this.#state, argsSizeBytes: this.#argsSizeBytes };
      FrameMachine.#initialStates.set(cie, initial);
    }
    this.#initial = initial.registers;
    this.#state = { cfa: initial.cfa, registers: new Map(initial.registers) };
    this.#argsSizeBytes = initial.argsSizeBytes;
    this.#remembered = [];
  }

  *run(): IterableIterator<CfiRow> {
    const reader = this.#reader();
    while (!reader.atEnd) {
      const next = this.#step(reader);
      if (next === undefined || next === this.#location) continue;
      if (next < this.#location) reader.fail('the location moves backwards');
      const end = Math.min(next, this.#fde.end);
      // An entry for no code has no row.
      if (end > this.#location) yield this.#row(end);
      this.#location = next;
      if (next >= this.#fde.end) return;
    }
    if (this.#location < this.#fde.end) yield this.#row(this.#fde.end);
  }

  #row(end: number): CfiRow {
    const { cie } = this.#fde;
    return {
      start: this.#location,
      end,
      cfa: this.#state.cfa,
      registers: new Map(this.#state.registers),
      returnAddressRegister: cie.returnAddressRegister,
      signalFrame: cie.signalFrame,
      argsSizeBytes: this.#argsSizeBytes,
    };
  }

  /** Executes one instruction; returns the new location when it sets one. */
  #step(reader: ByteReader): number | undefined {
    const { codeAlignment, dataAlignment } = this.#fde.cie;
    const byte = reader.readU8();
    const low = byte & 0x3f;
    const advance = (delta: number) => this.#location + delta * codeAlignment;
    const set = (register: number, rule: RegisterRule) => {
      if (register > MAX_REGISTER) reader.fail(`register ${register}`);
      this.#state.registers.set(register, rule);
    };
    switch (byte >> 6) {
      case 1: // DW_CFA_advance_loc
        return advance(low);
      case 2: // DW_CFA_offset
        set(low, { kind: 'offset', offset: reader.readUleb128() * dataAlignment });
        return undefined;
      case 3: // DW_CFA_restore
        this.#restore(low);
        return undefined;
    }
    switch (byte) {
      case 0x00: // DW_CFA_nop
        return undefined;
      case 0x01: // DW_CFA_set_loc
        return this.#fde.readLocation(reader);
      case 0x02:
        return advance(reader.readU8());
      case 0x03:
        return advance(reader.readU16());
      case 0x04:
        return advance(reader.readU32());
      case 0x1d: // DW_CFA_MIPS_advance_loc8, also what assemblers choose for distances above 2^32
        return advance(reader.readSize());
      case 0x05: // DW_CFA_offset_extended
        set(reader.readUleb128(), { kind: 'offset', offset: reader.readUleb128() * dataAlignment });
        return undefined;
      case 0x06:
        this.#restore(reader.readUleb128());
        return undefined;
      case 0x07:
        set(reader.readUleb128(), { kind: 'undefined' });
        return undefined;
      case 0x08:
        set(reader.readUleb128(), { kind: 'same' });
        return undefined;
      case 0x09: // DW_CFA_register
        set(reader.readUleb128(), { kind: 'register', register: reader.readUleb128() });
        return undefined;
      case 0x0a: // DW_CFA_remember_state
        if (this.#remembered.length >= MAX_REMEMBERED) reader.fail(TOO_MANY_REMEMBERED);
        this.#remembered.push({ cfa: this.#state.cfa, registers: new Map(this.#state.registers) });
        return undefined;
      case 0x0b: {
        const state = this.#remembered.pop();
        if (state === undefined) reader.fail('restores a state that was not remembered');
        else this.#state = state;
        return undefined;
      }
      case 0x0c: // DW_CFA_def_cfa
        this.#state.cfa = { kind: 'register', register: reader.readUleb128(), offset: reader.readUleb128() };
        return undefined;
      case 0x0d: {
        const register = reader.readUleb128();
        this.#state.cfa = { kind: 'register', register, offset: this.#cfaRegister(reader).offset };
        return undefined;
      }
      case 0x0e: {
        const offset = reader.readUleb128();
        this.#state.cfa = { kind: 'register', register: this.#cfaRegister(reader).register, offset };
        return undefined;
      }
      case 0x0f: // DW_CFA_def_cfa_expression
        this.#state.cfa = { kind: 'expression', expression: reader.readBytes(reader.readUleb128()) };
        return undefined;
      case 0x10: {
        const register = reader.readUleb128();
        set(register, { kind: 'expression', expression: reader.readBytes(reader.readUleb128()) });
        return undefined;
      }
      case 0x11: // DW_CFA_offset_extended_sf
        set(reader.readUleb128(), { kind: 'offset', offset: reader.readSleb128() * dataAlignment });
        return undefined;
      case 0x12: // DW_CFA_def_cfa_sf
        this.#state.cfa = {
          kind: 'register',
          register: reader.readUleb128(),
          offset: reader.readSleb128() * dataAlignment,
        };
        return undefined;
      case 0x13: {
        const offset = reader.readSleb128() * dataAlignment;
        this.#state.cfa = { kind: 'register', register: this.#cfaRegister(reader).register, offset };
        return undefined;
      }
      case 0x14: // DW_CFA_val_offset
        set(reader.readUleb128(), { kind: 'valOffset', offset: reader.readUleb128() * dataAlignment });
        return undefined;
      case 0x15:
        set(reader.readUleb128(), { kind: 'valOffset', offset: reader.readSleb128() * dataAlignment });
        return undefined;
      case 0x16: {
        const register = reader.readUleb128();
        set(register, { kind: 'valExpression', expression: reader.readBytes(reader.readUleb128()) });
        return undefined;
      }
      case 0x2e: // DW_CFA_GNU_args_size
        this.#argsSizeBytes = reader.readUleb128();
        return undefined;
      case 0x2f: // DW_CFA_GNU_negative_offset_extended
        set(reader.readUleb128(), { kind: 'offset', offset: -reader.readUleb128() * dataAlignment });
        return undefined;
      default:
        return reader.fail(`unknown call frame instruction 0x${byte.toString(16)}`);
    }
  }

  #restore(register: number): void {
    const rule = this.#initial.get(register);
    if (rule === undefined) this.#state.registers.delete(register);
    else this.#state.registers.set(register, rule);
  }

  #cfaRegister(reader: ByteReader): Extract<CfaRule, { kind: 'register' }> {
    const { cfa } = this.#state;
    return cfa.kind === 'register' ? cfa : reader.fail('changes a CFA that is an expression');
  }
}
