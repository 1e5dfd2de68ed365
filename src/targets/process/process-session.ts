import type { Architecture } from '../../arch/architecture.js';
import { LivegraftError } from '../../base/errors.js';
import { ProcessMemory } from './memory.js';
import { type LoadedModule, listModules } from './modules.js';
import { keepOffProcessors } from './native.js';
import { partsOf } from './patch-objects.js';
import { findFreeRange } from './placement.js';
import { expectPatchableProcess } from './preflight.js';
import { type Mapping, readBlockingSyscall, readMappings, readThreadStat } from './proc.js';
import { seizeAllThreads } from './process-space.js';
import { RSP, readRegister } from './registers.js';
import type { MemoryRange, Registry, RetiredImage, SlotArea } from './registry.js';
import { findRegistryMapping, RegistryStore, SLOTS_OFFSET } from './registry-store.js';
import { type KnownCode, StackInspector } from './stack-inspector.js';
import { isOwnMapping, PROT_READ, PROT_WRITE, roundUp, TargetMemory } from './target-memory.js';
import { SLOT_BYTES, slotCount } from './task-slots.js';
import { PATIENT_TIMEOUT_MS, Tracer } from './tracer.js';

/** An open process: its memory, code, registry, and, once seized, its threads. Close it in every case. */
export class ProcessSession {
  readonly pid: number;
  readonly arch: Architecture;
  readonly memory: ProcessMemory;
  readonly tracer = new Tracer();
  mappings: readonly Mapping[];
  modules: readonly LoadedModule[];
  store: RegistryStore | undefined;
  registry: Registry | undefined;
  #registryMapping: Mapping | undefined;

  constructor(pid: number, arch: Architecture, purpose: 'patch' | 'look' = 'patch') {
    expectPatchableProcess(pid, purpose);
    this.pid = pid;
    this.arch = arch;
    this.memory = new ProcessMemory(pid);
    try {
      this.mappings = readMappings(pid) ?? [];
      this.modules = listModules(this.memory, this.mappings);
      if (this.mappings.length === 0) throw goneError(pid);
      this.#registryMapping = findRegistryMapping(this.mappings);
      if (this.#registryMapping !== undefined) {
        this.store = new RegistryStore(this.memory, this.#registryMapping.start);
        this.registry = this.store.read();
      }
    } catch (error) {
      this.memory.close();
      throw error;
    }
  }

  /** From then on livegraft keeps off the processors that the threads run on, as far as there are others. */
  seize(): void {
    keepOffProcessors(seizeAllThreads(this.tracer, this.pid));
    if (this.tracer.tracees.size === 0) throw goneError(this.pid);
  }

  refreshMappings(): void {
    this.mappings = readMappings(this.pid) ?? [];
  }

  /** Takes in what has been loaded and unloaded since. */
  refreshModules(): void {
    this.refreshMappings();
    const known = new Map(this.modules.map((m) => [moduleKey(m), m]));
    this.modules = listModules(this.memory, this.mappings).map((m) => known.get(moduleKey(m)) ?? m);
  }

  targetMemory(): TargetMemory {
    return new TargetMemory(this.tracer, this.memory, this.mappings);
  }

  /** `retired`: images of removed patches that threads may still be inside of. */
  inspector(
    retired: readonly RetiredImage[] = [],
    known: () => KnownCode = () => this.registry ?? { patches: [] },
  ): StackInspector {
    return new StackInspector(this.arch, this.memory, this.mappings, this.modules, known, retired);
  }

  /** The registry and its slots, mapped if need be. A registry that was mapped but never written counts as fresh. */
  expectRegistry(kind: SlotArea['kind']): { readonly store: RegistryStore; readonly registry: Registry } {
    const threads = this.tracer.tracees.size;
    if (this.store === undefined || this.#registryMapping === undefined) {
      const sizeBytes = roundUp(SLOTS_OFFSET + slotCount(threads) * SLOT_BYTES);
      const address = findAnywhere(this.mappings, sizeBytes);
      this.targetMemory().map('registry', [{ address, sizeBytes, protection: PROT_READ | PROT_WRITE }]);
      this.refreshMappings();
      this.#registryMapping = findRegistryMapping(this.mappings);
      if (this.#registryMapping === undefined) throw goneError(this.pid);
      this.store = new RegistryStore(this.memory, this.#registryMapping.start);
    }
    const { start, end } = this.#registryMapping;
    const slots = { kind, address: start + SLOTS_OFFSET, sizeBytes: end - start - SLOTS_OFFSET };
    if (
      this.registry !== undefined &&
      this.registry.slots.kind !== kind &&
      this.registry.patches.length > 0
    ) {
      throw new LivegraftError(
        'slots-changed',
        `process ${this.pid}: it has begun to use GS since it was patched`,
        {
          remedy: 'revert the patches first',
        },
      );
    }
    if (threads * 2 * SLOT_BYTES > slots.sizeBytes) {
      throw new LivegraftError(
        'slots-full',
        `process ${this.pid}: ${threads} threads are too many for its registry`,
        {
          remedy: 'revert all patches, which removes the registry, and apply them again',
        },
      );
    }
    const registry: Registry = {
      slots: { ...slots, sizeBytes: powerOfTwoBelow(slots.sizeBytes) },
      patches: this.registry?.patches ?? [],
      transition: this.registry?.transition,
      doorbell: this.registry?.doorbell,
      retired: this.registry?.retired ?? [],
    };
    this.registry = registry;
    return { store: this.store, registry };
  }

  /**
   * The page of shadow variables (include/livegraft.h), mapped when the first patch needs it. It stays as long as there is
   * a patch or it holds variables, so that the next patch finds them.
   */
  expectShadowTable(): number {
    this.refreshMappings();
    const known = this.mappings.find(isShadowTable);
    if (known !== undefined) return known.start;
    const sizeBytes = SHADOW_TABLE_BYTES;
    const address = findAnywhere(this.mappings, sizeBytes);
    this.targetMemory().map('shadow', [{ address, sizeBytes, protection: PROT_READ | PROT_WRITE }]);
    this.refreshMappings();
    return address;
  }

  #holdsShadowVariables(table: Mapping): boolean {
    return this.memory.readExactly(table.start, SHADOW_TABLE_BYTES).some((byte) => byte !== 0);
  }

  /**
   * Where every thread's stack is now; running ones are stopped for a moment to tell. A stack that was left out would
   * pass for other memory, so `thread-stuck` is thrown for a thread that can't be stopped.
   */
  stackPointers(): readonly number[] {
    const pointers: number[] = [];
    for (const tracee of [...this.tracer.tracees.values()]) {
      if (pointers.length % LOOKED_AT_TOGETHER === 0) this.tracer.attend();
      const blocked = readBlockingSyscall(this.pid, tracee.tid);
      if (blocked !== undefined) {
        pointers.push(blocked.stackPointer);
        continue;
      }
      this.tracer.interrupt(tracee);
      if (this.tracer.collect(tracee, PATIENT_TIMEOUT_MS) === 'running') {
        throw new LivegraftError(
          'thread-stuck',
          `process ${this.pid}: thread ${tracee.tid} did not stop in ${PATIENT_TIMEOUT_MS} ms`,
          {
            remedy: 'the machine may be overloaded: try again',
            details: { pid: this.pid, tid: tracee.tid },
          },
        );
      }
      if (tracee.state === 'stopped' && this.tracer.fetchRegisters(tracee))
        pointers.push(readRegister(tracee.registers, RSP));
      this.tracer.resume(tracee);
    }
    return pointers;
  }

  /**
   * Stacks of threads that {@link stackPointers} do not tell: signal stacks, and those that lie below the frame of a
   * signal handler. Each thread is stopped and asked, which takes about a millisecond.
   */
  otherStacks(): readonly MemoryRange[] {
    const inspector = this.inspector(this.registry?.retired);
    const memory = this.targetMemory();
    const stacks: MemoryRange[] = [];
    for (const tracee of [...this.tracer.tracees.values()]) {
      this.tracer.attend();
      const signalStack = memory.signalStackOf(tracee, () => {
        for (const pointer of inspector.stacksEntered(tracee)) {
          const mapping = this.mappings.find(({ start, end }) => pointer >= start && pointer < end);
          if (mapping !== undefined)
            stacks.push({ address: mapping.start, sizeBytes: mapping.end - mapping.start });
        }
      });
      if (signalStack !== undefined) stacks.push(signalStack);
    }
    return stacks;
  }

  /**
   * Unmaps what no patch needs any more: removed patches' memory that nothing points into, mappings that a killed run
   * never registered, and, when nothing is left, the registry. Returns what had to stay, as text for a notice.
   */
  cleanUp(isReferenced: (image: RetiredImage) => boolean): readonly string[] {
    this.refreshMappings();
    if (this.store === undefined || this.registry === undefined || this.registry.transition !== undefined)
      return [];
    const stays = this.registry.retired.filter(
      (range) => range.forced === true || range.inUse || isReferenced(range),
    );
    const { patches, doorbell } = this.registry;
    const kept = [
      ...patches.flatMap(partsOf).map((part) => part.image),
      ...(doorbell === undefined ? [] : [doorbell.image]),
      ...stays,
    ];
    const registryMapping = this.#registryMapping;
    const isKept = (mapping: Mapping) =>
      mapping.start === registryMapping?.start ||
      (isShadowTable(mapping) && (kept.length > 0 || this.#holdsShadowVariables(mapping))) ||
      kept.some(
        (range) => mapping.start >= range.address && mapping.end <= range.address + roundUp(range.sizeBytes),
      );
    const ranges = this.mappings
      .filter((mapping) => isOwnMapping(mapping) && !isKept(mapping))
      .map((mapping) => ({ address: mapping.start, sizeBytes: mapping.end - mapping.start }));
    // The record goes first: what a killed run leaves mapped is found by its name, but an old record could name
    // memory that is the program's own by then.
    this.registry = { ...this.registry, retired: stays };
    this.store.write(this.registry);
    if (kept.length === 0 && patches.length === 0 && registryMapping !== undefined) {
      ranges.push({ address: registryMapping.start, sizeBytes: registryMapping.end - registryMapping.start });
      this.store = undefined;
      this.registry = undefined;
      this.#registryMapping = undefined;
    }
    if (ranges.length > 0) this.targetMemory().unmap(ranges);
    this.refreshMappings();
    return stays.map((range) => {
      const why =
        range.forced === true
          ? 'the patch was forced, they stay for good'
          : range.inUse
            ? 'a thread may be inside of them, for all that can be proven of its stack'
            : 'something still points into them';
      return `${range.sizeBytes} bytes of a removed patch stay mapped: ${why}`;
    });
  }

  /** After a failure, when nothing has run of what was mapped: nothing can point into it. */
  cleanUpAfterFailure(): void {
    this.cleanUp(() => false);
  }

  close(): void {
    try {
      this.tracer.detachAll(1000);
    } finally {
      this.memory.close();
    }
  }

  /** For `stack`: names of threads. */
  threadName(tid: number): string {
    return readThreadStat(this.pid, tid)?.name ?? '?';
  }
}

export function moduleKey({ path, start, end }: LoadedModule): string {
  return `${path} ${start} ${end}`;
}

/** Threads that are looked at before those that create others are let go on. */
const LOOKED_AT_TOGETHER = 32;
const SHADOW_TABLE_BYTES = 4096;

function isShadowTable(mapping: Mapping): boolean {
  return (
    isOwnMapping(mapping) && mapping.name.startsWith('/memfd:livegraft:shadow ') && mapping.fileOffset === 0
  );
}

function goneError(pid: number): LivegraftError {
  return new LivegraftError('target-gone', `process ${pid} has ended`, {
    remedy: 'give the pid of a running process',
    details: { pid },
  });
}

function powerOfTwoBelow(value: number): number {
  return 2 ** Math.floor(Math.log2(value));
}

/** The registry need not be near anything: the largest gap below the libraries will do. */
function findAnywhere(mappings: readonly Mapping[], sizeBytes: number): number {
  const anchor = [...mappings].reverse().find((m) => m.executable && m.name.startsWith('/')) ?? mappings[0];
  if (anchor === undefined) throw new RangeError('a process without mappings');
  return findFreeRange(mappings, sizeBytes, { start: anchor.start, end: anchor.end });
}
