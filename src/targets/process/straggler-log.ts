import type { Direction, StragglerReason } from '../../engine/target.js';
import { readThreadStat } from './proc.js';
import type { ProcessSpace } from './process-space.js';
import type { RegisteredStraggler, RegisteredTransition } from './registry.js';
import type { TaskRecord } from './task-record.js';

const SAVE_EVERY_MS = 1000;
/** The registry has room for so many; the rest is found by looking at the threads. */
const MOST_KEPT = 64;
const FRAMES_KEPT = 16;

/**
 * Which threads a transition could not switch, since when, and how often it tried: kept in the registry, so that
 * another livegraft can tell while this one works, and a later one can go on counting. What a run that is killed had
 * not saved yet is lost: at most a second of it.
 */
export class StragglerLog {
  readonly #space: ProcessSpace;
  readonly #stragglers = new Map<number, RegisteredStraggler>();
  #startedAt: string;
  #savedAtMs = performance.now();
  #isDirty = false;

  /** Goes on with what the registry holds, unless that is of the other direction. */
  constructor(space: ProcessSpace, direction: Direction) {
    this.#space = space;
    const before = space.registry.transition;
    const isSame = before?.direction === direction;
    this.#startedAt = (isSame ? before.startedAt : undefined) ?? new Date().toISOString();
    for (const straggler of isSame ? (before.stragglers ?? []) : [])
      this.#stragglers.set(straggler.tid, straggler);
  }

  /** The direction was turned around: what held threads before says nothing of the other way. */
  restart(): void {
    this.#startedAt = new Date().toISOString();
    this.#stragglers.clear();
  }

  /** A thread was looked at and refused. */
  note({ space, tracee: { tid }, name }: TaskRecord, reason: StragglerReason): void {
    if (space !== this.#space) return;
    const now = new Date().toISOString();
    const beganTicks = readThreadStat(space.pid, tid)?.beganTicks ?? 0;
    const before = this.#stragglers.get(tid);
    const known = before?.beganTicks === beganTicks ? before : undefined;
    this.#stragglers.set(tid, {
      tid,
      beganTicks,
      name,
      attempts: (known?.attempts ?? 0) + 1,
      since: known?.since ?? now,
      lastAt: now,
      reason: 'frames' in reason ? { ...reason, frames: reason.frames.slice(0, FRAMES_KEPT) } : reason,
    });
    this.#isDirty = true;
  }

  /** It has not moved since it was looked at and refused. */
  noteAgain({ space, tracee: { tid } }: TaskRecord): void {
    const known = this.#stragglers.get(tid);
    if (space !== this.#space || known === undefined) return;
    this.#stragglers.set(tid, { ...known, attempts: known.attempts + 1, lastAt: new Date().toISOString() });
    this.#isDirty = true;
  }

  /** It has switched, or ended. */
  forget({ space, tracee }: TaskRecord): void {
    if (space === this.#space && this.#stragglers.delete(tracee.tid)) this.#isDirty = true;
  }

  /** What the registry's record of the transition is to say of this. */
  entry(): Pick<RegisteredTransition, 'startedAt' | 'stragglers'> {
    return { startedAt: this.#startedAt, stragglers: [...this.#stragglers.values()].slice(0, MOST_KEPT) };
  }

  saveNowAndThen(): void {
    if (this.#isDirty && performance.now() - this.#savedAtMs > SAVE_EVERY_MS) this.save();
  }

  /** Does nothing when no transition is recorded any more. */
  save(): void {
    const { transition } = this.#space.registry;
    if (!this.#isDirty || transition === undefined) return;
    this.#isDirty = false;
    this.#savedAtMs = performance.now();
    this.#space.setTransition({ ...transition, ...this.entry() });
  }
}
