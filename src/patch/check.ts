import * as c from '../elf/constants.js';
import type { Patch } from './content.js';
import { STATE_BYTES } from './declarations.js';

/** Generous: the largest patch that makes sense is a few megabytes. */
const MAX_IMAGE_BYTES = 2 ** 30;
const MAX_ALIGNMENT = 4096;
const MAX_STATED_SYMBOLS = 2 ** 20;

/**
 * What must hold of a patch before it is laid out and linked, whoever wrote the file: a checksum proves that it is whole,
 * not that it makes sense. Returns the first thing that does not hold.
 */
export function findFlaw({ manifest, sections, symbols }: Omit<Patch, 'id'>): string | undefined {
  if (symbols.length > MAX_STATED_SYMBOLS) return `it has ${symbols.length} symbols`;
  let sizeBytes = 0;
  for (const section of sections) {
    const { name, kind, alignment, data } = section;
    if (!Number.isInteger(Math.log2(alignment)) || alignment > MAX_ALIGNMENT)
      return `section ${name} is aligned to ${alignment} bytes`;
    sizeBytes += section.sizeBytes + alignment;
    if (sizeBytes > MAX_IMAGE_BYTES) return `its sections take more than ${MAX_IMAGE_BYTES} bytes`;
    if (kind !== 'zero' && data.length !== section.sizeBytes)
      return `section ${name} states ${section.sizeBytes} bytes and has ${data.length}`;
    for (const { offset, type, symbolIndex } of section.relocations) {
      if (type === c.R_X86_64_NONE) continue;
      if (symbols[symbolIndex] === undefined) return `a relocation of ${name} names symbol ${symbolIndex}`;
      if (!Number.isInteger(offset) || offset < 0 || offset >= data.length)
        return `a relocation of ${name} lies at ${offset}`;
    }
  }
  const functions = new Map<string, number>();
  for (const symbol of symbols) {
    if (symbol.kind !== 'defined' || symbol.section < 0) continue;
    const section = sections[symbol.section];
    const end = symbol.value + symbol.sizeBytes;
    if (section === undefined || symbol.value < 0 || symbol.sizeBytes < 0 || end > section.sizeBytes)
      return `symbol ${symbol.name} lies outside of its section`;
    if (symbol.isFunction && section.kind === 'text')
      functions.set(symbol.name, (functions.get(symbol.name) ?? 0) + 1);
  }
  for (const fn of manifest.objects.flatMap((object) => object.functions)) {
    for (const name of [fn.newSymbol, ...fn.newParts]) {
      const count = functions.get(name) ?? 0;
      if (count !== 1) return `the new version of ${fn.name}, ${name}, is defined ${count} times`;
    }
  }
  const callbacks = manifest.objects.flatMap((object) => Object.entries(object.callbacks ?? {}));
  for (const [kind, name] of callbacks) {
    const count = functions.get(name ?? '') ?? 0;
    if (count !== 1) return `its ${kind} callback, ${name}, is defined ${count} times`;
  }
  for (const { symbol } of manifest.states ?? []) {
    const found = symbols.filter((s) => s.kind === 'defined' && s.name === symbol);
    const [only] = found;
    const section = only?.kind === 'defined' ? sections[only.section] : undefined;
    if (
      only?.kind !== 'defined' ||
      found.length > 1 ||
      section?.kind !== 'readWrite' ||
      only.sizeBytes < STATE_BYTES
    )
      return `its state ${symbol} is not defined once, as writable data`;
  }
  const names = manifest.objects.map((object) => object.name);
  if (new Set(names).size < names.length) return 'two of its objects have one name';
  const ids = (manifest.states ?? []).map((state) => state.id);
  if (new Set(ids).size < ids.length) return 'two of its states have one number';
  return undefined;
}
