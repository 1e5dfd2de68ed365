import { readdirSync } from 'node:fs';
import { constants, setPriority } from 'node:os';
import { setFlagsFromString } from 'node:v8';

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
 * Puts the main thread before all that ask for its processor, where this process may: what it holds up waits for it. What it starts
 * from now on begins so, too.
 */
export function raisePriority(): void {
  try {
    setPriority(process.pid, constants.priority.PRIORITY_HIGHEST);
  } catch {
    // Without the right to, it competes as it did.
  }
}

/**
 * Once before threads are held: young objects are collected now and not while they are held. (A full collection would also
 * drop compiled code.) Without `--expose-gc`, which the launcher gives to Node.js, it does nothing: V8 chooses the time.
 */
export function collectGarbage(type: 'minor' | 'major' = 'minor'): void {
  (globalThis.gc as ((options: { type: 'minor' | 'major' }) => void) | undefined)?.({ type });
}

/**
 * Whether hot code is optimized from now on. That takes V8 up to 20 ms for one function, whenever it chooses: it is allowed while nobody
 * waits for this process, with work that makes hot what will be needed, and not while somebody does.
 */
export function allowOptimization(isAllowed: boolean): void {
  setFlagsFromString(isAllowed ? '--opt' : '--no-opt');
}
