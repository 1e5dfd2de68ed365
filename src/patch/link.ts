import type { Redirector } from '../arch/architecture.js';
import { hex } from '../base/brand.js';
import { LivegraftError } from '../base/errors.js';
import * as c from '../elf/constants.js';
import type { ElfRelocation } from '../elf/elf-file.js';
import type { Patch, PatchSection, PatchSymbol } from './content.js';
import { type GotKind, gotKey, gotKindOf, type PatchLayout } from './layout.js';

export type ExternalSymbol = Extract<PatchSymbol, { kind: 'external' }>;

/**
 * The object of symbols that stand for the version below: where a function that the patch replaces goes on, behind its entry, in what
 * the patch is put on top of. No file has that name.
 */
export const BELOW_OBJECT = 'livegraft.below';

/** Answers what the patch leaves open. Addresses are the target's. */
export interface SymbolSource {
  /** Undefined when nothing defines it. */
  resolve(symbol: ExternalSymbol): number | undefined;
  /** Offset of a thread-local symbol from the thread pointer; undefined when it is not fixed. */
  threadOffset(symbol: ExternalSymbol): number | undefined;
  /** Offset of a thread-local symbol inside its module's block. */
  moduleOffset(symbol: ExternalSymbol): number | undefined;
  /** The dynamic linker's id of the patched object's thread-local block. */
  moduleId(): number | undefined;
}

/** The relocation types that {@link linkPatch} knows (x86-64 psABI section 4.4). */
export const LINKABLE_RELOCATIONS: ReadonlySet<number> = new Set([
  c.R_X86_64_NONE,
  c.R_X86_64_64,
  c.R_X86_64_PC64,
  c.R_X86_64_PC32,
  c.R_X86_64_PLT32,
  c.R_X86_64_32,
  c.R_X86_64_32S,
  c.R_X86_64_GOTPCREL,
  c.R_X86_64_GOTPCRELX,
  c.R_X86_64_REX_GOTPCRELX,
  c.R_X86_64_GOTTPOFF,
  c.R_X86_64_TLSGD,
  c.R_X86_64_TLSLD,
  c.R_X86_64_TPOFF32,
  c.R_X86_64_TPOFF64,
  c.R_X86_64_DTPOFF32,
  c.R_X86_64_DTPOFF64,
]);

export interface LinkedImage {
  /** The whole image; its parts are those of the layout. */
  readonly bytes: Uint8Array;
  readonly base: number;
  /** Symbols that the image defines, by name. */
  readonly functions: readonly {
    readonly name: string;
    readonly address: number;
    readonly sizeBytes: number;
  }[];
}

/**
 * Relocates a patch for `base`. All references are resolved before anything is returned; what can't be is named in
 * one error (`symbol-unresolved`). Relocation types are those of the x86-64 psABI section 4.4.
 */
export function linkPatch(
  patch: Patch,
  layout: PatchLayout,
  base: number,
  source: SymbolSource,
  redirector: Redirector,
): LinkedImage {
  const linker = new Linker(patch, layout, base, source, redirector);
  return linker.link();
}

class Linker {
  readonly #patch: Patch;
  readonly #layout: PatchLayout;
  readonly #base: number;
  readonly #source: SymbolSource;
  readonly #redirector: Redirector;
  readonly #image: Uint8Array;
  readonly #view: DataView;
  readonly #resolved = new Map<number, number>();
  readonly #unresolved = new Set<string>();

  constructor(patch: Patch, layout: PatchLayout, base: number, source: SymbolSource, redirector: Redirector) {
    this.#patch = patch;
    this.#layout = layout;
    this.#base = base;
    this.#source = source;
    this.#redirector = redirector;
    this.#image = new Uint8Array(layout.sizeBytes);
    this.#view = new DataView(this.#image.buffer);
  }

  link(): LinkedImage {
    const { sections, symbols } = this.#patch;
    this.#resolveAll();
    sections.forEach((section, index) => {
      this.#image.set(section.data, this.#layout.sectionOffsets[index]);
    });
    for (const [symbolIndex, offset] of this.#layout.stubOffsets) {
      this.#image.set(this.#redirector.encodeFarJump(this.#addressOf(symbolIndex)), offset);
    }
    sections.forEach((section, index) => {
      for (const relocation of section.relocations) this.#relocate(section, index, relocation);
    });
    const functions = symbols.flatMap((symbol) =>
      symbol.kind === 'defined' && symbol.isFunction && symbol.section >= 0
        ? [{ name: symbol.name, address: this.#definedAddress(symbol), sizeBytes: symbol.sizeBytes }]
        : [],
    );
    return { bytes: this.#image, base: this.#base, functions };
  }

  #resolveAll(): void {
    const used = new Set(this.#patch.sections.flatMap((s) => s.relocations.map((r) => r.symbolIndex)));
    for (const index of used) {
      const symbol = this.#patch.symbols[index];
      if (symbol?.kind !== 'external' || symbol.isThreadLocal) continue;
      const address = this.#source.resolve(symbol) ?? (symbol.isWeak ? 0 : undefined);
      if (address === undefined) this.#unresolved.add(symbolText(symbol));
      else this.#resolved.set(index, address);
    }
    if (this.#unresolved.size === 0) return;
    const names = [...this.#unresolved].join(', ');
    throw new LivegraftError(
      'symbol-unresolved',
      `the patch refers to what the target does not have: ${names}`,
      {
        remedy: 'build the patch for the very program and libraries that run',
        details: { symbols: names },
      },
    );
  }

  #definedAddress(symbol: Extract<PatchSymbol, { kind: 'defined' }>): number {
    return this.#base + (this.#layout.sectionOffsets[symbol.section] ?? 0) + symbol.value;
  }

  #addressOf(index: number): number {
    const symbol = this.#patch.symbols[index];
    if (symbol === undefined)
      throw new LivegraftError('patch-malformed', `a relocation names symbol ${index}, which is not there`);
    if (symbol.kind === 'defined') return this.#definedAddress(symbol);
    return this.#resolved.get(index) ?? 0;
  }

  #relocate(section: PatchSection, index: number, relocation: ElfRelocation): void {
    const { type, symbolIndex, addend } = relocation;
    const offset = (this.#layout.sectionOffsets[index] ?? 0) + relocation.offset;
    const size = fieldSize(type);
    if (relocation.offset < 0 || relocation.offset + size > section.data.length) {
      throw new LivegraftError(
        'patch-malformed',
        `${section.name}: a relocation at ${relocation.offset} is outside of the section`,
      );
    }
    const place = this.#base + offset;
    const gotKind = gotKindOf(type);
    if (gotKind !== undefined) {
      const got = this.#base + this.#fillGot(gotKind, symbolIndex, section);
      this.#write32(section, relocation, offset, got + addend - place, true);
      return;
    }
    switch (type) {
      case c.R_X86_64_NONE:
        return;
      case c.R_X86_64_64:
        this.#view.setBigInt64(offset, BigInt(this.#addressOf(symbolIndex) + addend), true);
        return;
      case c.R_X86_64_PC64:
        this.#view.setBigInt64(offset, BigInt(this.#addressOf(symbolIndex) + addend - place), true);
        return;
      case c.R_X86_64_PC32:
        this.#write32(section, relocation, offset, this.#addressOf(symbolIndex) + addend - place, true);
        return;
      case c.R_X86_64_PLT32: {
        const direct = this.#addressOf(symbolIndex) + addend - place;
        const stub = this.#layout.stubOffsets.get(symbolIndex);
        const value =
          fits32(direct, true) || stub === undefined ? direct : this.#base + stub + addend - place;
        this.#write32(section, relocation, offset, value, true);
        return;
      }
      case c.R_X86_64_32:
        this.#write32(section, relocation, offset, this.#addressOf(symbolIndex) + addend, false);
        return;
      case c.R_X86_64_32S:
        this.#write32(section, relocation, offset, this.#addressOf(symbolIndex) + addend, true);
        return;
      case c.R_X86_64_TPOFF32:
        this.#write32(section, relocation, offset, this.#threadOffset(symbolIndex) + addend, true);
        return;
      case c.R_X86_64_TPOFF64:
        this.#view.setBigInt64(offset, BigInt(this.#threadOffset(symbolIndex) + addend), true);
        return;
      case c.R_X86_64_DTPOFF32:
        this.#write32(section, relocation, offset, this.#moduleOffset(symbolIndex) + addend, true);
        return;
      case c.R_X86_64_DTPOFF64:
        this.#view.setBigInt64(offset, BigInt(this.#moduleOffset(symbolIndex) + addend), true);
        return;
      default:
        throw new LivegraftError(
          'relocation-unsupported',
          `${section.name}+${hex(relocation.offset)}: relocation ${c.relocationName(c.EM_X86_64, type)} is not supported`,
          {
            remedy:
              'compile the changed file with the flags of an ordinary executable or library (no large code model)',
          },
        );
    }
  }

  #fillGot(kind: GotKind, symbolIndex: number, section: PatchSection): number {
    const offset = this.#layout.gotOffsets.get(gotKey(kind, symbolIndex));
    if (offset === undefined) throw new Error(`no GOT entry for symbol ${symbolIndex} of ${section.name}`);
    switch (kind) {
      case 'address':
        this.#view.setBigInt64(offset, BigInt(this.#addressOf(symbolIndex)), true);
        break;
      case 'threadOffset':
        this.#view.setBigInt64(offset, BigInt(this.#threadOffset(symbolIndex)), true);
        break;
      case 'moduleAndOffset':
        this.#view.setBigInt64(offset, BigInt(this.#moduleId(symbolIndex)), true);
        this.#view.setBigInt64(offset + 8, BigInt(this.#moduleOffset(symbolIndex)), true);
        break;
      case 'module':
        this.#view.setBigInt64(offset, BigInt(this.#moduleId(symbolIndex)), true);
        break;
    }
    return offset;
  }

  #threadLocal(index: number): ExternalSymbol {
    const symbol = this.#patch.symbols[index];
    if (symbol?.kind === 'external') return symbol;
    throw new LivegraftError('tls-new', `the patch defines thread-local data of its own (symbol ${index})`, {
      remedy: 'thread-local variables can not be added to a running program; keep the state elsewhere',
    });
  }

  #threadOffset(index: number): number {
    const symbol = this.#threadLocal(index);
    return this.#source.threadOffset(symbol) ?? tlsUnknown(symbol);
  }

  #moduleOffset(index: number): number {
    const symbol = this.#threadLocal(index);
    return this.#source.moduleOffset(symbol) ?? tlsUnknown(symbol);
  }

  #moduleId(index: number): number {
    return this.#source.moduleId() ?? tlsUnknown(this.#threadLocal(index));
  }

  #write32(
    section: PatchSection,
    relocation: ElfRelocation,
    offset: number,
    value: number,
    signed: boolean,
  ): void {
    if (!fits32(value, signed)) {
      const symbol = this.#patch.symbols[relocation.symbolIndex];
      const name = symbol?.kind === 'external' ? symbolText(symbol) : (symbol?.name ?? '?');
      throw new LivegraftError(
        'relocation-out-of-range',
        `${section.name}+${hex(relocation.offset)}: ${name} is out of reach of a 32-bit field (${c.relocationName(c.EM_X86_64, relocation.type)})`,
        {
          remedy: 'compile the patch with -fPIC, so that data of other objects is reached through a table',
          details: { symbol: name, section: section.name },
        },
      );
    }
    this.#view.setInt32(offset, value | 0, true);
  }
}

function fits32(value: number, signed: boolean): boolean {
  return signed ? value >= -(2 ** 31) && value < 2 ** 31 : value >= 0 && value < 2 ** 32;
}

function fieldSize(type: number): number {
  switch (type) {
    case c.R_X86_64_NONE:
      return 0;
    case c.R_X86_64_64:
    case c.R_X86_64_PC64:
    case c.R_X86_64_TPOFF64:
    case c.R_X86_64_DTPOFF64:
      return 8;
    default:
      return 4;
  }
}

function symbolText(symbol: ExternalSymbol): string {
  return symbol.object === '*' ? symbol.name : `${symbol.name} of ${symbol.object}`;
}

function tlsUnknown(symbol: ExternalSymbol): never {
  throw new LivegraftError(
    'tls-unresolved',
    `where thread-local ${symbolText(symbol)} lies can't be told from outside`,
    {
      remedy: 'leave functions that use it out of the patch',
      details: { symbol: symbol.name },
    },
  );
}
