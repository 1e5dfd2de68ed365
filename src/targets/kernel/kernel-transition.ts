import type { Architecture } from '../../arch/architecture.js';
import { LivegraftError } from '../../base/errors.js';
import type { AwaitableCallbackObject } from '../../engine/callbacks.js';
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
import { collectGarbage } from '../process/own-runtime.js';
import type { Evidence } from './evidence.js';
import { guestEnded } from './guest-calls.js';
import type { GuestWatch } from './guest-watch.js';
import { armBarrier, disarmBarrier } from './kernel-barrier.js';
import { type EntryContent, KernelEntries } from './kernel-entries.js';
import { displaceEntry } from './kernel-entry-site.js';
import type {
  KernelRange,
  KernelRegistry,
  RegisteredKernelFunction,
  RegisteredKernelPatch,
} from './kernel-registry.js';
import type { KernelSession } from './kernel-session.js';
import type { Cpu, KernelTask } from './kernel-tasks.js';
import { copyBehind, encodeJump, encodeTaskTest, JUMP_BYTES } from './kernel-trampoline.js';
import type { PatchVersions } from './kernel-versions.js';
import type { ScannedTask } from './task-scan.js';

type State = 'unpatched' | 'patched';

/** How often to let the guest run when it was stopped where its CPUs can't be told apart. */
const MAX_SETTLES = 200;
/** How many tasks are walked before those that are ready are switched. */
const BATCH_TASKS = 64;
/** `KLP_UNDEFINED`: what `patch_state` is when no transition runs. */
const NOT_SWITCHED = -1;
/** A list of 2000 tasks is a second's work without shared memory. */
const BARRIER_LOOK_MS = 200;

/** What a transition needs of whoever keeps the patches. */
interface TransitionHost {
  /** Records a reversal in the guest. */
  saveDirection(direction: Direction): Promise<void>;
  callbackObjects(): Promise<readonly AwaitableCallbackObject[]>;
}

/** A task that has not switched, for a report. */
interface ExplainedTask {
  readonly task: TaskInfo;
  /** A kernel thread or an idle task never comes to the kernel's edge. True where that can't be told. */
  readonly hasUserMode: boolean;
  readonly reason: StragglerReason | undefined;
}

/**
 * A transition in a running kernel. A task has switched when its `patch_state` is the value of this transition; the field
 * is copied to new tasks with the rest of the task_struct, which is rule 2. Every value is used once, so that what an
 * earlier transition left means "not switched". The guest runs in between; a task is checked and switched in one stop.
 * A task that is creating another one must not switch: its child has a copy of its state already, and is in no list yet.
 */
export class KernelTransition implements TransitionTarget {
  readonly name: string;
  readonly #session: KernelSession;
  readonly #watch: GuestWatch;
  readonly #entries: KernelEntries;
  readonly #patch: RegisteredKernelPatch;
  readonly #versions: PatchVersions;
  readonly #transition: NonNullable<KernelRegistry['transition']>;
  readonly #usesBarrier: boolean;
  readonly #host: TransitionHost;
  #barrierSeenAtMs = 0;
  #known: ReadonlyMap<TaskId, ScannedTask> = new Map();
  /** Those that {@link #switchAhead} has not looked at since they were listed. */
  #unseen: TaskId[] = [];
  /** Those that it has switched, and that were not asked for yet. */
  readonly #switchedAhead = new Set<TaskId>();
  readonly #forking: readonly KernelRange[];
  /** Of tasks that were found busy: where the outermost function that leaves returns to. */
  readonly #returnsTo = new Map<TaskId, number>();
  readonly #watched = new Map<TaskId, number>();
  /** Of modules that are not loaded any more, or were loaded again. */
  readonly #gone = new Set<RegisteredKernelFunction>();
  #direction: Direction;
  #cpus: readonly Cpu[] | undefined;
  /** The stop in which the CPUs were looked at. */
  #cpusAt = -1;

  /**
   * The transition is in the registry already: what a killed livegraft leaves is then known to be unfinished.
   */
  constructor(
    session: KernelSession,
    watch: GuestWatch,
    versions: PatchVersions,
    transition: NonNullable<KernelRegistry['transition']>,
    usesBarrier: boolean,
    host: TransitionHost,
  ) {
    this.name = `kernel ${session.kernel.image.release}`;
    this.#session = session;
    this.#watch = watch;
    this.#entries = new KernelEntries(session);
    this.#patch = versions.patch;
    this.#versions = versions;
    this.#transition = transition;
    this.#usesBarrier = usesBarrier;
    this.#host = host;
    this.#direction = transition.direction;
    this.#forking = findForking(session);
  }

  callbackObjects(): Promise<readonly AwaitableCallbackObject[]> {
    return this.#host.callbackObjects();
  }

  /**
   * Trampolines first, then the entries, one packet each; the guest may run in between. Some entries choose then, and others
   * lead where they led: the same place, since no task has switched.
   */
  async install(): Promise<void> {
    const { begunAs } = this.#transition;
    await this.#session.rehearse();
    this.#session.client.phase = 'install';
    for (const fn of this.#patch.functions) {
      const code = encodeChooser(this.#session, this.#versions, this.#transition, fn);
      if (fn.isDisplaced)
        await this.#writeCode(copyBehind(fn.trampoline), expectCopy(this.#session.arch, fn));
      await this.#writeCode(fn.trampoline, code);
    }
    const before: readonly EntryContent[] = begunAs === 'patch' ? ['original', 'redirected'] : ['redirected'];
    for (const fn of this.#patch.functions)
      await this.#writeEntry(fn, encodeJump(fn.site, fn.trampoline), before);
    // Only now do all functions follow the state that the barrier gives.
    await this.#aimBarrier();
    this.#session.resume();
  }

  get barrier(): string | undefined {
    return this.#usesBarrier ? this.#patch.barrier?.name : undefined;
  }

  /** One that another run has put there is taken away where all switch together. */
  async #aimBarrier(): Promise<void> {
    const { barrier } = this.#patch;
    if (barrier === undefined) return;
    const write = (address: number, code: Uint8Array) => this.#writeCode(address, code);
    if (!this.#usesBarrier) return disarmBarrier(barrier, write);
    await armBarrier(this.#session, barrier, this.#stateWord(this.#wanted), write);
  }

  get #wanted(): State {
    return this.#direction === 'patch' ? 'patched' : 'unpatched';
  }

  /**
   * Changes an entry. Where the module was unloaded that it was in, its memory is somebody else's; where it was loaded again, its
   * entry was never redirected. Both are left alone: `expected` says what may be there.
   */
  async #writeEntry(
    fn: RegisteredKernelFunction,
    code: Uint8Array,
    expected: readonly EntryContent[],
  ): Promise<void> {
    for (let attempt = 0; ; attempt++) {
      try {
        await this.#watch.expectAlive();
        const isModules = this.#patch.modules.some(({ name }) => name === fn.object);
        if (fn.isDisplaced && !(await this.#isClear(fn))) throw entryBusy(fn);
        if (isModules && !expected.includes(await this.#entries.content(this.#versions, fn)))
          this.#gone.add(fn);
        else await this.#session.memory.writeCode(fn.site, code);
        return this.#session.breathe();
      } catch (error) {
        if (!(isInconsistent(error) || isBusy(error)) || attempt >= MAX_SETTLES) throw error;
        this.#session.resume();
      }
    }
  }

  /**
   * Whether no task would go on in the middle of the jump that is written over several instructions: all stacks are looked at, in
   * the stop in which it is written. Where a jump lies already there is no middle.
   */
  async #isClear(fn: RegisteredKernelFunction): Promise<boolean> {
    if ((await this.#entries.content(this.#versions, fn)) === 'redirected') return true;
    const { stacks, tasks } = this.#session;
    const cpus = await this.#enter();
    for (const task of await tasks.tasks(cpus)) {
      const walk = await stacks.walk(task, cpus);
      if (!walk.reliable || walk.frames.some(({ pc }) => pc > fn.site && pc < fn.site + JUMP_BYTES))
        return false;
    }
    return true;
  }

  async #writeCode(address: number, code: Uint8Array): Promise<void> {
    await this.#watch.expectAlive();
    await this.#session.memory.writeCode(address, code);
    this.#session.breathe();
  }

  async tasks(): Promise<readonly TaskInfo[]> {
    const { client, memory, tasks, scan } = this.#session;
    await this.#watch.expectAlive();
    client.phase = 'list tasks';
    for (let attempt = 0; ; attempt++) {
      try {
        if (this.#session.canLook) memory.forget();
        else await this.#session.stop();
        const idle = await tasks.idleTasks(await tasks.onlineCpus());
        this.#session.endStep();
        const known = new Map<TaskId, ScannedTask>();
        for await (const task of scan.tasks(idle)) known.set(idOf(task), task);
        this.#known = known;
        this.#switchedAhead.clear();
        this.#unseen = [...known]
          .filter(([, { stateWord }]) => this.#stateOf(stateWord) !== this.#wanted)
          .map(([id]) => id);
        return Array.from(known, ([id, { name, stateWord }]) => ({
          id,
          name,
          state: this.#stateOf(stateWord),
        }));
      } catch (error) {
        if (!isInconsistent(error) || attempt >= MAX_SETTLES) throw error;
        this.#session.resume();
      }
    }
  }

  /** What holds each task that has not switched, for a report: nothing is changed. */
  async explain(): Promise<readonly ExplainedTask[]> {
    const reports: ExplainedTask[] = [];
    for (const info of await this.tasks()) {
      if (info.state === this.#wanted) continue;
      const known = this.#known.get(info.id);
      await this.#session.stop();
      try {
        const task = known && (await this.#session.tasks.findAgain(known));
        if (task === undefined) continue;
        reports.push({
          task: info,
          hasUserMode: !task.isKthread && !task.isIdle,
          reason: await this.#refusal(task, task.isOnCpu ? await this.#enter() : []),
        });
      } catch (error) {
        if (!isInconsistent(error)) throw error;
        reports.push({
          task: info,
          hasUserMode: true,
          reason: { kind: 'unstoppable', detail: (error as LivegraftError).message },
        });
      } finally {
        this.#session.breathe();
      }
    }
    return reports;
  }

  async trySwitch(id: TaskId, to: State, check: 'checked' | 'unchecked'): Promise<SwitchOutcome> {
    const known = this.#known.get(id);
    if (known === undefined) return { kind: 'gone' };
    if (check === 'checked' && to === this.#wanted && this.#session.canLook) {
      if (this.#unseen.length > 0 && !this.#switchedAhead.has(id)) await this.#switchAhead();
      if (this.#switchedAhead.delete(id)) return { kind: 'switched' };
    }
    this.#session.client.phase = 'switch one task';
    try {
      await this.#session.stop();
      const task = await this.#session.tasks.findAgain(known);
      if (task === undefined) return { kind: 'gone' };
      const reason =
        check === 'checked' ? await this.#refusal(task, task.isOnCpu ? await this.#enter() : []) : undefined;
      if (reason !== undefined) return { kind: 'refused', reason };
      await this.#setState(task, to);
      this.#watched.delete(id);
      return { kind: 'switched' };
    } catch (error) {
      if (!isInconsistent(error)) throw error;
      return { kind: 'refused', reason: { kind: 'unstoppable', detail: (error as LivegraftError).message } };
    } finally {
      this.#session.endStep();
    }
  }

  /**
   * Switches some of the tasks that have not been tried, for {@link trySwitch} to tell of later. They are walked while
   * the guest runs; a short stop is for those whose walk is still true then. Others are left to a walk in a stop of its own.
   */
  async #switchAhead(): Promise<void> {
    const session = this.#session;
    session.client.phase = 'switch tasks';
    session.resume();
    const ready: { readonly id: TaskId; readonly task: KernelTask; readonly evidence: Evidence }[] = [];
    for (const id of this.#unseen.splice(0, BATCH_TASKS)) {
      const known = this.#known.get(id);
      const seen =
        known &&
        (await session.look(async () => {
          const task = await session.tasks.findAgain(known);
          if (task === undefined || task.isOnCpu) return undefined;
          return (await this.#refusal(task, [])) === undefined ? task : undefined;
        }));
      if (seen?.found !== undefined) ready.push({ id, task: seen.found, evidence: seen.evidence });
    }
    // Code that has run before is faster.
    for (const { evidence } of ready) evidence.holds();
    collectGarbage();
    // What another instance of the kernel has at these places is none of these tasks.
    await this.#watch.expectAlive();
    for (const { id, task, evidence } of ready) {
      await session.stop();
      if (evidence.holds()) {
        await this.#setState(task, this.#wanted);
        this.#watched.delete(id);
        this.#switchedAhead.add(id);
      }
      session.breathe();
    }
    session.resume();
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
      this.#session.resume();
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
    this.#session.client.phase = 'wait';
    const hasStopped = await this.#run(timeoutMs, new Set(this.#watched.values()));
    // A kernel that has panicked looks like one whose tasks never move.
    await this.#watch.expectAlive();
    if (!hasStopped) this.#session.breathe();
    const events = await this.#selfSwitched();
    if (!hasStopped) return events;
    const cpus = await this.#enter();
    for (const cpu of cpus) {
      const id = [...this.#known].find(([, task]) => task.address === cpu.current)?.[0];
      if (id === undefined || this.#watched.get(id) !== cpu.registers.address('rip')) continue;
      this.#watched.delete(id);
      events.push({ kind: 'taskMoved', task: id });
    }
    return events;
  }

  /** Tasks that have switched themselves, and those that have ended, since the last list: asked for now and then. */
  async #selfSwitched(): Promise<TargetEvent[]> {
    if (this.barrier === undefined || performance.now() - this.#barrierSeenAtMs < BARRIER_LOOK_MS) return [];
    const known = this.#known;
    const infos = await this.tasks();
    this.#barrierSeenAtMs = performance.now();
    const events: TargetEvent[] = [];
    for (const { id, state } of infos)
      if (state === this.#wanted && known.has(id)) events.push({ kind: 'taskSwitched', task: id });
    for (const id of known.keys()) if (!this.#known.has(id)) events.push({ kind: 'taskExited', task: id });
    return events;
  }

  async reverse(direction: Direction): Promise<void> {
    await this.#host.saveDirection(direction);
    this.#direction = direction;
    await this.#aimBarrier();
    this.#watched.clear();
    this.#unseen = [];
    this.#switchedAhead.clear();
  }

  /** The guest may run in between: some entries choose then, and all tasks choose alike. */
  async finish(direction: Direction): Promise<void> {
    this.#session.client.phase = 'finish';
    const { barrier } = this.#patch;
    // Tasks set their state only while the entries choose by it.
    if (barrier !== undefined)
      await disarmBarrier(barrier, (address, code) => this.#writeCode(address, code));
    for (const fn of this.#patch.functions)
      await this.#writeEntry(fn, this.#versions.finalBytes(fn, direction), ['redirected']);
  }

  async #refusal(task: KernelTask, cpus: readonly Cpu[]): Promise<StragglerReason | undefined> {
    const { stacks } = this.#session;
    const walk = await stacks.walk(task, cpus);
    const report = () => stacks.reportFrames(walk.frames);
    if (!walk.reliable) {
      const { code, detail } = walk.reason;
      return { kind: 'unreliable', cause: code, detail, frames: report() };
    }
    const leaving = this.#versions.leaving(this.#direction, (fn) => this.#gone.has(fn));
    const forks = findFrameIn(walk.frames, this.#forking);
    if (forks >= 0) return { kind: 'busy', function: 'copy_process', frame: forks, frames: report() };
    const index = findFrameIn(walk.frames, leaving);
    const frame = walk.frames[index];
    this.#returnsTo.delete(idOf(task));
    if (frame === undefined) return undefined;
    const outermost = walk.frames.findLastIndex((each) => findFrameIn([each], leaving) === 0);
    const caller = walk.frames[outermost + 1];
    if (caller?.by === 'call') this.#returnsTo.set(idOf(task), caller.pc);
    const range = leaving.find((r) => frame.lookup >= r.address && frame.lookup < r.address + r.sizeBytes);
    return { kind: 'busy', function: range?.name ?? frame.module.name, frame: index, frames: report() };
  }

  #stateOf(word: number): State {
    const hasSwitched = word === this.#transition.switchedValue;
    return hasSwitched === (this.#transition.begunAs === 'patch') ? 'patched' : 'unpatched';
  }

  async #setState(task: KernelTask, to: State): Promise<void> {
    await this.#session.tasks.setPatchState(task, this.#stateWord(to));
  }

  #stateWord(state: State): number {
    const isSwitched = (state === 'patched') === (this.#transition.begunAs === 'patch');
    return isSwitched ? this.#transition.switchedValue : NOT_SWITCHED;
  }

  /** Stops the guest, if it runs, and says what its CPUs do. */
  async #enter(): Promise<readonly Cpu[]> {
    const { client, tasks } = this.#session;
    await this.#session.stop();
    const { stops } = client.statistics;
    if (this.#cpus === undefined || this.#cpusAt !== stops) {
      this.#cpus = undefined;
      this.#cpus = await tasks.cpus();
      this.#cpusAt = stops;
    }
    return this.#cpus;
  }

  /**
   * Lets the guest run, with breakpoints that are there only meanwhile, and that the stub keeps out of the guest's memory.
   * Says whether it stopped at one.
   */
  async #run(ms: number, breakpoints: ReadonlySet<number>): Promise<boolean> {
    const { client } = this.#session;
    if (breakpoints.size > 0) {
      await this.#stepOver(breakpoints);
      await client.insertBreakpoints(breakpoints);
    }
    this.#session.resume();
    const stop = await client.waitForStop(ms);
    if (stop?.kind === 'exited') throw guestEnded(stop.detail);
    if (breakpoints.size > 0) {
      await this.#session.stop();
      await client.removeBreakpoints(breakpoints);
    }
    return stop !== undefined;
  }

  /** A CPU that stands at a breakpoint would stop there again at once. */
  async #stepOver(breakpoints: ReadonlySet<number>): Promise<void> {
    const { client } = this.#session;
    for (const { vcpu, registers } of await this.#enter()) {
      if (!breakpoints.has(registers.address('rip'))) continue;
      const stop = await client.step(vcpu);
      if (stop.kind === 'exited') throw guestEnded(stop.detail);
      this.#cpus = undefined;
    }
  }
}

/** The redirect of a function while its transition lasts: a task goes where its state says. */
export function encodeChooser(
  session: Pick<KernelSession, 'currentTask'>,
  versions: PatchVersions,
  { begunAs, switchedValue }: NonNullable<KernelRegistry['transition']>,
  fn: RegisteredKernelFunction,
): Uint8Array {
  const [own, below] = [versions.entryOwn(fn), versions.entryBelow(fn)];
  const [switched, other] = begunAs === 'patch' ? [own, below] : [below, own];
  return encodeTaskTest({
    at: fn.trampoline,
    ...session.currentTask,
    value: switchedValue,
    switched,
    other,
    keepsRegisters: fn.isDisplaced,
  });
}

/** Where a task is created, with the parts that the compiler split off. */
function findForking({ kernel }: KernelSession): readonly KernelRange[] {
  const { symbols } = kernel.image;
  const names = ['', '.cold', '.part.0', '.isra.0', '.constprop.0', '.constprop.0.cold', '.isra.0.cold'];
  const found = names.flatMap((suffix) => symbols.findAll(`copy_process${suffix}`));
  if (found.length === 0) throw new LivegraftError('kernel-unsupported', 'the kernel has no copy_process');
  return found.map(({ name, address, sizeBytes }) => ({
    name,
    address: kernel.relocate(address),
    sizeBytes,
  }));
}

/** Idle tasks all have pid 0. */
function idOf(task: Pick<KernelTask, 'isIdle' | 'name' | 'pid'>): TaskId {
  return taskId(task.isIdle ? task.name : `${task.pid}`);
}

function expectCopy(arch: Architecture, fn: RegisteredKernelFunction): Uint8Array {
  const copy = displaceEntry(arch, fn);
  if (typeof copy === 'string') throw new Error(`${fn.name}: ${copy}`);
  return copy;
}

const ENTRY_BUSY = 'entry-busy';

function entryBusy(fn: RegisteredKernelFunction): LivegraftError {
  return new LivegraftError(
    ENTRY_BUSY,
    `a task may be in the first instructions of ${fn.name}, whose entry has no room of its own for a jump`,
    {
      remedy: 'see livegraft stack --gdb for the stack that is not reliable',
      details: { function: fn.name },
    },
  );
}

function isBusy(error: unknown): boolean {
  return error instanceof LivegraftError && error.code === ENTRY_BUSY;
}

function isInconsistent(error: unknown): boolean {
  return error instanceof LivegraftError && error.code === 'guest-inconsistent';
}
