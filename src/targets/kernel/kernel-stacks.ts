import type { Architecture } from '../../arch/architecture.js';
import { hex } from '../../base/brand.js';
import type { ReportedFrame } from '../../engine/target.js';
import { orcFormatOf } from '../../orc/format.js';
import { type OrcTable, parseOrc } from '../../orc/table.js';
import { type CodeModule, createMemoryModule } from '../../unwind/code-module.js';
import { ModuleMap } from '../../unwind/module-map.js';
import { prepareRow, type UnwindRow } from '../../unwind/unwind-row.js';
import { type Frame, type StackLimits, type WalkReason, walkReliable } from '../../unwind/walk-reliable.js';
import type { GuestMemory, MemorySource } from './guest-memory.js';
import { mendEntryRows } from './kernel-entry-rows.js';
import {
  ENCODED_FRAME,
  type FramePointerCode,
  findFrameRow,
  keepsFramePointers,
} from './kernel-frame-pointers.js';
import { type FieldPlace, type KernelLayout, StructReader } from './kernel-layout.js';
import type { KernelModule } from './kernel-modules.js';
import type { KernelRange, RegisteredKernelPatch } from './kernel-registry.js';
import type { Cpu, KernelTask } from './kernel-tasks.js';
import { findFentryNop } from './kernel-trampoline.js';
import type { KernelAddresses } from './running-kernel.js';

/** A walk of a task's kernel stack. A task that runs in user mode has no frame at all. */
export type KernelWalk =
  | { readonly reliable: true; readonly frames: readonly Frame[] }
  | {
      readonly reliable: false;
      readonly frames: readonly Frame[];
      readonly reason: { readonly code: WalkReason | 'between-cpus'; readonly detail: string };
    };

const DW_RBP = 6;
const DW_RSP = 7;
const DW_RA = 16;
/** From the end of a frame of saved registers. */
const FRAME_CS = -32;
const FRAME_FLAGS = -24;
/** `TOP_OF_KERNEL_STACK_PADDING`: 0, or 16 with FRED. */
const MAX_STACK_PADDING = 16;
/** `struct entry_stack` */
const ENTRY_STACK_BYTES = 4096;

/** THREAD_SIZE of x86-64 without KASAN; a task with a deeper stack is refused as outside of it. */
const THREAD_BYTES = 4 * 4096;

/** At the end of its stack a task has at most the registers of its entry from user mode there, or room for them. */
const END_BYTES = 168 + MAX_STACK_PADDING;

interface KernelStack extends StackLimits {
  /** Whether a task's calls can begin on it. */
  readonly mayEnd: boolean;
}

const BETWEEN_CPUS: KernelWalk = {
  reliable: false,
  frames: [],
  reason: { code: 'between-cpus', detail: 'a CPU is just switching to it or away from it' },
};

export function stackOf(task: KernelTask): StackLimits {
  return { low: task.stack, high: task.stack + THREAD_BYTES };
}

export function contains({ low, high }: StackLimits, address: number): boolean {
  return address >= low && address <= high;
}

/** Walks kernel stacks of a stopped guest. */
export class KernelStacks {
  readonly #memory: GuestMemory;
  readonly #read: StructReader;
  readonly #kernel: KernelAddresses;
  readonly #modules: readonly KernelModule[];
  /** Of the kernel, then of its modules. Their tables are parsed once. */
  readonly #code: readonly CodeModule[];
  readonly #arch: Architecture;
  #map: ModuleMap;
  readonly #isDisproved: (address: number) => boolean;
  #patchRanges: readonly KernelRange[] = [];
  readonly #inactive: {
    readonly sizeBytes: number;
    readonly bp: FieldPlace;
    readonly returnAddress: FieldPlace;
  };
  readonly #exceptionStacks: readonly FieldPlace[];
  readonly #hotIrqStack: FieldPlace | undefined;
  readonly #newTaskEntries: readonly number[];
  readonly #entryStackTop: FieldPlace;
  /** The kernel has no ORC tables, and keeps frame pointers. */
  readonly hasFramePointers: boolean;

  constructor(
    arch: Architecture,
    memory: GuestMemory,
    kernel: KernelAddresses,
    layout: KernelLayout,
    modules: readonly KernelModule[],
    isDisproved: (address: number) => boolean,
  ) {
    this.#isDisproved = isDisproved;
    this.#memory = memory;
    this.#read = new StructReader(memory);
    this.#kernel = kernel;
    this.#modules = modules;
    this.#arch = arch;
    // Where a new task begins; 6.6 renamed the assembly part (3aec4ecb3d1f).
    this.#newTaskEntries = ['ret_from_fork_asm', 'ret_from_fork'].flatMap((name) => kernel.find(name) ?? []);
    this.hasFramePointers = keepsFramePointers(kernel.image);
    const frames = (covering: FindSymbol) =>
      this.hasFramePointers
        ? findFrameRow(frameCode(arch, memory, kernel, this.#newTaskEntries, covering))
        : undefined;
    this.#code = [
      ...kernelCode(memory, kernel, frames),
      ...modules.map((module) => moduleCode(memory, kernel, module, frames)),
    ];
    // A large table is parsed when it is first asked for: now, while the guest runs, and not in a stop.
    for (const { start, findRow } of this.#code) findRow(start, true);
    this.#map = this.#buildMap([]);
    this.#inactive = {
      sizeBytes: layout.sizeOf('inactive_task_frame') ?? 56,
      bp: layout.expect('inactive_task_frame', 'bp'),
      returnAddress: layout.expect('inactive_task_frame', 'ret_addr'),
    };
    this.#exceptionStacks = layout
      .members('cea_exception_stacks')
      .filter((name) => name.endsWith('_stack'))
      .map((name) => layout.expect('cea_exception_stacks', name));
    this.#hotIrqStack = layout.find('pcpu_hot', 'hardirq_stack_ptr');
    this.#entryStackTop = layout.expect('tss_struct', 'x86_tss.sp0');
  }

  /**
   * Takes in the code of patches, whose frames are described by `.eh_frame`. Redirects are left out on purpose: a task that
   * stands in one has read its state, and must go on before it may be changed.
   */
  async usePatches(patches: readonly RegisteredKernelPatch[], source: MemorySource): Promise<void> {
    const modules: CodeModule[] = [];
    for (const { name, text, ehFrame } of patches) {
      modules.push(
        createMemoryModule({
          name: `patch ${name}`,
          address: text.address,
          code: await source.readMemory(text.address, text.sizeBytes),
          ehFrame: ehFrame && {
            address: ehFrame.address,
            bytes: await source.readMemory(ehFrame.address, ehFrame.sizeBytes),
          },
        }),
      );
    }
    this.#patchRanges = patches.flatMap((patch) => patch.functions.flatMap((fn) => fn.new));
    this.#map = this.#buildMap(modules);
  }

  #buildMap(patches: readonly CodeModule[]): ModuleMap {
    return new ModuleMap({
      decoder: this.#arch.decoder,
      isDisproved: this.#isDisproved,
      modules: [...this.#code, ...patches],
      isStackBottom: (address) => isBehindStartupReturn(this.#kernel, this.#code[0], address),
    });
  }

  /** `cpus`: all of them, in the same stop. */
  async walk(task: KernelTask, cpus: readonly Cpu[]): Promise<KernelWalk> {
    const cpu = cpus.find(({ current }) => current === task.address);
    if (cpu !== undefined) {
      if (cpu.isInUserMode) return { reliable: true, frames: [] };
      const stacks = [{ ...stackOf(task), mayEnd: true }, ...(await this.#cpuStacks(cpu))];
      const stackPointer = cpu.registers.address('rsp');
      // The stack changes before `current` does (__switch_to_asm).
      if (!stacks.some((stack) => contains(stack, stackPointer))) return BETWEEN_CPUS;
      const isEncoded = (cpu.registers.get('rbp') & 1n) === 1n;
      return this.#walk(task, () => cpu.registers.toDwarf(), false, stacks, isEncoded);
    }
    if (task.isOnCpu) return BETWEEN_CPUS;
    const frame = task.savedStackPointer;
    const bp = await this.#read.address(frame, this.#inactive.bp);
    const returnAddress = await this.#read.address(frame, this.#inactive.returnAddress);
    const registers = () => {
      const values = new Float64Array(17).fill(Number.NaN);
      values[DW_RBP] = bp;
      values[DW_RSP] = frame + this.#inactive.sizeBytes;
      values[DW_RA] = returnAddress;
      return values;
    };
    // A task that has never run was not put to sleep by a call.
    const isEncoded =
      this.hasFramePointers &&
      ((await this.#read.number(frame, { offset: this.#inactive.bp.offset, sizeBytes: 1 })) & 1) === 1;
    const hasRun = !this.#newTaskEntries.includes(returnAddress);
    return this.#walk(task, registers, hasRun, [{ ...stackOf(task), mayEnd: true }], isEncoded);
  }

  reportFrames(frames: readonly Frame[]): readonly ReportedFrame[] {
    return frames.map((frame) => ({
      address: frame.pc,
      symbol: this.describe(frame.lookup, frame.by === 'call' ? 1 : 0),
      module: frame.module.name,
    }));
  }

  describe(address: number, back: 0 | 1 = 0): string | undefined {
    for (const { text, symbols } of this.#modules) {
      if (address < text.address || address >= text.address + text.sizeBytes) continue;
      const symbol = symbols.findCovering(address);
      return symbol && `${symbol.name}+${hex(address + back - symbol.address)}`;
    }
    const own = this.#patchRanges.find((r) => address >= r.address && address < r.address + r.sizeBytes);
    if (own !== undefined) return `${own.name}+${hex(address + back - own.address)}`;
    return this.#kernel.describe(address, back);
  }

  #walk(
    task: KernelTask,
    registers: () => Float64Array,
    startsAtReturnAddress: boolean,
    stacks: readonly KernelStack[],
    startsEncoded: boolean,
  ): Promise<KernelWalk> {
    const own = stackOf(task);
    const { hasFramePointers } = this;
    const word = new Uint8Array(8);
    const view = new DataView(word.buffer);
    const readWord = (address: number): bigint | undefined =>
      this.#memory.readInto(address, word) === 8 ? view.getBigUint64(0, true) : undefined;
    return this.#memory.settle(() =>
      walkReliable({
        registers: registers(),
        readMemory: (address, into) => this.#memory.readInto(address, into),
        stackLimits: (address) => stacks.find((stack) => contains(stack, address)),
        modules: this.#map,
        startsAtReturnAddress,
        nestedStacks: {
          entryOf: (saved, frameEnd) => {
            const cs = readWord(frameEnd + FRAME_CS);
            const flags = readWord(frameEnd + FRAME_FLAGS);
            if (cs === undefined || flags === undefined)
              return { damaged: 'its segment and flags can not be read' };
            // Selectors are 16 bits wide, flags 22. (A task in execve has flags of 0x200, as no CPU would save them.)
            if (cs > 0xffffn || flags >> 22n !== 0n)
              return { damaged: 'what should be segment and flags is not' };
            // A kernel thread begins with registers that say nothing, at the very top of its stack.
            const isFirst =
              task.isKthread && frameEnd >= own.high - MAX_STACK_PADDING && frameEnd <= own.high;
            if (hasFramePointers && isFirst) return 'user';
            if ((cs & 3n) === 0n) return 'kernel';
            if ((saved[DW_RA] as number) < 0) return { damaged: 'a kernel address in user mode' };
            if (task.isKthread) return { damaged: 'a kernel thread came from user mode' };
            // Entered from user mode, the registers lie at the very top of the task's stack.
            if (frameEnd > own.low && frameEnd < own.high - MAX_STACK_PADDING)
              return {
                damaged: `${own.high - frameEnd} bytes of the stack lie beyond the entry from user mode`,
              };
            return 'user';
          },
          mayEndAt: (at) =>
            stacks.some((each) => each.mayEnd && at >= each.high - END_BYTES && at <= each.high),
          ...(hasFramePointers ? { encodedFrame: ENCODED_FRAME, startsEncoded } : {}),
        },
      }),
    );
  }

  /** Stacks that a CPU uses besides its task's. */
  async #cpuStacks(cpu: Cpu): Promise<KernelStack[]> {
    const limits: KernelStack[] = [];
    const irq =
      this.#hotIrqStack === undefined
        ? this.#kernel.find('hardirq_stack_ptr')
        : this.#kernel.expect('pcpu_hot') + this.#hotIrqStack.offset;
    if (irq !== undefined) {
      // It points to the top or, since 5.12 with CONFIG_VMAP_STACK, 8 bytes below (arch/x86/kernel/irq_64.c).
      const pointer = await this.#read.address(irq + cpu.perCpuOffset, { offset: 0 });
      const high = Math.ceil(pointer / 4096) * 4096;
      limits.push({ low: high - 4 * 4096, high, mayEnd: false });
    }
    // Where the CPU enters from user mode, before the kernel moves on to the task's stack.
    const entryTop = await this.#read.address(
      this.#kernel.expect('cpu_tss_rw') + cpu.perCpuOffset,
      this.#entryStackTop,
    );
    limits.push({ low: entryTop - ENTRY_STACK_BYTES, high: entryTop, mayEnd: true });
    const exceptions = this.#kernel.find('cea_exception_stacks');
    if (exceptions !== undefined) {
      const base = await this.#read.address(exceptions + cpu.perCpuOffset, { offset: 0 });
      for (const { offset, sizeBytes } of this.#exceptionStacks)
        limits.push({ low: base + offset, high: base + offset + sizeBytes, mayEnd: false });
    }
    return limits;
  }
}

/**
 * A CPU is started by a far return into C code, with the address behind it pushed for unwinders
 * (`secondary_startup_64` in arch/x86/kernel/head_64.S).
 */
function isBehindStartupReturn(
  kernel: KernelAddresses,
  code: CodeModule | undefined,
  address: number,
): boolean {
  const symbol = kernel.image.symbols.findCovering(address - 1 - kernel.offset);
  if (code === undefined || symbol?.name.startsWith('secondary_startup_64') !== true) return false;
  const [rexW, farReturn] = code.codeBefore(address, 2);
  return rexW === 0x48 && farReturn === 0xcb;
}

function findOrcRow(table: () => OrcTable): (address: number) => UnwindRow | undefined {
  const prepared = new Map<number, UnwindRow>();
  return (address) => {
    const orc = table();
    const index = orc.findIndex(address);
    if (index < 0) return undefined;
    const key = orc.keyAt(index);
    const known = prepared.get(key);
    if (known !== undefined) return known;
    const row = orc.find(address);
    if (row === undefined) return undefined;
    const result = prepareRow(row);
    prepared.set(key, result);
    return result;
  };
}

type FindSymbol = (address: number) => { readonly name: string; readonly address: number } | undefined;
/** Undefined where the kernel has ORC tables. */
type FrameRows = (covering: FindSymbol) => CodeModule['findRow'] | undefined;

/**
 * Thunks of indirect calls, those of returns, through which the former go as well (arch/x86/lib/retpoline.S), and what calls at the entries of
 * functions lead to (arch/x86/kernel/ftrace_64.S). Names of the former may have something before them (`__pi_`).
 */
const NO_FRAME_BEHIND = /x86_indirect_|return_thunk|safe_ret|untrain_ret|^ftrace_|^__fentry__$/;
/** Of some instructions. */
const STRETCH_BYTES = 64;

function frameCode(
  arch: Architecture,
  memory: GuestMemory,
  kernel: KernelAddresses,
  newTaskEntries: readonly number[],
  covering: FindSymbol,
): FramePointerCode {
  const switchTo = kernel.find('__switch_to_asm');
  return {
    // A symbol in assembly may be anywhere in a function: ftrace's nop is at the entries of those in C.
    isEntry: (address) => {
      if (address === switchTo) return true;
      const bytes = new Uint8Array(16);
      return (
        covering(address)?.address === address &&
        memory.readInto(address, bytes) === bytes.length &&
        findFentryNop(bytes) !== undefined
      );
    },
    mayReturnToNoFrame: (address) => NO_FRAME_BEHIND.test(covering(address)?.name ?? ''),
    codeAt: (address) => {
      const bytes = new Uint8Array(STRETCH_BYTES);
      return bytes.subarray(0, Math.max(0, memory.readInto(address, bytes)));
    },
    decoder: arch.decoder,
    returnThunk: kernel.find('__x86_return_thunk'),
    isNewTaskEntry: (address) => newTaskEntries.includes(address),
    isSystemCall: (address) => /^entry_(SYSCALL|SYSENTER|INT80)/.test(covering(address)?.name ?? ''),
    isStartup: (address) => covering(address)?.name.startsWith('secondary_startup_64') === true,
  };
}

/** Bytes before a return address come from memory: the running kernel has other calls in some places than its image. */
function codeBefore(memory: GuestMemory, start: number): CodeModule['codeBefore'] {
  return (address, sizeBytes) => {
    const size = Math.max(0, Math.min(sizeBytes, address - start));
    const bytes = new Uint8Array(size);
    return memory.readInto(address - size, bytes) === size ? bytes : new Uint8Array();
  };
}

/**
 * The kernel's text, and its init text: that is gone from memory, but the first task's stack still leads to it.
 */
function kernelCode(memory: GuestMemory, kernel: KernelAddresses, frames: FrameRows): CodeModule[] {
  const { elf, release, source } = kernel.image;
  let table: OrcTable | undefined;
  const get = () => {
    const entries = elf.findSection('.orc_unwind');
    const ips = elf.findSection('.orc_unwind_ip');
    table ??= parseOrc({
      entries: entries?.data ?? new Uint8Array(),
      ips: { bytes: ips?.data ?? new Uint8Array(), address: (ips?.address ?? 0) + kernel.offset },
      format: orcFormatOf({ header: elf.findSection('.orc_header')?.data, kernelRelease: release }, source),
      source,
    });
    return table;
  };
  const covering = (address: number) => {
    const symbol = kernel.image.symbols.findCovering(address - kernel.offset);
    return symbol && { name: symbol.name, address: kernel.relocate(symbol.address) };
  };
  const findRow = frames(covering) ?? mendEntryRows(kernel, findOrcRow(get));
  return ['.text', '.init.text'].flatMap((name) => {
    const section = elf.findSection(name);
    if (section === undefined) return [];
    const start = section.address + kernel.offset;
    const end = start + section.sizeBytes;
    return {
      name: 'vmlinux',
      start,
      end,
      isText: (address: number) => address >= start && address < end,
      findRow,
      codeBefore:
        name === '.text'
          ? codeBefore(memory, start)
          : (address: number, sizeBytes: number) =>
              section.data.subarray(Math.max(0, address - start - sizeBytes), address - start),
    };
  });
}

function moduleCode(
  memory: GuestMemory,
  kernel: KernelAddresses,
  module: KernelModule,
  frames: FrameRows,
): CodeModule {
  const { address: start, sizeBytes } = module.text;
  const end = start + sizeBytes;
  const { elf, release } = kernel.image;
  let table: OrcTable | undefined;
  const get = () => {
    table ??= parseOrc({
      ...module.orc,
      format: orcFormatOf(
        { header: elf.findSection('.orc_header')?.data, kernelRelease: release },
        module.name,
      ),
      end,
      source: module.name,
    });
    return table;
  };
  return {
    name: module.name,
    start,
    end,
    isText: (address) => address >= start && address < end,
    findRow: frames((address) => module.symbols.findCovering(address)) ?? findOrcRow(get),
    codeBefore: codeBefore(memory, start),
  };
}
