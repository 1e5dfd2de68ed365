import { ByteReader } from '../base/byte-reader.js';
import type { CfaRule, CfiRow, RegisterRule } from '../cfi/row.js';
import type { Cie, Fde } from './frame-section.js';

/** Rows of one FDE never need more remembered states than a compiler nests scopes. */
const MAX_REMEMBERED = 64;

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
    const reader = new ByteReader(this.#fde.instructions, `${this.#source}(FDE ${this.#fde.offset})`);
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
        if (this.#remembered.length >= MAX_REMEMBERED) reader.fail('too many remembered states');
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
