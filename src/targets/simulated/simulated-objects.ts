import { LivegraftError } from '../../base/errors.js';
import { passMomentAtOnce } from '../../engine/callbacks.js';
import { type EntryState, LEAVING_MOMENTS, planArrival, settlePart } from '../../engine/objects.js';
import type { SimulatedMachine, SimulatedPart, SimulatedPatch } from './machine.js';
import { LIBRARY, objectOf } from './objects.js';
import { SimulatedCallbacks } from './simulated-callbacks.js';

/** What a function's entry in the library leads to with a patch, and without. */
export interface Sides {
  readonly old: string | undefined;
  readonly new: string | undefined;
}

/**
 * What a tool does about a library that comes and goes in a {@link SimulatedMachine}; the order of steps is the one of the process
 * target. Which patches it gets, and what becomes of a half-done arrival, says the engine.
 */
export class SimulatedObjects {
  readonly #machine: SimulatedMachine;
  /** Callbacks run as the library comes; else it waits for a transition of its own, as a process's does. */
  readonly #runsCallbacks: boolean;
  readonly #step: () => void;
  /** Libraries that a patch came to, that one was refused for, and that went with one. */
  arrived = 0;
  refused = 0;
  left = 0;

  /** `onStep`: the tool takes a step; the program goes on, and the tool may die. */
  constructor(machine: SimulatedMachine, runsCallbacks: boolean, onStep: () => void) {
    this.#machine = machine;
    this.#runsCallbacks = runsCallbacks;
    this.#step = onStep;
  }

  /** Before anything else: parts of what has gone are dropped, and half-done arrivals taken back or completed. */
  settle(): void {
    const machine = this.#machine;
    for (const [id, part] of [...machine.parts]) {
      const patch = machine.patches.find((one) => one.id === id);
      if (patch === undefined) machine.parts.delete(id);
      else if (machine.partOf(id) === undefined) this.#dropLeft(patch);
      else this.#settle(patch, part);
    }
  }

  /** Whether the library that is about to run has been looked at: then it goes on. */
  attend(): void {
    this.settle();
    const machine = this.#machine;
    if (machine.library === 'going') this.#leave();
    if (machine.library !== 'coming') return;
    for (const { patch, entries } of planArrival(machine.pending, LIBRARY, transitionOf(machine))) {
      try {
        this.#bring(patch, entries);
        this.arrived += 1;
      } catch (error) {
        if (!(error instanceof LivegraftError) || error.code === 'target-gone') throw error;
        this.refused += 1;
        this.settle();
        break;
      }
    }
    machine.answer();
  }

  /** What callbacks of the library did is undone while it is there. */
  #leave(): void {
    const machine = this.#machine;
    for (const patch of machine.patches) {
      if (machine.partOf(patch.id) === undefined) continue;
      const callbacks = new SimulatedCallbacks(machine, patch, LIBRARY, this.#step);
      for (const moment of LEAVING_MOMENTS) passMomentAtOnce([callbacks], moment, () => {});
      machine.oracle.expectUndone(patch, LIBRARY);
      this.left += 1;
    }
    machine.answer();
    this.settle();
  }

  /** Of a patch that is to be enabled, or to be brought to a library that came unattended. */
  prepare(patch: SimulatedPatch): void {
    if (this.#machine.library === 'gone') return;
    const { patches } = this.#machine;
    const concerned = patch.replaces ? [...patches, patch] : [patch];
    if (concerned.some(changesLibrary)) this.#machine.parts.set(patch.id, this.#newPart());
  }

  /** Of a patch that was refused, or left before it was registered. */
  giveUp(patch: SimulatedPatch, objects: readonly string[]): void {
    const machine = this.#machine;
    for (const object of objects) {
      const isThere = object !== LIBRARY || machine.partOf(patch.id) !== undefined;
      if (isThere)
        passMomentAtOnce([new SimulatedCallbacks(machine, patch, object, () => {})], 'disabled', () => {});
      if (object === LIBRARY) this.#dropLeft(patch);
    }
  }

  #bring(patch: SimulatedPatch, entries: EntryState): void {
    const machine = this.#machine;
    const callbacks = this.#callbacksOf(patch);
    if (patch.callbacks !== undefined && !this.#runsCallbacks)
      throw new LivegraftError('callbacks-wait', `${patch.id} has callbacks for the library`);
    const part = this.#newPart();
    machine.parts.set(patch.id, part);
    this.#step();
    if (entries === 'below') return;
    try {
      passMomentAtOnce([callbacks], 'enable', () => {});
    } catch (error) {
      if (error instanceof LivegraftError && error.code === 'callback-veto') machine.parts.delete(patch.id);
      throw error;
    }
    this.#step();
    const functions = changesOf(machine, patch, (object) => object === LIBRARY);
    this.#expectComing(patch);
    for (const [name, { old, new: to }] of functions) {
      machine.entries.set(name, { kind: 'gated', gate: part, patched: to, unpatched: old });
      this.#step();
      this.#expectComing(patch);
    }
    part.gate = entries === 'direct' ? 'open' : 'choosing';
    machine.log(() => `livegraft: the library comes with ${patch.id} (${entries})`);
    machine.oracle.noteArrived(patch);
    this.#step();
    for (const [name, { old, new: to }] of functions) {
      if (machine.partOf(patch.id) !== part) return;
      if (entries === 'direct') machine.entries.set(name, { kind: 'fixed', version: to });
      else machine.entries.set(name, { kind: 'choosing', patched: to, unpatched: old });
      this.#step();
    }
    if (entries === 'direct') this.#complete(patch, part);
  }

  /** Where whoever loads it has ended, nobody waits: what runs by now is not to be changed in the middle. */
  #expectComing(patch: SimulatedPatch): void {
    if (this.#machine.library !== 'coming')
      throw new LivegraftError('arrival-lost', `the library runs without ${patch.id}`);
  }

  #settle(patch: SimulatedPatch, part: SimulatedPart): void {
    const machine = this.#machine;
    const found = {
      patch: patch.id,
      object: LIBRARY,
      isInstalled: part.state === 'installed',
      isShut: this.#isShut(patch, part),
    };
    switch (settlePart(found, transitionOf(machine))) {
      case 'keep':
        return;
      case 'complete':
        this.#complete(patch, part);
        return;
      case 'takeBack':
        machine.log(() => `livegraft: takes back what ${patch.id} has for the library`);
        for (const [name, { old }] of changesOf(machine, patch, (object) => object === LIBRARY))
          machine.entries.set(name, { kind: 'fixed', version: old });
        passMomentAtOnce([this.#callbacksOf(patch)], 'disabled', () => {});
        machine.parts.delete(patch.id);
    }
  }

  /** No entry leads into it. */
  #isShut(patch: SimulatedPatch, part: SimulatedPart): boolean {
    const { entries } = this.#machine;
    return patch.functions.every(({ name }) => {
      const entry = objectOf(name) === LIBRARY ? entries.get(name) : undefined;
      if (entry === undefined) return true;
      if (entry.kind === 'gated') return entry.gate !== part || part.gate === 'shut';
      return entry.kind === 'fixed' ? entry.version !== patch.id : entry.patched !== patch.id;
    });
  }

  #complete(patch: SimulatedPatch, part: SimulatedPart): void {
    const { entries } = this.#machine;
    passMomentAtOnce([this.#callbacksOf(patch)], 'enabled', () => {});
    for (const [name, entry] of entries)
      if (entry.kind === 'gated' && entry.gate === part)
        entries.set(name, { kind: 'fixed', version: entry.patched });
    part.state = 'installed';
  }

  #dropLeft(patch: SimulatedPatch): void {
    const machine = this.#machine;
    machine.parts.delete(patch.id);
    machine.setStage(patch.id, LIBRARY, 'none');
    machine.oracle.noteLeft(patch);
  }

  #newPart(): SimulatedPart {
    return { load: this.#machine.loads, state: 'loaded', gate: 'shut' };
  }

  #callbacksOf(patch: SimulatedPatch): SimulatedCallbacks {
    return new SimulatedCallbacks(this.#machine, patch, LIBRARY, () => {});
  }
}

export function changesLibrary(patch: SimulatedPatch): boolean {
  return patch.functions.some(({ name }) => objectOf(name) === LIBRARY);
}

/** What a patch changes in some of the objects that are there: if it replaces the older ones, also what only those changed. */
export function changesOf(
  { patches, versions }: SimulatedMachine,
  patch: SimulatedPatch,
  isWanted: (object: string) => boolean,
): ReadonlyMap<string, Sides> {
  const names = new Set(patch.functions.map((fn) => fn.name));
  if (patch.replaces) for (const older of patches) for (const fn of older.functions) names.add(fn.name);
  const changed = new Map<string, Sides>();
  for (const name of names) {
    if (!isWanted(objectOf(name))) continue;
    const isOwn = patch.functions.some((fn) => fn.name === name);
    changed.set(name, { old: versions.below(patch.id, name)?.patch, new: isOwn ? patch.id : undefined });
  }
  return changed;
}

function transitionOf({ change, patches }: SimulatedMachine) {
  if (change === undefined) return undefined;
  const { patch, ...rest } = change;
  const { replaces = false } = patches.find(({ id }) => id === patch) ?? {};
  return { patchId: patch, ...rest, replaces: replaces && patches.length > 1 };
}
