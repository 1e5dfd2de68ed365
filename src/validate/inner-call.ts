import type { Program } from './program.js';

/** What lies between such a call and its target. */
export const INNER_CALL_BYTES = 64;

/**
 * A call into the same function a few bytes on only pushes its own address: position-independent code, thunks of indirect branches and
 * returns, and what the kernel does to branch predictors. What lies between is a trap for speculation. `target`: the index of what
 * instruction `i` calls, -1 for what is elsewhere.
 */
export function isInnerCall(program: Program, i: number, target: number): boolean {
  if (target <= i || program.isEntry[target] === 1) return false;
  const { offsets } = program.table;
  const [from, to] = [offsets[i] as number, offsets[target] as number];
  if (to - from > INNER_CALL_BYTES) return false;
  return program.functionAt(from)?.start === program.functionAt(to)?.start;
}
