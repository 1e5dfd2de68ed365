import { GS_SLOT_NOTE_OFFSET } from '../../arch/architecture.js';
import { targetAddress } from '../../base/brand.js';
import { LivegraftError } from '../../base/errors.js';
import type { ProcessMemory } from './memory.js';
import * as native from './native.js';
import { readThreadStat } from './proc.js';
import { FS_BASE, GS_BASE, readRegister, writeRegister } from './registers.js';
import type { SlotArea } from './registry.js';
import { PATIENT_TIMEOUT_MS, type Tracee, type Tracer } from './tracer.js';

/**
 * The state byte of every thread, in the target's memory, where redirects read it: 0 runs the version below a
 * redirect, 1 the new one.
 *
 * With `gsBase` each thread's GS base points into a slot, at the one of its two constant bytes that is the state: the state
 * is the thread's own, and clone hands it to the child, also when nobody watches. Such a child has its parent's slot until
 * it is assigned one; the slot itself only notes the state for whoever wants to know it of a running thread. With
 * `threadPointerTable` (for a target that uses GS itself, or can't set it) a table is keyed by the thread pointer; a
 * thread that is not in it has the state of the free entry at which its search ends: see {@link TaskSlots.setAll}.
 */
export interface TaskSlots {
  readonly area: SlotArea;
  /** Gives a stopped thread a slot of its own with this state. Keeps the slot it has unless another thread has it too. */
  assign(tracee: Tracee, state: 0 | 1): void;
  /** Whether this run has given the thread a slot. */
  isAssigned(tracee: Tracee): boolean;
  /** Whether a stopped thread's registers show that it was given a slot, by us or by a run before. */
  hasSlot(tracee: Tracee): boolean;
  /** The state of a thread that was assigned one, as the slot has it; of an unknown one as {@link ownState}. */
  stateOf(tracee: Tracee): 0 | 1;
  /** What redirects read for a stopped thread whose registers were fetched. */
  ownState(tracee: Tracee): 0 | 1;
  /** The thread must be stopped. */
  setState(tracee: Tracee, state: 0 | 1): void;
  /**
   * Sets the state of every slot in a table, those of threads to come too, and those of threads that have ended: a thread that is
   * created while nobody watches begins with it. Allowed where nothing reads a state, or all threads have this one. Nothing
   * with `gsBase`, where such a thread has its creator's.
   */
  setAll(state: 0 | 1): void;
  /** The thread has ended. */
  release(tracee: Tracee): void;
  /** Takes the slot from a stopped thread: nothing of ours may read it any more. */
  giveBack(tracee: Tracee): void;
}

export const SLOT_BYTES = 16;
/** Of a slot at a GS base: not 0 once it was given to a thread; others may run in it, too. */
const GIVEN_OFFSET = 3;

/** Slots for this many threads, with room for ones to come. */
export function slotCount(threads: number): number {
  return 2 ** Math.ceil(Math.log2(threads * 4 + 512));
}

export function createTaskSlots(memory: ProcessMemory, area: SlotArea): TaskSlots {
  return area.kind === 'gsBase' ? new GsBaseSlots(memory, area) : new ThreadPointerSlots(memory, area);
}

/** Refuses a thread whose GS base is neither unused nor ours: the target uses it, and states need a table. */
export function expectGsUnused(tracee: Tracee, area: SlotArea): void {
  const base = readRegister(tracee.registers, GS_BASE);
  if (area.kind !== 'gsBase' || base === 0 || isInside(area, base)) return;
  throw new LivegraftError('gs-in-use', `thread ${tracee.tid} uses its GS base itself`, {
    details: { tid: tracee.tid },
  });
}

export function isGsInUse(error: unknown): boolean {
  return error instanceof LivegraftError && error.code === 'gs-in-use';
}

/** The states of all seized threads as a half-done transition has left them. Stops each for a moment. */
export function stateInTarget(
  tracer: Tracer,
  memory: ProcessMemory,
  area: SlotArea,
): { readonly tid: number; readonly name: string; readonly state: 'unpatched' | 'patched' }[] {
  const slots = createTaskSlots(memory, area);
  const states: { tid: number; name: string; state: 'unpatched' | 'patched' }[] = [];
  for (const tracee of [...tracer.tracees.values()]) {
    tracer.interrupt(tracee);
    if (tracer.collect(tracee, PATIENT_TIMEOUT_MS) !== 'stopped' || !tracer.fetchRegisters(tracee)) continue;
    const state = slots.stateOf(tracee) === 1 ? 'patched' : 'unpatched';
    states.push({ tid: tracee.tid, name: readThreadStat(tracee.pid, tracee.tid)?.name ?? '?', state });
    tracer.detach(tracee);
  }
  return states;
}

function isInside(area: SlotArea, address: number): boolean {
  return address >= area.address && address < area.address + area.sizeBytes;
}

class GsBaseSlots implements TaskSlots {
  readonly area: SlotArea;
  readonly #memory: ProcessMemory;
  readonly #slotOf = new Map<number, number>();
  readonly #taken = new Set<number>();
  /** Of threads that have ended: they still count as given. */
  readonly #released = new Set<number>();
  #next = 0;

  constructor(memory: ProcessMemory, area: SlotArea) {
    this.#memory = memory;
    this.area = area;
  }

  assign(tracee: Tracee, state: 0 | 1): void {
    const known = this.#slotOf.get(tracee.tid);
    if (known !== undefined && readRegister(tracee.registers, GS_BASE) === known + state) return;
    const current = this.#slotAtBase(tracee);
    const isFree = current !== undefined && !this.#taken.has(current);
    const slot = known ?? (isFree ? current : this.#findFree());
    this.#taken.add(slot);
    this.#slotOf.set(tracee.tid, slot);
    const bytes = Buffer.alloc(SLOT_BYTES);
    bytes[1] = 1;
    bytes[GS_SLOT_NOTE_OFFSET] = state;
    bytes[GIVEN_OFFSET] = 1;
    // The slot first: from the next instruction on, the thread may read it.
    this.#memory.write(slot, bytes);
    this.#pointAt(tracee, slot + state);
  }

  isAssigned(tracee: Tracee): boolean {
    return this.#slotOf.has(tracee.tid);
  }

  hasSlot(tracee: Tracee): boolean {
    return this.#slotAtBase(tracee) !== undefined;
  }

  stateOf(tracee: Tracee): 0 | 1 {
    const slot = this.#slotOf.get(tracee.tid);
    if (slot === undefined) return this.ownState(tracee);
    const [note = 0] = this.#memory.readExactly(slot + GS_SLOT_NOTE_OFFSET, 1);
    return (note & 1) === 0 ? 0 : 1;
  }

  ownState(tracee: Tracee): 0 | 1 {
    const base = readRegister(tracee.registers, GS_BASE);
    return isInside(this.area, base) && base % 2 === 1 ? 1 : 0;
  }

  setState(tracee: Tracee, state: 0 | 1): void {
    const slot = this.#slotOf.get(tracee.tid);
    if (slot === undefined) {
      this.assign(tracee, state);
      return;
    }
    this.#pointAt(tracee, slot + state);
    this.#memory.write(slot + GS_SLOT_NOTE_OFFSET, Uint8Array.of(state));
  }

  setAll(): void {}

  release(tracee: Tracee): void {
    const slot = this.#slotOf.get(tracee.tid);
    if (slot === undefined) return;
    this.#taken.delete(slot);
    this.#released.add(slot);
    this.#slotOf.delete(tracee.tid);
  }

  giveBack(tracee: Tracee): void {
    if (this.hasSlot(tracee)) {
      this.#pointAt(tracee, 0);
      const slot = this.#slotOf.get(tracee.tid);
      if (slot !== undefined) this.#memory.write(slot + GIVEN_OFFSET, Uint8Array.of(0));
    }
    this.release(tracee);
  }

  #pointAt(tracee: Tracee, base: number): void {
    if (readRegister(tracee.registers, GS_BASE) === base) return;
    native.pokeRegister(tracee.tid, GS_BASE, base);
    writeRegister(tracee.registers, GS_BASE, base);
  }

  #slotAtBase(tracee: Tracee): number | undefined {
    const base = readRegister(tracee.registers, GS_BASE);
    return isInside(this.area, base) ? base - (base % SLOT_BYTES) : undefined;
  }

  /** One that was given to nobody; failing that, one that was given to a thread which has ended while nobody watched. */
  #findFree(): number {
    const count = Math.floor(this.area.sizeBytes / SLOT_BYTES);
    for (const mayBeGiven of [false, true]) {
      for (let i = 0; i < count; i++) {
        const slot = this.area.address + ((this.#next + i) % count) * SLOT_BYTES;
        if (this.#taken.has(slot)) continue;
        if (!mayBeGiven && !this.#released.has(slot) && this.#isGiven(slot)) continue;
        this.#released.delete(slot);
        this.#next = (this.#next + i + 1) % count;
        return slot;
      }
    }
    // More threads than slots: sharing the first would tie two states together, so this must not pass unseen.
    throw new RangeError(`all ${count} task slots at ${targetAddress(this.area.address)} are taken`);
  }

  #isGiven(slot: number): boolean {
    return this.#memory.readExactly(slot + GIVEN_OFFSET, 1)[0] !== 0;
  }
}

/** Bytes of an entry: the thread pointer, then the state. */
const ENTRY_BYTES = 16;

class ThreadPointerSlots implements TaskSlots {
  readonly area: SlotArea;
  readonly #memory: ProcessMemory;
  readonly #entries: number;
  readonly #entryOf = new Map<number, number>();

  constructor(memory: ProcessMemory, area: SlotArea) {
    this.#memory = memory;
    this.area = area;
    this.#entries = area.sizeBytes / ENTRY_BYTES;
  }

  assign(tracee: Tracee, state: 0 | 1): void {
    const key = readRegister(tracee.registers, FS_BASE);
    const entry = this.#locate(key);
    this.#entryOf.set(tracee.tid, entry);
    this.#memory.write(entry + 8, Uint8Array.of(state));
    const bytes = Buffer.alloc(8);
    bytes.writeBigUInt64LE(BigInt(key));
    this.#memory.write(entry, bytes);
  }

  isAssigned(tracee: Tracee): boolean {
    return this.#entryOf.has(tracee.tid);
  }

  hasSlot(tracee: Tracee): boolean {
    const key = readRegister(tracee.registers, FS_BASE);
    return this.#memory.readExactly(this.#locate(key), 8).readBigUInt64LE(0) === BigInt(key);
  }

  stateOf(tracee: Tracee): 0 | 1 {
    const entry = this.#entryOf.get(tracee.tid) ?? this.#locate(readRegister(tracee.registers, FS_BASE));
    return this.#memory.readExactly(entry + 8, 1)[0] === 0 ? 0 : 1;
  }

  ownState(tracee: Tracee): 0 | 1 {
    return this.stateOf(tracee);
  }

  setState(tracee: Tracee, state: 0 | 1): void {
    const entry = this.#entryOf.get(tracee.tid);
    if (entry === undefined) this.assign(tracee, state);
    else this.#memory.write(entry + 8, Uint8Array.of(state));
  }

  /** At once: what threads store meanwhile at a barrier is the same state, and keys are ours alone to write. */
  setAll(state: 0 | 1): void {
    const { address, sizeBytes } = this.area;
    const table = Buffer.from(this.#memory.readExactly(address, sizeBytes));
    for (let at = 8; at < table.length; at += ENTRY_BYTES) table[at] = state;
    this.#memory.write(address, table);
  }

  /** The entry stays: removing one would break the probe sequences of others. A new thread with this key reuses it. */
  release(tracee: Tracee): void {
    this.#entryOf.delete(tracee.tid);
  }

  giveBack(tracee: Tracee): void {
    this.release(tracee);
  }

  /** The entry of a thread pointer, or the free one where it belongs: the probe sequence of the redirect's own code. */
  #locate(key: number): number {
    const mask = this.#entries - 1;
    for (
      let i = 0, index = threadPointerHash(key, this.#entries);
      i < this.#entries;
      i++, index = (index + 1) & mask
    ) {
      const at = this.area.address + index * ENTRY_BYTES;
      const found = this.#memory.readExactly(at, 8).readBigUInt64LE(0);
      if (found === 0n || found === BigInt(key)) return at;
    }
    throw new RangeError(`all ${this.#entries} task slots are taken`);
  }
}

/** Must equal the hash in the redirect's state test (`src/arch/x86-64`); `entries` is a power of two. */
function threadPointerHash(threadPointer: number, entries: number): number {
  const page = Math.floor(threadPointer / 4096) >>> 0;
  return (Math.imul(page, 0x9e3779b1) >>> 0) >>> (32 - Math.log2(entries));
}
