import { ByteReader } from '../base/byte-reader.js';
import { ParseError } from '../base/errors.js';

/** The kernel's own symbols, as its kallsyms tables hold them: by link address, ascending. */
export interface Kallsyms {
  readonly layout: KallsymsLayout;
  readonly names: readonly string[];
  /** `nm` letters (`T`, `t`, `D`, …); at the same index as the name. */
  readonly types: string;
  readonly addresses: Float64Array;
}

/**
 * How the tables lie in memory (scripts/kallsyms.c).
 * - `4.20`: offsets or addresses, relative_base, num_syms, names, markers, token_table, token_index.
 * - `6.2`: the same with seqs_of_names between markers and token_table (60443c88f3a8; in stable 6.1 too).
 * - `6.4`: num_syms, names, markers, token_table, token_index, offsets, relative_base, seqs_of_names (404bad70fcf7).
 * - `7.2`: the same without relative_base: each offset counts from its own place. (Seen in Debian's 7.2.)
 */
export type KallsymsLayout = '4.20' | '6.2' | '6.4' | '7.2';

const TOKENS = 256;
/** Each marker stands for this many names. */
const NAMES_PER_MARKER = 256;
const MIN_SYMBOLS = 1000;
const MAX_SYMBOLS = 4_000_000;
/** Places and names looked at before the search is given up: a kernel of 87,182 symbols takes 95,127. */
const MAX_STEPS = 1 << 24;
/** Tries of reading a token table, whose digits crafted bytes can have anywhere. */
const MAX_TOKEN_TABLES = 1 << 10;
/** `KSYM_NAME_LEN` of 512 with room; a longer one is damage. */
const MAX_NAME_BYTES = 1024;

/**
 * Finds and decodes the kallsyms tables in the bytes of a kernel's `.rodata`, which no symbol points to: the token
 * table is recognised by its digits, and everything else is held against it and against each other (the token index,
 * the markers, ascending addresses). `address` is where the bytes lie, a multiple of 8.
 * Throws a ParseError when there are none, or none of a known layout.
 */
export function parseKallsyms(bytes: Uint8Array, address: number, source: string): Kallsyms {
  const name = `${source}(kallsyms)`;
  const tokens = findTokens(bytes);
  if (tokens === undefined) {
    throw new ParseError(name, 0, 'no kallsyms token table', {
      remedy: 'give a kernel built with CONFIG_KALLSYMS, or a vmlinux with symbols',
    });
  }
  for (const table of findNameTables(bytes, tokens.start)) {
    const found = findAddresses(bytes, address, table, tokens);
    if (found === undefined) continue;
    const { names, types } = expandNames(bytes, table, tokens.texts, name);
    return { layout: found.layout, names, types, addresses: found.addresses };
  }
  throw new ParseError(name, tokens.start, 'the kallsyms tables have a layout that is not known', {
    remedy: 'give a vmlinux with symbols',
  });
}

interface Tokens {
  readonly start: number;
  /** Where token_index begins and ends. */
  readonly indexStart: number;
  readonly end: number;
  readonly texts: readonly string[];
}

/** Digits occur in names and so stand for themselves: the table holds `0\0` … `9\0` from token 48 on. */
function findTokens(bytes: Uint8Array): Tokens | undefined {
  const last = bytes.length - 20;
  let tries = 0;
  for (let at = bytes.indexOf(0x30); at >= 0 && at <= last; at = bytes.indexOf(0x30, at + 1)) {
    if (bytes[at + 1] !== 0 || bytes[at + 2] !== 0x31) continue;
    let digits = true;
    for (let i = 0; i < 10 && digits; i++)
      digits = bytes[at + 2 * i] === 0x30 + i && bytes[at + 2 * i + 1] === 0;
    if (!digits) continue;
    const tokens = readTokens(bytes, at);
    if (tokens !== undefined) return tokens;
    if (++tries === MAX_TOKEN_TABLES) return undefined;
  }
  return undefined;
}

function readTokens(bytes: Uint8Array, digits: number): Tokens | undefined {
  // 48 tokens end before the digits; the first of them begins at an aligned place.
  let position = digits;
  for (let tokens = 0; tokens < 0x30; tokens++) {
    position--;
    while (position > 0 && bytes[position - 1] !== 0) position--;
    if (position <= 0) return undefined;
  }
  const longest = 64;
  for (let start = position; start >= position - longest && start >= 0; start--) {
    if (start % 4 !== 0) continue;
    const starts = [start];
    for (let at = start; starts.length <= TOKENS; ) {
      const end = bytes.indexOf(0, at);
      if (end < 0 || end - at > longest * 4) break;
      at = end + 1;
      starts.push(at);
    }
    if (starts.length <= TOKENS) continue;
    for (const indexStart of alignments(starts[TOKENS] as number)) {
      if (indexStart + 2 * TOKENS > bytes.length) continue;
      const view = new DataView(bytes.buffer, bytes.byteOffset + indexStart, 2 * TOKENS);
      if (!starts.slice(0, TOKENS).every((at, i) => view.getUint16(2 * i, true) === at - start)) continue;
      const texts = starts
        .slice(0, TOKENS)
        .map((at, i) => String.fromCharCode(...bytes.subarray(at, (starts[i + 1] as number) - 1)));
      return { start, indexStart, end: indexStart + 2 * TOKENS, texts };
    }
  }
  return undefined;
}

/** The places where a table behind `at` can begin: tables are aligned to 8 bytes, or to 4 in some versions. */
function alignments(at: number): number[] {
  const four = Math.ceil(at / 4) * 4;
  const eight = Math.ceil(at / 8) * 8;
  return four === eight ? [four] : [eight, four];
}

interface NameTable {
  readonly count: number;
  /** Where num_syms lies. */
  readonly countAt: number;
  readonly start: number;
  readonly markersEnd: number;
}

/**
 * num_syms, names and markers that agree with each other, before the token table. The markers are what can be recognised: the first
 * is 0, and each next one is larger by what 256 names take. The last tells where about the names begin, with num_syms before them.
 */
function* findNameTables(bytes: Uint8Array, limit: number): Generator<NameTable> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const end = limit & ~3;
  const steps = { left: MAX_STEPS };
  for (let markers = findMarkers(view, end, end); markers >= 0; markers = findMarkers(view, markers, end)) {
    const most = countMarkers(view, markers, end);
    // By chance, what follows may look like one more.
    for (let count = most; count > most - 3; count--) {
      const table = findNamesBefore(bytes, view, markers, count, steps);
      if (table !== undefined) yield table;
      if (steps.left <= 0) return;
    }
  }
}

/** Each name takes two bytes or more. */
const MIN_STEP_BYTES = 2 * NAMES_PER_MARKER;
/** Far more than names take. */
const MAX_STEP_BYTES = 130 * NAMES_PER_MARKER;
const MIN_MARKERS = Math.ceil(MIN_SYMBOLS / NAMES_PER_MARKER);

/** The last place before `from` where markers can begin, -1 for none. Apart, since generators are compiled late. */
function findMarkers(view: DataView, from: number, end: number): number {
  for (let at = from - 4; at >= 0; at -= 4) {
    if (view.getUint32(at, true) === 0 && countMarkers(view, at, end) >= MIN_MARKERS) return at;
  }
  return -1;
}

function countMarkers(view: DataView, start: number, end: number): number {
  let mark = 0;
  for (let at = start + 4; at < end; at += 4) {
    const step = view.getUint32(at, true) - mark;
    if (step < MIN_STEP_BYTES || step > MAX_STEP_BYTES) return (at - start) / 4;
    mark += step;
  }
  return (end - start) / 4;
}

function findNamesBefore(
  bytes: Uint8Array,
  view: DataView,
  markers: number,
  markerCount: number,
  steps: { left: number },
): NameTable | undefined {
  if (markerCount < MIN_MARKERS) return undefined;
  const latest = markers - view.getUint32(markers + 4 * (markerCount - 1), true);
  for (
    let countAt = Math.max(0, latest - MAX_STEP_BYTES) & ~3;
    countAt < latest && steps.left > 0;
    countAt += 4
  ) {
    steps.left--;
    const count = view.getUint32(countAt, true);
    if (Math.ceil(count / NAMES_PER_MARKER) !== markerCount || count > MAX_SYMBOLS) continue;
    for (const start of alignments(countAt + 4)) {
      const isTable = checkNames(bytes, view, start, count, markers, steps);
      if (isTable) return { count, countAt, start, markersEnd: markers + 4 * markerCount };
    }
  }
  return undefined;
}

/** Skips over all names, up to the markers behind them, which must say where each 256th began. */
function checkNames(
  bytes: Uint8Array,
  view: DataView,
  start: number,
  count: number,
  markers: number,
  steps: { left: number },
): boolean {
  let at = start;
  for (let i = 0; i < count; i++) {
    if (i % NAMES_PER_MARKER === 0) {
      if (view.getUint32(markers + (4 * i) / NAMES_PER_MARKER, true) !== at - start) return false;
      steps.left -= Math.min(NAMES_PER_MARKER, count - i);
      if (steps.left <= 0) return false;
    }
    const length = bytes[at];
    if (length === undefined || length === 0 || at >= markers) return false;
    at += nameBytes(bytes, at, length);
  }
  return alignments(at).includes(markers);
}

/** With its length; since 6.1 two bytes when the first has its top bit set (73bbb94466fd). */
function nameBytes(bytes: Uint8Array, at: number, length: number): number {
  return length < 0x80 ? 1 + length : 2 + (length & 0x7f) + ((bytes[at + 1] ?? 0) << 7);
}

function expandNames(
  bytes: Uint8Array,
  table: NameTable,
  tokens: readonly string[],
  source: string,
): { names: string[]; types: string } {
  const names: string[] = new Array(table.count);
  const types: string[] = new Array(table.count);
  let at = table.start;
  for (let i = 0; i < table.count; i++) {
    const size = nameBytes(bytes, at, bytes[at] as number);
    const first = at + ((bytes[at] as number) < 0x80 ? 1 : 2);
    at += size;
    let text = '';
    for (let j = first; j < at; j++) text += tokens[bytes[j] as number];
    if (text.length < 2 || text.length > MAX_NAME_BYTES)
      throw new ParseError(source, first, `symbol ${i} has a name of ${text.length} bytes`);
    types[i] = text.charAt(0);
    names[i] = text.slice(1);
  }
  return { names, types: types.join('') };
}

function findAddresses(
  bytes: Uint8Array,
  address: number,
  table: NameTable,
  tokens: Tokens,
): { layout: KallsymsLayout; addresses: Float64Array } | undefined {
  const { count } = table;
  const sequencesAt = alignments(table.markersEnd).map((at) => at + 3 * count);
  const follows = (end: number) => alignments(end).includes(tokens.start);
  const older: KallsymsLayout | undefined = follows(table.markersEnd)
    ? '4.20'
    : sequencesAt.some(follows)
      ? '6.2'
      : undefined;
  if (older === undefined) return undefined;

  // relative_base, then num_syms: the offsets lie before it.
  for (const baseAt of new Set([table.countAt - 8, Math.floor((table.countAt - 8) / 8) * 8])) {
    for (const padding of [0, 4]) {
      const addresses = readOffsets(bytes, baseAt - padding - 4 * count, baseAt, count);
      if (addresses !== undefined) return { layout: older, addresses };
    }
  }
  // The same without CONFIG_KALLSYMS_BASE_RELATIVE.
  const absolute = readAbsolute(bytes, table.countAt - 8 * count, count);
  if (absolute !== undefined) return { layout: older, addresses: absolute };
  if (older === '6.2') return undefined;
  for (const offsetsAt of alignments(tokens.end)) {
    for (const baseAt of alignments(offsetsAt + 4 * count)) {
      if (!areSequences(bytes, baseAt + 8, count)) continue;
      const addresses = readOffsets(bytes, offsetsAt, baseAt, count);
      if (addresses !== undefined) return { layout: '6.4', addresses };
    }
  }
  for (const offsetsAt of alignments(tokens.end)) {
    if (!alignments(offsetsAt + 4 * count).some((at) => areSequences(bytes, at, count))) continue;
    const addresses = readPlaceRelative(bytes, address, offsetsAt, count);
    if (addresses !== undefined) return { layout: '7.2', addresses };
  }
  return undefined;
}

/**
 * Offsets from relative_base. With CONFIG_KALLSYMS_ABSOLUTE_PERCPU (up to 6.14) an offset that is not negative is an
 * address itself, and a negative one counts down from one below the base (2213e9a66bb8).
 */
function readOffsets(
  bytes: Uint8Array,
  offsetsAt: number,
  baseAt: number,
  count: number,
): Float64Array | undefined {
  if (offsetsAt < 0 || baseAt + 8 > bytes.length || offsetsAt + 4 * count > bytes.length) return undefined;
  const base = new ByteReader(bytes, 'kallsyms').seek(baseAt).readAddress();
  if (base >= 0 || base < -(2 ** 47)) return undefined;
  const view = new DataView(bytes.buffer, bytes.byteOffset + offsetsAt, 4 * count);
  const absolutePercpu = view.getInt32(4 * (count - 1), true) < 0;
  const addresses = new Float64Array(count);
  for (let i = 0; i < count; i++) {
    const offset = view.getInt32(4 * i, true);
    addresses[i] = !absolutePercpu ? base + (offset >>> 0) : offset >= 0 ? offset : base - 1 - offset;
  }
  return isAscending(addresses) ? addresses : undefined;
}

/**
 * Whether seqs_of_names lies here: the number of each symbol once, in 3 bytes, the highest first (60443c88f3a8). It tells where the table
 * before it begins, whose own bytes would be ascending a word later, too.
 */
function areSequences(bytes: Uint8Array, at: number, count: number): boolean {
  if (at + 3 * count > bytes.length) return false;
  const seen = new Uint8Array(count);
  for (let place = at; place < at + 3 * count; place += 3) {
    const [high, middle, low] = [bytes[place], bytes[place + 1], bytes[place + 2]] as [
      number,
      number,
      number,
    ];
    const number = (high << 16) | (middle << 8) | low;
    if (number >= count || seen[number] === 1) return false;
    seen[number] = 1;
  }
  return true;
}

/** Offsets from where each of them lies. */
function readPlaceRelative(
  bytes: Uint8Array,
  address: number,
  at: number,
  count: number,
): Float64Array | undefined {
  if (at + 4 * count > bytes.length) return undefined;
  const view = new DataView(bytes.buffer, bytes.byteOffset + at, 4 * count);
  const addresses = Float64Array.from(
    { length: count },
    (_, i) => address + at + 4 * i + view.getInt32(4 * i, true),
  );
  return (addresses[0] as number) < 0 && isAscending(addresses) ? addresses : undefined;
}

function readAbsolute(bytes: Uint8Array, at: number, count: number): Float64Array | undefined {
  if (at < 0) return undefined;
  const reader = new ByteReader(bytes, 'kallsyms').seek(at);
  const addresses = Float64Array.from({ length: count }, () => reader.readAddress());
  return (addresses[count - 1] as number) < 0 && isAscending(addresses) ? addresses : undefined;
}

/** As unsigned 64-bit numbers; all equal would be zeros taken for a table. */
function isAscending(addresses: Float64Array): boolean {
  for (let i = 1; i < addresses.length; i++) {
    const [a, b] = [addresses[i - 1] as number, addresses[i] as number];
    if (a < 0 === b < 0 ? b < a : b >= 0) return false;
  }
  return addresses[0] !== addresses[addresses.length - 1];
}
