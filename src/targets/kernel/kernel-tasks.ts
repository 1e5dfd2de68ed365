import { LivegraftError } from '../../base/errors.js';
import type { GdbClient } from './gdb-client.js';
import { isMemoryError } from './gdb-memory.js';
import type { GuestMemory } from './guest-memory.js';
import type { GuestRegisters } from './guest-registers.js';
import {
  addressOf,
  type FieldPlace,
  type KernelLayout,
  numberOf,
  StructReader,
  textOf,
} from './kernel-layout.js';
import type { KernelAddresses } from './running-kernel.js';

/** One vCPU of a stopped guest. */
export interface Cpu {
  readonly vcpu: string;
  /** The kernel's number of it. */
  readonly number: number;
  readonly registers: GuestRegisters;
  /** What is added to the address of a per-CPU variable. */
  readonly perCpuOffset: number;
  /** `current`: the address of its task_struct. */
  readonly current: number;
  readonly isInUserMode: boolean;
}

export interface KernelTask {
  /** Address of its task_struct. */
  readonly address: number;
  readonly name: string;
  readonly pid: number;
  readonly tgid: number;
  readonly isKthread: boolean;
  readonly isIdle: boolean;
  /** As `ps` shows it. */
  readonly state: string;
  /** It has a CPU, or is just leaving one: what it saved on its stack does not count. */
  readonly isOnCpu: boolean;
  readonly stack: number;
  /** `thread.sp` */
  readonly savedStackPointer: number;
}

const PF_KTHREAD = 0x20_0000;
/** Of the word that says what a task has switched to; `patch_state` is an int. */
const STATE_BYTES = 4;
const MAX_TASKS = 4_000_000;
const MAX_CPUS = 8192;
/** Letters by the lowest bit of `__state | exit_state` (fs/proc/array.c, task_state_array). */
const STATE_LETTERS = 'SDTtXZPI';

/** Lists CPUs and tasks of a stopped guest. Offsets are looked up once. */
export class TaskReader {
  readonly #client: GdbClient;
  readonly #memory: GuestMemory;
  readonly #read: StructReader;
  readonly #kernel: KernelAddresses;
  readonly #layout: KernelLayout;
  readonly #place;
  #stateField: FieldPlace | undefined;

  constructor(client: GdbClient, memory: GuestMemory, kernel: KernelAddresses, layout: KernelLayout) {
    this.#client = client;
    this.#memory = memory;
    this.#read = new StructReader(memory);
    this.#kernel = kernel;
    const task = (...paths: string[]) => layout.expect('task_struct', ...paths);
    this.#layout = layout;
    this.#stateField = findStateField(layout);
    this.#place = {
      tasks: task('tasks'),
      comm: task('comm'),
      pid: task('pid'),
      tgid: task('tgid'),
      flags: task('flags'),
      // 5.14 renamed it and made it unsigned int (2f064a59a11f).
      state: task('__state', 'state'),
      exitState: task('exit_state'),
      signal: task('signal'),
      threadNode: task('thread_node'),
      stack: task('stack'),
      savedStackPointer: task('thread.sp'),
      onCpu: layout.find('task_struct', 'on_cpu'),
      threadHead: layout.expect('signal_struct', 'thread_head'),
      idle: layout.expect('rq', 'idle'),
      currentInHot: layout.find('pcpu_hot', 'current_task'),
    };
  }

  /** The vCPUs that the kernel uses, with what each of them runs. */
  async cpus(): Promise<readonly Cpu[]> {
    const vcpus = await this.#client.vcpus();
    return this.#cpus(vcpus, await this.#client.readAllRegisters(vcpus));
  }

  /** The same for the registers that were read last: for a rehearsal, the guest may have gone on. */
  async cpusAsOfLate(): Promise<readonly Cpu[]> {
    const { lastRegisters } = this.#client;
    return this.#cpus([...lastRegisters.keys()], [...lastRegisters.values()]);
  }

  async #cpus(vcpus: readonly string[], all: readonly GuestRegisters[]): Promise<readonly Cpu[]> {
    const offsets = await this.#perCpuOffsets();
    const cpus: Cpu[] = [];
    for (const [index, vcpu] of vcpus.entries()) {
      const registers = all[index] as GuestRegisters;
      // The kernel's GS base is in force in the kernel, and put away in user mode (swapgs).
      const bases = [registers.address('gs_base'), registers.address('k_gs_base')];
      const number = offsets.findIndex((offset) => bases.includes(offset));
      // Without one it has not been started, or is between entry and swapgs.
      if (number < 0) {
        throw new LivegraftError('guest-inconsistent', `vCPU ${vcpu} has no per-CPU area now`, {
          remedy: 'it is starting or on its way into the kernel: repeat the command',
        });
      }
      const perCpuOffset = offsets[number] as number;
      cpus.push({
        vcpu,
        number,
        registers,
        perCpuOffset,
        current: await this.#current(perCpuOffset),
        isInUserMode: (registers.get('cs') & 3n) === 3n,
      });
    }
    return cpus;
  }

  /** The CPUs that are online, as far as memory tells: also of a guest that runs. */
  async onlineCpus(): Promise<readonly Pick<Cpu, 'perCpuOffset'>[]> {
    const mask = this.#kernel.find('__cpu_online_mask');
    const online: Pick<Cpu, 'perCpuOffset'>[] = [];
    for (const [number, perCpuOffset] of (await this.#perCpuOffsets()).entries()) {
      const place = { offset: Math.floor(number / 8), sizeBytes: 1 };
      // Without a mask there is one CPU (no SMP).
      const bits = mask === undefined ? 1 : await this.#read.number(mask, place);
      if ((bits >> (number % 8)) % 2 === 1) online.push({ perCpuOffset });
    }
    return online;
  }

  /** Addresses of the CPUs' idle tasks. */
  async idleTasks(cpus: readonly Pick<Cpu, 'perCpuOffset'>[]): Promise<ReadonlySet<number>> {
    const idle = new Set<number>();
    for (const cpu of cpus) {
      const runQueue = this.perCpu(this.#kernel.expect('runqueues'), cpu.perCpuOffset);
      idle.add(await this.#read.address(runQueue, this.#place.idle));
    }
    return idle;
  }

  /** Every task, in one stop: processes with their threads, kernel threads, the idle task of each CPU. */
  async tasks(cpus: readonly Cpu[]): Promise<readonly KernelTask[]> {
    const place = this.#place;
    const initTask = this.#kernel.expect('init_task');
    const leaders = await this.#read.list(initTask + place.tasks.offset, place.tasks, MAX_TASKS);
    const addresses: number[] = [];
    for (const leader of leaders) {
      const signal = await this.#read.address(leader, place.signal);
      const threads = await this.#read.list(signal + place.threadHead.offset, place.threadNode, MAX_TASKS);
      addresses.push(...threads);
    }
    const idle = await this.idleTasks(cpus);
    const tasks: KernelTask[] = [];
    for (const address of [...idle, ...addresses]) {
      const task = await this.task(address, idle.has(address));
      // A dead task whose stack was given back is listed for a while, and never runs again.
      if (task.stack !== 0) tasks.push(task);
    }
    return tasks;
  }

  async task(address: number, isIdle: boolean): Promise<KernelTask> {
    const { comm, pid, tgid, flags, state, exitState, stack, savedStackPointer, onCpu } = this.#place;
    const record = await this.#read.record(address, {
      ...{ comm, pid, tgid, flags, state, exitState, stack, savedStackPointer },
      // Without it (no SMP) the one that runs is `current`.
      onCpu: onCpu ?? { ...flags, sizeBytes: 0 },
    });
    const states = numberOf(record.state) | numberOf(record.exitState);
    const lowest = Math.log2(states & -states);
    return {
      address,
      name: textOf(record.comm),
      pid: numberOf(record.pid),
      tgid: numberOf(record.tgid),
      isKthread: (numberOf(record.flags) & PF_KTHREAD) !== 0,
      isIdle,
      state: states === 0 ? 'R' : (states & 0x402) === 0x402 ? 'I' : (STATE_LETTERS[lowest] ?? '?'),
      isOnCpu: numberOf(record.onCpu) !== 0,
      stack: addressOf(record.stack),
      savedStackPointer: addressOf(record.savedStackPointer),
    };
  }

  /**
   * The same task as it is now; undefined when it has ended. Its memory may be another task's by then: it is the same
   * when it has the pid and is on the list of threads, whose link is poisoned when a task leaves it.
   */
  async findAgain(known: Pick<KernelTask, 'address' | 'pid' | 'isIdle'>): Promise<KernelTask | undefined> {
    const { threadNode, pid } = this.#place;
    if (known.isIdle) return this.task(known.address, true);
    const node = known.address + threadNode.offset;
    if ((await this.#read.number(known.address, pid)) !== known.pid) return undefined;
    try {
      const next = await this.#read.address(node, { offset: 0 });
      if (next >= 0 || (await this.#read.address(next, { offset: 8 })) !== node) return undefined;
    } catch (error) {
      if (isMemoryError(error)) return undefined;
      throw error;
    }
    const task = await this.task(known.address, false);
    return task.stack === 0 ? undefined : task;
  }

  /**
   * Where livegraft keeps what a task has switched to: padding of the task_struct or, without any, the field of the kernel's own
   * livepatching, which that warns of when it finds values that are not its own. A new task gets either from its parent,
   * since `arch_dup_task_struct` copies the whole structure as bytes.
   */
  get stateField(): FieldPlace {
    if (this.#stateField !== undefined) return this.#stateField;
    throw new LivegraftError(
      'kernel-unsupported',
      'tasks of this kernel have neither padding nor patch_state for what they have switched to',
      { remedy: 'livegraft can show the stacks of this kernel, but not patch it' },
    );
  }

  /** For a transition that another run began. */
  useStateField(record: { readonly stateOffset?: number | undefined }): void {
    this.#stateField = findStateField(this.#layout, record);
  }

  async setPatchState(task: KernelTask, value: number): Promise<void> {
    // The word before goes with it: a sum that is no multiple of 8 might not be exact.
    const place = this.stateField.offset;
    const offset = Math.floor(place / 8) * 8;
    const bytes = (await this.#memory.read(task.address + offset, 8)).slice();
    new DataView(bytes.buffer).setInt32(place - offset, value, true);
    await this.#memory.write(task.address + offset, bytes);
  }

  /** The address of a per-CPU variable in one CPU's area. */
  perCpu(variable: number, perCpuOffset: number): number {
    return variable + perCpuOffset;
  }

  /** The per-CPU variable that holds `current`. */
  get currentVariable(): number {
    // 6.2 to 6.14 keep it in pcpu_hot (e57ef2ed97c1).
    const { currentInHot } = this.#place;
    const hot = currentInHot === undefined ? undefined : this.#kernel.find('pcpu_hot');
    return hot === undefined || currentInHot === undefined
      ? this.#kernel.expect('current_task')
      : hot + currentInHot.offset;
  }

  async #current(perCpuOffset: number): Promise<number> {
    return this.#read.address(this.perCpu(this.currentVariable, perCpuOffset), { offset: 0 });
  }

  /** `__per_cpu_offset`, as far as CPUs are possible: those that are not are all set to the load address of the area. */
  async #perCpuOffsets(): Promise<readonly number[]> {
    const ids = this.#kernel.expect('nr_cpu_ids');
    const count = await this.#read.number(ids, { offset: 0, sizeBytes: 4 });
    if (count < 1 || count > MAX_CPUS)
      throw new LivegraftError('guest-inconsistent', `the guest has ${count} CPUs; is it still booting?`);
    const bytes = await this.#memory.read(this.#kernel.expect('__per_cpu_offset'), 8 * count);
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    return Array.from({ length: count }, (_, i) => Number(view.getBigInt64(8 * i, true)));
  }
}

/**
 * The word of the task_struct for a new transition or, given its record, for one that another run began. A record without a
 * place was made when `patch_state` came first.
 */
export function findStateField(
  layout: Pick<KernelLayout, 'find' | 'findPadding'>,
  record?: { readonly stateOffset?: number | undefined },
): FieldPlace | undefined {
  const padding = () => layout.findPadding('task_struct', STATE_BYTES);
  const patchState = () => layout.find('task_struct', 'patch_state');
  if (record === undefined) return padding() ?? patchState();
  const { stateOffset } = record;
  return stateOffset === undefined
    ? (patchState() ?? padding())
    : { offset: stateOffset, sizeBytes: STATE_BYTES };
}
