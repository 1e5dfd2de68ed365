import * as c from '../elf/constants.js';
import type { Patch, PatchSection, PatchSymbol } from './content.js';

const PAGE_BYTES = 4096;
const STUB_BYTES = 16;

/** Where each part of a patch lies, counted from the start of one contiguous image. */
export interface PatchLayout {
  readonly sizeBytes: number;
  readonly text: Part;
  readonly readOnly: Part;
  readonly readWrite: Part;
  /** By section index; offsets from the start of the image. */
  readonly sectionOffsets: readonly number[];
  /** By symbol index. */
  readonly stubOffsets: ReadonlyMap<number, number>;
  readonly gotOffsets: ReadonlyMap<string, number>;
  /** The patch's own functions and stubs: text without the area for redirects. */
  readonly codeSizeBytes: number;
  readonly redirectOffset: number;
  readonly ehFrame: Part | undefined;
  /** Writable, aligned to 16 bytes, for the caller. */
  readonly recordOffset: number;
}

export interface Part {
  readonly offset: number;
  readonly sizeBytes: number;
}

/** Kinds of GOT entries: an address, an offset from the thread pointer, a module and offset, a module alone. */
export type GotKind = 'address' | 'threadOffset' | 'moduleAndOffset' | 'module';

export function gotKey(kind: GotKind, symbolIndex: number): string {
  return kind === 'module' ? 'module' : `${kind} ${symbolIndex}`;
}

export function gotKindOf(type: number): GotKind | undefined {
  switch (type) {
    case c.R_X86_64_GOTPCREL:
    case c.R_X86_64_GOTPCRELX:
    case c.R_X86_64_REX_GOTPCRELX:
      return 'address';
    case c.R_X86_64_GOTTPOFF:
      return 'threadOffset';
    case c.R_X86_64_TLSGD:
      return 'moduleAndOffset';
    case c.R_X86_64_TLSLD:
      return 'module';
    default:
      return undefined;
  }
}

/**
 * Lays a patch out: code, stubs and `redirectBytes` for the caller; then read-only data; then writable data and `recordBytes`
 * for the caller.
 */
export function layoutPatch(patch: Patch, redirectBytes: number, recordBytes = 0): PatchLayout {
  const sectionOffsets: number[] = new Array(patch.sections.length).fill(0);
  let at = 0;
  const align = (alignment: number) => {
    at = Math.ceil(at / alignment) * alignment;
  };
  const place = (select: (section: PatchSection) => boolean) => {
    patch.sections.forEach((section, index) => {
      if (!select(section)) return;
      align(section.alignment);
      sectionOffsets[index] = at;
      at += section.sizeBytes;
    });
  };

  place((s) => s.kind === 'text');
  align(STUB_BYTES);
  const stubOffsets = new Map<number, number>();
  for (const index of stubSymbols(patch)) {
    stubOffsets.set(index, at);
    at += STUB_BYTES;
  }
  const codeSizeBytes = at;
  align(64);
  const redirectOffset = at;
  at += redirectBytes;
  const text = { offset: 0, sizeBytes: at };

  align(PAGE_BYTES);
  const readOnlyOffset = at;
  place((s) => s.kind === 'readOnly');
  align(8);
  const ehFrameOffset = at;
  place((s) => s.kind === 'ehFrame');
  const ehFrameBytes = at - ehFrameOffset;
  // A zero length ends the table.
  at += 4;
  align(16);
  const gotOffsets = new Map<string, number>();
  for (const { relocations } of patch.sections) {
    for (const { type, symbolIndex } of relocations) {
      const kind = gotKindOf(type);
      if (kind === undefined || gotOffsets.has(gotKey(kind, symbolIndex))) continue;
      gotOffsets.set(gotKey(kind, symbolIndex), at);
      at += kind === 'moduleAndOffset' || kind === 'module' ? 16 : 8;
    }
  }
  const readOnly = { offset: readOnlyOffset, sizeBytes: at - readOnlyOffset };

  align(PAGE_BYTES);
  const readWriteOffset = at;
  place((s) => s.kind === 'readWrite' || s.kind === 'zero');
  if (recordBytes > 0) align(16);
  const recordOffset = at;
  at += recordBytes;
  const readWrite = { offset: readWriteOffset, sizeBytes: at - readWriteOffset };
  align(PAGE_BYTES);
  return {
    sizeBytes: at,
    text,
    readOnly,
    readWrite,
    sectionOffsets,
    stubOffsets,
    gotOffsets,
    codeSizeBytes,
    redirectOffset,
    recordOffset,
    ehFrame: ehFrameBytes === 0 ? undefined : { offset: ehFrameOffset, sizeBytes: ehFrameBytes + 4 },
  };
}

/** External symbols that code branches to: the target may be out of a displacement's reach. */
function stubSymbols(patch: Patch): ReadonlySet<number> {
  const symbols = new Set<number>();
  for (const section of patch.sections) {
    if (section.kind !== 'text') continue;
    for (const { type, symbolIndex } of section.relocations) {
      const symbol: PatchSymbol | undefined = patch.symbols[symbolIndex];
      if (type === c.R_X86_64_PLT32 && symbol?.kind === 'external') symbols.add(symbolIndex);
    }
  }
  return symbols;
}
