import { LivegraftError } from '../../base/errors.js';
import {
  type CallbackKind,
  type CallbackObject,
  type CallbackStage,
  stageAfter,
} from '../../engine/callbacks.js';
import type { SimulatedMachine, SimulatedPatch } from './machine.js';

/** The callbacks of one patch for one of its objects. The stage is kept in the machine, as a real target keeps it in its memory. */
export class SimulatedCallbacks implements CallbackObject {
  readonly name: string;
  readonly #machine: SimulatedMachine;
  readonly #patch: SimulatedPatch;
  readonly #onStep: () => void;
  readonly #onStage: (stage: CallbackStage) => void;

  /** `onStep`: the tool takes a step, and may die. `onStage`: its callbacks are about to come to a stage. */
  constructor(
    machine: SimulatedMachine,
    patch: SimulatedPatch,
    object: string,
    onStep: () => void,
    onStage: (stage: CallbackStage) => void = () => {},
  ) {
    this.name = object;
    this.#machine = machine;
    this.#patch = patch;
    this.#onStep = onStep;
    this.#onStage = onStage;
  }

  get stage(): CallbackStage {
    return this.#machine.stageOf(this.#patch.id, this.name);
  }

  has(kind: CallbackKind): boolean {
    return this.#patch.callbacks?.[kind] !== undefined;
  }

  run(kind: CallbackKind): LivegraftError | undefined {
    this.#onStep();
    this.#onStage(stageAfter(kind));
    // It runs in the program, which also notes that it has had its turn: nothing comes between, not even the tool's death.
    this.#machine.log(() => `callback ${kind} of ${this.#patch.id} for the ${this.name}`);
    this.#machine.oracle.noteCallback(this.#patch, this.name, kind);
    const result = this.#patch.callbacks?.[kind]?.(this.name) ?? 0;
    if (kind === 'prePatch' && result !== 0) {
      this.#machine.oracle.noteVeto(this.#patch, this.name);
      throw new LivegraftError(
        'callback-veto',
        `the pre-patch callback of ${this.#patch.id} returned ${result}`,
      );
    }
    this.setStage(stageAfter(kind));
    this.#onStep();
    return undefined;
  }

  setStage(stage: CallbackStage): void {
    this.#onStage(stage);
    this.#machine.setStage(this.#patch.id, this.name, stage);
  }
}
