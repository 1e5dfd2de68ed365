import { LivegraftError } from '../../base/errors.js';
import type { Direction } from '../../engine/target.js';
import type { StackCopy, Walked } from './deep-stack.js';
import type { HoldLog } from './hold-log.js';
import { withoutParts } from './patch-objects.js';
import type { ProcessSpace } from './process-space.js';
import type { RegisteredPatch } from './registry.js';
import { visitEach } from './stopped-write.js';
import type { TaskRecord } from './task-record.js';
import type { TaskRoster } from './task-roster.js';
import { expectGsUnused } from './task-slots.js';
import { sleepSync, type Tracer } from './tracer.js';
import { leaveTrampoline, usesSlotLater } from './trampolines.js';

/** Tries of threads none of which could be stopped, before they are let be. */
const MOST_TRIES = 3;
const BETWEEN_TRIES_MS = 10;

export interface SlotPassesOptions {
  readonly tracer: Tracer;
  readonly roster: TaskRoster;
  readonly holds: HoldLog;
  readonly patchId: string;
  /** Those of the patch that take part; all without. */
  readonly objects: readonly string[] | undefined;
  /** The patch as far as it takes part. */
  readonly patchOf: (space: ProcessSpace) => RegisteredPatch;
}

/**
 * Gives threads their state slots before a transition, and takes them back behind it. While no entry chooses, nothing reads a
 * slot: so threads are visited a few at a time, and none is held until the last one has had its turn.
 */
export class SlotPasses {
  readonly #options: SlotPassesOptions;

  constructor(options: SlotPassesOptions) {
    this.#options = options;
  }

  /**
   * Gives sleeping threads of a transition that begins the state that they have. What they do to it until all are stopped
   * together, and who is created meanwhile, is seen there.
   */
  giveAhead(space: ProcessSpace, give: (record: TaskRecord) => void): void {
    const { tracer } = this.#options;
    const sleeping = [...space.tasks.values()].filter((record) => record.activity() === 'sleeps');
    this.#visit(sleeping, 'it was given a state', (record) => {
      try {
        give(record);
      } finally {
        tracer.resume(record.tracee);
      }
    });
  }

  /** Of a thread whose slot is not the one of this transition. Its registers have been fetched. */
  give(record: TaskRecord, state: 0 | 1, isFresh: boolean): void {
    const { space, tracee } = record;
    expectGsUnused(tracee, space.slots.area);
    // Only one that an earlier transition could not take its slot from has one before this one begins.
    if (isFresh && !space.slots.isAssigned(tracee) && space.slots.hasSlot(tracee))
      this.#expectOutOfRedirects(record);
    space.slots.assign(tracee, state);
  }

  /** No entry has been changed. */
  takeBackUnused(space: ProcessSpace): void {
    this.#visit([...space.tasks.values()], 'its state was taken back', (record) => {
      if (this.#findRedirectAround(record) === undefined) space.slots.giveBack(record.tracee);
      else space.slots.release(record.tracee);
      this.#options.tracer.resume(record.tracee);
    });
  }

  /** All entries are final. Takes every thread its slot, and lets it go for good. */
  takeBack(space: ProcessSpace, direction: Direction): void {
    const { roster, tracer } = this.#options;
    for (let tries = 0; tries < MOST_TRIES; ) {
      const left = [...space.tasks.values()].filter(({ tracee }) => tracee.state !== 'gone');
      if (left.length === 0) return;
      const deep: [TaskRecord, StackCopy][] = [];
      const late = this.#visit(left, 'its state was taken back', (record) => {
        const walk = record.space.inspector.walkOrCopy(record.tracee);
        if ('bytes' in walk) {
          deep.push([record, walk]);
          tracer.resume(record.tracee);
        } else {
          this.#leave(record, direction, walk);
          tracer.detach(record.tracee);
        }
      });
      for (const [{ tracee }, copy] of deep) space.inspector.learn(tracee, copy, () => tracer.attend());
      // Threads that were created meanwhile have the slots of those that created them.
      roster.pump();
      if (late.length < left.length) continue;
      tries += 1;
      sleepSync(BETWEEN_TRIES_MS);
    }
    // In a vfork, perhaps. What is left to it leads nowhere: see usesSlotLater.
    for (const { tracee } of space.tasks.values()) if (tracee.state !== 'gone') space.slots.release(tracee);
  }

  /** Takes a stopped thread its slot, unless a redirect that a signal has interrupted will use it. */
  leave(record: TaskRecord, direction: Direction): void {
    this.#leave(record, direction, record.space.inspector.walk(record.tracee));
  }

  #leave({ space, tracee }: TaskRecord, direction: Direction, walk: Walked): void {
    const patch = this.#options.patchOf(space);
    const isRead = space.slots.area.kind === 'gsBase';
    leaveTrampoline(tracee, patch, space.slots.area, direction);
    // A stack that can't be proven could hold anything.
    if (isRead && (!walk.reliable || usesSlotLater(walk.distinct, patch))) space.slots.release(tracee);
    else space.slots.giveBack(tracee);
  }

  #visit(
    records: readonly TaskRecord[],
    why: string,
    visit: (record: TaskRecord) => void,
  ): readonly TaskRecord[] {
    const { tracer, holds } = this.#options;
    return visitEach(tracer, records, (record, since) => {
      visit(record);
      holds.end(
        why,
        since,
        () => `thread ${record.tracee.tid} (${record.name}) was`,
        () => why,
      );
    });
  }

  /** In the middle of an earlier patch's redirect, a thread would take the state that it is given now for that patch's. */
  #expectOutOfRedirects(record: TaskRecord): void {
    const { space, tracee } = record;
    const inside = this.#findRedirectAround(record);
    if (inside === undefined) return;
    throw new LivegraftError(
      'thread-in-redirect',
      `process ${space.pid}: a signal has interrupted thread ${tracee.tid} in a redirect of patch ${inside.name}, and its handler has not returned`,
      {
        remedy: 'try again when it has returned (livegraft stack shows where it is)',
        details: { pid: space.pid, tid: tracee.tid, patch: inside.id },
      },
    );
  }

  /** The other patch in whose redirect a signal has interrupted the thread, so that it will still read its state for that. */
  #findRedirectAround({ space, tracee }: TaskRecord): RegisteredPatch | undefined {
    if (space.slots.area.kind !== 'gsBase' || !space.slots.hasSlot(tracee)) return undefined;
    const { patchId, objects } = this.#options;
    const others = space.registry.patches
      .map((patch) =>
        patch.id === patchId ? withoutParts(patch, objects ?? patch.objects.map(({ name }) => name)) : patch,
      )
      .filter((patch) => patch.functions.length > 0);
    if (others.length === 0) return undefined;
    const { frames } = space.inspector.walk(tracee);
    return others.find((patch) => usesSlotLater(frames, patch));
  }
}
