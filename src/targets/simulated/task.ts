/** A task of the simulated program, and the frames on its stack. */

/** What a frame's instruction pointer lies in. `entry`: behind the reading of the task's state, before the jump. */
export type FramePart = 'body' | 'cold' | 'entry' | 'exception';

/** Frames that are alike are one object. */
export interface SimulatedFrame {
  readonly name: string;
  readonly part: FramePart;
  /** The patch of the version that was entered, undefined for the original. */
  readonly version: string | undefined;
}

/**
 * Where a tool reads a running task's state. It is what redirects go by only as long as one task has the slot: those that
 * nobody watched being created are in their creator's.
 */
export interface SimulatedSlot {
  isPatched: boolean;
  /** In a table that threads find themselves in by their thread pointer: this is what redirects go by, and nothing else is. */
  readonly isState?: boolean;
}

export interface SimulatedTask {
  readonly id: number;
  readonly process: number;
  /** Outermost first. */
  readonly stack: SimulatedFrame[];
  /** Its own, as a register is: whoever it creates begins with it. */
  isPatched: boolean;
  slot: SimulatedSlot;
  /** Instants for which it sleeps where it is. */
  sleepsFor: number;
  /** It does not stop while it sleeps. */
  isUninterruptible: boolean;
  /** A tool has stopped it and not let it go. */
  isHeld: boolean;
  /** Waits for this vforked child, which has its memory. */
  vforkChild: SimulatedTask | undefined;
  /** Its parent waits for its end, or for its exec. It returns from nothing that it has not called. */
  readonly isVforked: boolean;
  /** How much of its stack that is. */
  readonly base: number;
  /** Of the oracle: the state that the rules have given it. */
  ruled: boolean;
  /** Of the oracle: the versions that it has met since it was last switched. */
  side: 'none' | 'old' | 'new';
}

const FRAMES: Readonly<Record<FramePart, Map<string, Map<string | undefined, SimulatedFrame>>>> = {
  body: new Map(),
  cold: new Map(),
  entry: new Map(),
  exception: new Map(),
};

/** What the task's redirects go by. */
export function stateOf(task: SimulatedTask): boolean {
  return task.slot.isState === true ? task.slot.isPatched : task.isPatched;
}

export function frameOf(name: string, part: FramePart, version: string | undefined): SimulatedFrame {
  const ofPart = FRAMES[part];
  let ofName = ofPart.get(name);
  if (ofName === undefined) {
    ofName = new Map();
    ofPart.set(name, ofName);
  }
  let frame = ofName.get(version);
  if (frame === undefined) {
    frame = { name, part, version };
    ofName.set(version, frame);
  }
  return frame;
}
