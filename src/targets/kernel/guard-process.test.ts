import { PassThrough } from 'node:stream';
import { afterEach, describe, expect, it } from 'vitest';
import { GdbStub } from '../../../test/support/gdb-stub.js';
import { parseGdbEndpoint } from './gdb-connection.js';
import { guardGuest } from './guard-process.js';

const stubs: GdbStub[] = [];
afterEach(() => {
  for (const stub of stubs.splice(0)) stub.close();
});

async function guard(prepare: (stub: GdbStub) => void = () => {}) {
  const stub = new GdbStub();
  stubs.push(stub);
  prepare(stub);
  const endpoint = parseGdbEndpoint(await stub.listen());
  if (endpoint === undefined) throw new Error('endpoint');
  const input = new PassThrough();
  return { stub, input, done: guardGuest(input, endpoint) };
}

const WATCH = `${JSON.stringify({ kind: 'watch', guest: { anchor: 0x1040, parking: 0x1100, safePoint: 0x1200 } })}\n`;

describe('guardGuest', () => {
  it('does nothing while its input lasts, nor when it is dismissed', async () => {
    const { stub, input, done } = await guard();
    input.write(WATCH);
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(stub.received).toEqual([]);
    input.end('{"kind":"dismiss"}\n');
    await done;
    expect(stub.received).toEqual([]);
  });

  it('lets the guest go when its input ends, also in the middle of a line', async () => {
    const { stub, input, done } = await guard();
    input.end(WATCH.slice(0, 20));
    await done;
    expect(stub.received).toEqual(['D']);
  });

  it('looks for a task to give back, and lets the guest go', async () => {
    const { stub, input, done } = await guard();
    input.end(WATCH);
    await done;
    expect(stub.received).toContain('m1040,28');
    expect(stub.received.at(-1)).toBe('D');
  });

  it('lets the guest go although nothing can be read of it', async () => {
    const { stub, input, done } = await guard((s) => s.answers.set('m', 'E14'));
    input.end(WATCH);
    await done;
    expect(stub.received.at(-1)).toBe('D');
  });

  it('waits for its turn when another one uses the stub', async () => {
    let letGo: (() => void) | undefined;
    const { stub, input, done } = await guard((s) =>
      s.answers.set('D', (_, each) => {
        letGo = () => each.write('OK');
        return undefined;
      }),
    );
    input.end();
    let isDone = false;
    void done.then(() => {
      isDone = true;
    });
    await new Promise((resolve) => setTimeout(resolve, 100));
    expect([stub.received, isDone]).toEqual([['D'], false]);
    letGo?.();
    await done;
  });
});
