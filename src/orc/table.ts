import { ParseError } from '../base/errors.js';
import { sortedOrder } from '../base/sorted-order.js';
import type { CfiRow } from '../cfi/row.js';
import {
  normalizeOrcFields,
  ORC_ENTRY_BYTES,
  ORC_TYPE_UNDEFINED,
  type OrcFormat,
  TYPE_MASK,
  TYPE_SHIFT,
} from './format.js';
import { convertOrcEntry, type OrcRule } from './row.js';

export interface OrcSections {
  /** `.orc_unwind` */
  readonly entries: Uint8Array;
  readonly format: OrcFormat;
  /** `.orc_unwind_ip` and its address: each word is an address relative to itself. */
  readonly ips:
    | { readonly bytes: Uint8Array; readonly address: number }
    | { readonly addresses: Float64Array };
  /** Where the last entry ends. Without it, the last entry covers everything behind it. */
  readonly end?: number;
  readonly source: string;
}

/**
 * Reads the ORC tables of a kernel or module. In relocatable modules the ip words are relocated: the caller gives the
 * addresses instead, in whatever address space it has. Entries are sorted as the kernel does when it loads a module
 * (`orc_sort_cmp()`); of two at the same address the one that ends a section loses.
 * Throws a ParseError when the sections don't belong together.
 */
export function parseOrc(sections: OrcSections): OrcTable {
  const { entries, source, format } = sections;
  if (entries.length % ORC_ENTRY_BYTES !== 0) {
    throw new ParseError(
      source,
      entries.length,
      `.orc_unwind is no multiple of ${ORC_ENTRY_BYTES} bytes long`,
    );
  }
  const count = entries.length / ORC_ENTRY_BYTES;
  const addresses = 'addresses' in sections.ips ? sections.ips.addresses : readIps(sections.ips, source);
  if (addresses.length !== count) {
    throw new ParseError(source, 0, `${addresses.length} ORC addresses for ${count} entries`);
  }
  const fields = new Uint16Array(count);
  const offsets = new Int32Array(count);
  for (let i = 0, at = 0; i < count; i++, at += ORC_ENTRY_BYTES) {
    offsets[i] =
      (entries[at] as number) |
      ((entries[at + 1] as number) << 8) |
      ((entries[at + 2] as number) << 16) |
      ((entries[at + 3] as number) << 24);
    fields[i] = normalizeOrcFields((entries[at + 4] as number) | ((entries[at + 5] as number) << 8), format);
  }
  const order = findOrder(addresses, fields);
  if (order === undefined) return new OrcTable(addresses, offsets, fields, format, sections.end);
  const sorted = {
    addresses: new Float64Array(count),
    offsets: new Int32Array(count),
    fields: new Uint16Array(count),
  };
  for (let i = 0; i < count; i++) {
    const from = order[i] as number;
    sorted.addresses[i] = addresses[from] as number;
    sorted.offsets[i] = offsets[from] as number;
    sorted.fields[i] = fields[from] as number;
  }
  return new OrcTable(sorted.addresses, sorted.offsets, sorted.fields, format, sections.end);
}

function readIps(
  ips: { readonly bytes: Uint8Array; readonly address: number },
  source: string,
): Float64Array {
  const { bytes, address } = ips;
  if (bytes.length % 4 !== 0) {
    throw new ParseError(source, bytes.length, '.orc_unwind_ip is no multiple of 4 bytes long');
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const addresses = new Float64Array(bytes.length / 4);
  for (let i = 0; i < addresses.length; i++) addresses[i] = address + i * 4 + view.getInt32(i * 4, true);
  return addresses;
}

function isTerminator(fields: number): boolean {
  return ((fields >> TYPE_SHIFT) & TYPE_MASK) === ORC_TYPE_UNDEFINED;
}

/** Undefined when the entries are in order as they are. */
function findOrder(addresses: Float64Array, fields: Uint16Array): Uint32Array | undefined {
  // Of two at one address, the one that ends a section comes first, so that the other is found.
  const keyOf = (i: number) => (addresses[i] as number) * 2 + (isTerminator(fields[i] as number) ? 0 : 1);
  const count = addresses.length;
  let isSorted = true;
  for (let i = 1; i < count && isSorted; i++) isSorted = keyOf(i - 1) <= keyOf(i);
  if (isSorted) return undefined;
  const keys = new Float64Array(count);
  for (let i = 0; i < count; i++) keys[i] = keyOf(i);
  return sortedOrder(keys);
}

/** The claims of an ORC table by address, in typed arrays: a kernel has some hundred thousand. */
export class OrcTable {
  /** Ascending. An entry holds up to the next one. */
  readonly addresses: Float64Array;
  readonly format: OrcFormat;
  /** `sp_offset` in the low half, `bp_offset` in the high one. */
  readonly #offsets: Int32Array;
  readonly #fields: Uint16Array;
  readonly #end: number;
  readonly #rules = new Map<number, OrcRule | undefined>();

  /** Use {@link parseOrc}. */
  constructor(
    addresses: Float64Array,
    offsets: Int32Array,
    fields: Uint16Array,
    format: OrcFormat,
    end: number | undefined,
  ) {
    this.addresses = addresses;
    this.#offsets = offsets;
    this.#fields = fields;
    this.format = format;
    this.#end = end ?? Number.POSITIVE_INFINITY;
  }

  get size(): number {
    return this.addresses.length;
  }

  /** The last entry at or below `address`, -1 when there is none. */
  findIndex(address: number): number {
    let low = 0;
    let high = this.addresses.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.addresses[middle] as number) <= address) low = middle + 1;
      else high = middle;
    }
    return address < this.#end ? low - 1 : -1;
  }

  /** What the entry says; undefined where it says that nothing is known. Equal entries share one object. */
  ruleAt(index: number): OrcRule | undefined {
    const key = this.keyAt(index);
    const offsets = this.#offsets[index] as number;
    if (this.#rules.has(key)) return this.#rules.get(key);
    const rule = convertOrcEntry(
      (offsets << 16) >> 16,
      offsets >> 16,
      this.#fields[index] as number,
      this.format,
    );
    this.#rules.set(key, rule);
    return rule;
  }

  /** Equal for entries that say the same. */
  keyAt(index: number): number {
    return (this.#offsets[index] as number) * 0x1000 + (this.#fields[index] as number);
  }

  /** `sp_offset` in the low half, `bp_offset` in the high one; with {@link fieldsAt}, equal for entries that say the same. */
  offsetsAt(index: number): number {
    return this.#offsets[index] as number;
  }

  /** Registers, type and flags, in the layout of 6.4. */
  fieldsAt(index: number): number {
    return this.#fields[index] as number;
  }

  endOf(index: number): number {
    return this.addresses[index + 1] ?? this.#end;
  }

  /** The row that covers `address`; undefined where the table claims nothing. */
  find(address: number): CfiRow | undefined {
    const index = this.findIndex(address);
    if (index < 0) return undefined;
    const rule = this.ruleAt(index);
    return rule && { ...rule, start: this.addresses[index] as number, end: this.endOf(index) };
  }
}
