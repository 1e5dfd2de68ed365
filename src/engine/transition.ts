import { LivegraftError } from '../base/errors.js';
import { Backoff, nextDelay, type RetryPolicy } from './backoff.js';
import { type CallbackMoment, passMoment } from './callbacks.js';
import { TransitionControl } from './control.js';
import { DueQueue, type Queued, UNQUEUED } from './due-queue.js';
import type { Straggler, TransitionEvent, TransitionResult } from './events.js';
import {
  type ConsistencyModel,
  type Direction,
  type StragglerReason,
  switchesPerTask,
  type TargetEvent,
  type TaskId,
  type TaskInfo,
  type TransitionTarget,
} from './target.js';

export type { RetryPolicy } from './backoff.js';
export { TransitionControl } from './control.js';

/** Time as the engine sees it: it has none of its own. */
export interface Clock {
  nowMs(): number;
}

const DEFAULT_RETRY: RetryPolicy = { firstMs: 2, factor: 1.6, longestMs: 50 };

/** The engine sleeps no longer at a time: what its caller asks for is honoured between two waits. */
const LONGEST_WAIT_MS = 50;

export interface TransitionOptions {
  readonly direction: Direction;
  readonly model: ConsistencyModel;
  /** How long to go on trying, from the start, reversals included. At least one task is tried. */
  readonly timeoutMs: number;
  readonly clock: Clock;
  readonly retry?: RetryPolicy;
  readonly control?: TransitionControl;
  readonly onEvent?: (event: TransitionEvent) => void;
}

/** What the engine knows of one task. One object for each: with 10,000 tasks they fill the caches. */
interface TaskEntry extends Queued {
  readonly id: TaskId;
  readonly name: string;
  attempts: number;
  /** Until the next attempt, if it is refused. */
  delayMs: number;
  readonly sinceMs: number;
  reason: StragglerReason;
}

type Check = 'checked' | 'unchecked';

/**
 * Brings every task of a target to the version that `direction` leads to, by the rules of the model (DESIGN.md
 * section 2). Resolves when all have switched and the redirects are final, or when time ran out or the caller asked
 * to stop. Rejects when the target is gone or refuses the install (which then has changed nothing; callbacks that have run are
 * the caller's to take back: `passMoment` with `disabled`), with `callback-veto`, and with `model-needs-barrier` for the
 * lazy model before anything is touched. Whatever else the target throws passes through:
 * the transition is then where it was, and can be continued or reversed by another call.
 */
export async function runTransition(
  target: TransitionTarget,
  options: TransitionOptions,
): Promise<TransitionResult> {
  return await new Transition(target, options).run();
}

class Transition {
  readonly #target: TransitionTarget;
  readonly #options: TransitionOptions;
  readonly #retry: RetryPolicy;
  readonly #control: TransitionControl;
  readonly #startMs: number;
  readonly #tasks = new Map<TaskId, TaskEntry>();
  /** Those that have not switched. Nothing that happens for each task may cost a pass over all of them. */
  readonly #pending = new DueQueue<TaskEntry>();
  /** Of the models that switch all tasks together. */
  #together: Backoff;
  #direction: Direction;
  #check: Check;
  #hasTried = false;
  #forced = false;
  #reportedProgress = '';

  constructor(target: TransitionTarget, options: TransitionOptions) {
    if (options.model === 'lazy' && target.barrier === undefined) {
      throw new LivegraftError(
        'model-needs-barrier',
        `${target.name}: the lazy model needs a barrier, and this target declares none`,
        { remedy: 'declare one (apply --barrier), or use the hybrid model' },
      );
    }
    this.#target = target;
    this.#options = options;
    this.#retry = options.retry ?? DEFAULT_RETRY;
    this.#control = options.control ?? new TransitionControl();
    this.#direction = options.direction;
    this.#check = this.#modelCheck;
    this.#startMs = options.clock.nowMs();
    this.#together = new Backoff(this.#retry, this.#startMs);
  }

  async run(): Promise<TransitionResult> {
    await this.#passMoment(this.#direction === 'patch' ? 'enable' : 'disable');
    await this.#target.install(this.#direction);
    await this.#learnTasks();
    this.#emit({
      kind: 'started',
      direction: this.#direction,
      model: this.#options.model,
      tasks: this.#tasks.size,
    });
    do {
      if (!(await this.#settle())) {
        // Tasks may have gone, or switched themselves, since they were last heard of: stragglers are named for certain.
        await this.#relist();
        if (this.#pending.size > 0) return this.#incomplete();
      }
    } while (!(await this.#isSettled()));
    const tasks = this.#tasks.size;
    await this.#passMoment(this.#direction === 'patch' ? 'enabled' : 'disabled');
    await this.#target.finish(this.#direction);
    this.#emit({ kind: 'finished', direction: this.#direction, atMs: this.#elapsedMs() });
    return {
      kind: 'complete',
      direction: this.#direction,
      tasks,
      durationMs: this.#elapsedMs(),
      forced: this.#forced,
    };
  }

  get #to(): 'patched' | 'unpatched' {
    return this.#direction === 'patch' ? 'patched' : 'unpatched';
  }

  /** Tasks switch themselves, unless the rest was forced. */
  get #waitsForBarrier(): boolean {
    return this.#options.model === 'lazy' && this.#check === 'checked';
  }

  get #isPerTask(): boolean {
    return switchesPerTask(this.#options.model);
  }

  get #modelCheck(): Check {
    return this.#options.model === 'immediate' ? 'unchecked' : 'checked';
  }

  /** Tries until no known task is pending (true), or until time ran out or the caller asked to stop (false). */
  async #settle(): Promise<boolean> {
    while (this.#pending.size > 0) {
      await this.#obey();
      if (this.#mustStop()) return false;
      if (this.#waitsForBarrier) this.#hasTried = true;
      else if (this.#isPerTask) await this.#tryDueTasks();
      else await this.#tryTogether();
      if (this.#pending.size > 0) {
        for (const event of await this.#target.waitForEvents(this.#waitMs())) await this.#note(event);
      }
      this.#reportProgress();
    }
    return true;
  }

  /**
   * Whether the transition may finish: a fresh list holds no task of the other state, and nobody has asked to go back.
   * A task that is created afterwards inherits from one of the list (rule 2), so none can be missed.
   */
  async #isSettled(): Promise<boolean> {
    await this.#relist();
    if (this.#pending.size > 0) return false;
    const why = this.#control.takeReverse();
    if (why === undefined) return true;
    await this.#reverse(why);
    return false;
  }

  async #obey(): Promise<void> {
    const why = this.#control.takeReverse();
    if (why !== undefined) await this.#reverse(why);
    if (!this.#control.takeForce()) return;
    this.#check = 'unchecked';
    const now = this.#now();
    this.#together.makeDue(now);
    for (const task of this.#pendingTasks()) this.#pending.set(task, now);
  }

  async #reverse(why: string): Promise<void> {
    // A removal may have come as far as its last callback: then its first one has its turn again.
    await this.#passMoment(this.#direction === 'patch' ? 'disable' : 'enable');
    this.#direction = this.#direction === 'patch' ? 'unpatch' : 'patch';
    this.#check = this.#modelCheck;
    await this.#target.reverse(this.#direction);
    this.#emit({ kind: 'reversing', direction: this.#direction, why, atMs: this.#elapsedMs() });
    this.#together = new Backoff(this.#retry, this.#now());
    this.#tasks.clear();
    this.#pending.clear();
    await this.#learnTasks();
  }

  async #passMoment(moment: CallbackMoment): Promise<void> {
    const objects = (await this.#target.callbackObjects?.()) ?? [];
    await passMoment(objects, moment, ({ object, callback, failure }) =>
      this.#emit({ kind: 'callback', object, callback, failure: failure?.message, atMs: this.#elapsedMs() }),
    );
  }

  #mustStop(): boolean {
    return this.#control.stopRequested || this.#isLate();
  }

  #isLate(): boolean {
    return this.#hasTried && this.#elapsedMs() >= this.#options.timeoutMs;
  }

  /** Takes the list of tasks as it is, as news to nobody. */
  async #learnTasks(): Promise<void> {
    for (const task of await this.#target.tasks()) this.#add(task);
  }

  /** Brings what is known in line with a fresh list. */
  async #relist(): Promise<void> {
    const listed = new Set<TaskId>();
    let isTakenBack = false;
    for (const info of await this.#target.tasks()) {
      listed.add(info.id);
      const task = this.#tasks.get(info.id);
      if (task === undefined) this.#noteCreated(info);
      else if (this.#pending.has(task)) {
        if (info.state === this.#to) this.#noteSwitched(task);
      } else if (info.state !== this.#to) {
        // The target takes back what it said: it is asked again, but not faster than any other refused task.
        this.#postpone(task);
        isTakenBack = true;
      }
    }
    if (isTakenBack) this.#together.postpone(this.#now());
    for (const id of this.#tasks.keys()) if (!listed.has(id)) this.#noteExited(id);
  }

  #add(info: TaskInfo): void {
    const now = this.#now();
    const task: TaskEntry = {
      id: info.id,
      name: info.name,
      attempts: 0,
      delayMs: this.#retry.firstMs,
      sinceMs: now,
      reason:
        this.#options.model === 'lazy' && this.#target.barrier !== undefined
          ? { kind: 'beforeBarrier', barrier: this.#target.barrier }
          : { kind: 'waiting' },
      ...UNQUEUED,
    };
    this.#tasks.set(info.id, task);
    if (info.state !== this.#to) this.#pending.set(task, now);
  }

  /** In the order in which they became known. A pass over all tasks. */
  #pendingTasks(): TaskEntry[] {
    return [...this.#tasks.values()].filter((task) => this.#pending.has(task));
  }

  #postpone(task: TaskEntry): void {
    this.#pending.set(task, this.#now() + task.delayMs);
    task.delayMs = nextDelay(this.#retry, task.delayMs);
  }

  async #tryDueTasks(): Promise<void> {
    for (const task of this.#pending.due(this.#now())) {
      if (this.#control.isPending || this.#isLate()) return;
      if (!(await this.#tryTask(task))) this.#postpone(task);
    }
  }

  /** False when the task was refused. */
  async #tryTask(task: TaskEntry): Promise<boolean> {
    task.attempts += 1;
    this.#hasTried = true;
    const outcome = await this.#target.trySwitch(task.id, this.#to, this.#check);
    switch (outcome.kind) {
      case 'switched':
        this.#noteForced();
        this.#noteSwitched(task);
        return true;
      case 'gone':
        this.#noteExited(task.id);
        return true;
      case 'refused':
        this.#noteRefused(task, outcome.reason);
        await this.#target.watchTask(task.id);
        return false;
    }
  }

  async #tryTogether(): Promise<void> {
    if (this.#together.dueMs > this.#now()) return;
    const tasks = this.#pendingTasks();
    for (const task of tasks) task.attempts += 1;
    this.#hasTried = true;
    const outcome = await this.#target.trySwitchAll(this.#to, this.#check);
    if (outcome.switched) {
      this.#noteForced();
      for (const task of tasks) this.#noteSwitched(task);
      return;
    }
    this.#together.postpone(this.#now());
    // Those that were ready wait for the others.
    for (const task of tasks) this.#noteRefused(task, outcome.refusals.get(task.id) ?? { kind: 'waiting' });
  }

  async #note(event: TargetEvent): Promise<void> {
    switch (event.kind) {
      case 'taskCreated':
        // A list may have told of it already, and of what became of it since.
        if (!this.#tasks.has(event.task.id)) this.#noteCreated(event.task);
        return;
      case 'taskExited':
        this.#noteExited(event.task);
        return;
      case 'taskMoved':
        await this.#noteMoved(event.task);
        return;
      case 'taskSwitched': {
        const task = this.#tasks.get(event.task);
        if (task !== undefined && this.#pending.has(task)) this.#noteSwitched(task);
        return;
      }
      case 'targetGone':
        throw event.error;
    }
  }

  async #noteMoved(id: TaskId): Promise<void> {
    const task = this.#tasks.get(id);
    if (task === undefined || !this.#pending.has(task)) {
      // A target may hold the task until it is tried, also one that has nothing left to switch.
      await this.#target.trySwitch(id, this.#to, this.#check);
    } else if (this.#isPerTask) {
      // In the lazy model only a task that was to be forced has been watched; it is held, and a checked try is as safe.
      // An attempt on top of those that time brings: it leaves their schedule alone.
      await this.#tryTask(task);
    } else this.#together.makeDue(this.#now());
  }

  #noteCreated(info: TaskInfo): void {
    this.#add(info);
    this.#emit({
      kind: 'taskCreated',
      task: info.id,
      name: info.name,
      state: info.state,
      atMs: this.#elapsedMs(),
    });
  }

  #noteExited(id: TaskId): void {
    const task = this.#tasks.get(id);
    if (task === undefined) return;
    this.#tasks.delete(id);
    this.#pending.delete(task);
    this.#emit({ kind: 'taskExited', task: id, atMs: this.#elapsedMs() });
  }

  #noteSwitched(task: TaskEntry): void {
    this.#pending.delete(task);
    this.#emit({
      kind: 'taskSwitched',
      task: task.id,
      name: task.name,
      attempts: task.attempts,
      atMs: this.#elapsedMs(),
    });
  }

  #noteRefused(task: TaskEntry, reason: StragglerReason): void {
    task.reason = reason;
    this.#emit({
      kind: 'taskWaiting',
      task: task.id,
      name: task.name,
      attempts: task.attempts,
      reason,
      atMs: this.#elapsedMs(),
    });
  }

  #noteForced(): void {
    this.#forced ||= this.#check !== this.#modelCheck;
  }

  #waitMs(): number {
    if (this.#waitsForBarrier)
      return Math.max(0, Math.min(LONGEST_WAIT_MS, this.#options.timeoutMs - this.#elapsedMs()));
    const dueMs = this.#isPerTask ? this.#pending.earliestMs : this.#together.dueMs;
    const leftMs = this.#options.timeoutMs - this.#elapsedMs();
    return Math.max(0, Math.min(dueMs - this.#now(), leftMs, LONGEST_WAIT_MS));
  }

  #reportProgress(): void {
    const total = this.#tasks.size;
    const switched = total - this.#pending.size;
    const progress = `${switched}/${total}`;
    if (progress === this.#reportedProgress) return;
    this.#reportedProgress = progress;
    this.#emit({ kind: 'progress', switched, total, atMs: this.#elapsedMs() });
  }

  #incomplete(): TransitionResult {
    const now = this.#now();
    const stragglers: Straggler[] = this.#pendingTasks().map((task) => ({
      task: task.id,
      name: task.name,
      attempts: task.attempts,
      sinceMs: now - task.sinceMs,
      reason: task.reason,
    }));
    return {
      kind: 'incomplete',
      direction: this.#direction,
      stragglers,
      switched: this.#tasks.size - stragglers.length,
      durationMs: this.#elapsedMs(),
    };
  }

  #emit(event: TransitionEvent): void {
    this.#options.onEvent?.(event);
  }

  #now(): number {
    return this.#options.clock.nowMs();
  }

  #elapsedMs(): number {
    return this.#now() - this.#startMs;
  }
}
