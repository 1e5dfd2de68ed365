import { describe, expect, it } from 'vitest';
import type { TransitionEvent } from './events.js';
import {
  type Direction,
  type StragglerReason,
  type SwitchOutcome,
  type TargetEvent,
  type TaskId,
  type TaskInfo,
  type TransitionTarget,
  taskId,
} from './target.js';
import { runTransition, TransitionControl } from './transition.js';

const BUSY: StragglerReason = { kind: 'busy', function: 'f', frame: 1, frames: [] };

/** A target whose tasks are busy for a number of tries; its clock moves only when the engine waits. */
class FakeTarget implements TransitionTarget {
  readonly name = 'fake';
  barrier: string | undefined;
  readonly log: string[] = [];
  readonly states = new Map<TaskId, 'unpatched' | 'patched'>();
  readonly busyFor = new Map<TaskId, number>();
  nowMs = 0;
  events: TargetEvent[] = [];
  whileWaiting: (ms: number) => void = () => {};

  constructor(tasks: Readonly<Record<string, number>>, state: 'unpatched' | 'patched' = 'unpatched') {
    for (const [name, tries] of Object.entries(tasks)) {
      this.states.set(taskId(name), state);
      this.busyFor.set(taskId(name), tries);
    }
  }

  install(direction: Direction): void {
    this.log.push(`install ${direction}`);
  }

  tasks(): readonly TaskInfo[] {
    return [...this.states].map(([id, state]) => ({ id, name: `task ${id}`, state }));
  }

  trySwitch(task: TaskId, to: 'unpatched' | 'patched', check: 'checked' | 'unchecked'): SwitchOutcome {
    if (!this.states.has(task)) return { kind: 'gone' };
    this.log.push(`try ${task} ${check} at ${Math.round(this.nowMs)}`);
    const left = this.busyFor.get(task) ?? 0;
    if (check === 'checked' && left > 0) {
      this.busyFor.set(task, left - 1);
      return { kind: 'refused', reason: BUSY };
    }
    this.states.set(task, to);
    return { kind: 'switched' };
  }

  trySwitchAll(to: 'unpatched' | 'patched', check: 'checked' | 'unchecked') {
    const refusals = new Map<TaskId, StragglerReason>();
    for (const [id, left] of this.busyFor) {
      if (check === 'unchecked' || left === 0) continue;
      this.busyFor.set(id, left - 1);
      refusals.set(id, BUSY);
    }
    if (refusals.size > 0) return { switched: false, refusals } as const;
    for (const id of this.states.keys()) this.states.set(id, to);
    return { switched: true } as const;
  }

  watchTask(): boolean {
    return false;
  }

  waitForEvents(timeoutMs: number): readonly TargetEvent[] {
    this.nowMs += Math.max(timeoutMs, 0.1);
    this.whileWaiting(timeoutMs);
    const events = this.events;
    this.events = [];
    return events;
  }

  reverse(direction: Direction): void {
    this.log.push(`reverse ${direction}`);
  }

  finish(direction: Direction): void {
    this.log.push(`finish ${direction}`);
  }
}

function run(target: FakeTarget, more: Partial<Parameters<typeof runTransition>[1]> = {}) {
  const events: TransitionEvent[] = [];
  const result = runTransition(target, {
    direction: 'patch',
    model: 'hybrid',
    timeoutMs: 10_000,
    clock: { nowMs: () => target.nowMs },
    onEvent: (event) => events.push(event),
    ...more,
  });
  return { result, events };
}

describe('runTransition', () => {
  it('switches every task and finishes once', async () => {
    const target = new FakeTarget({ a: 0, b: 0 });
    expect(await run(target).result).toMatchObject({ kind: 'complete', direction: 'patch', tasks: 2 });
    expect([...target.states.values()]).toEqual(['patched', 'patched']);
    expect(target.log[0]).toBe('install patch');
    expect(target.log.filter((line) => line.startsWith('finish'))).toEqual(['finish patch']);
    expect(target.log[target.log.length - 1]).toBe('finish patch');
  });

  it('tries a busy task again, less and less often, and reports why', async () => {
    const target = new FakeTarget({ a: 6 });
    const { result, events } = run(target);
    expect(await result).toMatchObject({ kind: 'complete' });
    const times = target.log
      .filter((line) => line.startsWith('try'))
      .map((line) => Number(line.split(' ').pop()));
    expect(times).toHaveLength(7);
    const gaps = times.slice(1).map((time, i) => time - (times[i] as number));
    expect(gaps[5]).toBeGreaterThan(gaps[0] as number);
    expect(events.some((e) => e.kind === 'taskWaiting' && e.reason.kind === 'busy')).toBe(true);
  });

  it('gives up in time, with the stragglers, and does not finish', async () => {
    const target = new FakeTarget({ a: 0, b: Number.POSITIVE_INFINITY });
    const result = await run(target, { timeoutMs: 100 }).result;
    expect(result).toMatchObject({
      kind: 'incomplete',
      switched: 1,
      stragglers: [{ task: 'b', reason: { kind: 'busy' } }],
    });
    expect(target.log.some((line) => line.startsWith('finish'))).toBe(false);
  });

  it('takes in tasks that appear, in whatever state they inherit, before it finishes', async () => {
    const target = new FakeTarget({ a: 3 });
    let added = false;
    target.whileWaiting = () => {
      if (added) return;
      added = true;
      target.states.set(taskId('child'), 'unpatched');
      target.events.push({
        kind: 'taskCreated',
        task: { id: taskId('child'), name: 'child', state: 'unpatched' },
        parent: taskId('a'),
      });
    };
    await run(target).result;
    expect(target.states.get(taskId('child'))).toBe('patched');
  });

  it('goes on without tasks that end', async () => {
    const target = new FakeTarget({ a: 0, b: Number.POSITIVE_INFINITY });
    target.whileWaiting = () => {
      if (!target.states.delete(taskId('b'))) return;
      target.events.push({ kind: 'taskExited', task: taskId('b') });
    };
    expect(await run(target).result).toMatchObject({ kind: 'complete', tasks: 1 });
  });

  it('reverses: those that had switched go back by the same rules', async () => {
    const target = new FakeTarget({ a: 0, b: 5 });
    const control = new TransitionControl();
    let asked = false;
    target.whileWaiting = () => {
      if (asked) return;
      asked = true;
      control.reverse('second thoughts');
    };
    expect(await run(target, { control }).result).toMatchObject({ kind: 'complete', direction: 'unpatch' });
    expect([...target.states.values()]).toEqual(['unpatched', 'unpatched']);
    expect(target.log).toContain('reverse unpatch');
    expect(target.log[target.log.length - 1]).toBe('finish unpatch');
  });

  it('forces the rest when told to, and says so', async () => {
    const target = new FakeTarget({ a: Number.POSITIVE_INFINITY });
    const control = new TransitionControl();
    target.whileWaiting = () => control.force();
    expect(await run(target, { control }).result).toMatchObject({ kind: 'complete', forced: true });
    expect(target.log.some((line) => line.includes('unchecked'))).toBe(true);
  });

  it('stops where it is when told to', async () => {
    const target = new FakeTarget({ a: Number.POSITIVE_INFINITY });
    const control = new TransitionControl();
    target.whileWaiting = () => control.stop();
    expect(await run(target, { control }).result).toMatchObject({ kind: 'incomplete' });
  });

  it('switches all or none with model stop, and all at once with immediate', async () => {
    const stop = new FakeTarget({ a: 2, b: 0 });
    expect(await run(stop, { model: 'stop' }).result).toMatchObject({ kind: 'complete' });
    expect([...stop.states.values()]).toEqual(['patched', 'patched']);
    const immediate = new FakeTarget({ a: Number.POSITIVE_INFINITY });
    expect(await run(immediate, { model: 'immediate' }).result).toMatchObject({ kind: 'complete' });
  });

  it('refuses the lazy model without a barrier, before anything is installed', async () => {
    const target = new FakeTarget({ a: 0 });
    await expect(run(target, { model: 'lazy' }).result).rejects.toMatchObject({
      code: 'model-needs-barrier',
    });
    expect(target.log).toEqual([]);
  });

  it('tries nothing in the lazy model: tasks switch themselves, and the rest is named with the barrier', async () => {
    const target = new FakeTarget({ a: 0, b: 0 });
    target.barrier = 'turn';
    target.whileWaiting = () => {
      target.states.set(taskId('a'), 'patched');
      target.events.push({ kind: 'taskSwitched', task: taskId('a') });
    };
    const { result, events } = run(target, { model: 'lazy', timeoutMs: 200 });
    expect(await result).toMatchObject({
      kind: 'incomplete',
      switched: 1,
      stragglers: [{ task: 'b', attempts: 0, reason: { kind: 'beforeBarrier', barrier: 'turn' } }],
    });
    expect(events).toContainEqual(expect.objectContaining({ kind: 'taskSwitched', task: 'a', attempts: 0 }));
    expect(target.log).toEqual(['install patch']);
  });

  it('switches the rest unchecked when a lazy transition is forced', async () => {
    const target = new FakeTarget({ a: 5, b: 5 });
    target.barrier = 'turn';
    const control = new TransitionControl();
    target.whileWaiting = () => control.force();
    expect(await run(target, { model: 'lazy', control }).result).toMatchObject({
      kind: 'complete',
      forced: true,
    });
  });
});
