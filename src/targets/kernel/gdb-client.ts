import { LivegraftError } from '../../base/errors.js';
import { GdbConnection, type GdbEndpoint } from './gdb-connection.js';
import {
  fromHex,
  type MemoryPiece,
  memoryError,
  parseReads,
  readRequests,
  toHex,
  unsigned,
} from './gdb-memory.js';
import { escapeBinary } from './gdb-packets.js';
import type { GuestGuard } from './guest-guard.js';
import {
  DEFAULT_LAYOUT,
  GuestRegisters,
  parseRegisterLayout,
  type RegisterLayout,
} from './guest-registers.js';
import { addStop, NO_STOPS, type StopStatistics } from './stop-statistics.js';

/** Why the guest stopped: a signal in one vCPU (5: a breakpoint, a step, or our request; 2: our request), or its end. */
export type GuestStop =
  | { readonly kind: 'signal'; readonly signal: number; readonly vcpu: string }
  | { readonly kind: 'exited'; readonly detail: string };

export interface GdbClientOptions {
  /** How long any answer may take. */
  readonly timeoutMs: number;
  /** Lets the guest go when this process can't. */
  readonly guard?: GuestGuard | undefined;
}

/** While a connection is made the guest goes on after so long, for so long. */
const BREATHE_AFTER_MS = 0.5;
const BREATHE_MS = 1;

/** What can be done to a stopped guest in one piece with other such things. */
export type GuestChange =
  | { readonly kind: 'write'; readonly address: number; readonly bytes: Uint8Array }
  | { readonly kind: 'registers'; readonly vcpu: string; readonly registers: GuestRegisters }
  | {
      readonly kind: 'insertBreakpoint' | 'removeBreakpoint';
      readonly address: number;
      /** By the processor: the stub need not see the memory there. */
      readonly isHardware?: boolean;
    };

/**
 * A guest behind a GDB stub whose threads are its vCPUs. Connecting stops it. Methods that look or change need it
 * stopped; all of it stops and runs together. Every failure is a LivegraftError: `gdb-…`, `guest-memory`.
 */
export class GdbClient {
  readonly #connection: GdbConnection;
  readonly #timeoutMs: number;
  readonly #guard: GuestGuard | undefined;
  #packetBytes = 1024;
  #layout: RegisterLayout = DEFAULT_LAYOUT;
  #features = new Set<string>();
  #running = false;
  #detached: Promise<void> | undefined;
  #selected: string | undefined;
  #vcpus: readonly string[] | undefined;
  #physicalMode: boolean | undefined;
  #stoppedAt = performance.now();
  #statistics = NO_STOPS;
  readonly #byPhase = new Map<string, StopStatistics>();
  /** What stops are counted under. */
  phase = 'connect';
  /** Called when the guest has been let go and when it has stopped: what was read of it before is old. */
  onRun: () => void = () => {};

  private constructor(connection: GdbConnection, { timeoutMs, guard }: GdbClientOptions) {
    this.#connection = connection;
    this.#timeoutMs = timeoutMs;
    this.#guard = guard;
  }

  static async connect(endpoint: GdbEndpoint, options: GdbClientOptions): Promise<GdbClient> {
    const startedAt = performance.now();
    let connection: GdbConnection;
    try {
      connection = await GdbConnection.open(endpoint, options.timeoutMs);
    } catch (error) {
      options.guard?.dismiss();
      throw error;
    }
    const client = new GdbClient(connection, options);
    client.#stoppedAt = startedAt;
    try {
      await client.#negotiate();
    } catch (error) {
      await client.detach();
      throw error;
    }
    return client;
  }

  get isRunning(): boolean {
    return this.#running;
  }

  /** Of all stops that have ended. */
  get statistics(): StopStatistics {
    return this.#statistics;
  }

  /** The same by {@link phase}. */
  get statisticsByPhase(): ReadonlyMap<string, StopStatistics> {
    return this.#byPhase;
  }

  /** Since when the guest stands still; 0 while it runs. */
  get stoppedForMs(): number {
    return this.#running ? 0 : performance.now() - this.#stoppedAt;
  }

  /** Ids of the vCPUs, in the stub's spelling. */
  async vcpus(): Promise<readonly string[]> {
    if (this.#vcpus !== undefined) return this.#vcpus;
    const ids: string[] = [];
    let answer = await this.#request('qfThreadInfo');
    while (answer.startsWith('m')) {
      ids.push(...answer.slice(1).split(','));
      answer = await this.#request('qsThreadInfo');
    }
    if (ids.length === 0) throw this.#protocolError('it lists no threads');
    this.#vcpus = ids;
    return ids;
  }

  async readRegisters(vcpu: string): Promise<GuestRegisters> {
    const [registers] = await this.readAllRegisters([vcpu]);
    return registers as GuestRegisters;
  }

  /** Of each vCPU what was read last. */
  readonly lastRegisters = new Map<string, GuestRegisters>();

  /** Of several vCPUs, with one wait for all answers. */
  async readAllRegisters(vcpus: readonly string[]): Promise<readonly GuestRegisters[]> {
    const answers = await this.#requestAll(vcpus.flatMap((vcpu) => [`Hg${vcpu}`, 'g']));
    this.#selected = vcpus.at(-1);
    const all = vcpus.map((vcpu, i) => {
      this.#expectOk(`vCPU ${vcpu}`, answers[2 * i] as string);
      const registers = this.#parseRegisters(answers[2 * i + 1] as string);
      this.lastRegisters.set(vcpu, registers);
      return registers;
    });
    // Memory is read through the last one, which may not see the kernel.
    const seeing = vcpus[all.findIndex(({ mayHideKernel }) => !mayHideKernel)];
    const last = all.at(-1);
    if (seeing !== undefined && last?.mayHideKernel === true) {
      this.#expectOk(`vCPU ${seeing}`, await this.#request(`Hg${seeing}`));
      this.#selected = seeing;
    }
    return all;
  }

  #parseRegisters(answer: string): GuestRegisters {
    // `x` stands for a register that the stub can't read.
    if (!/^[0-9a-fx]{272,}$/i.test(answer)) throw this.#protocolError(`registers: ${answer.slice(0, 40)}`);
    return new GuestRegisters(fromHex(answer.replaceAll('x', '0')), this.#layout);
  }

  /**
   * Makes changes, with one wait for all answers. A guest that is a QEMU gets either all or none of them, whenever this
   * process is killed, as long as they fit 4 KiB. What is written must fit a packet.
   */
  async change(changes: readonly GuestChange[]): Promise<void> {
    const sent: { readonly payload: string; readonly address?: bigint; readonly what: string }[] = [];
    await this.#usePhysical(false);
    for (const change of changes) {
      switch (change.kind) {
        case 'write': {
          const address = unsigned(change.address);
          const size = change.bytes.length.toString(16);
          sent.push({
            payload: `M${address.toString(16)},${size}:${toHex(change.bytes)}`,
            ...{ address, what: 'memory' },
          });
          break;
        }
        case 'registers':
          if (this.#selected !== change.vcpu)
            sent.push({ payload: `Hg${change.vcpu}`, what: `vCPU ${change.vcpu}` });
          this.#selected = change.vcpu;
          sent.push({ payload: `G${toHex(change.registers.toBytes())}`, what: 'registers' });
          break;
        case 'insertBreakpoint':
        case 'removeBreakpoint': {
          const letter = change.kind === 'insertBreakpoint' ? 'Z' : 'z';
          sent.push({
            payload: `${letter}${change.isHardware === true ? 1 : 0},${unsigned(change.address).toString(16)},1`,
            what: 'breakpoint',
          });
        }
      }
    }
    const answers = await this.#requestAll(sent.map(({ payload }) => payload));
    for (const [i, { address, what }] of sent.entries()) {
      const answer = answers[i] as string;
      if (address !== undefined && answer !== 'OK') throw memoryError('written', address, answer);
      this.#expectOk(what, answer);
    }
  }

  /** Memory by the addresses of the vCPU that was selected last; all that see the kernel agree about it. */
  async readMemory(address: number, sizeBytes: number): Promise<Uint8Array> {
    await this.#usePhysical(false);
    return this.#read(unsigned(address), sizeBytes);
  }

  /** Several pieces, each of which fits a packet, with one wait for all answers. Rejects when one of them can't be read. */
  async readPieces(pieces: readonly MemoryPiece[]): Promise<readonly Uint8Array[]> {
    await this.#usePhysical(false);
    return parseReads(pieces, await this.#requestAll(readRequests(pieces)));
  }

  async writeMemory(address: number, bytes: Uint8Array): Promise<void> {
    await this.#usePhysical(false);
    await this.#write(unsigned(address), bytes);
  }

  /** Whether {@link readPhysical} works: QEMU has it, other stubs may not. */
  get hasPhysicalMemory(): boolean {
    return this.#physicalMode !== undefined;
  }

  async readPhysical(address: number, sizeBytes: number): Promise<Uint8Array> {
    await this.#usePhysical(true);
    return this.#read(unsigned(address), sizeBytes);
  }

  /** As a device would: where no memory is, it goes to whatever listens there. In one packet, so that it is one access. */
  async writePhysical(address: number, bytes: Uint8Array): Promise<void> {
    await this.#usePhysical(true);
    const answer = await this.#request(
      `M${address.toString(16)},${bytes.length.toString(16)}:${toHex(bytes)}`,
    );
    if (answer !== 'OK') throw memoryError('written', BigInt(address), answer);
  }

  /** Software breakpoints: the stub keeps them out of what is read of the guest's memory. */
  async insertBreakpoints(addresses: Iterable<number>): Promise<void> {
    await this.change(Array.from(addresses, (address) => ({ kind: 'insertBreakpoint', address })));
  }

  async removeBreakpoints(addresses: Iterable<number>): Promise<void> {
    await this.change(Array.from(addresses, (address) => ({ kind: 'removeBreakpoint', address })));
  }

  /** Lets the guest run; the next {@link waitForStop} or {@link interrupt} says why it stopped. */
  resume(): void {
    if (this.#running) return;
    this.#connection.send(this.#features.has('vCont') ? 'vCont;c' : 'c');
    this.#running = true;
    this.#countStop();
    this.onRun();
  }

  #countStop(): void {
    const ms = performance.now() - this.#stoppedAt;
    this.#statistics = addStop(this.#statistics, ms);
    this.#byPhase.set(this.phase, addStop(this.#byPhase.get(this.phase) ?? NO_STOPS, ms));
  }

  /** One instruction of one vCPU; the others stand still. */
  async step(vcpu: string): Promise<GuestStop> {
    const since = this.#stoppedAt;
    this.#connection.send(`vCont;s:${vcpu}`);
    this.#running = true;
    this.onRun();
    const stop = await this.waitForStop(this.#timeoutMs);
    if (stop === undefined) throw this.#protocolError('a single step does not end');
    // To the rest of the guest it is one stop.
    this.#stoppedAt = since;
    return stop;
  }

  /** Undefined when the guest has not stopped in time; it goes on running then. */
  async waitForStop(timeoutMs: number): Promise<GuestStop | undefined> {
    const deadline = Date.now() + timeoutMs;
    while (this.#running) {
      const packet = await this.#connection.poll(Math.max(0, deadline - Date.now()));
      if (packet === undefined) return undefined;
      const stop = this.#parseStop(packet);
      if (stop !== undefined) {
        this.#running = false;
        this.#stoppedAt = performance.now();
        this.onRun();
        return stop;
      }
    }
    throw new Error('the guest is not running');
  }

  /** Stops the guest now. When it had stopped by itself already, that is what is returned. */
  async interrupt(): Promise<GuestStop> {
    return (await this.interruptAndRead([])).stop;
  }

  /**
   * The same, and reads pieces that each fit a packet in that very stop. QEMU's stub stops the guest at the first byte and takes
   * what comes with it as requests (`gdb_read_byte` in gdbstub.c), so that the guest waits for no request to travel. `bytes` is
   * empty when the guest has ended. Rejects, with the guest stopped, when a piece can't be read.
   */
  async interruptAndRead(
    pieces: readonly MemoryPiece[],
  ): Promise<{ readonly stop: GuestStop; readonly bytes: readonly Uint8Array[] }> {
    const isTogether = this.#takesTogether && this.#physicalMode !== true;
    const sent = isTogether ? readRequests(pieces) : [];
    this.#connection.sendTogether(sent, true);
    const stop = await this.waitForStop(this.#timeoutMs);
    if (stop === undefined) {
      // Poisons the connection: a stop that comes later would answer another question.
      await this.#connection.receive(0);
      throw this.#protocolError('the guest does not stop');
    }
    if (stop.kind === 'exited') return { stop, bytes: [] };
    if (!isTogether) return { stop, bytes: pieces.length === 0 ? [] : await this.readPieces(pieces) };
    return { stop, bytes: parseReads(pieces, await this.#receiveAll(sent.length)) };
  }

  /** Lets the guest go for good and closes the connection. Never throws: what the stub did not hear is the guard's to say. */
  detach(): Promise<void> {
    this.#detached ??= this.#detach();
    return this.#detached;
  }

  async #detach(): Promise<void> {
    if (!this.#running) this.#countStop();
    if (await this.#connection.finish(this.#running, this.#timeoutMs)) this.#guard?.dismiss();
    else this.#guard?.callOut();
  }

  /** Connecting has stopped the guest: it goes on at once, and in between. */
  async #negotiate(): Promise<void> {
    this.resume();
    // Not a byte may go out while it runs: an acknowledgement would stop it.
    await this.#connection.poll(BREATHE_MS);
    this.#connection.sendTogether([], true);
    this.#running = false;
    this.#stoppedAt = performance.now();
    this.#connection.startAcknowledging();
    let supported = await this.#request('qSupported:xmlRegisters=i386;vContSupported+');
    // QEMU tells first that connecting has stopped the guest, unless it stood still before, and that the break has.
    while (this.#parseStop(supported) !== undefined) {
      this.#stoppedAt = performance.now();
      supported = await this.#connection.receive(this.#timeoutMs);
    }
    for (const feature of supported.split(';')) {
      const size = /^PacketSize=([0-9a-f]+)$/i.exec(feature)?.[1];
      if (size !== undefined) this.#packetBytes = Math.min(Number.parseInt(size, 16), 65536);
      if (feature.endsWith('+')) this.#features.add(feature.slice(0, -1));
    }
    if (this.#packetBytes < 256)
      throw this.#protocolError(`packets of ${this.#packetBytes} bytes are too small`);
    if (this.#features.has('QStartNoAckMode') && (await this.#request('QStartNoAckMode')) === 'OK')
      this.#connection.stopAcknowledging();
    await this.#breathe();
    if ((await this.#request('vCont?')).startsWith('vCont;')) this.#features.add('vCont');
    if (this.#features.has('qXfer:features:read')) {
      const description = await this.#readDescription('target.xml', 0);
      this.resume();
      const layout = parseRegisterLayout(description);
      await this.#breathe();
      if (layout === undefined) throw this.#protocolError('its registers are not those of x86-64');
      this.#layout = layout;
    }
    const [mode, status] = await this.#requestAll(['qqemu.PhyMemMode', '?']);
    if (mode === '0' || mode === '1') this.#physicalMode = mode === '1';
    const stop = this.#parseStop(status as string);
    if (stop === undefined || stop.kind === 'exited') throw this.#protocolError('the guest has ended');
  }

  /** Lets the guest run for a moment, unless it has stopped just now. */
  async #breathe(): Promise<void> {
    if (!this.#running && this.stoppedForMs < BREATHE_AFTER_MS) return;
    this.resume();
    await this.waitForStop(BREATHE_MS);
    if (this.#running) await this.interrupt();
  }

  /** A target description with what it includes put in place. */
  async #readDescription(name: string, depth: number): Promise<string> {
    let text = '';
    for (;;) {
      await this.#breathe();
      const part = await this.#request(
        `qXfer:features:read:${name}:${text.length.toString(16)},${(this.#packetBytes - 8).toString(16)}`,
      );
      if (!/^[ml]/.test(part)) throw this.#protocolError(`no target description ${name}`);
      text += part.slice(1);
      if (part.startsWith('l') || part.length === 1 || text.length > 1_000_000) break;
    }
    const pieces: string[] = [];
    let at = 0;
    for (const match of text.matchAll(/<xi:include\s+href="([^"]+)"\s*\/>/g)) {
      pieces.push(text.slice(at, match.index));
      if (depth < 3) pieces.push(await this.#readDescription(match[1] as string, depth + 1));
      at = match.index + match[0].length;
    }
    return [...pieces, text.slice(at)].join('');
  }

  async #usePhysical(physical: boolean): Promise<void> {
    if (this.#physicalMode === undefined) {
      if (!physical) return;
      throw this.#protocolError('it has no physical memory access');
    }
    if (this.#physicalMode === physical) return;
    this.#expectOk('PhyMemMode', await this.#request(`Qqemu.PhyMemMode:${physical ? 1 : 0}`));
    this.#physicalMode = physical;
  }

  async #read(address: bigint, sizeBytes: number): Promise<Uint8Array> {
    const result = new Uint8Array(sizeBytes);
    // The size is that of a payload: two digits a byte.
    const most = Math.floor(this.#packetBytes / 2);
    for (let at = 0; at < sizeBytes; ) {
      const count = Math.min(most, sizeBytes - at);
      const from = address + BigInt(at);
      const answer = await this.#request(`m${from.toString(16)},${count.toString(16)}`);
      if (!/^([0-9a-f]{2})+$/i.test(answer)) throw memoryError('read', from, answer);
      const bytes = fromHex(answer).subarray(0, count);
      result.set(bytes, at);
      at += bytes.length;
    }
    return result;
  }

  async #write(address: bigint, bytes: Uint8Array): Promise<void> {
    // Each byte may need an escape.
    const most = Math.floor((this.#packetBytes - 40) / 2);
    for (let at = 0; at < bytes.length; at += most) {
      const part = bytes.subarray(at, at + most);
      const to = (address + BigInt(at)).toString(16);
      let answer = await this.#request(`X${to},${part.length.toString(16)}:${escapeBinary(part)}`);
      if (answer === '') answer = await this.#request(`M${to},${part.length.toString(16)}:${toHex(part)}`);
      if (answer !== 'OK') throw memoryError('written', address + BigInt(at), answer);
    }
  }

  #request(payload: string): Promise<string> {
    if (this.#running) throw new Error(`the guest runs; ${payload.slice(0, 20)} needs it stopped`);
    return this.#connection.request(payload, this.#timeoutMs);
  }

  /**
   * Without acknowledgements a stub takes requests one behind the other, and answers in order. With them QEMU's does, too: it takes
   * the next request for one (`gdb_read_byte` in gdbstub.c); the kernel's own does not.
   */
  async #requestAll(payloads: readonly string[]): Promise<string[]> {
    if (this.#running) throw new Error(`the guest runs; ${payloads[0]?.slice(0, 20)} needs it stopped`);
    if (this.#takesTogether) {
      this.#connection.sendTogether(payloads);
      return this.#receiveAll(payloads.length);
    }
    const answers: string[] = [];
    for (const payload of payloads) answers.push(await this.#request(payload));
    return answers;
  }

  get #takesTogether(): boolean {
    return !this.#connection.acknowledges || this.hasPhysicalMemory;
  }

  async #receiveAll(count: number): Promise<string[]> {
    const answers: string[] = [];
    while (answers.length < count) answers.push(await this.#connection.receive(this.#timeoutMs));
    return answers;
  }

  /** Undefined for packets that report no stop (console output). */
  #parseStop(packet: string): GuestStop | undefined {
    const kind = packet[0];
    if (kind === 'W' || kind === 'X') return { kind: 'exited', detail: packet };
    if (kind !== 'T' && kind !== 'S') return undefined;
    const vcpu = /thread:([^;]+);/.exec(packet)?.[1];
    if (vcpu !== undefined) this.#selected = undefined;
    return { kind: 'signal', signal: Number.parseInt(packet.slice(1, 3), 16), vcpu: vcpu ?? '1' };
  }

  #expectOk(what: string, answer: string): void {
    if (answer !== 'OK')
      throw this.#protocolError(`${what}: it answers ${answer === '' ? 'nothing' : answer}`);
  }

  #protocolError(problem: string): LivegraftError {
    return new LivegraftError('gdb-protocol', `${this.#connection.endpoint}: ${problem}`, {
      remedy: 'use a stub for an x86-64 machine, such as QEMU',
    });
  }
}
