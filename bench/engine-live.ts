import { join } from 'node:path';
import { livegraft, startTarget } from '../test/support/live.js';
import { compileWithPatch, inFolder, medianOf, spread } from './support.js';

const LIVE_THREADS = [10, 100, 1000];
const LIVE_APPLIES = 7;

/** The longest time that threads were held, in one apply's notices. */
function longestHeld(lines: readonly Record<string, unknown>[]): number {
  const held = lines.map(({ text }) => Number(/ held for ([\d.]+) ms/.exec(String(text))?.[1] ?? 0));
  return Math.max(...held);
}

/**
 * Real transitions: an apply to a process with so many threads, of which one is busy, one in ten wakes every millisecond (at
 * most 100), and the others wait in a system call. Every stack is checked. `longestHeldMs` is what livegraft itself says.
 */
export async function measureLive(): Promise<readonly object[]> {
  const rows: object[] = [];
  await inFolder(async (folder) => {
    const { program, patch } = compileWithPatch(folder, 'target.c');
    for (const threads of LIVE_THREADS) {
      const ticking = Math.min(100, threads / 10);
      const counts = [1, ticking, threads - 1 - ticking].map(String);
      const target = await startTarget(program, ...counts, join(folder, 'gaps'), '300');
      const pid = String(target.pid);
      const [walls, transitions, held]: [number[], number[], number[]] = [[], [], []];
      let tasks = 0;
      try {
        for (let i = 0; i < LIVE_APPLIES; i++) {
          const start = performance.now();
          const run = livegraft('--json', 'apply', '--pid', pid, patch);
          walls.push(performance.now() - start);
          if (run.code !== 0) throw new Error(`apply ended with ${run.code}: ${run.stdout}${run.stderr}`);
          const { result } = run.lines.at(-1) as { result: { durationMs: number; tasks: number } };
          transitions.push(result.durationMs);
          tasks = result.tasks;
          held.push(longestHeld(run.lines));
          const reverted = livegraft('revert', '--pid', pid);
          if (reverted.code !== 0) throw new Error(`revert ended with ${reverted.code}: ${reverted.stderr}`);
        }
      } finally {
        target.stop();
      }
      rows.push({
        what: 'live',
        tasks,
        runs: LIVE_APPLIES,
        wallMs: medianOf(walls),
        microsecondsPerTask: medianOf(transitions.map((ms) => (ms * 1000) / tasks)),
        transitionMs: spread(transitions),
        longestHeldMs: spread(held),
      });
    }
  });
  return rows;
}
