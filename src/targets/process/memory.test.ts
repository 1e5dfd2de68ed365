import { expect, it } from 'vitest';
import { ProcessMemory } from './memory.js';

it('is unreadable when it was closed, as that of a process that has just ended', () => {
  const memory = new ProcessMemory(process.pid);
  memory.close();
  const unreadable = expect.objectContaining({ name: 'LivegraftError', code: 'memory-unreadable' });
  expect(() => memory.readExactly(0x1000, 8)).toThrow(unreadable);
  expect(() => memory.write(0x1000, Uint8Array.of(1))).toThrow(unreadable);
});
