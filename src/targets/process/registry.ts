import type { CallbackKind } from '../../engine/callbacks.js';
import type { StragglerReason } from '../../engine/target.js';
import type { PatchObject } from '../../patch/manifest.js';
import type { RegisteredState } from '../patch-states.js';

/**
 * What livegraft knows about its work in a process, kept in that process. Plain JSON: addresses are numbers (user
 * addresses are exact), bytes are hexadecimal text. A later livegraft needs nothing else but the pid.
 */
export interface Registry {
  readonly slots: SlotArea;
  /** Oldest first. */
  readonly patches: readonly RegisteredPatch[];
  readonly transition: RegisteredTransition | undefined;
  /** Where tasks tell that they have loaded or unloaded something, while there is one: see doorbell.ts. */
  readonly doorbell?: RegisteredDoorbell | undefined;
  /** Memory of removed patches that could not be unmapped since something still points into it. */
  readonly retired: readonly RetiredImage[];
}

export interface RegisteredDoorbell {
  /** The dynamic linker's function for debuggers. */
  readonly name: string;
  readonly old: MemoryRange;
  /** `direct` is the jump to the doorbell. */
  readonly redirect: Redirect;
  readonly image: MemoryRange;
  /** Of its fields. */
  readonly data: number;
}

/** Memory of a removed patch. */
export interface RetiredImage extends MemoryRange {
  /** A thread may still be inside. */
  readonly inUse: boolean;
  /** Its patch was forced: it stays for good, as the kernel never unloads a forced patch (klp_force_transition). */
  readonly forced?: boolean;
  readonly textBytes: number;
  /** Its functions: what a pointer can mean. */
  readonly entries: readonly number[];
  /** Its redirects: a thread may still be in instructions that they displaced. */
  readonly displaced: readonly { readonly old: MemoryRange; readonly trampoline: Trampoline }[];
}

export interface MemoryRange {
  readonly address: number;
  readonly sizeBytes: number;
}

/** Where the state of each task lies: see `src/arch/architecture.ts`, StateSlotLocation. */
export interface SlotArea extends MemoryRange {
  readonly kind: 'gsBase' | 'threadPointerTable';
}

export interface RegisteredPatch {
  readonly id: string;
  readonly name: string;
  /** ISO 8601. */
  readonly appliedAt: string;
  readonly state: 'applying' | 'applied' | 'reverting';
  readonly forced: boolean;
  /** What it is for: executables and libraries, loaded or not. */
  readonly objects: readonly RegisteredObject[];
  /** Of the objects that are there. */
  readonly functions: readonly RegisteredFunction[];
  readonly barrier?: RegisteredBarrier;
  /** The name of the barrier that was asked for, for an object that has yet to come. */
  readonly barrierName?: string;
  /** Where the patch file was, for objects that come later. */
  readonly path: string;
  /** Cumulative: all older patches go with the transition that brings this one. Absent once they have gone. */
  readonly replaces?: boolean;
}

/** An executable or library that a patch changes (klp_object). */
export interface RegisteredObject {
  readonly name: string;
  readonly identity: PatchObject['identity'];
  /** Names of what the patch changes in it: all that is known of them while it is not loaded. */
  readonly functions: readonly string[];
  /** The patch's part for it, where that is in memory: else the object is pending. */
  readonly part?: RegisteredPart;
}

/** What of a patch is for one object, in memory near it. It goes when the object goes. */
export interface RegisteredPart {
  /** `loaded`: its entries have not been changed; what a killed run leaves so is loaded afresh. */
  readonly state: 'loaded' | 'installed';
  /** Where the object lies; `file` is the device and inode of what is mapped there. The program itself never leaves. */
  readonly module: MemoryRange & { readonly file: string; readonly mayLeave: boolean };
  readonly image: MemoryRange;
  /** New functions and stubs. */
  readonly code: MemoryRange;
  /** Code, stubs and trampolines: everything executable. */
  readonly text: MemoryRange;
  readonly ehFrame: MemoryRange | undefined;
  /** The byte that its gates read: `GATE` of `src/arch/architecture.ts`. */
  readonly gate?: number;
  readonly symbols: readonly {
    readonly name: string;
    readonly address: number;
    readonly sizeBytes: number;
  }[];
  readonly callbacks?: RegisteredCallbacks;
  /** What it says of the state of the program; `address` is that of the variable that describes it. */
  readonly states?: readonly RegisteredState[];
}

/**
 * A function that no thread calls while it is in one of the patch's functions. While a transition runs its entry leads
 * to code in which the thread sets its own state: `redirect.choosing`, whose trampoline holds the store and the
 * displaced instructions.
 */
export interface RegisteredBarrier {
  readonly object: string;
  readonly name: string;
  readonly old: MemoryRange;
  readonly redirect: Redirect;
  /** Address of the byte that says which state a thread sets. */
  readonly valueAt: number;
  /** Where a thread that is about to use its GS slot can be moved to: see StateStore. */
  readonly slotUses: readonly { readonly at: number; readonly resumeAt: number }[];
}

/** Where a borrowed thread is led into to call each callback, and the record that it keeps. */
export interface RegisteredCallbacks {
  readonly object: string;
  readonly record: number;
  readonly calls: readonly {
    readonly kind: CallbackKind;
    readonly at: number;
    readonly returningAt: number;
  }[];
}

export interface RegisteredFunction {
  readonly object: string;
  readonly name: string;
  /** The original function, in the target's addresses. */
  readonly old: MemoryRange;
  /** Parts that were split from it (`f.cold`). */
  readonly oldParts: readonly MemoryRange[];
  readonly new: MemoryRange;
  readonly newParts: readonly MemoryRange[];
  readonly redirect: Redirect;
  /**
   * Of a patch that replaces older ones, a function that only those changed: its new version is the original, run from the
   * copy of its first instructions while the transition runs; `redirect.direct` is the original entry.
   */
  readonly restores?: boolean;
  /** Of a patch that replaces older ones: what takes the place of `redirect` once they have gone. */
  readonly afterReplace?: Redirect;
}

export interface Redirect {
  /** The overwritten bytes at the entry. */
  readonly site: MemoryRange;
  /** What the entry holds without this patch: the original bytes, or the jump of the patch below. */
  readonly below: string;
  /** Jump to the trampoline, while a transition runs. */
  readonly choosing: string;
  /** Jump straight to the new function. */
  readonly direct: string;
  /** Jump to the gate, through which an object that comes is led until all of its entries are written. */
  readonly gated?: string;
  /** Five bytes of padding that hold the long jump when `site` has only room for a short one. */
  readonly hop: Hop | undefined;
  readonly trampoline: Trampoline;
}

/** The short jump at the site never changes once it is there; the long one in the padding does. */
export interface Hop {
  readonly site: MemoryRange;
  readonly below: string;
  readonly choosing: string;
  readonly direct: string;
  readonly gated?: string;
}

export interface Trampoline extends MemoryRange {
  /** Where its gate begins, right before it. */
  readonly gateAt?: number;
  /** Offset after which the state byte has been read. */
  readonly stateReadAt: number;
  /** Where the version below starts: displaced instructions in the trampoline, or an earlier patch's function. */
  readonly belowEntry: number;
  /** Displaced instructions: (address of the copy, address of the original), ascending. */
  readonly displaced: readonly { readonly copy: number; readonly original: number }[];
}

/** A task that a run could not switch, as it last saw it. */
export interface RegisteredStraggler {
  /** The kernel's ids are unique among the living: `beganTicks` tells a later thread of the same id apart. */
  readonly tid: number;
  /** When the thread began, in clock ticks since boot (`/proc/PID/task/TID/stat`). */
  readonly beganTicks: number;
  readonly name: string;
  /** How often its stack was looked at and refused, over all runs of the transition. */
  readonly attempts: number;
  /** ISO 8601: the first refusal and the last. */
  readonly since: string;
  readonly lastAt: string;
  /** The reason of the last refusal, with its innermost frames. */
  readonly reason: StragglerReason;
}

export interface RegisteredTransition {
  readonly patchId: string;
  /** Only these objects of the patch take part: they came after the others were patched. Absent: all. */
  readonly objects?: readonly string[];
  readonly direction: 'patch' | 'unpatch';
  readonly model: string;
  /** `installing`: some entries may choose already. `running`: all do. `finishing`: every task has switched. */
  readonly phase: 'installing' | 'running' | 'finishing';
  /** ISO 8601: when it was begun, or last turned around. Absent from what older versions wrote. */
  readonly startedAt?: string;
  /** Written once a second by the run that works on it, and when that run leaves it. */
  readonly stragglers?: readonly RegisteredStraggler[];
}
