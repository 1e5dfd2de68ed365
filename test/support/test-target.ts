import { onTestFinished } from 'vitest';
import { type LiveTarget, startTarget } from './live.js';

/** A target that ends with the test that starts it, however that ends. */
export async function startForTest(program: string, ...args: readonly string[]): Promise<LiveTarget> {
  const target = await startTarget(program, ...args);
  onTestFinished(() => target.stop());
  return target;
}
