import { describe, expect, it } from 'vitest';
import { SoakCount, type SoakOptions } from './soak.js';

const OPTIONS: SoakOptions = {
  switches: 3,
  timeoutMs: 60_000,
  signal: new AbortController().signal,
  onProgress: () => {},
};
const unreliable = (code: string, detail: string) => ({ reliable: false, reason: { code, detail } }) as const;

describe('SoakCount', () => {
  it('counts by cause and place, the most frequent first, with the detail of the first', () => {
    const count = new SoakCount(OPTIONS);
    count.note(1, {}, { reliable: true }, () => 'not asked for');
    count.note(1, {}, unreliable('no-unwind-row', 'one'), () => 'f');
    count.note(2, { isKthread: true, name: 'kswapd0' }, unreliable('no-unwind-row', 'two'), () => 'g');
    count.note(2, { isKthread: true, isInstant: true }, unreliable('no-unwind-row', 'three'), () => 'g');
    count.note(3, { name: 'sh' }, unreliable('unknown-code', 'four'), () => 'g');
    expect(count.report('count')).toMatchObject({
      switches: 5,
      unreliable: 4,
      tasks: 3,
      kthreads: 1,
      unreliableKthreads: ['kswapd0'],
      instants: 1,
      findings: [
        { cause: 'no-unwind-row', place: 'g', count: 2, detail: 'two' },
        { cause: 'no-unwind-row', place: 'f', count: 1, detail: 'one' },
        { cause: 'unknown-code', place: 'g', count: 1, detail: 'four' },
      ],
    });
  });

  it('ends by the count, the time or the caller', () => {
    const abort = new AbortController();
    const count = new SoakCount({ ...OPTIONS, signal: abort.signal });
    expect(count.end()).toBe(undefined);
    abort.abort();
    expect(count.end()).toBe('interrupt');
    for (let i = 0; i < 3; i++) count.note(1, {}, { reliable: true }, () => '');
    expect(count.end()).toBe('count');
    expect(new SoakCount({ ...OPTIONS, timeoutMs: 0 }).end()).toBe('time');
  });
});
