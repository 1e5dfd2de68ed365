import type { Architecture } from '../../arch/architecture.js';
import { PairMap } from '../../base/pair-map.js';
import { sortedOrder } from '../../base/sorted-order.js';
import { SHT_RELA } from '../../elf/constants.js';
import type { ElfFile, ElfSection } from '../../elf/elf-file.js';
import {
  normalizeOrcFields,
  ORC_ENTRY_BYTES,
  ORC_TYPE_UNDEFINED,
  type OrcFormat,
  TYPE_MASK,
  TYPE_SHIFT,
} from '../../orc/format.js';
import { convertOrcEntry } from '../../orc/row.js';
import { type Claim, ClaimBuilder } from '../claims.js';
import type { CodeRegion } from '../code-space.js';
import { wordsOf } from '../program.js';
import { patternOf } from './frame.js';

/** What entries say, each once: by their bits, for one format. */
export class OrcPatterns {
  /** By pattern; 0 is "nothing is claimed". */
  readonly claims: (Claim | undefined)[] = [undefined];
  readonly masks: number[] = [0];
  readonly values: number[] = [1];
  readonly #architecture: Architecture;
  readonly #format: OrcFormat;
  readonly #builder: ClaimBuilder;
  readonly #known = new PairMap();

  constructor(architecture: Architecture, format: OrcFormat) {
    this.#architecture = architecture;
    this.#format = format;
    this.#builder = new ClaimBuilder([architecture.framePointer], architecture.returnAddress);
  }

  /** The pattern of an entry: `offsets` holds its first four bytes, `fields` the other two. */
  find(offsets: number, fields: number): number {
    const known = this.#known.get(offsets, fields);
    return known >= 0 ? known : this.#learn(offsets, fields);
  }

  #learn(offsets: number, fields: number): number {
    const normal = normalizeOrcFields(fields, this.#format);
    const rule = convertOrcEntry((offsets << 16) >> 16, offsets >> 16, normal, this.#format);
    let pattern = 0;
    if (rule !== undefined) {
      const claim = this.#builder.claimOf(this.#builder.intern(rule));
      const { mask, value } = patternOf(claim, this.#architecture);
      this.claims.push(claim);
      pattern = this.masks.push(mask) - 1;
      this.values.push(value);
    }
    this.#known.set(offsets, fields, pattern);
    return pattern;
  }

  endsSection(fields: number): boolean {
    return ((normalizeOrcFields(fields, this.#format) >> TYPE_SHIFT) & TYPE_MASK) === ORC_TYPE_UNDEFINED;
  }
}

/** Rows of a module by position, each up to the next one. */
export interface OrcRows {
  count: number;
  /** Ascending, each once. */
  positions: Int32Array;
  /** {@link OrcPatterns} */
  patterns: Int32Array;
}

/**
 * Reads the table of a module, whose ip words are nothing but relocations: `places` says where its symbols are, below 0 for elsewhere. The
 * rows lie in `regions`; each begins with a row that claims nothing. Undefined where the sections don't belong together.
 */
export function readOrcRows(
  elf: ElfFile,
  entries: ElfSection,
  ips: ElfSection,
  places: Int32Array,
  regions: readonly CodeRegion[],
  patterns: OrcPatterns,
): OrcRows | undefined {
  const { data } = entries;
  const count = data.length / ORC_ENTRY_BYTES;
  if (!Number.isInteger(count) || ips.data.length !== 4 * count) return undefined;
  const addresses = readPlaces(elf, ips, places, count);
  const order = orderOf(addresses, regions);
  const rows: OrcRows = {
    count: 0,
    positions: new Int32Array(count + regions.length),
    patterns: new Int32Array(count + regions.length),
  };
  let next = 0;
  for (const { start, end } of regions) {
    add(rows, start, 0);
    for (; next < count; next++) {
      const i = order === undefined ? next : (order[next] as number);
      const position = addresses[i] as number;
      if (position >= end) break;
      if (position < start) continue;
      const at = i * ORC_ENTRY_BYTES;
      const offsets =
        (data[at] as number) |
        ((data[at + 1] as number) << 8) |
        ((data[at + 2] as number) << 16) |
        ((data[at + 3] as number) << 24);
      const fields = (data[at + 4] as number) | ((data[at + 5] as number) << 8);
      // Of two at one address, the one that ends a section loses (the kernel's `orc_sort_cmp()`).
      const isLast = rows.positions[rows.count - 1] === position && position > start;
      if (!(isLast && patterns.endsSection(fields))) add(rows, position, patterns.find(offsets, fields));
    }
  }
  return rows;
}

/** Of rows at one place the last one counts. */
function add(rows: OrcRows, position: number, pattern: number): void {
  if (rows.count > 0 && rows.positions[rows.count - 1] === position) rows.count--;
  rows.positions[rows.count] = position;
  rows.patterns[rows.count++] = pattern;
}

function readPlaces(elf: ElfFile, ips: ElfSection, places: Int32Array, count: number): Int32Array {
  const addresses = new Int32Array(count).fill(-1);
  for (const section of elf.sections) {
    if (section.type !== SHT_RELA || section.info !== ips.index) continue;
    const words = wordsOf(section.data);
    const end = words.length - 5;
    for (let word = 0; word < end; word += 6) {
      const place = places[words[word + 3] as number] as number;
      const index = (words[word] as number) >>> 2;
      if (place >= 0 && index < count) addresses[index] = place + (words[word + 4] as number);
    }
  }
  return addresses;
}

/**
 * Undefined where they are in order as they are. A linker puts the tables of many objects one behind the other: then the sections take turns, and
 * each is in order.
 */
function orderOf(addresses: Int32Array, regions: readonly CodeRegion[]): Uint32Array | undefined {
  const count = addresses.length;
  const regionOf = new Uint8Array(count);
  const counts = new Int32Array(regions.length);
  const lasts = new Int32Array(regions.length);
  let isSorted = true;
  let region = 0;
  let { start, end } = regions[0] ?? { start: 0, end: 0 };
  for (let i = 0; i < count; i++) {
    const address = addresses[i] as number;
    // The first address behind a region is where its last row ends.
    if (address < start || address > end) {
      region = regions.findIndex((each) => address >= each.start && address <= each.end);
      if (region < 0 || region > MAX_REGION) return sortedOrder(Float64Array.from(addresses));
      ({ start, end } = regions[region] as CodeRegion);
    }
    if (address < (lasts[region] as number)) return sortedOrder(Float64Array.from(addresses));
    if (i > 0 && address < (addresses[i - 1] as number)) isSorted = false;
    lasts[region] = address;
    regionOf[i] = region;
    counts[region] = (counts[region] as number) + 1;
  }
  if (isSorted) return undefined;
  const next = new Int32Array(regions.length);
  for (let r = 1; r < regions.length; r++) next[r] = (next[r - 1] as number) + (counts[r - 1] as number);
  const order = new Uint32Array(count);
  for (let i = 0; i < count; i++) {
    const r = regionOf[i] as number;
    order[next[r] as number] = i;
    next[r] = (next[r] as number) + 1;
  }
  return order;
}

const MAX_REGION = 255;
