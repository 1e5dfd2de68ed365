import { readFileSync } from 'node:fs';
import { LivegraftError } from '../src/base/errors.js';
import { parseLivepatchState } from '../src/cli/klp-state.js';
import { parseCallbackRecord } from '../src/targets/callback-record.js';
import { framed, GdbPacketReader } from '../src/targets/kernel/gdb-packets.js';
import {
  DEFAULT_LAYOUT,
  GuestRegisters,
  parseRegisterLayout,
} from '../src/targets/kernel/guest-registers.js';
import { KernelRegistryStore } from '../src/targets/kernel/kernel-registry.js';
import { parseMappings } from '../src/targets/process/proc.js';
import { RegistryStore, SLOTS_OFFSET } from '../src/targets/process/registry-store.js';
import { parseSuppressions, sortOut } from '../src/validate/findings.js';
import { type FuzzTarget, once, pack, unpack } from './support.js';

/** What comes from a running target, or is text: packets, registries in its memory, the kernel's own lists. */

const bytesOf = (text: string) => new Uint8Array(Buffer.from(text, 'latin1'));
const textOf = (bytes: Uint8Array) => Buffer.from(bytes).toString('latin1');

/** Memory of which there is only a part. */
class PartOfMemory {
  readonly pid = 1;
  readonly #bytes: Uint8Array;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  readExactly(address: number, sizeBytes: number): Buffer {
    if (!(address >= 0) || address + sizeBytes > this.#bytes.length)
      throw new LivegraftError('process-memory', 'there is none');
    return Buffer.from(this.#bytes.slice(address, address + sizeBytes));
  }

  async readMemory(address: number, sizeBytes: number): Promise<Uint8Array> {
    return this.readExactly(address, sizeBytes);
  }

  write(address: number, bytes: Uint8Array): void {
    this.#bytes.set(bytes, address);
  }

  async writeMemory(address: number, bytes: Uint8Array): Promise<void> {
    this.write(address, bytes);
  }
}

const REGISTERS = `<target><!-- <reg name="gone" bitsize="64"/> -->${[...DEFAULT_LAYOUT.places]
  .map(([name, { sizeBytes }]) => `<reg name="${name}" bitsize="${sizeBytes * 8}"/>`)
  .join('')}<reg name="cr3" bitsize="64"/></target>`;

const LIVEPATCH = `/sys/kernel/livepatch/one/vmlinux/cmdline_proc_show,1
/sys/kernel/livepatch/one/enabled:1
/sys/kernel/livepatch/one/transition:1
/proc/7/task/8/patch_state:0
/proc/7/task/8/comm:kworker/0:1
/proc/7/task/8/stack:[<0>] cmdline_proc_show+0x1/0x20
`;

const SUPPRESSIONS = `# comment
cfa-* ossl_*_x86_64  # hand-written
missing-row *a*b*c*
* f
`;

export const memoryTargets: readonly FuzzTarget[] = [
  {
    name: 'gdb-packets',
    cases: 3000,
    seeds: () => [
      bytesOf(['OK', '0* *!11', 'T05thread:01;', '}\x03}]'].map(framed).join('+-')),
      bytesOf(framed(`m${'0*~*~'.repeat(20)}`)),
    ],
    read(bytes) {
      // In two ways: all at once and byte by byte come to the same.
      const whole = [...new GdbPacketReader().receive(Buffer.from(bytes))];
      const reader = new GdbPacketReader();
      const parts = [...bytes].flatMap((byte) => [...reader.receive(Buffer.of(byte))]);
      if (JSON.stringify(parts) !== JSON.stringify(whole)) throw new Error('pieces make other packets');
      for (const received of whole)
        if (received.kind === 'packet' && received.payload.length > 2 ** 22)
          throw new Error('a packet is too long');
    },
  },
  {
    name: 'guest-registers',
    cases: 2000,
    seeds: () => [pack([bytesOf(REGISTERS), new Uint8Array(DEFAULT_LAYOUT.sizeBytes + 8).fill(0x81)])],
    refusal: LivegraftError,
    read(bytes) {
      const [xml = bytes, packet = bytes] = unpack(bytes, 2);
      const layout = parseRegisterLayout(textOf(xml)) ?? DEFAULT_LAYOUT;
      const registers = new GuestRegisters(packet, layout);
      for (const name of ['rip', 'rsp', 'cr3', 'eflags']) if (registers.has(name)) registers.address(name);
      void [
        registers.has('rip') && registers.with({ rip: -1 }),
        registers.has('cs') && registers.mayHideKernel,
      ];
    },
  },
  {
    name: 'mappings',
    cases: 2000,
    seeds: once(() => [new Uint8Array(readFileSync('/proc/self/maps')).slice(0, 4000)]),
    read(bytes) {
      for (const { start, end } of parseMappings(textOf(bytes)))
        if (!Number.isFinite(start) || !Number.isFinite(end)) throw new Error('a mapping has no place');
    },
  },
  {
    name: 'livepatch-state',
    cases: 3000,
    seeds: () => [bytesOf(LIVEPATCH)],
    read: (bytes) => void parseLivepatchState(textOf(bytes)),
  },
  {
    name: 'suppressions',
    cases: 3000,
    seeds: () => [bytesOf(SUPPRESSIONS), bytesOf(`* ${'*a'.repeat(30)}`)],
    refusal: RangeError,
    read(bytes) {
      const rules = parseSuppressions(textOf(bytes));
      const place = { function: `${'a'.repeat(60)}b`, section: '.text', address: 0, offset: 0 };
      sortOut([{ code: 'cfa-mismatch', place } as never], new Set(), rules);
    },
  },
  {
    name: 'process-registry',
    cases: 300,
    seeds: once(() => {
      const bytes = new Uint8Array(SLOTS_OFFSET);
      const store = new RegistryStore(new PartOfMemory(bytes), 0);
      const slots = { kind: 'gsBase', address: 4096, sizeBytes: 64 } as const;
      for (let i = 0; i < 3; i++) store.write({ slots, patches: [], transition: undefined, retired: [] });
      return [bytes];
    }),
    refusal: LivegraftError,
    read: (bytes) => void new RegistryStore(new PartOfMemory(bytes), 0).read(),
  },
  {
    name: 'kernel-registry',
    cases: 2000,
    seeds: async () => {
      const bytes = new Uint8Array(64 * 1024 + 64);
      const memory = new PartOfMemory(bytes);
      const store = new KernelRegistryStore(memory, memory, 0);
      await store.useMemory(64);
      await store.write({ patches: [], transition: undefined, serial: 7 });
      return [bytes];
    },
    refusal: LivegraftError,
    async read(bytes) {
      const memory = new PartOfMemory(bytes);
      await new KernelRegistryStore(memory, memory, 0).read();
    },
  },
  {
    name: 'callback-record',
    cases: 500,
    seeds: () => [new Uint8Array(16).fill(1)],
    // Whoever reads one asks for as many bytes as it has.
    read: (bytes) => void parseCallbackRecord(new Uint8Array(16).map((_, i) => bytes[i] ?? 0)),
  },
];
