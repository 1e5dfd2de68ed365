import type { Architecture } from '../arch/architecture.js';
import {
  firstOf,
  type InstructionTable,
  OpCode,
  opOf,
  secondOf,
  writesOf,
} from '../arch/instruction-table.js';
import { addTo, baseOf, cfaValue, entryValue, offsetOf, placeValue, UNKNOWN, type Value } from './values.js';

export const REGISTERS = 16;
/** Bits of {@link FrameState.changed}. */
export const CHANGED_SLOTS = 1 << REGISTERS;
export const CHANGED_ALL = 2 * CHANGED_SLOTS - 1;
/** More facts than this about one frame are forgotten, which can only leave a claim unproven. */
const MAX_SLOTS = 40;

/**
 * What is known before an instruction: the values of registers, and of the stack slots whose address is known. Mutable: in
 * it a state is worked out that is then kept in a {@link StateSpace}.
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
  /**
   * Where the table has taken the CFA to be since a row that was found wrong, unknown while it is right. As long as it is the same place, it is
   * the same mistake.
   */
  wrongCfa: Value = UNKNOWN;
  /** What may have changed since somebody set it to 0: a bit per register, {@link CHANGED_SLOTS}. */
  changed = 0;
  /** Bit per register whose value is known. */
  known = 0;
  readonly #stackPointer: number;
  readonly #framePointer: number;
  readonly #callerSavedMask: number;
  readonly #redZoneBytes: number;
  readonly #returnAddress: number;

  constructor(architecture: Architecture, redZoneBytes: number) {
    this.#stackPointer = architecture.stackPointer;
    this.#framePointer = architecture.framePointer;
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
    this.wrongCfa = UNKNOWN;
    this.changed = CHANGED_ALL;
  }

  /** From here on it is what a claim says, and all that follows is no proof. */
  assume(isPartial: boolean): void {
    this.isPartial = isPartial;
    this.isAssumed = true;
  }

  /**
   * A function that has just been called: the return address lies at the stack pointer, CFA - 8. `entryMask`: the registers whose
   * value on entry matters.
   */
  enterFunction(entryMask: number): void {
    this.clear();
    for (let register = 0; register < REGISTERS; register++) {
      if ((entryMask >> register) & 1) this.setRegister(register, entryValue(register));
    }
    this.setRegister(this.#stackPointer, cfaValue(-8));
    this.setSlot(cfaValue(-8), entryValue(this.#returnAddress));
  }

  setRegister(register: number, value: Value): void {
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
      if (index >= 0) this.removeSlot(index);
      return;
    }
    if (index < 0) {
      if (this.slotCount === MAX_SLOTS) return;
      index = this.slotCount++;
      this.slotAddresses[index] = address;
    }
    this.slotValues[index] = value;
    this.changed |= CHANGED_SLOTS;
  }

  /** Whether a call changes nothing: all that is known outlives it. */
  get isKeptByCalls(): boolean {
    const sp = this.registers[this.#stackPointer] as number;
    if ((this.known & this.#callerSavedMask) !== 0) return false;
    for (let i = 0; i < this.slotCount && sp !== UNKNOWN; i++) {
      const slot = this.slotAddresses[i] as number;
      if (baseOf(slot) === baseOf(sp) && offsetOf(slot) < offsetOf(sp)) return false;
    }
    return true;
  }

  /** Forgets what lies further below `address` than a signal handler leaves alone. */
  dropBelow(address: Value, margin: number): void {
    const base = baseOf(address);
    const limit = offsetOf(address) - margin;
    for (let i = this.slotCount - 1; i >= 0; i--) {
      const slot = this.slotAddresses[i] as number;
      if (baseOf(slot) === base && offsetOf(slot) < limit) this.removeSlot(i);
    }
  }

  removeSlot(index: number): void {
    const last = --this.slotCount;
    this.slotAddresses[index] = this.slotAddresses[last] as number;
    this.slotValues[index] = this.slotValues[last] as number;
    this.changed |= CHANGED_SLOTS;
  }

  forget(mask: number): void {
    const lost = mask & this.known;
    if (lost === 0) return;
    for (let register = 0; register < REGISTERS; register++) {
      if ((lost >> register) & 1) this.registers[register] = UNKNOWN;
    }
    this.known &= ~lost;
    this.changed |= lost;
  }

  /** Applies what instruction `i` does. */
  apply(table: InstructionTable, i: number): void {
    const effect = table.effects[i] as number;
    const op = opOf(effect);
    const written = writesOf(effect);
    if ((written & this.known) !== 0) this.forget(written);
    if (op === OpCode.none) return;
    const a = firstOf(effect);
    const b = secondOf(effect);
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
}
