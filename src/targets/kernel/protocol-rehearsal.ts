import { createServer, type Server, type Socket } from 'node:net';
import { GdbClient } from './gdb-client.js';
import { framed } from './gdb-packets.js';
import { DEFAULT_LAYOUT } from './guest-registers.js';

const ROUNDS = 30;
const TIMEOUT_MS = 1000;
const MEMORY = 0x1000;

/**
 * Speaks to a stub of its own in this process, which knows the answers that livegraft understands and nothing else: whatever
 * code runs for the first time is slow, and a guest would stand still meanwhile. A rehearsal that fails has no meaning.
 */
export async function rehearseProtocol(): Promise<void> {
  const server = createServer(serve);
  // An abstract name: nothing is left in the file system.
  const path = `\0livegraft-rehearsal-${process.pid}`;
  let client: GdbClient | undefined;
  try {
    await listen(server, path);
    client = await GdbClient.connect({ kind: 'unix', path }, { timeoutMs: TIMEOUT_MS });
    for (let round = 0; round < ROUNDS; round++) {
      const vcpus = await client.vcpus();
      const [registers] = await client.readAllRegisters(vcpus);
      const bytes = await client.readMemory(MEMORY, 512);
      await client.readPieces([{ address: MEMORY, sizeBytes: 4 }]);
      await client.writeMemory(MEMORY, bytes);
      await client.insertBreakpoints([MEMORY]);
      await client.change([
        { kind: 'removeBreakpoint', address: MEMORY },
        { kind: 'write', address: MEMORY, bytes: bytes.subarray(0, 64) },
        ...(registers === undefined
          ? []
          : [{ kind: 'registers' as const, vcpu: vcpus[0] as string, registers }]),
      ]);
      client.resume();
      await client.interruptAndRead([{ address: MEMORY, sizeBytes: 4 }]);
    }
  } catch {
    // The guest will stand still a little longer.
  } finally {
    // An open connection would keep the process from ending.
    await client?.detach().catch(() => undefined);
    server.close();
  }
}

function listen(server: Server, path: string): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(path, resolve);
  });
}

function serve(socket: Socket): void {
  socket.on('error', () => {});
  let text = '';
  socket.on('data', (bytes) => {
    text += bytes.toString('latin1');
    for (let match = PACKET.exec(text); match !== null; match = PACKET.exec(text)) {
      text = text.slice(match[0].length);
      const answer = answerTo(match[1] ?? 'break');
      if (answer !== undefined) socket.write(framed(answer), 'latin1');
    }
  });
}

/** A packet, or the byte that asks for a stop, behind acknowledgements. */
const PACKET = new RegExp(`^[+]*(?:${String.fromCharCode(3)}|\\$([^#]*)#..)`, 's');

const DESCRIPTION = [...DEFAULT_LAYOUT.places]
  .map(([name, { sizeBytes }]) => `<reg name="${name}" bitsize="${8 * sizeBytes}"/>`)
  .join('');

/** Undefined for what is not answered. */
function answerTo(packet: string): string | undefined {
  if (packet === 'break') return 'T02thread:01;';
  if (/^(c|vCont;c)$/.test(packet)) return undefined;
  if (packet.startsWith('qSupported')) return 'PacketSize=1000;qXfer:features:read+;vContSupported+';
  if (packet === 'vCont?') return 'vCont;c;C;s;S';
  if (packet.startsWith('qXfer')) return `l<target>${DESCRIPTION}</target>`;
  if (packet === 'qqemu.PhyMemMode') return '0';
  if (packet === '?') return 'T05thread:01;';
  if (packet === 'qfThreadInfo') return 'm01,02';
  if (packet === 'qsThreadInfo') return 'l';
  if (packet === 'g') return '00'.repeat(DEFAULT_LAYOUT.sizeBytes);
  const read = /^m[0-9a-f]+,([0-9a-f]+)$/.exec(packet);
  return read === null ? 'OK' : '00'.repeat(Number.parseInt(read[1] as string, 16));
}
