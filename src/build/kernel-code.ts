import { ByteWriter } from '../base/byte-writer.js';
import { LivegraftError } from '../base/errors.js';
import * as c from '../elf/constants.js';
import type { ElfRelocation, ElfSection } from '../elf/elf-file.js';
import { EXCEPTIONS } from '../patch/part.js';
import type { ObjectModel } from './object-model.js';
import { parseAlternative, placeOf, type SpecialEntry } from './special-sections.js';

/** What code of a kernel needs from the selection that it becomes part of. */
export interface KernelCodeHost {
  model(): ObjectModel;
  /** A relocation of the object as one of the patch. */
  relocate(section: ElfSection, relocation: ElfRelocation): ElfRelocation;
  /** The patch's symbol at the start of a section that is, or becomes, part of it. */
  local(section: ElfSection): number;
  /** A symbol of the kernel; undefined when it has not exactly one of that name. */
  external(name: string): number | undefined;
  /** Adds a section that the object does not have. Its relocations are the patch's. */
  add(name: string, flags: number, data: Uint8Array, relocations: readonly ElfRelocation[]): ElfSection;
}

/** `0f 1f 44 00 00` */
export const NOP5 = [0x0f, 0x1f, 0x44, 0x00, 0x00];
/** The section that is applied when the patch is loaded (`src/targets/kernel/alternatives.ts`). */
export const ALTERNATIVES = '.livegraft.alternatives';
const JUMP_BYTES = 5;
const [CODE, CONSTANT, DATA] = [c.SHF_ALLOC | c.SHF_EXECINSTR, c.SHF_ALLOC, c.SHF_ALLOC | c.SHF_WRITE];

/**
 * Code of a kernel without the tables that the kernel would have to be told of. Calls of `__fentry__` become nops. A jump
 * label becomes a test of its key, which stays right when the key changes later. A warning becomes a call of what the kernel's
 * trap handler calls. Alternatives are kept in a section of ours, for the CPU that the patch meets.
 */
export function rewriteKernelCode(
  section: ElfSection,
  entries: readonly SpecialEntry[],
  host: KernelCodeHost,
): { readonly data: Uint8Array; readonly relocations: readonly ElfRelocation[] } {
  const data = section.data.slice();
  const { elf } = host.model();
  const relocations: ElfRelocation[] = [];
  for (const relocation of host.model().relocationsOf(section)) {
    if (elf.symbols[relocation.symbolIndex]?.name === '__fentry__') data.set(NOP5, relocation.offset - 1);
    else relocations.push(auxiliary(section, relocation, host) ?? host.relocate(section, relocation));
  }
  const alternatives: SpecialEntry[] = [];
  const jump = (position: number, to: ElfSection) => {
    if (position < 0 || position + JUMP_BYTES > data.length) throw unpatchable(host, section, position);
    data[position] = 0xe9;
    data.fill(0, position + 1, position + JUMP_BYTES);
    relocations.push({
      offset: position + 1,
      type: c.R_X86_64_PC32,
      symbolIndex: host.local(to),
      addend: -4,
    });
  };
  for (const entry of entries) {
    switch (entry.kind) {
      case 'exception':
        addException(section, entry, host);
        break;
      case 'alternative':
        alternatives.push(entry);
        break;
      case 'jumpLabel': {
        const site = data.subarray(entry.position, entry.position + JUMP_BYTES);
        if (site[0] !== 0xe9 && !NOP5.every((byte, i) => site[i] === byte))
          throw unpatchable(host, section, entry.position);
        jump(entry.position, keyTest(section, entry, host));
        break;
      }
      case 'bug':
        // A nop of three bytes stands in front of it (`kernel-tree.ts`).
        if (
          data[entry.position - 3] !== 0x0f ||
          data[entry.position - 2] !== 0x1f ||
          data[entry.position] !== 0x0f
        )
          throw unpatchable(host, section, entry.position);
        jump(entry.position - 3, report(section, entry, host));
        break;
    }
  }
  if (alternatives.length > 0) addAlternatives(section, alternatives, host);
  return { data, relocations };
}

function nameAt(host: KernelCodeHost, section: ElfSection, position: number): string {
  return host.model().definitionAt(section, position)?.definition.name ?? section.name;
}

function unpatchable(host: KernelCodeHost, section: ElfSection, position: number): LivegraftError {
  return new LivegraftError(
    'special-section',
    `${nameAt(host, section, position)} has a jump label or a warning at ${position} that can not be rewritten in place`,
    { remedy: 'build it by livegraft build --kernel, which makes room for that' },
  );
}

/** `static_cpu_has` has its test in a section that all functions share: the piece that this one jumps to. */
function auxiliary(
  section: ElfSection,
  relocation: ElfRelocation,
  host: KernelCodeHost,
): ElfRelocation | undefined {
  const reference = host.model().referenceOf(section, relocation);
  if (reference.kind !== 'anonymous' || reference.section.name !== '.altinstr_aux') return undefined;
  const { section: home, position } = reference;
  const end =
    host
      .model()
      .anonymousPositions(home)
      .find((other) => other > position) ?? home.sizeBytes;
  const own = host
    .model()
    .relocationsOf(home)
    .filter((r) => r.offset >= position && r.offset < end)
    .map((r) => ({ ...host.relocate(home, r), offset: r.offset - position }));
  const piece = host.add('.text.altinstr_aux', CODE, home.data.slice(position, end), own);
  // The addend of a branch counts from its field, four bytes before its end.
  return { ...relocation, symbolIndex: host.local(piece), addend: -4 };
}

/**
 *     cmpl $0, key(%rip)
 *     jg   enabled
 *     jmp  disabled
 *
 * The kernel's own code has a nop or a jump there, which it rewrites when the key changes. Flags are free: asm goto clobbers them.
 */
function keyTest(section: ElfSection, entry: SpecialEntry, host: KernelCodeHost): ElfSection {
  const [, target, key] = entry.relocations as [ElfRelocation, ElfRelocation, ElfRelocation];
  const place = placeOf(host.model().elf, target);
  if (place === undefined) throw unpatchable(host, section, entry.position);
  // Bit 0: the branch is taken while the key is off. Bit 1: init code.
  const flags = key.addend & 3;
  const there = {
    symbolIndex: host.local(place.section),
    addend: place.position - 4,
  };
  const next = { symbolIndex: host.local(section), addend: entry.position + JUMP_BYTES - 4 };
  const [on, off] = (flags & 1) === 0 ? [there, next] : [next, there];
  const tested = host.relocate(entry.table, { ...key, type: c.R_X86_64_PC32, addend: key.addend - flags });
  const code = Uint8Array.of(0x83, 0x3d, 0, 0, 0, 0, 0, 0x0f, 0x8f, 0, 0, 0, 0, 0xe9, 0, 0, 0, 0);
  return host.add('.text.key', CODE, code, [
    { ...tested, offset: 2, addend: tested.addend - 5 },
    { offset: 9, type: c.R_X86_64_PC32, ...on },
    { offset: 14, type: c.R_X86_64_PC32, ...off },
  ]);
}

/** `BUGFLAG_…` of include/asm-generic/bug.h. */
const [WARNING, ONCE, NO_CUT_HERE] = [1, 2, 8];
/** rax, rcx, rdx, rsi, rdi, r8 to r11: what a call changes. */
const SAVE = [0x50, 0x51, 0x52, 0x56, 0x57, 0x41, 0x50, 0x41, 0x51, 0x41, 0x52, 0x41, 0x53];
const RESTORE = [0x41, 0x5b, 0x41, 0x5a, 0x41, 0x59, 0x41, 0x58, 0x5f, 0x5e, 0x5a, 0x59, 0x58];

/**
 * What the kernel does for a `ud2` of its bug table (`report_bug`), as code: a warning is printed by `__warn`, once if it is one
 * of those; BUG prints its place, then traps. Registers and flags stay as they are.
 */
function report(section: ElfSection, entry: SpecialEntry, host: KernelCodeHost): ElfSection {
  const view = new DataView(entry.bytes.buffer, entry.bytes.byteOffset, entry.bytes.length);
  if (entry.bytes.length !== 12) throw unpatchable(host, section, entry.position);
  const [line, flags] = [view.getUint16(8, true), view.getUint16(10, true)];
  const isWarning = (flags & WARNING) !== 0;
  const printer = host.external('_printk');
  const warn = host.external('__warn');
  if (printer === undefined || warn === undefined) throw unpatchable(host, section, entry.position);
  const writer = new ByteWriter(160);
  const relocations: ElfRelocation[] = [];
  const put = (...bytes: readonly number[]) => {
    for (const byte of bytes) writer.writeU8(byte);
  };
  const field = (type: number, symbol: { readonly symbolIndex: number; readonly addend: number }) => {
    const { symbolIndex, addend } = symbol;
    relocations.push({ offset: writer.length, type, symbolIndex, addend });
    writer.writeI32(0);
  };
  const call = (symbolIndex: number) => {
    put(0xe8);
    field(c.R_X86_64_PLT32, { symbolIndex, addend: -4 });
  };
  const text = (value: string) => ({
    symbolIndex: host.local(host.add('.rodata.report', CONSTANT, new TextEncoder().encode(`${value}\0`), [])),
    addend: 0,
  });
  const [, file] = entry.relocations as [ElfRelocation, ElfRelocation];
  const fileName = host.relocate(entry.table, { ...file, type: c.R_X86_64_32S });
  put(0x9c); // pushfq
  let skip: number | undefined;
  if ((flags & ONCE) !== 0) {
    const done = host.local(host.add('.data.once', DATA, Uint8Array.of(0), []));
    put(0x80, 0x3d); // cmpb $0, done(%rip)
    field(c.R_X86_64_PC32, { symbolIndex: done, addend: -5 });
    put(0x00, 0x0f, 0x85); // jne
    skip = writer.length;
    writer.writeI32(0);
    put(0xc6, 0x05); // movb $1, done(%rip)
    field(c.R_X86_64_PC32, { symbolIndex: done, addend: -5 });
    put(0x01);
  }
  put(...SAVE, 0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xe4, 0xf0, 0xfc); // push rbp; mov rsp, rbp; and $-16, rsp; cld
  if (isWarning) {
    if ((flags & NO_CUT_HERE) === 0) {
      put(0x48, 0xc7, 0xc7); // mov $text, %rdi
      field(c.R_X86_64_32S, text('\u00014------------[ cut here ]------------\n'));
      put(0x31, 0xc0);
      call(printer);
    }
    put(0x48, 0xc7, 0xc7);
    field(c.R_X86_64_32S, fileName);
    put(0xbe); // mov $line, %esi
    writer.writeI32(line);
    put(0x48, 0x8d, 0x15); // lea site(%rip), %rdx
    field(c.R_X86_64_PC32, { symbolIndex: host.local(section), addend: entry.position - 4 });
    put(0xb9); // mov $taint, %ecx
    writer.writeI32(flags >> 8);
    put(0x45, 0x31, 0xc0, 0x45, 0x31, 0xc9); // no registers, no arguments
    call(warn);
  } else {
    put(0x48, 0xc7, 0xc7);
    field(c.R_X86_64_32S, text('\u00010kernel BUG at %s:%u!\n'));
    put(0x48, 0xc7, 0xc6); // mov $file, %rsi
    field(c.R_X86_64_32S, fileName);
    put(0xba); // mov $line, %edx
    writer.writeI32(line);
    put(0x31, 0xc0);
    call(printer);
  }
  put(0x48, 0x89, 0xec, 0x5d, ...RESTORE); // mov %rbp, %rsp; pop %rbp
  const out = writer.length;
  put(0x9d); // popfq
  if (isWarning) {
    put(0xe9);
    field(c.R_X86_64_PC32, { symbolIndex: host.local(section), addend: entry.position + 2 - 4 });
  } else put(0x0f, 0x0b);
  const code = writer.toBytes().slice();
  if (skip !== undefined) new DataView(code.buffer, code.byteOffset).setInt32(skip, out - skip - 4, true);
  return host.add('.text.report', CODE, code, relocations);
}

/** The instruction, where to go on, and how: as in the kernel's own table. */
function addException(section: ElfSection, entry: SpecialEntry, host: KernelCodeHost): void {
  const [, fixup, handler] = entry.relocations as [ElfRelocation, ElfRelocation, ElfRelocation | undefined];
  const place = placeOf(host.model().elf, fixup);
  if (
    entry.bytes.length !== 12 ||
    handler !== undefined ||
    place === undefined ||
    !/^\.text\b/.test(place.section.name)
  ) {
    throw new LivegraftError(
      'special-section',
      `${nameAt(host, section, entry.position)} has an instruction that may fault (__ex_table), in a form of the table that is not known`,
      {
        remedy:
          'access user memory by copy_from_user, copy_to_user, get_user or put_user, whose code is in the kernel',
        details: { function: nameAt(host, section, entry.position), sections: entry.table.name },
      },
    );
  }
  host.add(EXCEPTIONS, CONSTANT, entry.bytes.slice(), [
    { offset: 0, type: c.R_X86_64_PC32, symbolIndex: host.local(section), addend: entry.position },
    { offset: 4, type: c.R_X86_64_PC32, symbolIndex: host.local(place.section), addend: place.position },
  ]);
}

/**
 * Entries of twelve bytes: distance to the instruction and to its replacement, each from its own place; the CPU feature, with bit
 * 15 where it must be missing; length of the instruction and of the replacement. The kernel's own form of 6.1.
 */
function addAlternatives(section: ElfSection, entries: readonly SpecialEntry[], host: KernelCodeHost): void {
  const writer = new ByteWriter(entries.length * 12);
  const relocations: ElfRelocation[] = [];
  for (const entry of entries) {
    const [, second] = entry.relocations as [ElfRelocation, ElfRelocation];
    const { feature, isInverse, lengthBytes, replacementBytes } = parseAlternative(entry);
    const place = placeOf(host.model().elf, second);
    if (place === undefined) throw unpatchable(host, section, entry.position);
    const { section: home, position } = place;
    const end = position + replacementBytes;
    const own = host
      .model()
      .relocationsOf(home)
      .filter((r) => r.offset >= position && r.offset < end);
    const code = home.data.slice(position, end);
    // The kernel moves the displacement of a call or jump alone (apply_alternatives).
    const isMovable = own.every(
      (r) =>
        (r.offset === position + 1 && (code[0] === 0xe8 || code[0] === 0xe9)) || !PC_RELATIVE.has(r.type),
    );
    if (!isMovable) {
      throw new LivegraftError(
        'special-section',
        `${nameAt(host, section, entry.position)}: a replacement for some CPUs refers to its own place`,
        { remedy: 'write the function without it, or call a function of the kernel that has it' },
      );
    }
    const copied = host.add(
      '.rodata.altinstr_replacement',
      CONSTANT,
      code.length === 0 ? Uint8Array.of(0x90) : code,
      own.map((r) => ({ ...host.relocate(home, r), offset: r.offset - position })),
    );
    const at = writer.length;
    relocations.push(
      { offset: at, type: c.R_X86_64_PC32, symbolIndex: host.local(section), addend: entry.position },
      { offset: at + 4, type: c.R_X86_64_PC32, symbolIndex: host.local(copied), addend: 0 },
    );
    writer.writeI32(0).writeI32(0);
    writer
      .writeU16(feature | (isInverse ? 0x8000 : 0))
      .writeU8(lengthBytes)
      .writeU8(replacementBytes);
  }
  host.add(ALTERNATIVES, CONSTANT, writer.toBytes(), relocations);
}

const PC_RELATIVE: ReadonlySet<number> = new Set([c.R_X86_64_PC32, c.R_X86_64_PLT32, c.R_X86_64_PC64]);

/** Sections that a patch of a kernel can't bring along, and why. */
export const UNPATCHABLE_SECTIONS: readonly (readonly [RegExp, string])[] = [
  [/^\.?__tracepoints/, 'tracepoints'],
  [/^\.data\.\.percpu/, 'per-CPU variables of its own'],
  [/^\.(?:init|exit)\b|^\.initcall/, 'init or exit code'],
  [/^__ksymtab|^\.export_symbol/, 'exported symbols'],
  [/^__param$/, 'module parameters'],
  [/^__dyndbg$/, 'messages that are switched on by name (dynamic debug)'],
  [/^\.(?:init_array|ctors)/, 'constructors'],
];

/** Refuses a section that new code would need, and that only a kernel's boot or its module loader can set up. */
export function expectKernelSection(model: ObjectModel, section: ElfSection): void {
  const found = UNPATCHABLE_SECTIONS.find(([pattern]) => pattern.test(section.name));
  if (found === undefined) return;
  const names = model.definitionsIn(section).map((definition) => definition.name);
  throw new LivegraftError(
    'special-section',
    `the new code needs ${names.slice(0, 5).join(', ')} in ${section.name}: ${found[1]}`,
    {
      remedy: 'write the change without it, or use what the kernel has',
      details: { section: section.name },
    },
  );
}
