import { foldAddress } from '../../base/brand.js';
import { LivegraftError } from '../../base/errors.js';

/** Where each register lies in the bytes of a `g` packet. */
export interface RegisterLayout {
  readonly sizeBytes: number;
  readonly places: ReadonlyMap<string, { readonly offset: number; readonly sizeBytes: number }>;
}

/** gdb's own order for x86-64, which stubs without a target description (kgdb) send. */
const DEFAULT_ORDER: readonly (readonly [string, number])[] = [
  ...['rax', 'rbx', 'rcx', 'rdx', 'rsi', 'rdi', 'rbp', 'rsp'].map((name) => [name, 8] as const),
  ...['r8', 'r9', 'r10', 'r11', 'r12', 'r13', 'r14', 'r15', 'rip'].map((name) => [name, 8] as const),
  ...['eflags', 'cs', 'ss', 'ds', 'es', 'fs', 'gs'].map((name) => [name, 4] as const),
];

export const DEFAULT_LAYOUT = layoutOf(DEFAULT_ORDER);

function layoutOf(order: readonly (readonly [string, number])[]): RegisterLayout {
  const places = new Map<string, { offset: number; sizeBytes: number }>();
  let offset = 0;
  for (const [name, sizeBytes] of order) {
    places.set(name, { offset, sizeBytes });
    offset += sizeBytes;
  }
  return { sizeBytes: offset, places };
}

/** From the `<reg>` elements of a target description (gdb manual, appendix G.2.4), in document order. */
export function parseRegisterLayout(xml: string): RegisterLayout | undefined {
  const order = [...xml.replace(/<!--.*?-->/gs, '').matchAll(/<reg\s([^>]*)>/g)].flatMap(
    ([, attributes]): [string, number][] => {
      const name = /\bname="([^"]+)"/.exec(attributes as string)?.[1];
      const bits = Number(/\bbitsize="(\d+)"/.exec(attributes as string)?.[1]);
      return name === undefined || !(bits > 0) ? [] : [[name, bits / 8]];
    },
  );
  const layout = layoutOf(order);
  return DEFAULT_ORDER.every(([name]) => layout.places.has(name)) ? layout : undefined;
}

/** DWARF numbers 0 to 16 (`src/cfi/row.ts`). */
const DWARF_ORDER = 'rax rdx rcx rbx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 rip'.split(' ');

/** Of CR3 while a program runs whose page tables leave out the kernel (PTI_USER_PGTABLE_BIT in arch/x86/include/asm/pgtable.h). */
const USER_TABLES = 1n << 12n;

/** The registers of one stopped vCPU. A stub may send fewer than its description names; those can't be read. */
export class GuestRegisters {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  readonly #layout: RegisterLayout;

  constructor(bytes: Uint8Array, layout: RegisterLayout) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    this.#layout = layout;
  }

  has(name: string): boolean {
    const place = this.#layout.places.get(name);
    return place !== undefined && place.offset + place.sizeBytes <= this.#bytes.length;
  }

  /** Unsigned. */
  get(name: string): bigint {
    const { offset, sizeBytes } = this.#place(name);
    return sizeBytes === 4
      ? BigInt(this.#view.getUint32(offset, true))
      : this.#view.getBigUint64(offset, true);
  }

  address(name: string): number {
    return foldAddress(this.get(name));
  }

  /** Whether a program runs, on page tables that leave out the kernel where they are isolated; else that says nothing. */
  get mayHideKernel(): boolean {
    return this.has('cr3') && (this.get('cs') & 3n) === 3n && (this.get('cr3') & USER_TABLES) !== 0n;
  }

  /** A copy with some registers changed. */
  with(changes: Readonly<Record<string, bigint | number>>): GuestRegisters {
    const copy = new GuestRegisters(this.#bytes.slice(), this.#layout);
    for (const [name, value] of Object.entries(changes)) {
      const { offset, sizeBytes } = copy.#place(name);
      if (sizeBytes === 4) copy.#view.setUint32(offset, Number(BigInt.asUintN(32, BigInt(value))), true);
      else copy.#view.setBigUint64(offset, BigInt.asUintN(64, BigInt(value)), true);
    }
    return copy;
  }

  /** Other contents in the same layout. */
  withBytes(bytes: Uint8Array): GuestRegisters {
    return new GuestRegisters(bytes, this.#layout);
  }

  /** For the walk: signed numbers by DWARF number. Exact for addresses. */
  toDwarf(): Float64Array {
    return Float64Array.from(DWARF_ORDER, (name) => this.address(name));
  }

  toBytes(): Uint8Array {
    return this.#bytes;
  }

  #place(name: string): { readonly offset: number; readonly sizeBytes: number } {
    const place = this.#layout.places.get(name);
    if (place === undefined || !this.has(name))
      throw new LivegraftError('gdb-protocol', `the stub sends no register ${name}`, {
        remedy: 'use a stub that describes its registers (qXfer:features:read), as QEMU does',
      });
    return place;
  }
}
