import type { Architecture } from '../arch/architecture.js';
import { InstructionTable } from '../arch/instruction-table.js';
import { BriefScratch } from './brief/brief-scratch.js';
import { StateSpace } from './state-space.js';

/**
 * The large arrays of one validation, kept for the next: over many small files, allocating them anew costs more than the work.
 * What a validation returns is then valid until the next one with the same scratch.
 */
export class Scratch {
  readonly table = new InstructionTable(0);
  readonly brief = new BriefScratch();
  readonly #int32 = new Map<string, Int32Array>();
  readonly #uint32 = new Map<string, Uint32Array>();
  readonly #uint8 = new Map<string, Uint8Array>();
  readonly #states = new Map<string, StateSpace>();

  /** The states that proofs meet, for one architecture and so many bytes below the stack pointer that survive signals. */
  states(architecture: Architecture, redZoneBytes: number): StateSpace {
    const key = `${architecture.name},${redZoneBytes}`;
    let states = this.#states.get(key);
    if (states === undefined) {
      states = new StateSpace(architecture, redZoneBytes);
      this.#states.set(key, states);
    }
    return states;
  }

  int32(use: string, length: number, value: number): Int32Array {
    return this.rawInt32(use, length).fill(value);
  }

  /** As the last user left it. */
  rawInt32(use: string, length: number): Int32Array {
    let array = this.#int32.get(use);
    if (array === undefined || array.length < length) {
      array = new Int32Array(roomFor(length));
      this.#int32.set(use, array);
    }
    return array.subarray(0, length);
  }

  uint32(use: string, length: number): Uint32Array {
    let array = this.#uint32.get(use);
    if (array === undefined || array.length < length) {
      array = new Uint32Array(roomFor(length));
      this.#uint32.set(use, array);
    }
    return array.subarray(0, length).fill(0);
  }

  uint8(use: string, length: number): Uint8Array {
    let array = this.#uint8.get(use);
    if (array === undefined || array.length < length) {
      array = new Uint8Array(roomFor(length));
      this.#uint8.set(use, array);
    }
    return array.subarray(0, length).fill(0);
  }
}

function roomFor(length: number): number {
  return Math.max(1024, length + (length >> 2));
}
