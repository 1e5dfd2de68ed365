import type { InstructionDecoder } from '../arch/architecture.js';
import type { Instruction } from '../arch/instruction.js';
import { linkAddress } from '../base/brand.js';
import * as c from '../elf/constants.js';
import type { ElfRelocation } from '../elf/elf-file.js';
import { inRange, sameBytes } from './compare.js';
import {
  type Definition,
  type ObjectModel,
  type Reference,
  relocatedBytes,
  stableName,
} from './object-model.js';
import type { TargetModel } from './target-model.js';

/** Where a compiled function stops being the one in the target. */
export interface CodeDifference {
  /** Offset in the compiled function. */
  readonly offset: number;
  readonly compiled: string;
  readonly inTarget: string;
}

/**
 * Holds a compiled function against the target's code, instruction by instruction. The linker may have filled in
 * relocated fields, shortened jumps, relaxed GOT and TLS accesses, and aligned differently; nothing else may differ.
 * Undefined when they are the same code.
 */
export function findCodeDifference(
  decoder: InstructionDecoder,
  object: ObjectModel,
  definition: Definition,
  target: TargetModel,
  address: number,
  targetSizeBytes: number,
  /** Is given where the target has what the code refers to. */
  bound?: Map<Definition, number>,
): CodeDifference | undefined {
  const linked = target.elf.bytesAt(linkAddress(address), targetSizeBytes);
  if (linked === undefined) return { offset: 0, compiled: '', inTarget: '' };
  return new CodeProof(decoder, object, definition, target, address, linked, bound).run();
}

class CodeProof {
  readonly #decoder: InstructionDecoder;
  readonly #object: ObjectModel;
  readonly #definition: Definition;
  readonly #target: TargetModel;
  readonly #address: number;
  readonly #linked: Uint8Array;
  readonly #start: number;
  readonly #bound: Map<Definition, number> | undefined;
  readonly #compiled: Uint8Array;
  readonly #relocations: readonly ElfRelocation[];
  /** Offsets in the compiled function to offsets in the target's. */
  readonly #places = new Map<number, number>();
  readonly #tables: {
    readonly from: number;
    readonly reference: AnonymousReference;
    readonly linkedAt: number;
  }[] = [];
  readonly #jumps: { readonly from: number; readonly to: number; readonly linkedTo: number }[] = [];

  constructor(
    decoder: InstructionDecoder,
    object: ObjectModel,
    definition: Definition,
    target: TargetModel,
    address: number,
    linked: Uint8Array,
    bound: Map<Definition, number> | undefined,
  ) {
    this.#decoder = decoder;
    this.#bound = bound;
    this.#object = object;
    this.#definition = definition;
    this.#target = target;
    this.#address = address;
    this.#linked = linked;
    this.#start = definition.symbol.value;
    const size = definition.symbol.sizeBytes;
    this.#compiled = definition.section.data.subarray(this.#start, this.#start + size);
    this.#relocations = inRange(object.relocationsOf(definition.section), this.#start, size).map((r) => ({
      ...r,
      offset: r.offset - this.#start,
    }));
  }

  run(): CodeDifference | undefined {
    let a = 0;
    let b = 0;
    while (a < this.#compiled.length || b < this.#linked.length) {
      // A kernel's symbol reaches up to the next one, over fill and over weak functions that another one overrides.
      if (a >= this.#compiled.length && this.#target.isKernel) break;
      const left = this.#decode(this.#compiled, a);
      const right = this.#decode(this.#linked, b);
      const leftNop = left !== undefined && isPadding(this.#compiled, a, left);
      const rightNop = right !== undefined && isPadding(this.#linked, b, right);
      if (leftNop || rightNop) {
        // Fill that aligns a loop differs with the function's place.
        if (leftNop) this.#places.set(a, b);
        a += leftNop ? left.lengthBytes : 0;
        b += rightNop ? right.lengthBytes : 0;
        continue;
      }
      if (left === undefined || right === undefined) return this.#difference(a, b);
      this.#places.set(a, b);
      const consumed = this.#sameInstruction(a, left, b, right);
      if (consumed === undefined) return this.#difference(a, b);
      a += consumed.compiled;
      b += consumed.linked;
    }
    this.#places.set(a, b);
    for (const { from, to, linkedTo } of this.#jumps) {
      if (this.#places.get(to) !== linkedTo) return this.#difference(from, this.#places.get(from) ?? 0);
    }
    for (const { from, reference, linkedAt } of this.#tables) {
      if (!this.#sameTable(reference, linkedAt)) return this.#difference(from, this.#places.get(from) ?? 0);
    }
    return undefined;
  }

  #sameInstruction(
    a: number,
    left: Instruction,
    b: number,
    right: Instruction,
  ): { compiled: number; linked: number } | undefined {
    const own = this.#relocations.filter((r) => r.offset >= a && r.offset < a + left.lengthBytes);
    const [relocation] = own;
    const both = { compiled: left.lengthBytes, linked: right.lengthBytes };
    if (relocation === undefined) {
      if (left.target !== undefined) {
        if (!sameJump(this.#compiled, a, left, this.#linked, b, right)) return undefined;
        if (left.target < 0 || left.target >= this.#compiled.length) {
          // Another function of one section: the assembler knew how far it is.
          const other = this.#object.definitionAt(this.#definition.section, this.#start + left.target);
          if (other === undefined || right.target === undefined) return undefined;
          const reference = { kind: 'definition', ...other } as const;
          return this.#means(reference, this.#address + right.target, true, a) ? both : undefined;
        }
        this.#jumps.push({ from: a, to: left.target, linkedTo: right.target ?? -1 });
        return both;
      }
      return left.lengthBytes === right.lengthBytes &&
        sameBytes(this.#slice(a, left), this.#linkedSlice(b, right))
        ? both
        : undefined;
    }
    if (relocation.type === c.R_X86_64_TLSGD || relocation.type === c.R_X86_64_TLSLD)
      return this.#relaxedTls(a, b, relocation);
    if (relocation.type === c.R_X86_64_GOTTPOFF)
      return isThreadOffsetLoad(this.#slice(a, left), this.#linkedSlice(b, right)) ? both : undefined;
    const reference = this.#object.referenceOf(this.#definition.section, {
      ...relocation,
      offset: relocation.offset + this.#start,
    });
    if (left.target !== undefined) {
      if (!sameJump(this.#compiled, a, left, this.#linked, b, right) || right.target === undefined)
        return undefined;
      return this.#means(reference, this.#address + right.target, true, a) ? both : undefined;
    }
    if (relocation.type === c.R_X86_64_GOTPCRELX || relocation.type === c.R_X86_64_REX_GOTPCRELX) {
      const relaxed = this.#relaxedGot(a, left, b, right, reference);
      if (relaxed !== undefined) return relaxed;
    }
    if (left.lengthBytes !== right.lengthBytes) return undefined;
    const [compiled, linked] = [this.#slice(a, left).slice(), this.#linkedSlice(b, right).slice()];
    const view = new DataView(linked.buffer, linked.byteOffset, linked.length);
    const field = relocation.offset - a;
    if (field + relocatedBytes(relocation.type) > linked.length) return undefined;
    const value = relocatedBytes(relocation.type) === 4 ? view.getInt32(field, true) : undefined;
    for (const r of own) {
      compiled.fill(0, r.offset - a, r.offset - a + relocatedBytes(r.type));
      linked.fill(0, r.offset - a, r.offset - a + relocatedBytes(r.type));
    }
    if (!sameBytes(compiled, linked)) return undefined;
    if (value === undefined) return both;
    if (relocation.type === c.R_X86_64_PC32 || relocation.type === c.R_X86_64_PLT32) {
      return this.#means(reference, this.#address + b + right.lengthBytes + value, false, a)
        ? both
        : undefined;
    }
    if (relocation.type === c.R_X86_64_32 || relocation.type === c.R_X86_64_32S) {
      return this.#means(reference, value, false, a) ? both : undefined;
    }
    return both;
  }

  /** mov from the GOT becomes lea or mov of an immediate; calls and jumps through it direct ones, padded to the same length. */
  #relaxedGot(a: number, left: Instruction, b: number, right: Instruction, reference: Reference) {
    const [x, y] = [this.#slice(a, left), this.#linkedSlice(b, right)];
    const rex = x.length === 7 ? 1 : 0;
    if (x[rex] === 0x8b && y.length === x.length) {
      const value = new DataView(y.buffer, y.byteOffset, y.length).getInt32(rex + 2, true);
      const modrm = x[rex + 1] as number;
      const isSame = { compiled: x.length, linked: x.length };
      if (y[rex] === 0x8d && y[rex + 1] === modrm && y[0] === x[0]) {
        return this.#means(reference, this.#address + b + y.length + value, false, a) ? isSame : undefined;
      }
      // The register moves from ModRM.reg to ModRM.rm, and its high bit from REX.R to REX.B.
      const isImmediate = y[rex] === 0xc7 && y[rex + 1] === (0xc0 | ((modrm >> 3) & 7));
      const prefix = rex === 0 || y[0] === (((x[0] as number) & 0xf8) | (((x[0] as number) >> 2) & 1));
      if (isImmediate && prefix) return this.#means(reference, value, false, a) ? isSame : undefined;
      return undefined;
    }
    if (x[0] !== 0xff || right.target === undefined) return undefined;
    if (!this.#means(reference, this.#address + right.target, true, a)) return undefined;
    // addr32 call, or a jump and a nop.
    return { compiled: left.lengthBytes, linked: right.lengthBytes === 5 ? 6 : right.lengthBytes };
  }

  /**
   * General- and local-dynamic sequences: an address and a call of __tls_get_addr, or what the linker writes over both
   * (ELF Handling for Thread-Local Storage, sections 5.5 and 5.6).
   */
  #relaxedTls(
    a: number,
    b: number,
    relocation: ElfRelocation,
  ): { compiled: number; linked: number } | undefined {
    let size = 0;
    for (let count = 0; count < 2; count++) size += this.#decode(this.#compiled, a + size)?.lengthBytes ?? 0;
    const both = { compiled: size, linked: size };
    const linked = this.#linked.subarray(b, b + size);
    if (linked.length < size) return undefined;
    // Both calls may be direct or through the GOT; the displacements are the linker's.
    const compiled = this.#compiled.slice(a, a + size);
    const unchanged = linked.slice();
    for (const at of [relocation.offset - a, size - 4]) {
      compiled.fill(0, at, at + 4);
      unchanged.fill(0, at, at + 4);
    }
    if (sameBytes(compiled, unchanged)) return both;
    const forms = relocation.type === c.R_X86_64_TLSGD ? RELAXED_GENERAL_DYNAMIC : RELAXED_LOCAL_DYNAMIC;
    return forms.some((form) => form.length <= size && form.every((byte, i) => linked[i] === byte))
      ? both
      : undefined;
  }

  /** Whether an address of the target is what the compiled code refers to. */
  #means(reference: Reference, address: number, isBranch: boolean, from: number): boolean {
    switch (reference.kind) {
      case 'definition': {
        const at = address - reference.offset;
        const symbols = this.#target.symbolsAt(at);
        this.#bound?.set(reference.definition, at);
        // A variable may have no symbol of its own name there only when the table was trimmed; a wrong name is a no.
        return (
          symbols.length === 0 ||
          symbols.some((s) => stableName(s.name) === stableName(reference.definition.name))
        );
      }
      case 'undefined': {
        const symbols = this.#target.symbolsAt(address - reference.offset);
        if (symbols.some((s) => s.name === reference.name)) return true;
        // A call to another object goes through a PLT entry, which has no symbol.
        return isBranch
          ? symbols.every((s) => s.kind !== 'func')
          : this.#target.symbolsNamed(reference.name).length === 0;
      }
      case 'string': {
        const found = this.#target.elf.bytesAt(linkAddress(address), reference.bytes.length);
        return found !== undefined && sameBytes(found, reference.bytes);
      }
      case 'anonymous':
        return this.#sameAnonymous(reference, address, from);
    }
  }

  #sameAnonymous(reference: AnonymousReference, address: number, from: number): boolean {
    const { section, position } = reference;
    if ((section.flags & c.SHF_EXECINSTR) !== 0 || section.type === c.SHT_NOBITS) return true;
    if ((section.flags & c.SHF_MERGE) !== 0 && section.entrySizeBytes > 0) {
      const end = position + section.entrySizeBytes - (position % section.entrySizeBytes);
      const constant = section.data.subarray(position, end);
      const found = this.#target.elf.bytesAt(linkAddress(address), constant.length);
      return found !== undefined && sameBytes(found, constant);
    }
    // A jump table leads to places that are known at the end.
    this.#tables.push({ from, reference, linkedAt: address });
    return true;
  }

  /** The entries of a jump table as far as they follow each other: 4-byte distances from its start, or 8-byte addresses. */
  #sameTable({ section, position }: AnonymousReference, linkedAt: number): boolean {
    const byOffset = new Map(this.#object.relocationsOf(section).map((r) => [r.offset, r]));
    const type = byOffset.get(position)?.type;
    if (type !== c.R_X86_64_PC32 && type !== c.R_X86_64_64) return true;
    // Absolute entries of a file that can lie anywhere are in its dynamic relocations.
    if (type === c.R_X86_64_64 && this.#target.elf.type === c.ET_DYN) return true;
    const entryBytes = relocatedBytes(type);
    // A table ends where the next one begins.
    const end =
      this.#object.anonymousPositions(section).find((other) => other > position) ?? section.sizeBytes;
    for (let at = position; at < end; at += entryBytes) {
      const relocation = byOffset.get(at);
      if (relocation?.type !== type) return true;
      const symbol = this.#object.elf.symbols[relocation.symbolIndex];
      if (symbol === undefined || symbol.sectionIndex !== this.#definition.section.index) return true;
      const bias = type === c.R_X86_64_PC32 ? at - position : 0;
      const to = symbol.value + relocation.addend - bias - this.#start;
      const linkedTo = this.#tableEntry(linkedAt, at - position, type);
      if (linkedTo === undefined || this.#places.get(to) !== linkedTo - this.#address) return false;
    }
    return true;
  }

  /** Where an entry of a table in the target leads. */
  #tableEntry(table: number, offset: number, type: number): number | undefined {
    const bytes = this.#target.elf.bytesAt(linkAddress(table + offset), relocatedBytes(type));
    if (bytes === undefined) return undefined;
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    return type === c.R_X86_64_PC32 ? table + view.getInt32(0, true) : Number(view.getBigInt64(0, true));
  }

  #decode(bytes: Uint8Array, at: number): Instruction | undefined {
    return at < bytes.length ? this.#decoder.decode(bytes, at, at) : undefined;
  }

  #slice(a: number, instruction: Instruction): Uint8Array {
    return this.#compiled.subarray(a, a + instruction.lengthBytes);
  }

  #linkedSlice(b: number, instruction: Instruction): Uint8Array {
    return this.#linked.subarray(b, b + instruction.lengthBytes);
  }

  #difference(a: number, b: number): CodeDifference {
    return { offset: a, compiled: hexOf(this.#compiled, a), inTarget: hexOf(this.#linked, b) };
  }
}

type AnonymousReference = Extract<Reference, { kind: 'anonymous' }>;

const LOAD_THREAD_POINTER = [0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0];
/** mov %fs:0, %rax, then lea offset(%rax), %rax or add offset@GOTTPOFF(%rip), %rax. */
const RELAXED_GENERAL_DYNAMIC = [
  [...LOAD_THREAD_POINTER, 0x48, 0x8d, 0x80],
  [...LOAD_THREAD_POINTER, 0x48, 0x03, 0x05],
];
/** mov %fs:0, %rax behind prefixes or before a nop that fill the place. */
const RELAXED_LOCAL_DYNAMIC = [
  [0x66, 0x66, 0x66, ...LOAD_THREAD_POINTER],
  [0x66, 0x66, 0x66, 0x66, ...LOAD_THREAD_POINTER],
  [...LOAD_THREAD_POINTER],
];

/** mov or add of a thread-pointer offset: from the GOT, or of an immediate once the linker knows it (mov, lea, add). */
function isThreadOffsetLoad(x: Uint8Array, y: Uint8Array): boolean {
  if (x.length !== 7 || y.length !== 7) return false;
  if (x[0] === y[0] && x[1] === y[1] && x[2] === y[2]) return true;
  const register = ((x[2] as number) >> 3) & 7;
  const high = ((x[0] as number) >> 2) & 1;
  if (x[1] === 0x8b) return y[1] === 0xc7 && y[2] === (0xc0 | register) && ((y[0] as number) & 1) === high;
  if (x[1] !== 0x03) return false;
  const isAdd = y[1] === 0x81 && y[2] === (0xc0 | register) && ((y[0] as number) & 1) === high;
  const isLea =
    y[1] === 0x8d && y[2] === (0x80 | (register << 3) | register) && ((y[0] as number) & 5) === high * 5;
  return isAdd || isLea;
}

/** The same jump in its short or long form. */
function sameJump(
  left: Uint8Array,
  a: number,
  x: Instruction,
  right: Uint8Array,
  b: number,
  y: Instruction,
): boolean {
  if (x.flow !== y.flow) return false;
  if (x.flow !== 'branch') return true;
  return conditionOf(left, a, x) === conditionOf(right, b, y);
}

/** Condition nibble of jcc, the opcode of loop and jrcxz. */
function conditionOf(bytes: Uint8Array, at: number, instruction: Instruction): number {
  const end = at + instruction.lengthBytes;
  if (instruction.lengthBytes >= 6) return (bytes[end - 5] as number) & 0x0f;
  const opcode = bytes[end - 2] as number;
  return opcode >= 0x70 && opcode <= 0x7f ? opcode & 0x0f : opcode;
}

function isPadding(bytes: Uint8Array, at: number, instruction: Instruction): boolean {
  let opcode = at;
  while (bytes[opcode] === 0x66 || bytes[opcode] === 0x2e) opcode++;
  const end = at + instruction.lengthBytes;
  return (
    (bytes[opcode] === 0x90 && opcode + 1 === end) || (bytes[opcode] === 0x0f && bytes[opcode + 1] === 0x1f)
  );
}

function hexOf(bytes: Uint8Array, at: number): string {
  return Array.from(bytes.subarray(at, at + 8), (byte) => byte.toString(16).padStart(2, '0')).join(' ');
}
