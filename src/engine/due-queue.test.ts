import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { DueQueue, UNQUEUED } from './due-queue.js';

describe('DueQueue', () => {
  it('tells what a plain list tells, whatever is done to it', () => {
    const value = fc.integer({ min: 0, max: 12 });
    const change = fc.oneof(
      fc.record({ kind: fc.constant('set' as const), value, dueMs: fc.integer({ min: 0, max: 9 }) }),
      fc.record({ kind: fc.constant('delete' as const), value }),
      fc.record({ kind: fc.constant('clear' as const) }),
    );
    fc.assert(
      fc.property(fc.array(change, { maxLength: 60 }), fc.integer({ min: 0, max: 9 }), (changes, nowMs) => {
        const things = Array.from({ length: 13 }, (_, key) => ({ key, ...UNQUEUED }));
        const thing = (key: number) => things[key] as (typeof things)[number];
        const queue = new DueQueue<(typeof things)[number]>();
        // A Map keeps the place of a key whose value changes.
        const list = new Map<number, number>();
        for (const step of changes) {
          if (step.kind === 'set') {
            queue.set(thing(step.value), step.dueMs);
            list.set(step.value, step.dueMs);
          } else if (step.kind === 'delete') {
            queue.delete(thing(step.value));
            list.delete(step.value);
          } else {
            queue.clear();
            list.clear();
          }
          expect(queue.size).toBe(list.size);
          expect(queue.earliestMs).toBe(Math.min(Number.POSITIVE_INFINITY, ...list.values()));
        }
        const due = [...list].filter(([, dueMs]) => dueMs <= nowMs).sort((a, b) => a[1] - b[1]);
        expect(queue.due(nowMs).map(({ key }) => key)).toEqual(due.map(([key]) => key));
        for (let key = 0; key <= 12; key++) expect(queue.has(thing(key))).toBe(list.has(key));
      }),
    );
  });
});
