import type { Architecture } from '../arch/architecture.js';
import {
  firstOf,
  type InstructionTable,
  OpCode,
  opOf,
  secondOf,
  writesOf,
} from '../arch/instruction-table.js';
import { FrameState, REGISTERS } from './frame-state.js';
import { addTo, UNKNOWN, type Value } from './values.js';

/** A kept state: the position of its first word. In one space, equal states have equal ids. */
export type StateId = number;

/** Words of a kept state before its slots (pairs of address and value, by address): registers, then these. */
const [COUNT, FLAGS, KNOWN, WRONG_CFA] = [REGISTERS, REGISTERS + 1, REGISTERS + 2, REGISTERS + 3];
const HEADER_WORDS = REGISTERS + 4;
const [IS_PARTIAL, IS_ASSUMED] = [1, 2];
/** A call leaves it as it is. */
const IS_KEPT_BY_CALLS = 4;

/** Of transitions: state, effect, value; then the state behind, and what changed. */
const TRANSITION_WORDS = 8;
const TRANSITIONS = 1 << 15;
/** Of joins: both states, and what {@link StateSpace.join} says. */
const JOIN_WORDS = 4;
const JOINS = 1 << 13;
/** A larger space begins anew with the next proof. */
const KEPT_WORDS = 1 << 20;
/** Beyond what any real file needs (node takes 9 million); damage could ask for any amount. */
const MAX_WORDS = 1 << 26;
const NEVER = -1;
const UNKNOWN_STATE: StateId = 0;
/** The result of {@link StateSpace.join} where nothing is lost. */
export const COVERED = -1;

/**
 * All states that proofs meet, each kept once and for good: that two are equal is one comparison, and what an instruction makes of
 * one is worked out once and looked up ever after, in this function, the next, and the next file. What was looked up long ago
 * may be forgotten, and is worked out again.
 */
export class StateSpace {
  /** What the last {@link after} and {@link join} changed is added: bits of {@link FrameState.changed}. */
  changed = 0;
  readonly #architecture: Architecture;
  readonly #state: FrameState;
  readonly #maxWords: number;
  #words = new Int32Array(1 << 14);
  #used = 0;
  /** Ids by the hash of their words, -1 where there is none. */
  #table = new Int32Array(1 << 10).fill(-1);
  #count = 0;
  readonly #transitions = new Int32Array(TRANSITION_WORDS * TRANSITIONS).fill(NEVER);
  readonly #joins = new Int32Array(JOIN_WORDS * JOINS).fill(NEVER);

  /**
   * `redZoneBytes`: bytes below the stack pointer that survive signals. `maxWords`: where there is no room for more states, the next one
   * is taken for one of which nothing is known.
   */
  constructor(architecture: Architecture, redZoneBytes: number, maxWords = MAX_WORDS) {
    this.#architecture = architecture;
    this.#maxWords = maxWords;
    this.#state = new FrameState(architecture, redZoneBytes);
    this.#keepUnknown();
  }

  /** Before a proof: ids of the proofs before it count no more. */
  begin(): void {
    if (this.#used <= KEPT_WORDS) return;
    this.#words = new Int32Array(1 << 14);
    this.#table = new Int32Array(1 << 10).fill(-1);
    this.#used = 0;
    this.#count = 0;
    this.#transitions.fill(NEVER);
    this.#joins.fill(NEVER);
    this.#keepUnknown();
  }

  /** The first of all states, at 0: nothing is known, and what follows is no proof. */
  #keepUnknown(): void {
    this.#state.clear();
    this.#state.assume(true);
    this.keep(this.#state);
  }

  /** The working state, as one that is kept: what is made of it can be kept in turn. It lasts until the next call of anything here. */
  load(id: StateId): FrameState {
    const state = this.#state;
    const words = this.#words;
    const { registers, slotAddresses, slotValues } = state;
    for (let register = 0; register < REGISTERS; register++)
      registers[register] = words[id + register] as number;
    state.known = words[id + KNOWN] as number;
    state.slotCount = words[id + COUNT] as number;
    const flags = words[id + FLAGS] as number;
    state.isPartial = (flags & IS_PARTIAL) !== 0;
    state.isAssumed = (flags & IS_ASSUMED) !== 0;
    state.wrongCfa = words[id + WRONG_CFA] as number;
    let from = id + HEADER_WORDS;
    for (let i = 0; i < state.slotCount; i++) {
      slotAddresses[i] = words[from++] as number;
      slotValues[i] = words[from++] as number;
    }
    state.changed = 0;
    return state;
  }

  /** A function that has just been called; see {@link FrameState.enterFunction}. */
  entry(entryMask: number): StateId {
    this.#state.enterFunction(entryMask);
    return this.keep(this.#state);
  }

  keep(state: FrameState): StateId {
    if (this.#used + HEADER_WORDS + 2 * state.slotCount > this.#maxWords) return UNKNOWN_STATE;
    this.#write(state);
    const start = this.#used;
    const end = start + HEADER_WORDS + 2 * state.slotCount;
    const mask = this.#table.length - 1;
    for (let slot = this.#hash(start, end) & mask; ; slot = (slot + 1) & mask) {
      const id = this.#table[slot] as number;
      if (id < 0) {
        this.#table[slot] = start;
        this.#used = end;
        if (++this.#count * 2 > mask) this.#growTable();
        return start;
      }
      if (this.#isSame(id, start, end)) return id;
    }
  }

  /** Writes a state behind those that are kept. */
  #write(state: FrameState): void {
    const { registers, slotAddresses, slotValues, slotCount } = state;
    const start = this.#used;
    if (start + HEADER_WORDS + 2 * slotCount > this.#words.length) {
      const larger = new Int32Array(this.#words.length * 2);
      larger.set(this.#words);
      this.#words = larger;
    }
    const words = this.#words;
    words.set(registers, start);
    words[start + COUNT] = slotCount;
    words[start + FLAGS] =
      (state.isPartial ? IS_PARTIAL : 0) |
      (state.isAssumed ? IS_ASSUMED : 0) |
      (state.isKeptByCalls ? IS_KEPT_BY_CALLS : 0);
    words[start + KNOWN] = state.known;
    words[start + WRONG_CFA] = state.wrongCfa;
    const first = start + HEADER_WORDS;
    for (let i = 0; i < slotCount; i++) {
      const address = slotAddresses[i] as number;
      let to = first + 2 * i;
      for (; to > first && (words[to - 2] as number) > address; to -= 2) {
        words[to] = words[to - 2] as number;
        words[to + 1] = words[to - 1] as number;
      }
      words[to] = address;
      words[to + 1] = slotValues[i] as number;
    }
  }

  #hash(start: number, end: number): number {
    const words = this.#words;
    let hash = 0;
    for (let at = start; at < end; at++) {
      hash = Math.imul(hash ^ (words[at] as number), 0x9e3779b1);
      hash ^= hash >>> 15;
    }
    return hash;
  }

  #isSame(id: StateId, start: number, end: number): boolean {
    const words = this.#words;
    // Of different counts, one of the words before the first slot differs.
    for (let at = start, other = id; at < end; at++, other++) if (words[at] !== words[other]) return false;
    return true;
  }

  #growTable(): void {
    const before = this.#table;
    const table = new Int32Array(before.length * 2).fill(-1);
    const mask = table.length - 1;
    const words = this.#words;
    for (const id of before) {
      if (id < 0) continue;
      const end = id + HEADER_WORDS + 2 * (words[id + COUNT] as number);
      let slot = this.#hash(id, end) & mask;
      while ((table[slot] as number) >= 0) slot = (slot + 1) & mask;
      table[slot] = id;
    }
    this.#table = table;
  }

  register(id: StateId, register: number): Value {
    return this.#words[id + register] as number;
  }

  slot(id: StateId, address: Value): Value {
    if (address === UNKNOWN) return UNKNOWN;
    const words = this.#words;
    const end = id + HEADER_WORDS + 2 * (words[id + COUNT] as number);
    for (let at = id + HEADER_WORDS; at < end; at += 2)
      if (words[at] === address) return words[at + 1] as number;
    return UNKNOWN;
  }

  /** Bit per register whose value is known. */
  known(id: StateId): number {
    return this.#words[id + KNOWN] as number;
  }

  isPartial(id: StateId): boolean {
    return ((this.#words[id + FLAGS] as number) & IS_PARTIAL) !== 0;
  }

  /** See {@link FrameState.wrongCfa}. */
  wrongCfa(id: StateId): Value {
    return this.#words[id + WRONG_CFA] as number;
  }

  /** The same state with another {@link FrameState.wrongCfa}. */
  withWrongCfa(id: StateId, value: Value): StateId {
    if (this.wrongCfa(id) === value) return id;
    const state = this.load(id);
    state.wrongCfa = value;
    return this.keep(state);
  }

  isAssumed(id: StateId): boolean {
    return ((this.#words[id + FLAGS] as number) & IS_ASSUMED) !== 0;
  }

  /** The state behind instruction `i`. */
  after(id: StateId, table: InstructionTable, i: number): StateId {
    const effect = table.effects[i] as number;
    const value = table.values[i] as number;
    const op = opOf(effect);
    if (op === OpCode.callPush) {
      if (((this.#words[id + FLAGS] as number) & IS_KEPT_BY_CALLS) !== 0 && writesOf(effect) === 0) return id;
    } else if ((op === OpCode.load || op === OpCode.store) && this.#isForeign(id, effect, value)) return id;
    const hash = Math.imul(id ^ Math.imul(effect, 0x85ebca6b) ^ Math.imul(value, 0xc2b2ae35), 0x9e3779b1);
    const at = (hash >>> 17) * TRANSITION_WORDS;
    const transitions = this.#transitions;
    if (transitions[at] !== id || transitions[at + 1] !== effect || transitions[at + 2] !== value) {
      const state = this.load(id);
      state.apply(table, i);
      transitions[at] = this.#namesPlace(id, effect) ? NEVER : id;
      transitions[at + 1] = effect;
      transitions[at + 2] = value;
      transitions[at + 3] = this.keep(state);
      transitions[at + 4] = state.changed;
    }
    this.changed |= transitions[at + 4] as number;
    return transitions[at + 3] as number;
  }

  /** Of loads and stores, which are many: whether neither the register nor the slot is one of which anything is known. */
  #isForeign(id: StateId, effect: number, value: number): boolean {
    const words = this.#words;
    if (words[id + firstOf(effect)] !== UNKNOWN || writesOf(effect) !== 0) return false;
    const address = addTo(words[id + secondOf(effect)] as number, value);
    const end = id + HEADER_WORDS + 2 * (words[id + COUNT] as number);
    for (let at = id + HEADER_WORDS; at < end; at += 2) if (words[at] === address) return false;
    return true;
  }

  /** Whether the state behind names the instruction itself: the same effect elsewhere makes another state. */
  #namesPlace(id: StateId, effect: number): boolean {
    const { stackPointer } = this.#architecture;
    const op = opOf(effect);
    if (op === OpCode.and) return true;
    return (
      op === OpCode.store &&
      firstOf(effect) === stackPointer &&
      this.register(id, secondOf(effect)) === UNKNOWN
    );
  }

  /** What holds in both a state and one with the same {@link FrameState.wrongCfa} that comes to the same place; {@link COVERED} where all that `kept` knows holds in `other` too. */
  join(kept: StateId, other: StateId): StateId {
    const hash = Math.imul(kept ^ Math.imul(other, 0x85ebca6b), 0x9e3779b1);
    const at = (hash >>> 19) * JOIN_WORDS;
    const joins = this.#joins;
    if (joins[at] !== kept || joins[at + 1] !== other) {
      joins[at + 2] = this.#covers(kept, other) ? COVERED : this.#meet(kept, other);
      joins[at] = kept;
      joins[at + 1] = other;
    }
    return joins[at + 2] as number;
  }

  #covers(kept: StateId, other: StateId): boolean {
    const words = this.#words;
    if (this.isAssumed(other) && !this.isAssumed(kept)) return false;
    for (let register = 0; register < REGISTERS; register++) {
      const value = words[kept + register] as number;
      if (value !== UNKNOWN && value !== words[other + register]) return false;
    }
    const end = kept + HEADER_WORDS + 2 * (words[kept + COUNT] as number);
    for (let at = kept + HEADER_WORDS; at < end; at += 2)
      if (this.slot(other, words[at] as number) !== words[at + 1]) return false;
    return true;
  }

  /** What was known for sure of one is so no more when it was assumed of the other. */
  #meet(kept: StateId, other: StateId): StateId {
    const state = this.load(kept);
    state.isPartial ||= this.isPartial(other);
    state.isAssumed ||= this.isAssumed(other);
    for (let register = 0; register < REGISTERS; register++) {
      if (state.registers[register] !== this.register(other, register)) state.setRegister(register, UNKNOWN);
    }
    for (let i = state.slotCount - 1; i >= 0; i--) {
      if (this.slot(other, state.slotAddresses[i] as number) !== state.slotValues[i]) state.removeSlot(i);
    }
    return this.keep(state);
  }

  /** Whether the stack pointer is known in both, and differs. */
  conflict(a: StateId, b: StateId): boolean {
    const { stackPointer } = this.#architecture;
    const [first, second] = [this.register(a, stackPointer), this.register(b, stackPointer)];
    return first !== second && first !== UNKNOWN && second !== UNKNOWN;
  }
}
