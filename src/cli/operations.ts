import type { TransitionEvent, TransitionResult } from '../engine/events.js';
import type { ConsistencyModel, StragglerReason } from '../engine/target.js';
import type { TransitionControl } from '../engine/transition.js';
import type { ObjectState } from '../targets/process/patch-register.js';
import type { SoakOptions, SoakReport } from '../targets/soak.js';
import type { StragglerReport } from '../targets/straggler-report.js';

/** The operations that commands call; `src/cli/process-operations.ts` joins the parts that carry them out. */
export interface ProcessOperations {
  /** Applies a patch file, or continues a half-done apply of the same patch. */
  apply(options: ApplyOptions): Promise<ApplyOutcome>;
  /** Removes a patch (the newest one when `patch` is undefined), or turns a half-done apply around. */
  revert(options: RevertOptions): Promise<ApplyOutcome>;
  /** Switches what is left of a half-done transition without a look at its stacks. Recorded for good. */
  force(options: ForceOptions): Promise<ApplyOutcome>;
  /** With `explain`, each straggler of a transition is looked at. */
  status(pid: number, explain: boolean): Promise<ProcessStatus>;
  /** Processes of this machine that carry a livegraft registry and can be read by this user. */
  findPatchedProcesses(): Promise<readonly number[]>;
  /** Patches objects as a process loads them, until `signal` is aborted or the process ends. */
  watch(options: WatchOptions): Promise<void>;
  stacks(pid: number): Promise<readonly TaskStack[]>;
  /** Walks stacks for a while; the seed chooses the random instants. That the process ends meanwhile is no error. */
  soak(pid: number, options: SoakOptions & { readonly seed: number }): Promise<SoakReport>;
}

export interface ApplyOptions {
  readonly pid: number;
  readonly patchPath: string;
  /** Name of a function that no thread calls while it is in a function of the patch: there threads switch themselves. */
  readonly barrier: string | undefined;
  /** All older patches go in the same transition. */
  readonly replace: boolean;
  /** Apply although none of the patch's objects is loaded: it waits for them. */
  readonly late?: boolean;
  readonly model: ConsistencyModel;
  readonly timeoutMs: number;
  /** Go on although suspended user-level contexts may hold old code. */
  readonly allowSuspendedContexts: boolean;
  /** Aborting it stops the transition where it is (safe, incomplete). */
  readonly signal: AbortSignal;
  /** For who wants to turn it around, or force it, while it runs. */
  readonly control?: TransitionControl;
  readonly onEvent: (event: OperationEvent) => void;
}

export interface RevertOptions {
  readonly pid: number;
  /** Name or id of the patch; undefined for the newest. */
  readonly patch: string | undefined;
  readonly model: ConsistencyModel;
  readonly timeoutMs: number;
  readonly allowSuspendedContexts: boolean;
  readonly signal: AbortSignal;
  /** For who wants to turn it around, or force it, while it runs. */
  readonly control?: TransitionControl;
  readonly onEvent: (event: OperationEvent) => void;
}

export interface ForceOptions {
  readonly pid: number;
  /** The caller knows that threads may then run a mix of versions. */
  readonly acceptInconsistency: boolean;
  readonly timeoutMs: number;
  readonly signal: AbortSignal;
  readonly onEvent: (event: OperationEvent) => void;
}

export interface WatchOptions {
  readonly pid: number;
  readonly signal: AbortSignal;
  readonly onEvent: (event: OperationEvent) => void;
}

/** What an apply or revert tells while it works: its own steps, and the engine's events. */
export type OperationEvent =
  | {
      readonly kind: 'step';
      readonly step: 'check' | 'prepare' | 'install' | 'transition' | 'finish' | 'cleanup' | 'watch';
      readonly detail: string;
      readonly atMs: number;
    }
  /** An object of a patch has come, or gone. */
  | {
      readonly kind: 'object';
      readonly change: 'patched' | 'left' | 'refused';
      readonly patch: string;
      readonly object: string;
      /** Why it was refused. */
      readonly detail: string | undefined;
      readonly atMs: number;
    }
  | { readonly kind: 'notice'; readonly text: string; readonly atMs: number }
  | TransitionEvent;

export interface ApplyOutcome {
  readonly patch: { readonly id: string; readonly name: string };
  readonly result: TransitionResult;
}

export interface ProcessStatus {
  readonly pid: number;
  readonly executable: string;
  readonly patches: readonly PatchStatus[];
  /** A transition that runs or was left half-done. */
  readonly transition: TransitionStatus | undefined;
}

export interface PatchStatus {
  readonly id: string;
  readonly name: string;
  readonly state: 'applying' | 'applied' | 'reverting';
  readonly forced: boolean;
  readonly appliedAt: string;
  /** Where its file was. */
  readonly path: string;
  readonly objects: readonly {
    readonly name: string;
    readonly state: ObjectState;
    readonly functions: readonly string[];
  }[];
  readonly functions: readonly {
    readonly object: string;
    readonly name: string;
    readonly oldAddress: string;
    readonly newAddress: string;
  }[];
}

export interface TransitionStatus {
  readonly patchId: string;
  readonly direction: 'patch' | 'unpatch';
  readonly model: string;
  /** ISO 8601. */
  readonly startedAt: string | undefined;
  /** Another process holds the threads, probably a livegraft at work: their states can't be read now. */
  readonly isHeld: boolean;
  /** Undefined unless asked for. */
  readonly stragglers: readonly StragglerReport[] | undefined;
  readonly tasks: readonly {
    readonly tid: number;
    readonly name: string;
    readonly state: 'unpatched' | 'patched';
  }[];
}

export interface TaskStack {
  readonly tid: number;
  readonly name: string;
  readonly reliable: boolean;
  /** Reason code and text when unreliable or when the task could not be stopped. */
  readonly reason: { readonly code: string; readonly detail: string } | undefined;
  readonly frames: readonly {
    readonly index: number;
    readonly address: string;
    readonly stackPointer: string;
    readonly symbol: string | undefined;
    readonly module: string | undefined;
    /** How the frame was found. */
    readonly by: string;
  }[];
}

export type { StragglerReason };
