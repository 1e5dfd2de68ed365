import type { FileOffset, LinkAddress } from '../base/brand.js';

/** What the reader yields. Constants (`SHT_…`, `STT_…`, `PT_…`) are in `constants.ts`, in the specification's spelling. */

export interface ElfSection {
  readonly index: number;
  readonly name: string;
  readonly type: number;
  /** `SHF_…` bits. */
  readonly flags: number;
  readonly address: LinkAddress;
  readonly offset: FileOffset;
  readonly sizeBytes: number;
  readonly link: number;
  readonly info: number;
  readonly alignment: number;
  readonly entrySizeBytes: number;
  /** The contents, decompressed where `SHF_COMPRESSED`; empty for `SHT_NOBITS`. A view or a cached copy. */
  readonly data: Uint8Array;
}

export interface ElfSegment {
  readonly type: number;
  /** `PF_X` 1, `PF_W` 2, `PF_R` 4. */
  readonly flags: number;
  readonly offset: FileOffset;
  readonly address: LinkAddress;
  readonly fileSizeBytes: number;
  readonly memorySizeBytes: number;
  readonly alignment: number;
}

export interface ElfSymbol {
  readonly index: number;
  readonly name: string;
  readonly value: LinkAddress;
  readonly sizeBytes: number;
  /** `STT_…`. */
  readonly type: number;
  /** `STB_…`. */
  readonly binding: number;
  /** `STV_…`. */
  readonly visibility: number;
  /** Section index with `SHN_XINDEX` resolved; reserved values (`SHN_UNDEF`, `SHN_ABS`, `SHN_COMMON`, `SHN_LIVEPATCH`) as they are. */
  readonly sectionIndex: number;
  /** Dynamic symbols only: the version that defines or is required of it, without the `@`. */
  readonly version: string | undefined;
  /** Dynamic symbols only: `VERSYM_HIDDEN`, i.e. not the default version. */
  readonly versionHidden: boolean;
}

export interface ElfRelocation {
  readonly offset: number;
  readonly type: number;
  readonly symbolIndex: number;
  readonly addend: number;
}

export interface ElfNote {
  readonly name: string;
  readonly type: number;
  readonly description: Uint8Array;
}

/** A parsed 64-bit little-endian ELF file. Tables are parsed when first asked for and kept. */
export interface ElfFile {
  /** For errors. */
  readonly source: string;
  readonly bytes: Uint8Array;
  /** `ET_REL`, `ET_EXEC`, `ET_DYN`. */
  readonly type: number;
  /** `EM_X86_64`, `EM_AARCH64`. */
  readonly machine: number;
  readonly entry: LinkAddress;
  readonly sections: readonly ElfSection[];
  readonly segments: readonly ElfSegment[];
  /** `.symtab`; empty when stripped. Index 0 is the null symbol. */
  readonly symbols: readonly ElfSymbol[];
  /** `.dynsym`; empty when static. Works from `PT_DYNAMIC` alone where section headers are missing. */
  readonly dynamicSymbols: readonly ElfSymbol[];
  /** `DT_NEEDED` in order, `DT_SONAME`. */
  readonly needed: readonly string[];
  readonly soname: string | undefined;
  readonly notes: readonly ElfNote[];
  /** Lower-case hex of `NT_GNU_BUILD_ID`. */
  readonly buildId: string | undefined;
  findSection(name: string): ElfSection | undefined;
  /** The relocations of a `SHT_RELA` section. */
  relocations(section: ElfSection): readonly ElfRelocation[];
  /** All `SHT_RELA` sections whose `info` is this section. */
  relocationsFor(section: ElfSection): readonly ElfRelocation[];
  /** Dynamic relocations (`DT_RELA` and `DT_JMPREL`), symbols indexing `dynamicSymbols`. */
  readonly dynamicRelocations: readonly ElfRelocation[];
  /** The file's bytes that are loaded at `address`, as far as they reach inside one segment (at most `sizeBytes`). */
  bytesAt(address: LinkAddress, sizeBytes: number): Uint8Array | undefined;
}
