import { connect, type Socket } from 'node:net';
import { LivegraftError } from '../../base/errors.js';
import { framed, GdbPacketReader } from './gdb-packets.js';

export type GdbEndpoint =
  | { readonly kind: 'unix'; readonly path: string }
  | { readonly kind: 'tcp'; readonly host: string; readonly port: number };

/** `unix:PATH`, `HOST:PORT` or `[HOST]:PORT`; undefined for anything else. */
export function parseGdbEndpoint(text: string): GdbEndpoint | undefined {
  if (text.startsWith('unix:') && text.length > 5) return { kind: 'unix', path: text.slice(5) };
  const match = /^(?:tcp:)?(?:\[([^\]]+)\]|([^:]+)):(\d+)$/.exec(text);
  const port = Number(match?.[3]);
  if (match === null || port < 1 || port > 65535) return undefined;
  return { kind: 'tcp', host: (match[1] ?? match[2]) as string, port };
}

function gdbEndpointText(endpoint: GdbEndpoint): string {
  return endpoint.kind === 'unix' ? `unix:${endpoint.path}` : `${endpoint.host}:${endpoint.port}`;
}

const MAX_RESENDS = 3;
const CLOSE_TIMEOUT_MS = 500;
/** How long a connection that has failed is given to take a last packet. */
const FAILED_TIMEOUT_MS = 500;
/** What asks a running target to stop; one that stands still ignores it, outside of packets. */
const BREAK = '\x03';

interface Waiter {
  readonly resolve: (packet: string) => void;
  readonly reject: (error: LivegraftError) => void;
  readonly timer: NodeJS.Timeout;
}

/**
 * Packets of the GDB remote serial protocol over a socket. Payloads are strings of bytes (latin1). A socket that closes or stalls fails whatever waits,
 * with an error that says so, and every later request.
 */
export class GdbConnection {
  readonly endpoint: string;
  readonly #socket: Socket;
  readonly #reader = new GdbPacketReader();
  #packets: string[] = [];
  #waiter: Waiter | undefined;
  #failure: LivegraftError | undefined;
  #acknowledges = false;
  #lastSent = '';
  #resends = 0;

  private constructor(socket: Socket, endpoint: string) {
    this.#socket = socket;
    this.endpoint = endpoint;
    socket.setNoDelay(true);
    socket.on('data', (bytes: Buffer) => this.#receive(bytes));
    socket.on('error', (error) =>
      this.#fail('gdb-connection-lost', `the connection failed: ${error.message}`),
    );
    socket.on('close', () => this.#fail('gdb-connection-lost', 'the other side closed the connection'));
  }

  /** Rejects with a LivegraftError (`gdb-unreachable`) when nobody answers in time. */
  static open(endpoint: GdbEndpoint, timeoutMs: number): Promise<GdbConnection> {
    const text = gdbEndpointText(endpoint);
    return new Promise((resolve, reject) => {
      const socket =
        endpoint.kind === 'unix'
          ? connect(endpoint.path)
          : connect({ host: endpoint.host, port: endpoint.port });
      const fail = (why: string) => {
        clearTimeout(timer);
        socket.destroy();
        reject(
          new LivegraftError('gdb-unreachable', `${text}: ${why}`, {
            remedy: 'start the guest with a gdb socket, e.g. qemu -gdb unix:PATH,server=on,wait=off',
          }),
        );
      };
      const timer = setTimeout(() => fail(`no connection within ${timeoutMs} ms`), timeoutMs);
      socket.once('error', (error) => fail(error.message));
      socket.once('connect', () => {
        clearTimeout(timer);
        socket.removeAllListeners('error');
        resolve(new GdbConnection(socket, text));
      });
    });
  }

  get acknowledges(): boolean {
    return this.#acknowledges;
  }

  /** Before this nothing is acknowledged. */
  startAcknowledging(): void {
    this.#acknowledges = true;
  }

  /** After this neither side acknowledges packets (`QStartNoAckMode` was answered with OK). */
  stopAcknowledging(): void {
    this.#acknowledges = false;
  }

  /** Sends a packet and waits for the next one. One at a time. */
  async request(payload: string, timeoutMs: number): Promise<string> {
    this.send(payload);
    return this.receive(timeoutMs);
  }

  send(payload: string): void {
    if (this.#failure !== undefined) throw this.#failure;
    this.#lastSent = framed(payload);
    this.#resends = 0;
    this.#socket.write(this.#lastSent, 'latin1');
  }

  /**
   * Sends several packets in one write: the stub gets all of them or, should this process be killed, none. Each is answered.
   * For stubs that take a packet while they wait for an acknowledgement. With `stops` a running target is asked to stop first: the
   * byte 3, outside of any packet.
   */
  sendTogether(payloads: readonly string[], stops = false): void {
    if (this.#failure !== undefined) throw this.#failure;
    this.#socket.write(`${stops ? BREAK : ''}${payloads.map(framed).join('')}`, 'latin1');
  }

  /** The next packet. Rejects with `gdb-timeout`; the connection is unusable then, since a late answer would be taken for another. */
  async receive(timeoutMs: number): Promise<string> {
    const packet = await this.poll(timeoutMs);
    if (packet !== undefined) return packet;
    this.#fail('gdb-timeout', `no answer within ${timeoutMs} ms`);
    throw this.#failure;
  }

  /** The next packet, or undefined when none came in time, which harms nothing. */
  poll(timeoutMs: number): Promise<string | undefined> {
    if (this.#waiter !== undefined) throw new Error('a request is already waiting');
    if (this.#packets.length === 0 && this.#failure !== undefined) return Promise.reject(this.#failure);
    return this.#next(timeoutMs);
  }

  #closedError(): LivegraftError {
    return new LivegraftError('gdb-connection-lost', `${this.endpoint}: the connection is closed`);
  }

  #next(timeoutMs: number): Promise<string | undefined> {
    const ready = this.#packets.shift();
    if (ready !== undefined) return Promise.resolve(ready);
    if (this.#socket.destroyed) return Promise.resolve(undefined);
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#waiter = undefined;
        resolve(undefined);
      }, timeoutMs);
      this.#waiter = { resolve, reject, timer };
    });
  }

  /**
   * Sends a last packet, `D`, whatever else was going on, waits for its OK, and closes. Whoever waits for an answer is told
   * that the connection is closed, and nothing may be sent any more, not even an acknowledgement: a byte that reaches
   * QEMU's stub while the guest runs stops it again. A connection that has failed is tried once more, as what stalls may
   * go on later. Resolves to whether it is certain that the guest was let go; never rejects.
   */
  async finish(isRunning: boolean, timeoutMs: number): Promise<boolean> {
    const hasFailed = this.#failure !== undefined;
    this.#failure ??= this.#closedError();
    this.#acknowledges = false;
    const waiter = this.#waiter;
    this.#waiter = undefined;
    if (waiter !== undefined) {
      clearTimeout(waiter.timer);
      waiter.reject(this.#failure);
    }
    let isLetGo = false;
    if (!this.#socket.destroyed) {
      this.#packets = [];
      this.#socket.write(`${isRunning || hasFailed ? BREAK : ''}${framed('D')}`, 'latin1');
      const deadline = performance.now() + (hasFailed ? FAILED_TIMEOUT_MS : timeoutMs);
      let packet: string | undefined;
      do packet = await this.#next(Math.max(0, deadline - performance.now())).catch(() => undefined);
      while (packet !== undefined && packet !== 'OK');
      // After a failure the OK may be a late answer to something else.
      isLetGo = packet === 'OK' && !hasFailed;
    }
    await this.close();
    return isLetGo;
  }

  /** Resolves when the other side knows, or after a moment. */
  async close(): Promise<void> {
    this.#failure ??= this.#closedError();
    if (this.#socket.destroyed) return;
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, CLOSE_TIMEOUT_MS);
      this.#socket.once('close', () => {
        clearTimeout(timer);
        resolve();
      });
      this.#socket.destroySoon();
    });
    this.#socket.destroy();
  }

  /** The socket stays open, if it is, for {@link finish}. */
  #fail(code: string, problem: string): void {
    this.#failure ??= new LivegraftError(code, `${this.endpoint}: ${problem}`, {
      remedy:
        'see whether the guest still runs and whether another debugger uses its socket, then repeat the command',
    });
    const waiter = this.#waiter;
    this.#waiter = undefined;
    if (waiter === undefined) return;
    clearTimeout(waiter.timer);
    waiter.reject(this.#failure);
  }

  #receive(bytes: Buffer): void {
    for (const received of this.#reader.receive(bytes)) {
      if (received.kind === 'packet') {
        if (this.#acknowledges) this.#socket.write('+', 'latin1');
        this.#deliver(received.payload);
      } else if (received.kind === 'tooLong') {
        this.#fail('gdb-protocol', 'a packet has no end');
        return;
      } else if (received.kind === 'refusal') {
        if (this.#acknowledges) this.#resend();
      } else if (this.#acknowledges) this.#socket.write('-', 'latin1');
      else {
        this.#fail('gdb-protocol', 'a packet has a wrong checksum');
        return;
      }
    }
  }

  #resend(): void {
    if (++this.#resends > MAX_RESENDS) this.#fail('gdb-protocol', 'the other side refuses our packets');
    else this.#socket.write(this.#lastSent, 'latin1');
  }

  #deliver(packet: string): void {
    const waiter = this.#waiter;
    if (waiter === undefined) {
      this.#packets.push(packet);
      return;
    }
    this.#waiter = undefined;
    clearTimeout(waiter.timer);
    waiter.resolve(packet);
  }
}
