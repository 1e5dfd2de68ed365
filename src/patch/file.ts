import { decodeText } from '../base/byte-reader.js';
import { LivegraftError, ParseError } from '../base/errors.js';
import * as c from '../elf/constants.js';
import type { ElfFile, ElfRelocation, ElfSection } from '../elf/elf-file.js';
import { parseElf } from '../elf/reader.js';
import {
  type RelocationsToWrite,
  type SectionToWrite,
  type SymbolToWrite,
  writeRelocatable,
} from '../elf/writer.js';
import { findFlaw } from './check.js';
import type { Patch, PatchSection, PatchSectionKind, PatchSymbol } from './content.js';
import { MANIFEST_VERSION, manifestSchema, type PatchManifest } from './manifest.js';

/**
 * The patch file: a relocatable object after the kernel's livepatch module format
 * (Documentation/livepatch/module-elf-format.rst). Symbols of the target are `.klp.sym.OBJECT.NAME,SYMPOS` with
 * section index `SHN_LIVEPATCH`; relocations against them are in `.klp.rela.OBJECT.SECTION` sections. Two sections are
 * livegraft's own: the manifest (JSON) and a checksum over the whole file.
 */
const MANIFEST_SECTION = '.livegraft.manifest';
const CHECKSUM_SECTION = '.livegraft.checksum';
const CHECKSUM_BYTES = 64;

/** SHA-256 of bytes as 64 hexadecimal digits; injected, since this folder touches no platform. */
export type Digest = (bytes: Uint8Array) => string;

const EM_X86_64 = c.EM_X86_64;

const KINDS: Readonly<Record<PatchSectionKind, { readonly type: number; readonly flags: number }>> = {
  text: { type: c.SHT_PROGBITS, flags: c.SHF_ALLOC | c.SHF_EXECINSTR },
  readOnly: { type: c.SHT_PROGBITS, flags: c.SHF_ALLOC },
  readWrite: { type: c.SHT_PROGBITS, flags: c.SHF_ALLOC | c.SHF_WRITE },
  zero: { type: c.SHT_NOBITS, flags: c.SHF_ALLOC | c.SHF_WRITE },
  ehFrame: { type: c.SHT_X86_64_UNWIND, flags: c.SHF_ALLOC },
};

export function writePatch(patch: Omit<Patch, 'id'>, digest: Digest): Uint8Array {
  const sections: SectionToWrite[] = patch.sections.map((section) => ({
    name: section.name,
    ...KINDS[section.kind],
    data: section.data,
    sizeBytes: section.sizeBytes,
    alignment: section.alignment,
  }));
  const text = (value: string) => new TextEncoder().encode(value);
  const own = { type: c.SHT_PROGBITS, flags: 0, alignment: 1 };
  sections.push({ name: MANIFEST_SECTION, data: text(JSON.stringify(patch.manifest)), ...own });
  sections.push({ name: CHECKSUM_SECTION, data: text('0'.repeat(CHECKSUM_BYTES)), ...own });
  const bytes = writeRelocatable({
    machine: EM_X86_64,
    sections,
    symbols: patch.symbols.map(symbolToWrite),
    relocations: patch.sections.flatMap((section, index) => splitRelocations(section, index, patch.symbols)),
  });
  const checksum = parseElf(bytes, 'patch').findSection(CHECKSUM_SECTION);
  if (checksum === undefined) throw new Error('the checksum section was not written');
  bytes.set(text(digest(bytes)), checksum.offset);
  return bytes;
}

/** Kernel objects have no dots in their names; libraries do, and so do symbols. A slash is in neither. */
function encodeObject(name: string): string {
  return name.replaceAll('.', '/');
}

function decodeObject(name: string): string {
  return name.replaceAll('/', '.');
}

function symbolToWrite(symbol: PatchSymbol): SymbolToWrite {
  if (symbol.kind === 'defined') {
    const type = symbol.isFunction ? c.STT_FUNC : c.STT_OBJECT;
    const { name, section, value, sizeBytes } = symbol;
    return { name, section, value, sizeBytes, type, binding: c.STB_LOCAL };
  }
  return {
    name: `.klp.sym.${encodeObject(symbol.object)}.${symbol.name},${symbol.sympos}`,
    section: { reserved: c.SHN_LIVEPATCH },
    value: 0,
    sizeBytes: 0,
    type: symbol.isThreadLocal ? c.STT_TLS : c.STT_NOTYPE,
    binding: symbol.isWeak ? c.STB_WEAK : c.STB_GLOBAL,
  };
}

function splitRelocations(
  section: PatchSection,
  index: number,
  symbols: readonly PatchSymbol[],
): RelocationsToWrite[] {
  const byObject = new Map<string, ElfRelocation[]>();
  for (const relocation of section.relocations) {
    const symbol = symbols[relocation.symbolIndex];
    const object = symbol?.kind === 'external' ? symbol.object : '';
    const list = byObject.get(object);
    if (list === undefined) byObject.set(object, [relocation]);
    else list.push(relocation);
  }
  return [...byObject].map(([object, relocations]) => ({
    name:
      object === ''
        ? `.rela${section.name}`
        : `.klp.rela.${encodeObject(object)}.${section.name.replace(/^\./, '')}`,
    section: index,
    flags: object === '' ? 0 : c.SHF_RELA_LIVEPATCH,
    relocations,
  }));
}

/**
 * Reads a patch file. Throws a LivegraftError: `patch-malformed` for what is no patch file at all, `patch-corrupted`
 * when its checksum is wrong, `patch-future-version` when a newer livegraft wrote it.
 */
export function parsePatch(bytes: Uint8Array, source: string, digest: Digest): Patch {
  try {
    return parse(bytes, source, digest);
  } catch (error) {
    if (error instanceof ParseError) throw malformed(source, error.message, error);
    throw error;
  }
}

function parse(bytes: Uint8Array, source: string, digest: Digest): Patch {
  const elf = parseElf(bytes, source);
  const checksum = elf.findSection(CHECKSUM_SECTION);
  const manifestSection = elf.findSection(MANIFEST_SECTION);
  if (elf.type !== c.ET_REL || checksum === undefined || manifestSection === undefined) {
    throw malformed(source, 'it is an ELF file, but no livegraft patch');
  }
  const stated = decodeText(checksum.data);
  const neutral = Uint8Array.from(bytes);
  neutral.fill(0x30, checksum.offset, checksum.offset + CHECKSUM_BYTES);
  if (checksum.sizeBytes !== CHECKSUM_BYTES || digest(neutral) !== stated) {
    throw new LivegraftError('patch-corrupted', `${source}: its contents do not match its checksum`, {
      remedy: 'copy the file again, or build it anew',
      details: { source },
    });
  }
  const manifest = parseManifest(manifestSection, source);
  const kept = elf.sections.filter((section) => kindOf(section) !== undefined);
  const newIndex = new Map(kept.map((section, i) => [section.index, i]));
  const patch: Patch = {
    id: stated.slice(0, 16),
    manifest,
    sections: kept.map((section) => parseSection(elf, section)),
    symbols: elf.symbols.map((symbol) => {
      if (symbol.sectionIndex === c.SHN_LIVEPATCH)
        return parseExternal(symbol.name, symbol.type, symbol.binding, source);
      return {
        kind: 'defined',
        name: symbol.name,
        section: newIndex.get(symbol.sectionIndex) ?? -1,
        value: symbol.value,
        sizeBytes: symbol.sizeBytes,
        isFunction: symbol.type === c.STT_FUNC,
      };
    }),
  };
  const flaw = findFlaw(patch);
  if (flaw !== undefined) throw malformed(source, flaw);
  return patch;
}

function kindOf(section: ElfSection): PatchSectionKind | undefined {
  if ((section.flags & c.SHF_ALLOC) === 0) return undefined;
  for (const [kind, { type, flags }] of Object.entries(KINDS)) {
    if (section.type === type && (section.flags & (c.SHF_ALLOC | c.SHF_WRITE | c.SHF_EXECINSTR)) === flags) {
      return kind as PatchSectionKind;
    }
  }
  return undefined;
}

function parseSection(elf: ElfFile, section: ElfSection): PatchSection {
  return {
    name: section.name,
    kind: kindOf(section) ?? 'readOnly',
    alignment: Math.max(1, section.alignment),
    data: section.data,
    sizeBytes: section.sizeBytes,
    relocations: elf.relocationsFor(section),
  };
}

function parseExternal(name: string, type: number, binding: number, source: string): PatchSymbol {
  const match = /^\.klp\.sym\.([^.]+)\.([^,]+),(\d+)$/.exec(name);
  if (match === null) throw malformed(source, `"${name}" is no livepatch symbol`);
  return {
    kind: 'external',
    object: decodeObject(match[1] as string),
    name: match[2] as string,
    sympos: Number(match[3]),
    isThreadLocal: type === c.STT_TLS,
    isWeak: binding === c.STB_WEAK,
  };
}

function parseManifest(section: ElfSection, source: string): PatchManifest {
  let json: unknown;
  try {
    json = JSON.parse(decodeText(section.data));
  } catch (cause) {
    throw malformed(source, 'its manifest is no JSON', cause);
  }
  const version = (json as { formatVersion?: unknown } | null)?.formatVersion;
  if (typeof version === 'number' && version > MANIFEST_VERSION) {
    throw new LivegraftError(
      'patch-future-version',
      `${source}: patch format ${version}; this livegraft knows formats up to ${MANIFEST_VERSION}`,
      { remedy: 'use a newer livegraft, or build the patch with this one', details: { source, version } },
    );
  }
  const result = manifestSchema.safeParse(json);
  if (!result.success) {
    const [issue] = result.error.issues;
    throw malformed(
      source,
      `its manifest is invalid at ${issue?.path.join('.') ?? '?'}: ${issue?.message ?? '?'}`,
    );
  }
  return result.data;
}

function malformed(source: string, problem: string, cause?: unknown): LivegraftError {
  return new LivegraftError('patch-malformed', `${source}: not a usable patch file: ${problem}`, {
    remedy: 'give a .lgp file made by livegraft build',
    details: { source },
    cause,
  });
}
