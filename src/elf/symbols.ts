import { type LinkAddress, linkAddress } from '../base/brand.js';
import { decodeText } from '../base/byte-reader.js';
import { ParseError } from '../base/errors.js';
import { SHN_XINDEX, VERSYM_HIDDEN, VERSYM_VERSION } from './constants.js';
import type { ElfSymbol } from './elf-file.js';

export const SYMBOL_BYTES = 24;

export interface SymbolTableExtras {
  /** Contents of the `SHT_SYMTAB_SHNDX` section. */
  readonly extendedIndexes?: Uint8Array | undefined;
  /** Contents of `.gnu.version`, and what its indexes mean. */
  readonly versions?:
    | { readonly indexes: Uint8Array; readonly names: ReadonlyMap<number, string> }
    | undefined;
}

/** `Elf64_Sym` records; names are decoded when first asked for, since most never are. */
export function parseSymbols(
  table: Uint8Array,
  strings: Uint8Array,
  source: string,
  extras: SymbolTableExtras = {},
): ElfSymbol[] {
  const view = new DataView(table.buffer, table.byteOffset, table.byteLength);
  const { extendedIndexes, versions } = extras;
  const extended =
    extendedIndexes &&
    new DataView(extendedIndexes.buffer, extendedIndexes.byteOffset, extendedIndexes.byteLength);
  const versionView =
    versions &&
    new DataView(versions.indexes.buffer, versions.indexes.byteOffset, versions.indexes.byteLength);
  const count = Math.floor(table.length / SYMBOL_BYTES);
  const symbols: ElfSymbol[] = new Array(count);
  for (let index = 0; index < count; index++) {
    const at = index * SYMBOL_BYTES;
    let sectionIndex = view.getUint16(at + 6, true);
    if (sectionIndex === SHN_XINDEX) {
      if (extended === undefined || extended.byteLength < (index + 1) * 4) {
        throw new ParseError(source, at, `symbol ${index} has no extended section index`);
      }
      sectionIndex = extended.getUint32(index * 4, true);
    }
    const version =
      versionView !== undefined && versionView.byteLength >= (index + 1) * 2
        ? versionView.getUint16(index * 2, true)
        : 0;
    symbols[index] = new LazySymbol(
      index,
      strings,
      view.getUint32(at, true),
      linkAddress(view.getInt32(at + 12, true) * 0x1_0000_0000 + view.getUint32(at + 8, true)),
      view.getUint32(at + 20, true) * 0x1_0000_0000 + view.getUint32(at + 16, true),
      table[at + 4] as number,
      table[at + 5] as number,
      sectionIndex,
      versions?.names.get(version & VERSYM_VERSION),
      (version & VERSYM_HIDDEN) !== 0,
      source,
    );
  }
  return symbols;
}

class LazySymbol implements ElfSymbol {
  readonly index: number;
  readonly value: LinkAddress;
  readonly sizeBytes: number;
  readonly type: number;
  readonly binding: number;
  readonly visibility: number;
  readonly sectionIndex: number;
  readonly version: string | undefined;
  readonly versionHidden: boolean;
  readonly #strings: Uint8Array;
  readonly #nameOffset: number;
  readonly #source: string;
  #name: string | undefined;

  constructor(
    index: number,
    strings: Uint8Array,
    nameOffset: number,
    value: LinkAddress,
    sizeBytes: number,
    info: number,
    other: number,
    sectionIndex: number,
    version: string | undefined,
    versionHidden: boolean,
    source: string,
  ) {
    this.index = index;
    this.#strings = strings;
    this.#nameOffset = nameOffset;
    this.#source = source;
    this.value = value;
    this.sizeBytes = sizeBytes;
    this.type = info & 15;
    this.binding = info >> 4;
    this.visibility = other & 3;
    this.sectionIndex = sectionIndex;
    this.version = version;
    this.versionHidden = versionHidden;
  }

  get name(): string {
    if (this.#name === undefined) {
      const end = this.#strings.indexOf(0, this.#nameOffset);
      if (this.#nameOffset >= this.#strings.length || end < 0) {
        if (this.#nameOffset === 0) return '';
        throw new ParseError(this.#source, this.#nameOffset, `symbol ${this.index} has no valid name`);
      }
      this.#name = decodeText(this.#strings.subarray(this.#nameOffset, end));
    }
    return this.#name;
  }
}
