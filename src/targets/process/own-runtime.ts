import { readdirSync } from 'node:fs';
import { setPriority } from 'node:os';

const LOWEST_PRIORITY = 19;

/**
 * Lets the helper threads of this process (compiler, garbage collector) run only on processors that nobody else wants.
 * They are busy for milliseconds at a time while livegraft warms up, and a thread of the target would wait as long for
 * the processor that one of them holds. The main thread, which holds threads of the target, keeps its priority.
 */
export function yieldHelperThreads(): void {
  for (const tid of readdirSync('/proc/self/task').map(Number)) {
    if (tid === process.pid) continue;
    try {
      setPriority(tid, LOWEST_PRIORITY);
    } catch {
      // It has ended, or may not be changed: then it competes as it did.
    }
  }
}

/**
 * Once before threads are held: young objects are collected now and not while they are held. (A full collection would also
 * drop compiled code.) Without `--expose-gc`, which the launcher gives to Node.js, it does nothing: V8 chooses the time.
 */
export function collectGarbage(): void {
  (globalThis.gc as ((options: { type: 'minor' }) => void) | undefined)?.({ type: 'minor' });
}
