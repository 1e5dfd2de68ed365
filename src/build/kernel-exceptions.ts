import { hex, linkAddress } from '../base/brand.js';
import { LivegraftError } from '../base/errors.js';
import * as c from '../elf/constants.js';
import type { ElfRelocation } from '../elf/elf-file.js';
import type { PatchSection, PatchSymbol } from '../patch/content.js';
import type { Digest } from '../patch/file.js';
import { BELOW_OBJECT } from '../patch/link.js';
import type { PatchFunction } from '../patch/manifest.js';
import { EXCEPTION_SEARCH, EXCEPTIONS } from '../patch/part.js';
import type { TargetModel } from './target-model.js';

/** The kernel's function that finds where to go on behind a fault, whatever table that is in. */
const SEARCH = 'search_exception_tables';
const ENTRY_BYTES = 12;

/**
 * Makes the kernel find the exception table of a patch: its search becomes one of the patched functions, whose new version looks
 * through the patch's entries first and then goes on in the one below, which may be another patch's. A task searches in the version that it has, so
 * whoever runs the new code finds its fixups, also while a transition lasts. Undefined when nothing in the patch may fault.
 */
export function addExceptionSearch(
  sections: PatchSection[],
  symbols: PatchSymbol[],
  target: TargetModel,
  digest: Digest,
): PatchFunction | undefined {
  const parts = sections.filter((section) => section.name.startsWith(`${EXCEPTIONS}.`));
  if (parts.length === 0) return undefined;
  const [old, ...more] = target.symbolsNamed(SEARCH);
  const bytes = old && target.elf.bytesAt(linkAddress(old.address), old.sizeBytes);
  if (old === undefined || bytes === undefined || more.length > 0) {
    throw new LivegraftError(
      'special-section',
      `the kernel has no ${SEARCH}: the patch has instructions that may fault`,
      {
        remedy: 'access user memory by functions of the kernel: copy_from_user, get_user and their like',
      },
    );
  }
  const table: ElfRelocation[] = [];
  const data = new Uint8Array(parts.length * ENTRY_BYTES);
  parts.forEach((part, index) => {
    data.set(part.data, index * ENTRY_BYTES);
    for (const r of part.relocations) table.push({ ...r, offset: r.offset + index * ENTRY_BYTES });
  });
  const define = (name: string, section: number, sizeBytes: number, isFunction: boolean): number => {
    symbols.push({ kind: 'defined', name, section, value: 0, sizeBytes, isFunction });
    return symbols.length - 1;
  };
  const external = (name: string, object: string): number => {
    const known = symbols.findIndex(
      (symbol) => symbol.kind === 'external' && symbol.name === name && symbol.object === object,
    );
    if (known >= 0) return known;
    symbols.push({ kind: 'external', object, name, sympos: 0, isThreadLocal: false, isWeak: false });
    return symbols.length - 1;
  };
  const add = (name: string, kind: PatchSection['kind'], bytes: Uint8Array, relocations: ElfRelocation[]) => {
    sections.push({ name, kind, alignment: 16, data: bytes, sizeBytes: bytes.length, relocations });
    return sections.length - 1;
  };
  const entries = define('.Lexceptions', add(EXCEPTIONS, 'readOnly', data, table), data.length, false);
  const hasThunk = target.symbolsNamed('__x86_return_thunk').length === 1;
  const code = Uint8Array.from([
    ...[0x48, 0x8d, 0x05, 0, 0, 0, 0], // lea entries(%rip), %rax
    ...[0xb9, 0, 0, 0, 0], // mov $count, %ecx
    ...[0x48, 0x63, 0x10], // next: movslq (%rax), %rdx
    ...[0x48, 0x01, 0xc2], // add %rax, %rdx
    ...[0x48, 0x39, 0xfa], // cmp %rdi, %rdx
    ...[0x74, 13], // je found
    ...[0x48, 0x83, 0xc0, ENTRY_BYTES], // add $12, %rax
    ...[0xff, 0xc9], // dec %ecx
    ...[0x75, 0xed], // jne next
    ...[0xe9, 0, 0, 0, 0], // jmp to the version below
    ...(hasThunk ? [0xe9, 0, 0, 0, 0] : [0xc3]), // found: return
  ]);
  new DataView(code.buffer).setInt32(8, parts.length, true);
  const relocations: ElfRelocation[] = [
    { offset: 3, type: c.R_X86_64_PC32, symbolIndex: entries, addend: -4 },
    { offset: 32, type: c.R_X86_64_PC32, symbolIndex: external(SEARCH, BELOW_OBJECT), addend: -4 },
  ];
  if (hasThunk)
    relocations.push({
      ...{ offset: 37, type: c.R_X86_64_PC32, addend: -4 },
      symbolIndex: external('__x86_return_thunk', target.objectName),
    });
  define(EXCEPTION_SEARCH, add('.text.livegraft.search', 'text', code, relocations), code.length, true);
  const { address, sizeBytes } = old;
  return {
    name: SEARCH,
    sympos: 0,
    old: { name: SEARCH, address: hex(address), sizeBytes, sha256: digest(bytes) },
    parts: [],
    newSymbol: EXCEPTION_SEARCH,
    newParts: [],
  };
}
