import type { CodeIdioms } from '../../arch/architecture.js';
import { decodeText } from '../../base/byte-reader.js';
import { sortedOrder } from '../../base/sorted-order.js';
import { SHN_XINDEX, SHT_SYMTAB, STT_FUNC, STT_NOTYPE } from '../../elf/constants.js';
import type { ElfFile } from '../../elf/elf-file.js';
import { SYMBOL_BYTES } from '../../elf/symbols.js';
import type { CodeSpace } from '../code-space.js';
import { isNoReturnName, mayBeNoReturnName } from '../no-return-names.js';
import { wordsOf } from '../program.js';

/** What a helper stands for, by symbol: nothing, a return, an indirect jump or call. */
export const Thunk = { none: 0, return: 1, indirect: 2 } as const;

/** What the symbols of a module say of its code, without an object for each. */
export interface ModuleSymbols {
  /** By symbol: its position in the code, or {@link elsewhere}. */
  readonly places: Int32Array;
  /** {@link Thunk} by symbol. */
  readonly thunks: Uint8Array;
  /** 1 for symbols of other modules that never return by their name. */
  readonly noReturn: Uint8Array;
  readonly functions: ModuleFunctions;
  nameOf(symbol: number): string;
}

/** Functions by their start, not overlapping. */
export interface ModuleFunctions {
  count: number;
  readonly starts: Int32Array;
  readonly ends: Int32Array;
  /** 1 for a part that was split off another one. */
  readonly areParts: Uint8Array;
  /** 1 where the name says that it never returns. */
  readonly noReturn: Uint8Array;
}

/** The place of a symbol that is not in the code. */
export function elsewhere(symbol: number): number {
  return -2 - symbol;
}

const SYMBOL_WORDS = SYMBOL_BYTES / 4;
const THUNK_PREFIX = latin1('__x86_');
const PART_SUFFIX = latin1('.cold');
/** No compiler's names are longer. */
const MAX_NAME_BYTES = 4096;
const [DOT, ZERO, NINE] = [0x2e, 0x30, 0x39];

/** Reads `.symtab`. Undefined for what only other readers know how to read. */
export function readModuleSymbols(
  elf: ElfFile,
  space: CodeSpace,
  idioms: CodeIdioms,
): ModuleSymbols | undefined {
  const table = elf.sections.find((section) => section.type === SHT_SYMTAB);
  const strings = table && elf.sections[table.link]?.data;
  if (table === undefined || strings === undefined) return undefined;
  const words = wordsOf(table.data);
  const count = Math.floor(table.data.length / SYMBOL_BYTES);
  const regionStarts = new Int32Array(elf.sections.length).fill(-1);
  const regionSizes = new Int32Array(elf.sections.length);
  for (const { sectionIndex, start, end } of space.regions) {
    regionStarts[sectionIndex] = start;
    regionSizes[sectionIndex] = end - start;
  }
  const places = new Int32Array(count);
  const thunks = new Uint8Array(count);
  const noReturn = new Uint8Array(count);
  const found = new Int32Array(count);
  let foundCount = 0;
  for (let symbol = 0, word = 0; symbol < count; symbol++, word += SYMBOL_WORDS) {
    const info = words[word + 1] as number;
    const section = info >>> 16;
    const type = info & 15;
    const value = words[word + 2] as number;
    places[symbol] = elsewhere(symbol);
    if (section === SHN_XINDEX) return undefined;
    const start = section < regionStarts.length ? (regionStarts[section] as number) : -1;
    if (start >= 0) {
      const isInside = words[word + 3] === 0 && value >= 0 && value <= (regionSizes[section] as number);
      if (isInside) {
        places[symbol] = start + value;
        if (type === STT_FUNC) found[foundCount++] = symbol;
      }
    }
    const isGlobal = (info & 0xf0) !== 0;
    if (section !== 0 && !isGlobal) continue;
    const name = words[word] as number;
    if (isGlobal && (type === STT_NOTYPE || type === STT_FUNC) && startsWith(strings, name, THUNK_PREFIX)) {
      const kind = idioms.thunkKind(nameAt(strings, name));
      if (kind === undefined) continue;
      // Only the kernel itself has them.
      if (section !== 0) return undefined;
      thunks[symbol] = kind === 'return' ? Thunk.return : Thunk.indirect;
    }
    if (section === 0 && symbol > 0 && isNoReturnAt(strings, name)) noReturn[symbol] = 1;
  }
  const functions = sortFunctions(words, strings, places, found.subarray(0, foundCount), space);
  return (
    functions && {
      places,
      thunks,
      noReturn,
      functions,
      nameOf: (symbol) => nameAt(strings, words[symbol * SYMBOL_WORDS] as number),
    }
  );
}

function sortFunctions(
  words: Int32Array,
  strings: Uint8Array,
  places: Int32Array,
  found: Int32Array,
  space: CodeSpace,
): ModuleFunctions | undefined {
  const keys = new Float64Array(found.length);
  for (let i = 0; i < found.length; i++) keys[i] = places[found[i] as number] as number;
  const order = sortedOrder(keys);
  const functions: ModuleFunctions = {
    count: 0,
    starts: new Int32Array(found.length),
    ends: new Int32Array(found.length),
    areParts: new Uint8Array(found.length),
    noReturn: new Uint8Array(found.length),
  };
  const { starts, ends, areParts } = functions;
  let count = 0;
  let lastRank = 0;
  for (const i of order) {
    const symbol = found[i] as number;
    const start = places[symbol] as number;
    const word = symbol * SYMBOL_WORDS;
    const [low, high] = [words[word + 4] as number, words[word + 5] as number];
    // No function is that large.
    if (high !== 0 || low < 0) return undefined;
    const rank = low > 0 ? 2 + (((words[word + 1] as number) >> 4) & 15) : 1;
    if (count > 0 && starts[count - 1] === start) {
      if (rank <= lastRank) continue;
      count--;
    }
    const name = words[word] as number;
    const end = endOfName(strings, name);
    if (end < 0 || startsWith(strings, name, THUNK_PREFIX)) return undefined;
    starts[count] = start;
    ends[count] = start + low;
    areParts[count] = isPartName(strings, name, end) ? 1 : 0;
    functions.noReturn[count] = isNoReturnAt(strings, name, end) ? 1 : 0;
    lastRank = rank;
    count++;
  }
  functions.count = limitFunctions(functions, count, space);
  return functions;
}

/** A symbol without a size reaches up to the next one; none reaches further. Returns how many are not empty. */
function limitFunctions(functions: ModuleFunctions, count: number, space: CodeSpace): number {
  const { starts, ends, areParts, noReturn } = functions;
  const { regions } = space;
  let region = 0;
  let kept = 0;
  for (let f = 0; f < count; f++) {
    const start = starts[f] as number;
    while (region < regions.length && start >= (regions[region]?.end ?? 0)) region++;
    const regionEnd = regions[region]?.end ?? start;
    const limit = f + 1 < count ? Math.min(starts[f + 1] as number, regionEnd) : regionEnd;
    const end = ends[f] as number;
    const last = end > start ? Math.min(end, limit) : limit;
    if (last <= start) continue;
    starts[kept] = start;
    ends[kept] = last;
    areParts[kept] = areParts[f] as number;
    noReturn[kept++] = noReturn[f] as number;
  }
  return kept;
}

function startsWith(strings: Uint8Array, at: number, prefix: Uint8Array): boolean {
  for (let i = 0; i < prefix.length; i++) if (strings[at + i] !== prefix[i]) return false;
  return true;
}

/** -1 for a name that does not end, or not soon. */
function endOfName(strings: Uint8Array, at: number): number {
  const limit = Math.min(strings.length, at + MAX_NAME_BYTES);
  let end = at;
  while (end < limit && strings[end] !== 0) end++;
  return end < limit ? end : -1;
}

function nameAt(strings: Uint8Array, at: number, end = endOfName(strings, at)): string {
  return end < 0 ? '' : decodeText(strings.subarray(at, end));
}

/** Whether it ends as {@link PART_NAME}. */
function isPartName(strings: Uint8Array, start: number, end: number): boolean {
  let last = end;
  while (last > start && (strings[last - 1] as number) >= ZERO && (strings[last - 1] as number) <= NINE)
    last--;
  if (last < end && strings[last - 1] === DOT) last--;
  else last = end;
  return last - PART_SUFFIX.length >= start && startsWith(strings, last - PART_SUFFIX.length, PART_SUFFIX);
}

function isNoReturnAt(strings: Uint8Array, at: number, end = endOfName(strings, at)): boolean {
  if (end <= at) return false;
  const [first, second, last] = [strings[at], strings[at + 1], strings[end - 1]] as [number, number, number];
  if (!mayBeNoReturnName(end - at, first, second, last)) return false;
  return isNoReturnName(nameAt(strings, at, end));
}

function latin1(text: string): Uint8Array {
  return Uint8Array.from(text, (letter) => letter.charCodeAt(0));
}
