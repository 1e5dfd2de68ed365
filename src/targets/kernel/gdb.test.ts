import { afterEach, describe, expect, it } from 'vitest';
import { GdbStub } from '../../../test/support/gdb-stub.js';
import { GdbClient } from './gdb-client.js';
import { parseGdbEndpoint } from './gdb-connection.js';
import { DEFAULT_LAYOUT, GuestRegisters, parseRegisterLayout } from './guest-registers.js';

const stubs: GdbStub[] = [];
afterEach(() => {
  for (const stub of stubs.splice(0)) stub.close();
});

async function connect(prepare: (stub: GdbStub) => void = () => {}, timeoutMs = 2000) {
  const stub = new GdbStub();
  stubs.push(stub);
  prepare(stub);
  const endpoint = parseGdbEndpoint(await stub.listen());
  if (endpoint === undefined) throw new Error('endpoint');
  return { stub, client: await GdbClient.connect(endpoint, { timeoutMs }) };
}

describe('GdbClient', () => {
  it('reads and writes memory in packets that fit, with every byte that needs an escape', async () => {
    const { stub, client } = await connect();
    const bytes = Uint8Array.from({ length: 2000 }, (_, i) => i & 0xff);
    await client.writeMemory(0x1100, bytes);
    expect(stub.memory.slice(0x100, 0x100 + 2000)).toEqual(bytes);
    expect(await client.readMemory(0x1100, 2000)).toEqual(bytes);
    expect(Math.max(...stub.received.map((packet) => packet.length))).toBeLessThanOrEqual(0x400);
    await expect(client.readMemory(0x9000, 8)).rejects.toMatchObject({ code: 'guest-memory' });
  });

  it('falls back to hexadecimal writes', async () => {
    const { stub, client } = await connect((s) => s.answers.set('X', '').set('M', 'OK'));
    await client.writeMemory(0x1000, new Uint8Array([0x7d, 0x23]));
    expect(stub.received.at(-1)).toBe('M1000,2:7d23');
  });

  it('reads registers by the description that the stub gives, comments left out', async () => {
    const { client } = await connect();
    const registers = await client.readRegisters('02');
    expect(registers.get('rax')).toBe(0x1111111111111111n);
    expect(registers.get('gs_base')).toBe(0x80000000_00abcdefn);
    expect(registers.with({ rip: -1, eflags: 2 }).get('rip')).toBe(0xffffffffffffffffn);
    expect(parseRegisterLayout('<reg name="rax" bitsize="64"/>')).toBeUndefined();
  });

  it('undoes run lengths and escapes', async () => {
    // Four zeros in a run, then an escaped "1".
    const { client } = await connect((s) => s.answers.set('m', `0* }${String.fromCharCode(0x11)}7`));
    expect(await client.readMemory(0x1000, 3)).toEqual(new Uint8Array([0, 0, 0x17]));
  });

  it('takes a run behind a run for more of the same character, and no run for more than a packet may hold', async () => {
    const { stub, client } = await connect((s) => s.answers.set('m', '0*!* '));
    expect(await client.readMemory(0x1000, 4)).toEqual(new Uint8Array(4));
    stub.answers.set('m', `0${'*~'.repeat(60_000)}`);
    await expect(client.readMemory(0x1000, 4)).rejects.toMatchObject({ code: 'gdb-protocol' });
  });

  it('takes a stop that was reported on connecting for what it is', async () => {
    const { client } = await connect((s) =>
      s.answers.set('qSupported', (_, stub) => {
        stub.write('T02thread:01;');
        return 'PacketSize=400;qXfer:features:read+';
      }),
    );
    expect(await client.vcpus()).toEqual(['01', '02']);
  });

  it('reads several pieces, and answers the next request rightly when one can not be read', async () => {
    const { stub, client } = await connect();
    stub.memory.set([1, 2, 3, 4]);
    const piece = (address: number, sizeBytes: number) => ({ address, sizeBytes });
    const found = await client.readPieces([piece(0x1002, 2), piece(0x1000, 1)]);
    expect(found.map((bytes) => [...bytes])).toEqual([[3, 4], [1]]);
    // The last byte of the stub's memory, and one behind it.
    for (const bad of [piece(0, 4), piece(0x1fff, 2)])
      await expect(client.readPieces([bad, piece(0x1000, 1)])).rejects.toMatchObject({
        code: 'guest-memory',
      });
    expect([...(await client.readMemory(0x1001, 2))]).toEqual([2, 3]);
  });

  it('runs, is stopped, and tells which vCPU stopped', async () => {
    const { stub, client } = await connect((s) =>
      s.answers.set('vCont;c', undefined).set('break', 'T02thread:02;'),
    );
    client.resume();
    expect(await client.waitForStop(20)).toBeUndefined();
    expect(client.isRunning).toBe(true);
    expect(await client.interrupt()).toEqual({ kind: 'signal', signal: 2, vcpu: '02' });
    stub.memory.set([7, 8], 4);
    client.resume();
    expect(await client.interruptAndRead([{ address: 0x1004, sizeBytes: 2 }])).toEqual({
      stop: { kind: 'signal', signal: 2, vcpu: '02' },
      bytes: [Uint8Array.of(7, 8)],
    });
    client.resume();
    await expect(client.interruptAndRead([{ address: 0, sizeBytes: 4 }])).rejects.toMatchObject({
      code: 'guest-memory',
    });
    expect(client.isRunning).toBe(false);
    client.resume();
    stub.write('Ofe');
    stub.write('T05thread:01;');
    expect(await client.waitForStop(1000)).toMatchObject({ signal: 5, vcpu: '01' });
    client.resume();
    stub.write('W00');
    expect(await client.waitForStop(1000)).toMatchObject({ kind: 'exited' });
  });

  it('asks for a damaged packet again, and gives up on a stub that damages all', async () => {
    let sent = 0;
    const { client } = await connect((s) =>
      s.answers.set('qfThreadInfo', (_, stub) => {
        stub.socket?.write('$m05#00');
        if (sent++ === 0) setTimeout(() => stub.write('m07'), 20);
        return undefined;
      }),
    );
    expect(await client.vcpus()).toEqual(['07']);
  });

  it('says that the socket closed, and says it again to whoever asks later', async () => {
    const { client } = await connect((s) =>
      s.answers.set('qfThreadInfo', (_, stub) => {
        stub.socket?.destroy();
        return undefined;
      }),
    );
    await expect(client.vcpus()).rejects.toMatchObject({ code: 'gdb-connection-lost' });
    await expect(client.readMemory(0x1000, 1)).rejects.toMatchObject({ code: 'gdb-connection-lost' });
    await client.detach();
  });

  it('says that the stub stalls, and takes no late answer for another', async () => {
    const { stub, client } = await connect((s) => s.answers.set('qfThreadInfo', undefined), 100);
    await expect(client.vcpus()).rejects.toMatchObject({ code: 'gdb-timeout' });
    stub.socket?.write(stub.packet('m01'));
    await expect(client.vcpus()).rejects.toMatchObject({ code: 'gdb-timeout' });
    // It may go on later: the guest is then let go.
    await client.detach();
    expect(stub.received.slice(-2)).toEqual(['break', 'D']);
  });

  it('lets a guest go that turns out to be another machine', async () => {
    const stub = new GdbStub();
    stubs.push(stub);
    stub.answers.set('qXfer:features:read', 'l<target><reg name="x0" bitsize="64"/></target>');
    const endpoint = parseGdbEndpoint(await stub.listen());
    if (endpoint === undefined) throw new Error('endpoint');
    await expect(GdbClient.connect(endpoint, { timeoutMs: 1000 })).rejects.toMatchObject({
      code: 'gdb-protocol',
    });
    expect(stub.received.at(-1)).toBe('D');
  });

  it.each([
    ['does without acknowledgements', 'QStartNoAckMode', 'OK'],
    ['is a QEMU', 'qqemu.PhyMemMode', '0'],
  ])('changes memory and registers in one piece where the stub %s', async (_, packet, answer) => {
    const pieces: number[] = [];
    const { stub, client } = await connect((s) =>
      s.answers
        .set('qSupported', `PacketSize=400;${packet}+;qXfer:features:read+;vContSupported+`)
        .set(packet, answer)
        .set('M', 'OK'),
    );
    const registers = new GuestRegisters(new Uint8Array(164), DEFAULT_LAYOUT);
    await client.readRegisters('02');
    stub.socket?.on('data', (bytes: Buffer) => {
      if (bytes.includes('$')) pieces.push(bytes.length);
    });
    await client.change([
      { kind: 'write', address: 0x1008, bytes: Uint8Array.of(1, 2) },
      { kind: 'registers', vcpu: '02', registers },
    ]);
    expect(stub.received.slice(-2)).toEqual(['M1008,2:0102', `G${'00'.repeat(164)}`]);
    expect(pieces).toHaveLength(1);
  });

  it.each([
    [
      'registers of another machine',
      'qXfer:features:read',
      'l<target><reg name="x0" bitsize="64"/></target>',
    ],
    ['a guest that has ended', '?', 'W00'],
    ['tiny packets', 'qSupported', 'PacketSize=20'],
  ])('refuses %s', async (_, request, answer) => {
    await expect(connect((s) => s.answers.set(request, answer))).rejects.toMatchObject({
      code: 'gdb-protocol',
    });
  });

  it('lets the guest go in the middle of a request, and sends nothing afterwards', async () => {
    let late: (() => void) | undefined;
    const { stub, client } = await connect((s) =>
      s.answers.set('m', (_, stub) => {
        late = () => stub.write('00');
        return undefined;
      }),
    );
    const reading = client.readMemory(0x1000, 1);
    while (late === undefined) await new Promise((resolve) => setTimeout(resolve, 1));
    const detached = client.detach();
    await expect(reading).rejects.toMatchObject({ code: 'gdb-connection-lost' });
    late();
    await detached;
    await expect(client.readMemory(0x1000, 1)).rejects.toMatchObject({ code: 'gdb-connection-lost' });
    expect(stub.received.at(-1)).toBe('D');
  });

  it('stops a running guest before it lets it go', async () => {
    const { stub, client } = await connect((s) =>
      s.answers.set('vCont;c', undefined).set('break', 'T02thread:01;'),
    );
    client.resume();
    await client.detach();
    expect(stub.received.slice(-2)).toEqual(['break', 'D']);
  });

  it('reaches a stub by its address and port', async () => {
    const stub = new GdbStub();
    stubs.push(stub);
    const endpoint = parseGdbEndpoint(await stub.listenOnPort('127.0.0.1'));
    if (endpoint === undefined) throw new Error('endpoint');
    const client = await GdbClient.connect(endpoint, { timeoutMs: 2000 });
    stub.memory[0] = 7;
    expect(await client.readMemory(0x1000, 1)).toEqual(new Uint8Array([7]));
  });

  it.each(['unix:/nowhere/at/all', '127.0.0.1:1', 'no-such-host.invalid:1234'])(
    'says that nobody listens at %s',
    async (text) => {
      const endpoint = parseGdbEndpoint(text);
      if (endpoint === undefined) throw new Error('endpoint');
      await expect(GdbClient.connect(endpoint, { timeoutMs: 500 })).rejects.toMatchObject({
        code: 'gdb-unreachable',
        message: expect.stringContaining(text),
      });
    },
  );
});

describe('parseGdbEndpoint', () => {
  it.each([
    ['unix:/run/gdb', { kind: 'unix', path: '/run/gdb' }],
    ['localhost:1234', { kind: 'tcp', host: 'localhost', port: 1234 }],
    ['tcp:10.0.0.1:99', { kind: 'tcp', host: '10.0.0.1', port: 99 }],
    ['[::1]:5', { kind: 'tcp', host: '::1', port: 5 }],
    ['1234', undefined],
    ['host:0', undefined],
    ['host:99999', undefined],
    ['unix:', undefined],
  ])('reads %s', (text, expected) => {
    expect(parseGdbEndpoint(text)).toEqual(expected);
  });
});
