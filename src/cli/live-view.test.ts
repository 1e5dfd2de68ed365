import { describe, expect, it } from 'vitest';
import { taskId } from '../engine/target.js';
import { createTransitionView } from './live-view.js';
import type { OperationEvent } from './operations.js';
import { createOutput } from './output.js';

/** A terminal of which only the two control sequences that the view uses are understood: up, and erase below. */
class Screen {
  lines: string[] = [''];
  #row = 0;

  write(text: string): void {
    // biome-ignore lint/suspicious/noControlCharactersInRegex: the sequences of a terminal
    for (const [part] of text.matchAll(/\x1b\[\d+A|\x1b\[0J|\x1b\[[\d;]*m|\n|[^\x1b\n]+/g)) {
      if (part === '\n') this.lines[++this.#row] ??= '';
      else if (part.endsWith('A')) this.#row -= Number.parseInt(part.slice(2), 10);
      else if (part === '\x1b[0J') this.lines = [...this.lines.slice(0, this.#row), ''];
      else if (!part.startsWith('\x1b')) this.lines[this.#row] += part;
    }
  }
}

const BUSY = { kind: 'busy', function: 'serve', frame: 2, frames: [] } as const;

function story(isTerminal: boolean, rows: number, events: readonly OperationEvent[]): string[] {
  const screen = new Screen();
  const io = {
    out: (text: string) => screen.write(text),
    err: () => {},
    isTerminal,
    errorColumns: undefined,
    columns: 60,
    rows,
    noColor: true,
    onInterrupt: () => () => {},
    onReverse: () => () => {},
  };
  let nowMs = 0;
  const view = createTransitionView(createOutput(io, {}), () => (nowMs += 100));
  for (const event of events) view.note(event);
  view.end();
  view.end();
  return screen.lines.filter((line) => line !== '').map((line) => line.trimEnd());
}

const waiting = (id: number, attempts = 1): OperationEvent => ({
  kind: 'taskWaiting',
  task: taskId(String(id)),
  name: `worker-${id}`,
  attempts,
  reason: BUSY,
  atMs: 1,
});
const unproven = (detail: string): OperationEvent => ({
  kind: 'taskWaiting',
  task: taskId('11'),
  name: 'worker-11',
  attempts: 1,
  reason: { kind: 'unreliable', cause: 'no-unwind-row', detail, frames: [] },
  atMs: 1,
});
const switched = (id: number): OperationEvent => ({
  kind: 'taskSwitched',
  task: taskId(String(id)),
  name: `worker-${id}`,
  attempts: 1,
  atMs: 1,
});

describe('the live view', () => {
  it('has one line a thread, redrawn in place, stragglers first', () => {
    const lines = story(true, 24, [
      { kind: 'step', step: 'check', detail: 'process 7', atMs: 0 },
      waiting(11),
      switched(12),
      waiting(11, 2),
      switched(13),
    ]);
    expect(lines).toEqual(
      [
        'check process 7',
        '      11 worker-11       not yet busy in serve (frame 2 of 0',
        '      12 worker-12       switched',
        '      13 worker-13       switched',
      ].map((line) => line.slice(0, 59).trimEnd()),
    );
  });

  it('folds what a small screen has no room for', () => {
    const lines = story(true, 8, [waiting(1), ...[2, 3, 4, 5, 6, 7].map(switched)]);
    expect(lines[0]).toContain('worker-1 ');
    expect(lines.at(-1)).toBe('         … 4 more threads, 4 of them switched');
    expect(lines.length).toBeLessThanOrEqual(4);
  });

  it('says each new reason of a thread once, off a terminal', () => {
    const lines = story(false, 24, [waiting(11), switched(12), waiting(11, 2), waiting(11, 3)]);
    expect(lines).toEqual(['waiting for thread 11 (worker-11): busy in serve']);
  });

  it('says one cause once, off a terminal, whichever calls a thread goes through meanwhile', () => {
    const lines = story(false, 24, [
      unproven('0x10'),
      unproven('0x20'),
      waiting(11),
      unproven('0x10'),
      waiting(11),
    ]);
    expect(lines).toEqual([
      "waiting for thread 11 (worker-11): its stack can't be proven: no-unwind-row, 0x10",
      'waiting for thread 11 (worker-11): busy in serve',
    ]);
  });
});
