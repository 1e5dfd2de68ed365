import type { InstructionDecoder } from '../arch/architecture.js';
import { IntervalMap } from '../base/interval-map.js';
import type { CodeModule } from './code-module.js';
import type { UnwindRow } from './unwind-row.js';

/** Instructions that were moved away from their place: the stack is as it would be at the original. */
export interface DisplacedRange {
  readonly start: number;
  readonly end: number;
  /** (address of the copy, address of the original), ascending by copy. */
  readonly map: readonly { readonly copy: number; readonly original: number }[];
}

/** Everything that the walk needs to know of one program counter; computed once, then looked up. */
export type FrameInfo =
  | {
      readonly known: true;
      readonly row: UnwindRow;
      readonly module: CodeModule;
      /** The address in the original code; differs from the program counter in displaced code. */
      readonly original: number;
      readonly isDisplaced: boolean;
    }
  | { readonly known: false; readonly code: UnknownFrame; readonly detail: string };

export type UnknownFrame = 'unknown-code' | 'no-unwind-row' | 'row-disproved' | 'not-a-return-address';

export interface ModuleMapOptions {
  readonly modules: readonly CodeModule[];
  readonly displaced?: readonly DisplacedRange[];
  readonly decoder: InstructionDecoder;
  /** For a kernel: a return address that no call has pushed, in code where a stack begins. */
  readonly isStackBottom?: (address: number) => boolean;
  /** Whether a validator has shown that the table is wrong about this address. */
  readonly isDisproved?: (address: number) => boolean;
}

/** The longest call instruction with its prefixes. */
const CALL_BYTES = 9;

/** All code of a target by address, with its unwind rows. Immutable: a target that maps code gets a new one. */
export class ModuleMap {
  readonly #modules: IntervalMap<CodeModule>;
  readonly #displaced: IntervalMap<DisplacedRange>;
  readonly #options: ModuleMapOptions;
  readonly #interrupted = new Map<number, FrameInfo>();
  readonly #returnedTo = new Map<number, FrameInfo>();

  constructor(options: ModuleMapOptions) {
    this.#options = options;
    this.#modules = new IntervalMap(options.modules.map((m) => ({ start: m.start, end: m.end, value: m })));
    this.#displaced = new IntervalMap(
      (options.displaced ?? []).map((d) => ({ start: d.start, end: d.end, value: d })),
    );
  }

  findModule(address: number): CodeModule | undefined {
    return this.#modules.find(address);
  }

  /** `interrupted`: the program counter is the next instruction to run; else it is a return address. */
  frameInfo(pc: number, interrupted: boolean): FrameInfo {
    const cache = interrupted ? this.#interrupted : this.#returnedTo;
    let info = cache.get(pc);
    if (info === undefined) {
      info = this.#look(pc, interrupted);
      // A refusal is asked for again: the code may not have been read yet.
      if (info.known) cache.set(pc, info);
    }
    return info;
  }

  /** A call lies before it, or it is where the kernel has a signal handler return to: its table marks it so. */
  #mayBeReturnedTo(pc: number): boolean {
    const home = this.#modules.find(pc);
    if (home === undefined) return true;
    const code = home.codeBefore(pc, CALL_BYTES);
    if (this.#options.decoder.isPrecededByCall(code, code.length)) return true;
    if (this.#options.isStackBottom !== undefined) return this.#options.isStackBottom(pc);
    return home.findRow(lookupAddress(pc, false), false)?.isSignalFrame === true;
  }

  #look(pc: number, interrupted: boolean): FrameInfo {
    if (!interrupted && !this.#mayBeReturnedTo(pc)) {
      const name = this.#modules.find(pc)?.name ?? '?';
      return { known: false, code: 'not-a-return-address', detail: `no call before it in ${name}` };
    }
    const range = this.#displaced.find(lookupAddress(pc, interrupted));
    const original = range === undefined ? pc : originalOf(range, pc, interrupted);
    const module = this.#modules.find(original);
    const lookup = lookupAddress(original, interrupted);
    if (module === undefined || !module.isText(lookup)) {
      return { known: false, code: 'unknown-code', detail: 'it is in no code that livegraft knows' };
    }
    const row = module.findRow(lookup, interrupted);
    if (row === undefined) {
      return {
        known: false,
        code: 'no-unwind-row',
        detail: `the tables of ${module.name} say nothing about it`,
      };
    }
    if (this.#options.isDisproved?.(lookup) === true) {
      return {
        known: false,
        code: 'row-disproved',
        detail: `the tables of ${module.name} were shown to be wrong about it`,
      };
    }
    return { known: true, row, module, original, isDisplaced: range !== undefined };
  }
}

/**
 * A return address may be the first byte of the next function, behind a call that never returns: the call itself is
 * one byte before it. The one place that knows.
 */
export function lookupAddress(pc: number, interrupted: boolean): number {
  return interrupted ? pc : pc - 1;
}

/** Inside one instruction the table does not change, so the original instruction's start stands for all of it. */
function originalOf(range: DisplacedRange, pc: number, interrupted: boolean): number {
  const lookup = lookupAddress(pc, interrupted);
  let original = range.map[0]?.original ?? pc;
  for (const pair of range.map) if (pair.copy <= lookup) original = pair.original;
  return interrupted ? original : original + 1;
}
