import type { Architecture } from '../arch/architecture.js';
import { type InstructionTable, OpCode } from '../arch/instruction-table.js';
import { addTo, baseOf, cfaValue, entryValue, offsetOf, placeValue, UNKNOWN, type Value } from './values.js';

const REGISTERS = 16;
/** Words of a saved state before its slots: registers, the count of slots, flags. */
const HEADER_WORDS = REGISTERS + 2;
const [COUNT, FLAGS] = [REGISTERS, REGISTERS + 1];
const [IS_PARTIAL, IS_ASSUMED] = [1, 2];
/** Bits of {@link FrameState.changed}. */
export const CHANGED_SLOTS = 1 << REGISTERS;
export const CHANGED_ALL = 2 * CHANGED_SLOTS - 1;
/** More facts than this about one frame are forgotten, which can only leave a claim unproven. */
const MAX_SLOTS = 40;

/**
 * What is known before an instruction: the values of registers, and of the stack slots whose address is known. Mutable;
 * states are kept at joins as words of a {@link SnapshotPool}, which never change.
 */
export class FrameState {
  readonly registers = new Int32Array(REGISTERS);
  readonly slotAddresses = new Int32Array(MAX_SLOTS);
  readonly slotValues = new Int32Array(MAX_SLOTS);
  slotCount = 0;
  /** Began from a claim that says less than a frame holds: what is unknown may yet be as claimed. */
  isPartial = false;
  /** Began from a claim that was taken as given: what follows from it is no proof. */
  isAssumed = false;
  /** Position in the pool of a copy of the state as it is, -1 when there is none: two states at one position are equal. */
  savedAt = -1;
  /** What changed since the last check: a bit per register, {@link CHANGED_SLOTS}; all after a load. */
  changed = CHANGED_ALL;
  /** Bit per register whose value is known. */
  known = 0;
  readonly #stackPointer: number;
  readonly #framePointer: number;
  readonly #entryRegisters: readonly number[];
  readonly #callerSavedMask: number;
  readonly #redZoneBytes: number;
  readonly #returnAddress: number;

  /** `entryMask`: registers whose value on entry matters; the callee-saved ones always do. */
  constructor(architecture: Architecture, redZoneBytes: number, entryMask: number) {
    this.#stackPointer = architecture.stackPointer;
    this.#framePointer = architecture.framePointer;
    const entry = [...architecture.calleeSaved];
    for (let register = 0; register < REGISTERS; register++) {
      if ((entryMask >> register) & 1 && register !== architecture.stackPointer && !entry.includes(register))
        entry.push(register);
    }
    this.#entryRegisters = entry;
    this.#returnAddress = architecture.returnAddress;
    this.#redZoneBytes = redZoneBytes;
    let kept = 1 << architecture.stackPointer;
    for (const register of architecture.calleeSaved) kept |= 1 << register;
    this.#callerSavedMask = 0xffff & ~kept;
  }

  clear(): void {
    this.registers.fill(UNKNOWN);
    this.slotCount = 0;
    this.known = 0;
    this.isPartial = false;
    this.isAssumed = false;
    this.savedAt = -1;
    this.changed = CHANGED_ALL;
  }

  /** From here on it is what a claim says, and all that follows is no proof. */
  assume(isPartial: boolean): void {
    this.isPartial = isPartial;
    this.isAssumed = true;
    this.savedAt = -1;
  }

  /** A function that has just been called: the return address lies at the stack pointer, CFA - 8. */
  enterFunction(): void {
    this.clear();
    this.setRegister(this.#stackPointer, cfaValue(-8));
    for (const register of this.#entryRegisters) this.setRegister(register, entryValue(register));
    this.setSlot(cfaValue(-8), entryValue(this.#returnAddress));
  }

  setRegister(register: number, value: Value): void {
    if (this.registers[register] !== value) this.savedAt = -1;
    this.registers[register] = value;
    if (value === UNKNOWN) this.known &= ~(1 << register);
    else this.known |= 1 << register;
    this.changed |= 1 << register;
  }

  findSlot(address: Value): number {
    const { slotAddresses, slotCount } = this;
    for (let i = 0; i < slotCount; i++) if (slotAddresses[i] === address) return i;
    return -1;
  }

  slot(address: Value): Value {
    if (address === UNKNOWN) return UNKNOWN;
    const index = this.findSlot(address);
    return index < 0 ? UNKNOWN : (this.slotValues[index] as number);
  }

  setSlot(address: Value, value: Value): void {
    if (address === UNKNOWN) return;
    let index = this.findSlot(address);
    if (value === UNKNOWN) {
      if (index >= 0) this.#removeSlot(index);
      return;
    }
    if (index < 0) {
      if (this.slotCount === MAX_SLOTS) return;
      index = this.slotCount++;
      this.slotAddresses[index] = address;
      this.savedAt = -1;
    } else if (this.slotValues[index] !== value) this.savedAt = -1;
    this.slotValues[index] = value;
    this.changed |= CHANGED_SLOTS;
  }

  /** Forgets what lies further below `address` than a signal handler leaves alone. */
  dropBelow(address: Value, margin: number): void {
    const base = baseOf(address);
    const limit = offsetOf(address) - margin;
    for (let i = this.slotCount - 1; i >= 0; i--) {
      const slot = this.slotAddresses[i] as number;
      if (baseOf(slot) === base && offsetOf(slot) < limit) this.#removeSlot(i);
    }
  }

  #removeSlot(index: number): void {
    const last = --this.slotCount;
    this.slotAddresses[index] = this.slotAddresses[last] as number;
    this.slotValues[index] = this.slotValues[last] as number;
    this.savedAt = -1;
    this.changed |= CHANGED_SLOTS;
  }

  forget(mask: number): void {
    const lost = mask & this.known;
    if (lost === 0) return;
    for (let register = 0; register < REGISTERS; register++) {
      if ((lost >> register) & 1) this.registers[register] = UNKNOWN;
    }
    this.known &= ~lost;
    this.savedAt = -1;
    this.changed |= lost;
  }

  /** Applies what instruction `i` does. */
  apply(table: InstructionTable, i: number): void {
    const op = table.ops[i] as number;
    const written = table.writes[i] as number;
    if ((written & this.known) !== 0) this.forget(written);
    if (op === OpCode.none) return;
    const operand = table.operands[i] as number;
    const a = operand & 15;
    const b = operand >> 4;
    const value = table.values[i] as number;
    const sp = this.#stackPointer;
    const { registers } = this;
    switch (op) {
      case OpCode.push: {
        const pushed = registers[a] as number;
        const address = addTo(registers[sp] as number, 0 - value);
        this.setRegister(sp, address);
        this.setSlot(address, value === 8 ? pushed : UNKNOWN);
        break;
      }
      case OpCode.pushOther: {
        const address = addTo(registers[sp] as number, 0 - value);
        this.setRegister(sp, address);
        this.setSlot(address, UNKNOWN);
        break;
      }
      case OpCode.pop: {
        const address = registers[sp] as number;
        const popped = value === 8 ? this.slot(address) : UNKNOWN;
        this.#raiseStack(addTo(address, value));
        this.setRegister(a, popped);
        break;
      }
      case OpCode.popOther:
        this.#raiseStack(addTo(registers[sp] as number, value));
        break;
      case OpCode.add: {
        const source = registers[b] as number;
        if (source === UNKNOWN && registers[a] === UNKNOWN) break;
        const sum = addTo(source, value);
        if (a === sp) this.#raiseStack(sum);
        else this.setRegister(a, sum);
        break;
      }
      case OpCode.and:
        if (a === sp || a === this.#framePointer) this.setRegister(a, placeValue(i));
        else this.forget(1 << a);
        break;
      case OpCode.store: {
        const stored = registers[a] as number;
        // Who keeps the stack pointer on another stack goes there next: that stack gets a name.
        if (registers[b] === UNKNOWN && a === sp && stored !== UNKNOWN) this.setRegister(b, placeValue(i));
        const base = registers[b] as number;
        if (base === UNKNOWN) break;
        const address = addTo(base, value);
        // Through another register, a loop over a list whose head lies on the stack seems to write into the frame.
        const isFrameAccess = b === sp || b === this.#framePointer;
        if (stored !== UNKNOWN || (isFrameAccess && this.findSlot(address) >= 0))
          this.setSlot(address, stored);
        break;
      }
      case OpCode.load: {
        const base = registers[b] as number;
        const loaded = base === UNKNOWN ? UNKNOWN : this.slot(addTo(base, value));
        if (loaded === UNKNOWN && registers[a] === UNKNOWN) break;
        this.setRegister(a, loaded);
        break;
      }
      case OpCode.leave: {
        const frame = registers[this.#framePointer] as number;
        this.setRegister(this.#framePointer, this.slot(frame));
        this.#raiseStack(addTo(frame, 8));
        break;
      }
      case OpCode.enter: {
        const address = addTo(registers[sp] as number, -8);
        this.setSlot(address, registers[this.#framePointer] as number);
        this.setRegister(this.#framePointer, value >> 16 === 0 ? address : UNKNOWN);
        this.setRegister(sp, value >> 16 === 0 ? addTo(address, 0 - (value & 0xffff)) : UNKNOWN);
        break;
      }
      case OpCode.callPush:
        this.forget(this.#callerSavedMask);
        if (registers[sp] !== UNKNOWN) this.dropBelow(registers[sp] as number, 0);
        break;
      default:
        break;
    }
  }

  #raiseStack(to: Value): void {
    this.setRegister(this.#stackPointer, to);
    if (to !== UNKNOWN) this.dropBelow(to, this.#redZoneBytes);
  }

  get #flags(): number {
    return (this.isPartial ? IS_PARTIAL : 0) | (this.isAssumed ? IS_ASSUMED : 0);
  }

  /** Words of a saved state: registers, the count of slots, flags, then pairs of address and value. */
  save(words: Int32Array, at: number): void {
    const { registers } = this;
    for (let register = 0; register < REGISTERS; register++)
      words[at + register] = registers[register] as number;
    words[at + COUNT] = this.slotCount;
    words[at + FLAGS] = this.#flags;
    let to = at + HEADER_WORDS;
    for (let i = 0; i < this.slotCount; i++) {
      words[to++] = this.slotAddresses[i] as number;
      words[to++] = this.slotValues[i] as number;
    }
    this.savedAt = at;
  }

  load(words: Int32Array, at: number): void {
    this.changed = CHANGED_ALL;
    if (this.savedAt === at) return;
    const { registers } = this;
    let known = 0;
    for (let register = 0; register < REGISTERS; register++) {
      const value = words[at + register] as number;
      registers[register] = value;
      if (value !== UNKNOWN) known |= 1 << register;
    }
    this.known = known;
    this.slotCount = words[at + COUNT] as number;
    const flags = words[at + FLAGS] as number;
    this.isPartial = (flags & IS_PARTIAL) !== 0;
    this.isAssumed = (flags & IS_ASSUMED) !== 0;
    let from = at + HEADER_WORDS;
    for (let i = 0; i < this.slotCount; i++) {
      this.slotAddresses[i] = words[from++] as number;
      this.slotValues[i] = words[from++] as number;
    }
    this.savedAt = at;
  }

  /** Whether everything that the saved state knows holds here too. */
  covers(words: Int32Array, at: number): boolean {
    if (at === this.savedAt) return true;
    const { registers, slotAddresses, slotValues, slotCount } = this;
    if (this.isAssumed && ((words[at + FLAGS] as number) & IS_ASSUMED) === 0) return false;
    for (let register = 0; register < REGISTERS; register++) {
      const saved = words[at + register] as number;
      if (saved !== UNKNOWN && saved !== registers[register]) return false;
    }
    const count = words[at + COUNT] as number;
    let from = at + HEADER_WORDS;
    for (let i = 0; i < count; i++, from += 2) {
      // As a rule both came from one state, with their slots in the same order.
      const isInPlace = i < slotCount && slotAddresses[i] === words[from];
      const value = isInPlace ? slotValues[i] : this.slot(words[from] as number);
      if (value !== words[from + 1]) return false;
    }
    return true;
  }

  /** Whether the stack pointer is known in both, and differs. */
  conflictsWith(words: Int32Array, at: number): boolean {
    const saved = words[at + this.#stackPointer] as number;
    const own = this.registers[this.#stackPointer] as number;
    return saved !== own && saved !== UNKNOWN && own !== UNKNOWN;
  }

  /** Reduces the state to what a saved one knows too. What was known for sure of one is so no more when it was assumed of the other. */
  meet(words: Int32Array, at: number): void {
    const flags = words[at + FLAGS] as number;
    this.isPartial ||= (flags & IS_PARTIAL) !== 0;
    this.isAssumed ||= (flags & IS_ASSUMED) !== 0;
    this.savedAt = -1;
    for (let register = 0; register < REGISTERS; register++) {
      if (this.registers[register] !== words[at + register]) this.setRegister(register, UNKNOWN);
    }
    for (let i = this.slotCount - 1; i >= 0; i--) {
      if (savedSlot(words, at, this.slotAddresses[i] as number) !== this.slotValues[i]) this.#removeSlot(i);
    }
  }
}

function savedSlot(words: Int32Array, at: number, address: Value): Value {
  const end = at + HEADER_WORDS + 2 * (words[at + COUNT] as number);
  for (let i = at + HEADER_WORDS; i < end; i += 2) if (words[i] === address) return words[i + 1] as number;
  return UNKNOWN;
}

/** Saved states one behind the other. Who has the position of one has that state for good. */
export class SnapshotPool {
  words = new Int32Array(1 << 14);
  #used = 0;

  /** Keeps a copy of the state; returns its position in {@link words}. */
  add(state: FrameState): number {
    if (state.savedAt >= 0) return state.savedAt;
    const at = this.#used;
    this.#used += HEADER_WORDS + 2 * state.slotCount;
    if (this.#used > this.words.length) {
      const larger = new Int32Array(this.words.length * 2);
      larger.set(this.words);
      this.words = larger;
    }
    state.save(this.words, at);
    return at;
  }
}
