import { LivegraftError } from '../../base/errors.js';
import {
  type Direction,
  type StragglerReason,
  type SwitchOutcome,
  type TargetEvent,
  type TaskId,
  type TaskInfo,
  type TransitionTarget,
  taskId,
} from '../../engine/target.js';
import { findFrameIn } from '../../unwind/walk-reliable.js';
import { guestEnded } from './guest-calls.js';
import type { KernelRegistry, RegisteredKernelPatch } from './kernel-registry.js';
import type { KernelSession } from './kernel-session.js';
import type { Cpu, KernelTask } from './kernel-tasks.js';
import { encodeJump, encodeTaskTest } from './kernel-trampoline.js';

type State = 'unpatched' | 'patched';

/** A stop of the guest is kept for the next request as long as it has lasted no longer than this. */
const SLICE_MS = 2;
/** How long to let the guest run when it was stopped where its CPUs can't be told apart. */
const SETTLE_MS = 1;
const MAX_SETTLES = 200;
/** `KLP_UNDEFINED`: what `patch_state` is when no transition runs. */
const NOT_SWITCHED = -1;

/** How long the guest stood still, stop by stop. */
export interface SliceStatistics {
  readonly slices: number;
  readonly longestMs: number;
  readonly totalMs: number;
}

/**
 * A transition in a running kernel. A task has switched when its `patch_state` is the value of this transition; the field
 * is copied to new tasks with the rest of the task_struct, which is rule 2. Every value is used once, so that what an
 * earlier transition left means "not switched". The guest runs in between; a task is checked and switched in one stop.
 */
export class KernelTransition implements TransitionTarget {
  readonly name: string;
  readonly #session: KernelSession;
  readonly #patch: RegisteredKernelPatch;
  readonly #transition: NonNullable<KernelRegistry['transition']>;
  readonly #saveDirection: (direction: Direction) => Promise<void>;
  readonly #known = new Map<TaskId, KernelTask>();
  /** Of tasks that were found busy: where the outermost function that leaves returns to. */
  readonly #returnsTo = new Map<TaskId, number>();
  readonly #watched = new Map<TaskId, number>();
  #direction: Direction;
  #cpus: readonly Cpu[] | undefined;
  #sliceStart: number;
  #slices = 0;
  #longestMs = 0;
  #totalMs = 0;

  /**
   * `saveDirection` records a reversal in the guest. The transition is in the registry already: what a killed livegraft
   * leaves is then known to be unfinished.
   */
  constructor(
    session: KernelSession,
    patch: RegisteredKernelPatch,
    transition: NonNullable<KernelRegistry['transition']>,
    saveDirection: (direction: Direction) => Promise<void>,
  ) {
    this.name = `kernel ${session.kernel.image.release}`;
    this.#session = session;
    this.#patch = patch;
    this.#transition = transition;
    this.#saveDirection = saveDirection;
    this.#direction = transition.direction;
    this.#sliceStart = performance.now();
  }

  get statistics(): SliceStatistics {
    return { slices: this.#slices, longestMs: this.#longestMs, totalMs: this.#totalMs };
  }

  /**
   * Trampolines first, then the entries, one packet each. Killed in between, some entries choose and others lead where
   * they led: the same place, since no task has switched.
   */
  async install(): Promise<void> {
    const { memory } = this.#session;
    const { begunAs, switchedValue } = this.#transition;
    await this.#enter();
    for (const fn of this.#patch.functions) {
      const behindEntry = fn.site + fn.original.length;
      const newEntry = entryOf(fn.new);
      const [switched, other] = begunAs === 'patch' ? [newEntry, behindEntry] : [behindEntry, newEntry];
      const code = encodeTaskTest({
        at: fn.trampoline,
        ...this.#session.currentTask,
        value: switchedValue,
        switched,
        other,
      });
      await memory.writeCode(fn.trampoline, code);
    }
    for (const fn of this.#patch.functions)
      await memory.writeCode(fn.site, encodeJump(fn.site, fn.trampoline));
    this.#leave();
  }

  async tasks(): Promise<readonly TaskInfo[]> {
    for (let attempt = 0; ; attempt++) {
      try {
        const cpus = await this.#enter();
        const tasks = await this.#session.tasks.tasks(cpus);
        this.#known.clear();
        const infos: TaskInfo[] = [];
        for (const task of tasks) {
          const id = idOf(task);
          this.#known.set(id, task);
          infos.push({ id, name: task.name, state: await this.#stateOf(task) });
        }
        this.#leave();
        return infos;
      } catch (error) {
        if (!isInconsistent(error) || attempt >= MAX_SETTLES) throw error;
        await this.#run(SETTLE_MS);
      }
    }
  }

  async trySwitch(id: TaskId, to: State, check: 'checked' | 'unchecked'): Promise<SwitchOutcome> {
    const known = this.#known.get(id);
    if (known === undefined) return { kind: 'gone' };
    try {
      const cpus = await this.#enter();
      const task = await this.#session.tasks.findAgain(known);
      if (task === undefined) return { kind: 'gone' };
      const reason = check === 'checked' ? await this.#refusal(task, cpus) : undefined;
      if (reason !== undefined) return { kind: 'refused', reason };
      await this.#setState(task, to);
      this.#watched.delete(id);
      return { kind: 'switched' };
    } catch (error) {
      if (!isInconsistent(error)) throw error;
      return { kind: 'refused', reason: { kind: 'unstoppable', detail: (error as LivegraftError).message } };
    } finally {
      if (performance.now() - this.#sliceStart > SLICE_MS) this.#leave();
    }
  }

  async trySwitchAll(
    to: State,
    check: 'checked' | 'unchecked',
  ): Promise<{ switched: true } | { switched: false; refusals: ReadonlyMap<TaskId, StragglerReason> }> {
    const refusals = new Map<TaskId, StragglerReason>();
    try {
      const cpus = await this.#enter();
      const tasks = await this.#session.tasks.tasks(cpus);
      for (const task of check === 'checked' ? tasks : []) {
        const reason = await this.#refusal(task, cpus);
        if (reason !== undefined) refusals.set(idOf(task), reason);
      }
      if (refusals.size > 0) return { switched: false, refusals };
      for (const task of tasks) await this.#setState(task, to);
      return { switched: true };
    } catch (error) {
      if (!isInconsistent(error)) throw error;
      return { switched: false, refusals };
    } finally {
      this.#leave();
    }
  }

  /**
   * A busy task is awaited where the function that it is in returns to: a task that goes round in a loop through it would
   * not be met outside by chance.
   */
  watchTask(task: TaskId): boolean {
    const address = this.#returnsTo.get(task);
    if (address === undefined) return false;
    this.#watched.set(task, address);
    return true;
  }

  async waitForEvents(timeoutMs: number): Promise<readonly TargetEvent[]> {
    if (timeoutMs <= 0) return [];
    const stoppedAt = await this.#run(timeoutMs, new Set(this.#watched.values()));
    if (stoppedAt === undefined) return [];
    const cpus = await this.#enter();
    const events: TargetEvent[] = [];
    for (const cpu of cpus) {
      const id = [...this.#known].find(([, task]) => task.address === cpu.current)?.[0];
      if (id === undefined || this.#watched.get(id) !== cpu.registers.address('rip')) continue;
      this.#watched.delete(id);
      events.push({ kind: 'taskMoved', task: id });
    }
    return events;
  }

  async reverse(direction: Direction): Promise<void> {
    await this.#enter();
    await this.#saveDirection(direction);
    this.#direction = direction;
    this.#watched.clear();
  }

  /** Killed in between, some entries choose, and all tasks choose alike. */
  async finish(direction: Direction): Promise<void> {
    const { memory } = this.#session;
    await this.#enter();
    for (const fn of this.#patch.functions) {
      const bytes =
        direction === 'patch' ? encodeJump(fn.site, entryOf(fn.new)) : Uint8Array.from(fn.original);
      await memory.writeCode(fn.site, bytes);
    }
    this.#countSlice();
  }

  async #refusal(task: KernelTask, cpus: readonly Cpu[]): Promise<StragglerReason | undefined> {
    const { stacks } = this.#session;
    const walk = await stacks.walk(task, cpus);
    const frames = stacks.reportFrames(walk.frames);
    if (!walk.reliable)
      return { kind: 'unreliable', cause: walk.reason.code, detail: walk.reason.detail, frames };
    const leaving = this.#patch.functions.flatMap((fn) => (this.#direction === 'patch' ? fn.old : fn.new));
    const index = findFrameIn(walk.frames, leaving);
    const frame = walk.frames[index];
    this.#returnsTo.delete(idOf(task));
    if (frame === undefined) return undefined;
    const outermost = walk.frames.findLastIndex((each) => findFrameIn([each], leaving) === 0);
    const caller = walk.frames[outermost + 1];
    if (caller?.by === 'call') this.#returnsTo.set(idOf(task), caller.pc);
    const range = leaving.find((r) => frame.lookup >= r.address && frame.lookup < r.address + r.sizeBytes);
    return { kind: 'busy', function: range?.name ?? frame.module.name, frame: index, frames };
  }

  async #stateOf(task: KernelTask): Promise<State> {
    const value = await this.#session.tasks.patchState(task);
    const hasSwitched = value === this.#transition.switchedValue;
    return hasSwitched === (this.#transition.begunAs === 'patch') ? 'patched' : 'unpatched';
  }

  async #setState(task: KernelTask, to: State): Promise<void> {
    const isSwitched = (to === 'patched') === (this.#transition.begunAs === 'patch');
    const value = isSwitched ? this.#transition.switchedValue : NOT_SWITCHED;
    await this.#session.tasks.setPatchState(task, value);
  }

  /** Stops the guest, if it runs, and says what its CPUs do. */
  async #enter(): Promise<readonly Cpu[]> {
    const { client, tasks } = this.#session;
    if (client.isRunning) {
      const stop = await client.interrupt();
      if (stop.kind === 'exited') throw guestEnded(stop.detail);
      this.#noteStopped();
    }
    this.#cpus ??= await tasks.cpus();
    return this.#cpus;
  }

  #leave(): void {
    if (this.#session.client.isRunning) return;
    this.#countSlice();
    this.#session.client.resume();
  }

  #countSlice(): void {
    const ms = performance.now() - this.#sliceStart;
    this.#slices++;
    this.#longestMs = Math.max(this.#longestMs, ms);
    this.#totalMs += ms;
    this.#cpus = undefined;
    this.#session.memory.forget();
  }

  /**
   * Lets the guest run, with breakpoints that are there only meanwhile, and that the stub keeps out of the guest's memory.
   * Returns where it stopped at one.
   */
  async #run(ms: number, breakpoints: ReadonlySet<number> = new Set()): Promise<number | undefined> {
    const { client } = this.#session;
    if (client.isRunning && breakpoints.size > 0) await this.#enter();
    await this.#stepOver(breakpoints);
    for (const address of breakpoints) await client.insertBreakpoint(address, 'software');
    this.#leave();
    const stop = await client.waitForStop(ms);
    if (stop?.kind === 'exited') throw guestEnded(stop.detail);
    if (stop !== undefined) this.#noteStopped();
    if (breakpoints.size > 0) {
      if (client.isRunning) await this.#enter();
      for (const address of breakpoints) await client.removeBreakpoint(address, 'software');
    }
    if (stop === undefined) return undefined;
    return (await client.readRegisters(stop.vcpu)).address('rip');
  }

  /** A CPU that stands at a breakpoint would stop there again at once. */
  async #stepOver(breakpoints: ReadonlySet<number>): Promise<void> {
    if (breakpoints.size === 0) return;
    const { client } = this.#session;
    for (const { vcpu, registers } of await this.#enter()) {
      if (!breakpoints.has(registers.address('rip'))) continue;
      const stop = await client.step(vcpu);
      if (stop.kind === 'exited') throw guestEnded(stop.detail);
      this.#cpus = undefined;
      this.#session.memory.forget();
    }
  }

  #noteStopped(): void {
    this.#sliceStart = performance.now();
    this.#cpus = undefined;
    this.#session.memory.forget();
  }
}

function entryOf(ranges: RegisteredKernelPatch['functions'][number]['new']): number {
  const [first] = ranges;
  if (first === undefined) throw new Error('a registered function has no new version');
  return first.address;
}

/** Idle tasks all have pid 0. */
function idOf(task: KernelTask): TaskId {
  return taskId(task.isIdle ? task.name : `${task.pid}`);
}

function isInconsistent(error: unknown): boolean {
  return error instanceof LivegraftError && error.code === 'guest-inconsistent';
}
