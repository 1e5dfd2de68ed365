import type { ProcessMemory } from './memory.js';
import { listThreads, PF_IO_WORKER, PF_USER_WORKER, readThreadStat, type ThreadStat } from './proc.js';
import type { RegisteredPatch, RegisteredTransition, Registry } from './registry.js';
import type { RegistryStore } from './registry-store.js';
import type { StackInspector } from './stack-inspector.js';
import { TaskRecord } from './task-record.js';
import { createTaskSlots, type TaskSlots } from './task-slots.js';
import type { Tracee, Tracer } from './tracer.js';

/** One address space that carries the registry: the process itself, or a child that it forked in mid-transition. */
export class ProcessSpace {
  readonly pid: number;
  readonly isFork: boolean;
  readonly memory: ProcessMemory;
  readonly inspector: StackInspector;
  readonly store: RegistryStore;
  readonly slots: TaskSlots;
  readonly tasks = new Map<number, TaskRecord>();
  /** How many tasks were ever added: whoever has seen them all can tell at a glance whether there are new ones. */
  adopted = 0;
  registry: Registry;

  constructor(options: {
    readonly pid: number;
    readonly memory: ProcessMemory;
    readonly inspector: StackInspector;
    /** Shared with whoever else writes the registry of this process: it counts the updates. */
    readonly store: RegistryStore;
    readonly registry: Registry;
    readonly isFork: boolean;
  }) {
    this.pid = options.pid;
    this.memory = options.memory;
    this.inspector = options.inspector;
    this.isFork = options.isFork;
    this.registry = options.registry;
    this.store = options.store;
    this.slots = createTaskSlots(options.memory, options.registry.slots);
  }

  /** The same space in a child that fork has just copied from this one. */
  fork(pid: number, memory: ProcessMemory): ProcessSpace {
    return new ProcessSpace({
      pid,
      memory,
      inspector: this.inspector.forProcess(memory),
      store: this.store.forProcess(memory),
      registry: this.registry,
      isFork: true,
    });
  }

  adopt(tracee: Tracee): TaskRecord {
    const record = new TaskRecord(this, tracee);
    this.tasks.set(tracee.tid, record);
    this.adopted += 1;
    return record;
  }

  /** Whoever handles a failure goes by `registry`: it is what the target holds, so it changes after the target does. */
  updateRegistry(change: Partial<Registry>): void {
    const registry = { ...this.registry, ...change };
    this.store.write(registry);
    this.registry = registry;
  }

  setTransition(transition: RegisteredTransition | undefined): void {
    this.updateRegistry({ transition });
  }

  updatePatch(id: string, change: Partial<RegisteredPatch>): void {
    this.updateRegistry({
      patches: this.registry.patches.map((patch) => (patch.id === id ? { ...patch, ...change } : patch)),
    });
  }
}

/**
 * Seizes every thread of a process that can run user code. New threads appear while this goes on, and those that
 * seized threads create attach by themselves, so it repeats until a pass finds nothing new.
 * Returns the processors that threads were running on.
 */
export function seizeAllThreads(tracer: Tracer, pid: number): ReadonlySet<number> {
  const processors = new Set<number>();
  for (;;) {
    let found = 0;
    for (const tid of listThreads(pid) ?? []) {
      if (tracer.tracees.has(tid)) continue;
      const stat = readThreadStat(pid, tid);
      if (stat === undefined || !canRunUserCode(stat)) continue;
      if (stat.state === 'R') processors.add(stat.processor);
      if (tracer.seize(pid, tid) !== undefined) found++;
    }
    if (found === 0) return processors;
  }
}

/** io_uring workers are listed among the threads, refuse to be traced, and never leave the kernel. */
function canRunUserCode(stat: ThreadStat): boolean {
  if (stat.state === 'Z' || stat.state === 'X') return false;
  return (stat.flags & (PF_IO_WORKER | PF_USER_WORKER)) === 0;
}
