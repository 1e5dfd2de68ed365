import { LivegraftError } from '../base/errors.js';
import type { Straggler, TransitionEvent, TransitionResult } from './events.js';
import type {
  ConsistencyModel,
  Direction,
  StragglerReason,
  TargetEvent,
  TaskId,
  TaskInfo,
  TransitionTarget,
} from './target.js';

/** Time as the engine sees it: it has none of its own. */
export interface Clock {
  nowMs(): number;
}

/** How often a refused task is tried again. */
export interface RetryPolicy {
  readonly firstMs: number;
  readonly factor: number;
  readonly longestMs: number;
}

export const DEFAULT_RETRY: RetryPolicy = { firstMs: 2, factor: 1.6, longestMs: 50 };

/** What the caller may ask for while a transition runs. Each request is honoured at the engine's next step. */
export class TransitionControl {
  #stop = false;
  #force = false;
  #reverse: string | undefined;

  /** Leave the transition where it is: consistent, to be continued or reversed later. */
  stop(): void {
    this.#stop = true;
  }

  /** Switch the rest unchecked. The result says so for good. */
  force(): void {
    this.#force = true;
  }

  /** Go back to where it began, by the same rules. */
  reverse(why: string): void {
    this.#reverse = why;
  }

  get stopRequested(): boolean {
    return this.#stop;
  }

  get forceRequested(): boolean {
    return this.#force;
  }

  takeReverse(): string | undefined {
    const why = this.#reverse;
    this.#reverse = undefined;
    return why;
  }
}

export interface TransitionOptions {
  readonly direction: Direction;
  readonly model: ConsistencyModel;
  /** How long to go on trying. */
  readonly timeoutMs: number;
  readonly clock: Clock;
  readonly retry?: RetryPolicy;
  readonly control?: TransitionControl;
  readonly onEvent?: (event: TransitionEvent) => void;
}

interface Pending {
  readonly task: TaskInfo;
  attempts: number;
  delayMs: number;
  dueMs: number;
  sinceMs: number;
  reason: StragglerReason;
}

/**
 * Brings every task of a target to the version that `direction` leads to, by the rules of the model. Returns when all
 * have switched and the redirects are final, or when time ran out; rejects when the target is gone or refuses the
 * install, which then has changed nothing.
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
  readonly #pending = new Map<TaskId, Pending>();
  readonly #names = new Map<TaskId, string>();
  #direction: Direction;
  #forced = false;
  #reportedProgress = -1;

  constructor(target: TransitionTarget, options: TransitionOptions) {
    if (options.model === 'lazy') {
      throw new LivegraftError(
        'model-needs-barrier',
        'the lazy model needs a barrier, and this target declares none',
        {
          remedy: 'use --model hybrid',
        },
      );
    }
    this.#target = target;
    this.#options = options;
    this.#retry = options.retry ?? DEFAULT_RETRY;
    this.#control = options.control ?? new TransitionControl();
    this.#direction = options.direction;
    this.#startMs = options.clock.nowMs();
  }

  async run(): Promise<TransitionResult> {
    await this.#target.install(this.#direction);
    const tasks = await this.#target.tasks();
    this.#emit({
      kind: 'started',
      direction: this.#direction,
      model: this.#options.model,
      tasks: tasks.length,
    });
    for (;;) {
      const complete = await this.#settle();
      if (!complete) return this.#incomplete();
      // The target may have gained tasks while the last ones switched; only a look that finds none may end it.
      if ((await this.#collectPending()) === 0) break;
    }
    const total = (await this.#target.tasks()).length;
    await this.#target.finish(this.#direction);
    this.#emit({ kind: 'finished', direction: this.#direction, atMs: this.#elapsedMs() });
    return {
      kind: 'complete',
      direction: this.#direction,
      tasks: total,
      durationMs: this.#elapsedMs(),
      forced: this.#forced,
    };
  }

  /** Tries until no task is pending (true), or until time or patience runs out (false). */
  async #settle(): Promise<boolean> {
    await this.#collectPending();
    while (this.#pending.size > 0) {
      const why = this.#control.takeReverse();
      if (why !== undefined) await this.#reverse(why);
      if (this.#control.forceRequested) await this.#force();
      else if (this.#control.stopRequested || this.#elapsedMs() > this.#options.timeoutMs) return false;
      else if (this.#options.model === 'hybrid') await this.#tryDueTasks();
      else await this.#tryTogether(this.#options.model === 'stop' ? 'checked' : 'unchecked');
      if (this.#pending.size === 0) break;
      for (const event of await this.#target.waitForEvents(this.#untilNextDueMs())) await this.#note(event);
      await this.#reportProgress();
    }
    return true;
  }

  get #to(): 'patched' | 'unpatched' {
    return this.#direction === 'patch' ? 'patched' : 'unpatched';
  }

  /** Re-lists the tasks: adds those that have the other state, drops those that are gone. Returns how many pend. */
  async #collectPending(): Promise<number> {
    const tasks = await this.#target.tasks();
    const seen = new Set<TaskId>();
    for (const task of tasks) {
      seen.add(task.id);
      this.#names.set(task.id, task.name);
      if (task.state === this.#to) this.#pending.delete(task.id);
      else if (!this.#pending.has(task.id)) this.#addPending(task);
    }
    for (const id of this.#pending.keys()) if (!seen.has(id)) this.#pending.delete(id);
    return this.#pending.size;
  }

  #addPending(task: TaskInfo): void {
    const now = this.#options.clock.nowMs();
    this.#pending.set(task.id, {
      task,
      attempts: 0,
      delayMs: this.#retry.firstMs,
      dueMs: now,
      sinceMs: now,
      reason: { kind: 'waiting' },
    });
  }

  async #tryDueTasks(): Promise<void> {
    for (const pending of [...this.#pending.values()]) {
      if (pending.dueMs <= this.#options.clock.nowMs()) await this.#tryTask(pending, 'checked');
      if (this.#control.stopRequested) return;
    }
  }

  async #tryTask(pending: Pending, check: 'checked' | 'unchecked'): Promise<void> {
    const { task } = pending;
    pending.attempts += 1;
    const outcome = await this.#target.trySwitch(task.id, this.#to, check);
    switch (outcome.kind) {
      case 'switched':
        this.#pending.delete(task.id);
        this.#emitSwitched(pending);
        return;
      case 'gone':
        this.#pending.delete(task.id);
        this.#emit({ kind: 'taskExited', task: task.id, atMs: this.#elapsedMs() });
        return;
      case 'refused':
        await this.#postpone(pending, outcome.reason);
        return;
    }
  }

  async #tryTogether(check: 'checked' | 'unchecked'): Promise<void> {
    const now = this.#options.clock.nowMs();
    if ([...this.#pending.values()].some((pending) => pending.dueMs > now)) return;
    for (const pending of this.#pending.values()) pending.attempts += 1;
    const outcome = await this.#target.trySwitchAll(this.#to, check);
    if (outcome.switched) {
      for (const pending of this.#pending.values()) this.#emitSwitched(pending);
      this.#pending.clear();
      return;
    }
    for (const pending of this.#pending.values()) {
      // Those that were ready wait for the others.
      await this.#postpone(pending, outcome.refusals.get(pending.task.id) ?? { kind: 'waiting' });
    }
  }

  async #postpone(pending: Pending, reason: StragglerReason): Promise<void> {
    pending.reason = reason;
    pending.dueMs = this.#options.clock.nowMs() + pending.delayMs;
    pending.delayMs = Math.min(pending.delayMs * this.#retry.factor, this.#retry.longestMs);
    this.#emit({
      kind: 'taskWaiting',
      task: pending.task.id,
      name: pending.task.name,
      attempts: pending.attempts,
      reason,
      atMs: this.#elapsedMs(),
    });
    await this.#target.watchTask(pending.task.id);
  }

  async #note(event: TargetEvent): Promise<void> {
    switch (event.kind) {
      case 'taskCreated':
        this.#names.set(event.task.id, event.task.name);
        this.#emit({
          kind: 'taskCreated',
          task: event.task.id,
          name: event.task.name,
          state: event.task.state,
          atMs: this.#elapsedMs(),
        });
        if (event.task.state !== this.#to && !this.#pending.has(event.task.id)) this.#addPending(event.task);
        return;
      case 'taskExited':
        this.#pending.delete(event.task);
        this.#emit({ kind: 'taskExited', task: event.task, atMs: this.#elapsedMs() });
        return;
      case 'taskMoved': {
        const pending = this.#pending.get(event.task);
        // The target holds the task until it is tried, also when it has nothing left to switch.
        await this.#tryTask(pending ?? this.#switchedTask(event.task), 'checked');
        return;
      }
      case 'taskSwitched': {
        const pending = this.#pending.get(event.task);
        this.#pending.delete(event.task);
        if (pending !== undefined) this.#emitSwitched(pending);
        return;
      }
      case 'targetGone':
        throw event.error;
    }
  }

  #switchedTask(id: TaskId): Pending {
    const task: TaskInfo = { id, name: this.#names.get(id) ?? '?', state: this.#to };
    return { task, attempts: 0, delayMs: 0, dueMs: 0, sinceMs: 0, reason: { kind: 'waiting' } };
  }

  async #reverse(why: string): Promise<void> {
    this.#direction = this.#direction === 'patch' ? 'unpatch' : 'patch';
    this.#pending.clear();
    await this.#target.reverse(this.#direction);
    this.#emit({ kind: 'reversing', direction: this.#direction, why, atMs: this.#elapsedMs() });
    await this.#collectPending();
  }

  async #force(): Promise<void> {
    for (const pending of [...this.#pending.values()]) {
      this.#forced = true;
      await this.#tryTask(pending, 'unchecked');
    }
  }

  #untilNextDueMs(): number {
    let due = Number.POSITIVE_INFINITY;
    for (const pending of this.#pending.values()) due = Math.min(due, pending.dueMs);
    return Math.max(0, Math.min(due - this.#options.clock.nowMs(), this.#retry.longestMs));
  }

  async #reportProgress(): Promise<void> {
    if (this.#pending.size === this.#reportedProgress) return;
    this.#reportedProgress = this.#pending.size;
    const total = (await this.#target.tasks()).length;
    this.#emit({ kind: 'progress', switched: total - this.#pending.size, total, atMs: this.#elapsedMs() });
  }

  async #incomplete(): Promise<TransitionResult> {
    const now = this.#options.clock.nowMs();
    const stragglers: Straggler[] = [...this.#pending.values()].map((pending) => ({
      task: pending.task.id,
      name: pending.task.name,
      attempts: pending.attempts,
      sinceMs: now - pending.sinceMs,
      reason: pending.reason,
    }));
    const total = (await this.#target.tasks()).length;
    return {
      kind: 'incomplete',
      direction: this.#direction,
      stragglers,
      switched: total - stragglers.length,
      durationMs: this.#elapsedMs(),
    };
  }

  #emitSwitched(pending: Pending): void {
    this.#emit({
      kind: 'taskSwitched',
      task: pending.task.id,
      name: pending.task.name,
      attempts: pending.attempts,
      atMs: this.#elapsedMs(),
    });
  }

  #emit(event: TransitionEvent): void {
    this.#options.onEvent?.(event);
  }

  #elapsedMs(): number {
    return this.#options.clock.nowMs() - this.#startMs;
  }
}
