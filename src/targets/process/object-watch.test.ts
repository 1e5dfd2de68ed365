import { expect, it } from 'vitest';
import { DOORBELL_FIELDS } from '../../arch/architecture.js';
import { Doorbell } from './doorbell.js';
import type { ProcessMemory } from './memory.js';
import { ObjectWatch } from './object-watch.js';
import type { ProcessSession } from './process-session.js';

const DATA = 0x1000;

/** A doorbell's data in a buffer. */
function makeBell() {
  const bytes = Buffer.alloc(256);
  const memory = {
    readExactly: (address: number, size: number) => bytes.subarray(address - DATA, address - DATA + size),
    write: (address: number, data: Uint8Array) => bytes.set(data, address - DATA),
  } as unknown as ProcessMemory;
  const bell = new Doorbell(memory, { data: DATA } as ConstructorParameters<typeof Doorbell>[1]);
  const ring = () => bytes.writeUInt32LE(bell.rings + 1, DOORBELL_FIELDS.rings);
  return { bell, ring };
}

it('leaves alone a ring behind the one that is attended to: what it is about is not known yet', () => {
  const { bell, ring } = makeBell();
  const watch = new ObjectWatch({ modules: [] } as unknown as ProcessSession, bell);
  const { rings } = bell;
  ring();
  const fail = () => expect.unreachable();
  expect(watch.attend({} as ProcessSession, rings, fail, fail)).toBeUndefined();
  expect([bell.rings, bell.answered]).toEqual([1, 0]);
});
