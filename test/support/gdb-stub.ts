import { mkdtempSync, rmSync } from 'node:fs';
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DEFAULT_LAYOUT } from '../../src/targets/kernel/guest-registers.js';

const DESCRIPTION = `<target><architecture>i386:x86-64</architecture><xi:include href="core.xml"/></target>`;
const CORE = `<feature><!-- <reg name="gone" bitsize="64"/>
  <reg name="gone_too" bitsize="64"/> -->${[...DEFAULT_LAYOUT.places]
    .map(([name, { sizeBytes }]) => `<reg name="${name}" bitsize="${sizeBytes * 8}" type="int"/>`)
    .join('')}<reg name="gs_base" bitsize="64" type="int"/></feature>`;

/** A packet, or the byte that asks for a stop, behind any acknowledgements. */
const PACKET = new RegExp(`^[+-]*(?:${String.fromCharCode(3)}|\\$([^#]*)#[0-9a-f]{2})`);

type Answer = string | undefined | ((packet: string, stub: GdbStub) => string | undefined);

/** A stub of the GDB remote protocol with a little memory; answers can be replaced, held back, or damaged. */
export class GdbStub {
  readonly memory = new Uint8Array(4096);
  readonly received: string[] = [];
  readonly answers = new Map<string, Answer>();
  readonly folder = mkdtempSync(join(tmpdir(), 'livegraft-gdb-'));
  socket: Socket | undefined;
  readonly server: Server;
  #buffer = '';

  constructor() {
    this.server = createServer((socket) => {
      this.socket = socket;
      socket.on('error', () => {});
      socket.on('data', (bytes) => {
        this.#buffer += bytes.toString('latin1');
        for (;;) {
          const match = PACKET.exec(this.#buffer);
          if (match === null) return;
          this.#buffer = this.#buffer.slice(match[0].length);
          this.#handle(match[1] ?? 'break');
        }
      });
    });
  }

  async listenOnPort(host: string): Promise<string> {
    await new Promise<void>((resolve) => this.server.listen(0, host, resolve));
    return `${host}:${(this.server.address() as AddressInfo).port}`;
  }

  async listen(): Promise<string> {
    const path = join(this.folder, 'socket');
    await new Promise<void>((resolve) => this.server.listen(path, resolve));
    return `unix:${path}`;
  }

  close(): void {
    this.socket?.destroy();
    this.server.close();
    rmSync(this.folder, { recursive: true, force: true });
  }

  packet(body: string): string {
    let sum = 0;
    for (let i = 0; i < body.length; i++) sum = (sum + body.charCodeAt(i)) & 0xff;
    return `$${body}#${sum.toString(16).padStart(2, '0')}`;
  }

  write(body: string): void {
    this.socket?.write(this.packet(body), 'latin1');
  }

  #handle(packet: string): void {
    this.received.push(packet);
    for (const [prefix, answer] of this.answers) {
      if (!packet.startsWith(prefix)) continue;
      const text = typeof answer === 'function' ? answer(packet, this) : answer;
      if (text !== undefined) this.write(text);
      return;
    }
    const text = this.#answer(packet);
    if (text !== undefined) this.write(text);
  }

  #answer(packet: string): string | undefined {
    if (packet.startsWith('qSupported')) return 'PacketSize=400;qXfer:features:read+;vContSupported+';
    if (packet === 'c') return undefined;
    if (packet === 'break') return 'T02thread:01;';
    if (packet === 'vCont?') return 'vCont;c;C;s;S';
    if (packet === '?') return 'T05thread:01;';
    const feature = /^qXfer:features:read:(\S+):([0-9a-f]+),([0-9a-f]+)$/.exec(packet);
    if (feature !== null) {
      const text = feature[1] === 'target.xml' ? DESCRIPTION : CORE;
      const [at, size] = [
        Number.parseInt(feature[2] as string, 16),
        Number.parseInt(feature[3] as string, 16),
      ];
      return `${at + size < text.length ? 'm' : 'l'}${text.slice(at, at + size)}`;
    }
    if (packet === 'qfThreadInfo') return 'm01,02';
    if (packet === 'qsThreadInfo') return 'l';
    if (packet.startsWith('Hg') || packet === 'D' || /^[zZG]/.test(packet)) return 'OK';
    if (packet === 'g') return `${'11'.repeat(8)}${'00'.repeat(156)}${'efcdab0000000080'}`;
    const read = /^m([0-9a-f]+),([0-9a-f]+)$/.exec(packet);
    if (read !== null) {
      const at = Number.parseInt(read[1] as string, 16) - 0x1000;
      if (at < 0 || at >= this.memory.length) return 'E14';
      return Buffer.from(this.memory.subarray(at, at + Number.parseInt(read[2] as string, 16))).toString(
        'hex',
      );
    }
    const write = /^X([0-9a-f]+),([0-9a-f]+):(.*)$/s.exec(packet);
    if (write !== null) {
      const text = (write[3] as string).replace(/\}(.)/gs, (_, c: string) =>
        String.fromCharCode(c.charCodeAt(0) ^ 0x20),
      );
      this.memory.set(Buffer.from(text, 'latin1'), Number.parseInt(write[1] as string, 16) - 0x1000);
      return 'OK';
    }
    return '';
  }
}
