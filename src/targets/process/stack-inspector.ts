import type { Architecture } from '../../arch/architecture.js';
import type { ReportedFrame, StragglerReason } from '../../engine/target.js';
import { type CodeModule, createElfModule, createMemoryModule } from '../../unwind/code-module.js';
import { type DisplacedRange, ModuleMap } from '../../unwind/module-map.js';
import {
  type Frame,
  findFrameIn,
  type StackLimits,
  type WalkInput,
  type WalkResult,
  walkReliable,
} from '../../unwind/walk-reliable.js';
import type { Proof } from '../../validate/proof.js';
import { ProofStore } from '../proof-store.js';
import { DeepStack, isTooDeep, type StackCopy, type Walked } from './deep-stack.js';
import type { ProcessMemory } from './memory.js';
import { type LoadedModule, listModules } from './modules.js';
import { partsOf } from './patch-objects.js';
import { type Mapping, readMappings } from './proc.js';
import { RED_ZONE_BYTES, RSP, readRegister, toDwarfRegisters } from './registers.js';
import type { MemoryRange, RegisteredPart, Registry, RetiredImage, Trampoline } from './registry.js';
import { Symbolizer } from './symbolizer.js';
import type { Tracee } from './tracer.js';
import { redirectsOf } from './trampolines.js';

type ReadMemory = (address: number, into: Uint8Array) => number;

/** Code of livegraft in the process. */
export type KnownCode = Pick<Registry, 'patches' | 'doorbell'>;

/** Walks the stacks of one process's stopped threads and says what they hold. */
export class StackInspector {
  readonly #arch: Architecture;
  readonly #memory: ProcessMemory;
  readonly #known: () => KnownCode;
  readonly #retired: readonly RetiredImage[];
  readonly #registers: Float64Array = new Float64Array(17);
  readonly #proofStore = new ProofStore();
  readonly #proofs = new Map<LoadedModule, Proof | undefined>();
  /** One function for walks and for their rehearsals: another would make the code that the rehearsal warmed useless. */
  readonly #readMemory: ReadMemory = (address, into) => {
    const count = this.#memory.read(address, into);
    return this.#copy === undefined ? count : readCopy(this.#copy, address, into);
  };
  readonly #findLimits = (address: number): StackLimits | undefined => this.#stackLimits(address);
  /** Of deep stacks, what was found below; it holds for the code that was known then. */
  readonly #learned = new WeakMap<Tracee, { readonly walk: DeepStack; readonly map: ModuleMap }>();
  readonly #copies = new WeakMap<Tracee, number>();
  /** By the last check. */
  framesWalked = 0;
  /** What is walked now in place of the thread's memory. */
  #copy: StackCopy | undefined;
  #mappings: readonly Mapping[];
  #modules: readonly LoadedModule[];
  #map: ModuleMap;
  #symbolizer: Symbolizer;

  /** `known`: what livegraft has put into the process, as the registry says it now. */
  constructor(
    arch: Architecture,
    memory: ProcessMemory,
    mappings: readonly Mapping[],
    modules: readonly LoadedModule[],
    known: () => KnownCode,
    retired: readonly RetiredImage[] = [],
  ) {
    this.#retired = retired;
    this.#arch = arch;
    this.#memory = memory;
    this.#known = known;
    this.#mappings = mappings;
    this.#modules = modules;
    this.#symbolizer = new Symbolizer(modules, known().patches);
    this.#map = this.#buildMap();
  }

  /** For a forked child: the same code at the same places, in memory of its own. */
  forProcess(memory: ProcessMemory): StackInspector {
    return new StackInspector(this.#arch, memory, this.#mappings, this.#modules, this.#known, this.#retired);
  }

  /** Takes in what has been mapped since: libraries, new stacks, our own patch memory. */
  refresh(): void {
    this.#mappings = readMappings(this.#memory.pid) ?? [];
    const known = new Map(this.#modules.map((m) => [`${m.path} ${m.start} ${m.end}`, m]));
    this.#modules = listModules(this.#memory, this.#mappings).map(
      (m) => known.get(`${m.path} ${m.start} ${m.end}`) ?? m,
    );
    this.#symbolizer = new Symbolizer(this.#modules, this.#known().patches);
    this.#map = this.#buildMap();
  }

  /**
   * Reads unwind tables of what is mapped, so that no thread is held for that: those of the vDSO and the program first,
   * others as far as the time goes. What is not read now is read when a frame needs it. `attend` is called between.
   */
  prepare(attend: () => void): void {
    const until = performance.now() + PREPARE_MS;
    const first = this.#modules.filter((module) => module.name === '[vdso]');
    for (const module of new Set([...first, ...this.#modules])) {
      const code = module.mappings.find((mapping) => mapping.executable);
      if (code !== undefined) this.#map.frameInfo(code.start, true);
      attend();
      if (performance.now() > until) return;
    }
  }

  /** The walk of a stopped thread whose registers have been fetched. */
  walk(tracee: Tracee): Walked {
    return this.#walkUpTo(tracee, undefined);
  }

  /**
   * The same, but where it would take long the thread need not be held for all of it: then the answer is a copy of its stack, to be
   * given to {@link learn} when the thread runs again. What was learned makes the next walk short.
   */
  walkOrCopy(tracee: Tracee): Walked | StackCopy {
    const copies = this.#copies.get(tracee) ?? 0;
    if (copies >= MOST_COPIES) return this.walk(tracee);
    const result = this.#walkUpTo(tracee, DEEP_FRAMES);
    if (!isTooDeep(result)) return result;
    const limits = this.#stackLimits(readRegister(tracee.registers, RSP));
    const sizeBytes = limits === undefined ? 0 : limits.high - readRegister(tracee.registers, RSP);
    if (sizeBytes <= 0 || sizeBytes > MOST_COPIED_BYTES) return this.walk(tracee);
    this.#copies.set(tracee, copies + 1);
    return this.#copyStack(tracee, 0, Buffer.allocUnsafeSlow(sizeBytes));
  }

  /** Walks a copy of a thread's stack. `attend` is called now and then. */
  learn(tracee: Tracee, copy: StackCopy, attend: () => void): void {
    const map = this.#map;
    const walk = DeepStack.of(
      copy,
      ({ registers }, restAt) =>
        walkReliable({
          registers: toDwarfRegisters(registers, new Float64Array(17)),
          readMemory: (address, into) => readCopy(copy, address, into),
          stackLimits: this.#findLimits,
          modules: map,
          restAt,
        }),
      attend,
    );
    if (walk !== undefined && map === this.#map) this.#learned.set(tracee, { walk, map });
  }

  #walkUpTo(tracee: Tracee, maxFrames: number | undefined): Walked {
    const first = this.#walkKnown(tracee, maxFrames);
    if (first.reliable || (first.reason.code !== 'unknown-code' && first.reason.code !== 'outside-stack'))
      return first;
    // Code or a stack that was mapped after the last look.
    this.refresh();
    return this.#walkKnown(tracee, maxFrames);
  }

  #walkKnown(tracee: Tracee, maxFrames: number | undefined): Walked {
    const learned = this.#learned.get(tracee);
    if (learned?.map !== this.#map) {
      const result = this.#walkOnce(tracee.registers, maxFrames);
      return { ...result, distinct: result.frames };
    }
    const { restAt, finish } = learned.walk.begin(this.#readMemory);
    return finish(this.#walkOnce(tracee.registers, maxFrames, restAt));
  }

  /**
   * Undefined when the stack is reliable and holds none of the ranges. Else how to tell why: names are looked up only
   * then, when the thread need not be held any more.
   */
  check(tracee: Tracee, ranges: readonly MemoryRange[]): (() => StragglerReason) | undefined {
    return this.judge(this.walk(tracee), ranges);
  }

  /** What {@link check} says of a walk. */
  judge(result: Walked, ranges: readonly MemoryRange[]): (() => StragglerReason) | undefined {
    this.framesWalked = result.frames.length;
    if (!result.reliable) {
      const { code, detail } = result.reason;
      return () => ({ kind: 'unreliable', cause: code, detail, frames: this.reportFrames(result.frames) });
    }
    const frame = result.distinct[findFrameIn(result.distinct, ranges)];
    if (frame === undefined) return undefined;
    return () => ({
      kind: 'busy',
      function: this.#symbolizer.find(frame.lookup)?.name ?? frame.module.name,
      frame: findFrameIn(result.frames, ranges),
      frames: this.reportFrames(result.frames),
    });
  }

  /** Where the stacks begin that signal handlers of a stopped thread have interrupted, if the walk is reliable. */
  stacksEntered(tracee: Tracee): readonly number[] {
    const { frames, reliable } = this.walk(tracee);
    return reliable ? frames.filter(({ by }) => by === 'signal').map((frame) => frame.stackPointer) : [];
  }

  /** The registers of a stopped thread, which have been fetched, and the top of its stack, as they are now. */
  copyStack(tracee: Tracee): StackCopy {
    return this.#copyStack(tracee, RED_ZONE_BYTES, Buffer.allocUnsafe(COPIED_BYTES));
  }

  #copyStack(tracee: Tracee, belowBytes: number, bytes: Buffer): StackCopy {
    const registers = Buffer.from(tracee.registers);
    const start = readRegister(registers, RSP) - belowBytes;
    return { registers, start, bytes: bytes.subarray(0, this.#memory.read(start, bytes)) };
  }

  /**
   * Walks a copy a few times over and throws the results away: the tables that its frames need are read, and the walk's
   * own code is warm, before the thread is held for the walk that counts. A rehearsal that fails has no meaning.
   */
  rehearse(copy: StackCopy): void {
    const until = performance.now() + REHEARSAL_MS;
    for (let i = 0; i < REHEARSALS && performance.now() < until; i++) this.#walkCopy(copy);
  }

  /** Whether the copy alone shows that the thread was in none of the ranges when it was taken: it need not be held to tell. */
  isClear(copy: StackCopy, ranges: readonly MemoryRange[]): boolean {
    const result = this.#walkCopy(copy);
    return result.reliable && findFrameIn(result.frames, ranges) < 0;
  }

  #walkCopy(copy: StackCopy): WalkResult {
    this.#copy = copy;
    try {
      return this.#walkOnce(copy.registers);
    } finally {
      this.#copy = undefined;
    }
  }

  reportFrames(frames: readonly Frame[]): readonly ReportedFrame[] {
    return frames.slice(0, MAX_REPORTED_FRAMES).map((frame) => ({
      address: frame.pc,
      symbol: this.#symbolizer.describe(frame.lookup, frame.by === 'call' ? 1 : 0),
      module: frame.module.name,
    }));
  }

  /** The function that an unreliable walk could not get past, in a few words. */
  placeOf({ frames, reason, pc }: Extract<WalkResult, { reliable: false }>): string {
    const last = frames.at(-1);
    const isCode = reason.code !== 'not-a-return-address' && reason.code !== 'unknown-code';
    if (isCode) return this.#functionAt(last?.pc === pc ? last.lookup : frames.length === 0 ? pc : pc - 1);
    return last === undefined ? 'code of no file' : `behind ${this.#functionAt(last.lookup)}`;
  }

  #functionAt(address: number): string {
    const name = this.#symbolizer.find(address)?.name;
    if (name !== undefined) return name;
    const module = this.#modules.find((m) => address >= m.start && address < m.end);
    return module === undefined
      ? 'code of no file'
      : `${module.name}+0x${(address - module.bias).toString(16)}`;
  }

  #walkOnce(registers: Buffer, maxFrames?: number, restAt?: WalkInput['restAt']): WalkResult {
    return walkReliable({
      registers: toDwarfRegisters(registers, this.#registers),
      readMemory: this.#readMemory,
      stackLimits: this.#findLimits,
      modules: this.#map,
      ...(maxFrames === undefined ? {} : { maxFrames }),
      ...(restAt === undefined ? {} : { restAt }),
    });
  }

  /** Where a stack has overflowed, the pointer is below it: in the guard pages, or the gap that a growing stack keeps. */
  #stackLimits(address: number): StackLimits | undefined {
    let low = 0;
    let high = this.#mappings.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#mappings[middle] as Mapping).start <= address) low = middle + 1;
      else high = middle;
    }
    const mapping = this.#mappings[low - 1];
    const above = this.#mappings[low];
    if (mapping === undefined || address >= mapping.end)
      return above?.name === '[stack]' && address >= above.start - STACK_GAP_BYTES
        ? { low: address, high: above.end }
        : undefined;
    if (mapping.readable && mapping.writable) return { low: mapping.start, high: mapping.end };
    const isGuard = !mapping.readable && !mapping.writable && !mapping.executable;
    return isGuard && above?.start === mapping.end && above.readable && above.writable
      ? { low: mapping.start, high: above.end }
      : undefined;
  }

  /** Whether a kept proof says that the row of an address is wrong (`livegraft validate`). */
  #isDisproved(address: number): boolean {
    const module = this.#modules.find((m) => address >= m.start && address < m.end);
    if (module === undefined) return false;
    if (!this.#proofs.has(module)) {
      const { buildId } = module.elf;
      this.#proofs.set(module, buildId === undefined ? undefined : this.#proofStore.find(buildId));
    }
    return this.#proofs.get(module)?.verdictAt(address - module.bias) === 'disproved';
  }

  #buildMap(): ModuleMap {
    const { patches, doorbell } = this.#known();
    return new ModuleMap({
      isDisproved: (address) => this.#isDisproved(address),
      decoder: this.#arch.decoder,
      modules: [
        ...this.#modules.flatMap((module) => lazyModules(module)),
        ...patches.flatMap((patch) =>
          partsOf(patch).map((part) => patchModule(this.#memory, patch.name, part)),
        ),
      ],
      displaced: [
        ...patches.flatMap((p) => redirectsOf(p).map((f) => displacedRange(f.old, f.redirect.trampoline))),
        // It never moves the stack pointer: all of it is as the entry of the function it stands before.
        ...(doorbell === undefined ? [] : [displacedRange(doorbell.old, doorbell.redirect.trampoline)]),
        ...this.#retired.flatMap((r) => r.displaced.map((d) => displacedRange(d.old, d.trampoline))),
      ],
    });
  }
}

function readCopy({ start, bytes }: StackCopy, address: number, into: Uint8Array): number {
  const offset = address - start;
  return offset < 0 || offset >= bytes.length ? 0 : bytes.copy(into, 0, offset, offset + into.length);
}

const MAX_REPORTED_FRAMES = 64;
/** Walked in about a millisecond. */
const DEEP_FRAMES = 2000;
/** A stack that changes too fast is walked in one piece after so many. */
const MOST_COPIES = 3;
/** A larger one would take longer to copy than others to walk. */
const MOST_COPIED_BYTES = 64 * 2 ** 20;
const PREPARE_MS = 30;
/** `stack_guard_gap` of the kernel (mm/mmap.c): nothing else is mapped so near below a stack that grows. */
const STACK_GAP_BYTES = 2 ** 20;
const COPIED_BYTES = 16 * 1024;
const REHEARSALS = 20;
const REHEARSAL_MS = 5;

/** One code module for each executable mapping of a file, whose tables are read when a frame first needs them. */
function lazyModules(module: LoadedModule): CodeModule[] {
  let parsed: CodeModule | undefined;
  const get = () => {
    parsed ??= createElfModule(module.name, module.elf, module.bias, module.start, module.end);
    return parsed;
  };
  return module.mappings
    .filter((mapping) => mapping.executable)
    .map((mapping) => ({
      name: module.name,
      start: mapping.start,
      end: mapping.end,
      isText: () => true,
      findRow: (address, interrupted) => get().findRow(address, interrupted),
      codeBefore: (address, sizeBytes) => get().codeBefore(address, sizeBytes),
    }));
}

/** The new functions of a patch, with the unwind table that was loaded with them. */
function patchModule(memory: ProcessMemory, name: string, { text, ehFrame }: RegisteredPart): CodeModule {
  return createMemoryModule({
    name: `patch ${name}`,
    address: text.address,
    code: memory.readExactly(text.address, text.sizeBytes),
    ehFrame: ehFrame && {
      address: ehFrame.address,
      bytes: memory.readExactly(ehFrame.address, ehFrame.sizeBytes),
    },
  });
}

/**
 * A trampoline up to its state test counts as the entry of the original function. The table's test moves the stack
 * pointer, so only its first instruction does.
 */
function displacedRange(old: MemoryRange, trampoline: Trampoline): DisplacedRange {
  return {
    start: trampoline.gateAt ?? trampoline.address,
    end: trampoline.address + trampoline.sizeBytes,
    map: [
      ...(trampoline.gateAt === undefined ? [] : [{ copy: trampoline.gateAt, original: old.address }]),
      { copy: trampoline.address, original: old.address },
      ...trampoline.displaced,
    ],
  };
}
