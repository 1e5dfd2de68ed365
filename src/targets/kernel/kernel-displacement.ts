import type { Architecture, RedirectSite } from '../../arch/architecture.js';
import { linkAddress } from '../../base/brand.js';
import type { BtfFile } from '../../btf/btf.js';
import type { KernelImage } from '../../kernel-image/kernel-image.js';
import {
  type Bounds,
  type CodeRange,
  chooseDisplaced,
  findCallers,
  findLeadInto,
} from '../../patch/displacement.js';
import { findFentry } from './kernel-trampoline.js';

/** What is overwritten at the entry of a function without the nop of ftrace, or why nothing can be. */
export type Displacement =
  | { readonly site: RedirectSite; readonly refused?: undefined }
  | { readonly refused: string; readonly site?: undefined };

/**
 * Text in which the kernel itself forbids probes: it runs before the kernel's GS base is in force, in NMIs, or while text is
 * changed (include/asm-generic/vmlinux.lds.h).
 */
const FORBIDDEN_TEXT = ['noinstr', 'entry', 'irqentry', 'softirqentry', 'cpuidle', 'kprobes'];

/** Tables of code that the kernel changes while it runs, or goes on at: words relative to their own place. */
const RELATIVE_TABLES: readonly (readonly [start: string, end: string])[] = [
  ['__start___jump_table', '__stop___jump_table'],
  ['__start_static_call_sites', '__stop_static_call_sites'],
];
const RELATIVE_SECTIONS = [
  ...['__ex_table', '__bug_table', '.altinstructions', '.retpoline_sites', '.return_sites', '.smp_locks'],
  '.call_sites',
];
/** Where an address of code may stand as it is. */
const POINTER_SECTIONS = ['.parainstructions', '.rodata', '.data', '.init.data'];

/** What only the function before the suffix jumps to. */
const COLD_PART = /^(.+?)\.cold(?:\.\d+)*$/;
/** A landing pad, and the call of ftrace. */
const ENTRY_BYTES = 16;

/**
 * Plans to displace the first instructions of a function of the kernel. Refuses, with the reason, what only the compiler's
 * calling convention makes safe and may not follow it, what the kernel forbids to probe, and bytes that anything else
 * than falling into them from the entry may lead to or change.
 */
export function planDisplacement(image: KernelImage, arch: Architecture, fn: CodeRange): Displacement {
  const { text } = image;
  const forbidden = findForbidden(image, fn);
  if (forbidden !== undefined) return { refused: forbidden };
  const chosen = chooseDisplaced(arch, text, fn);
  if (chosen.refused !== undefined) return chosen;
  const { site, range } = chosen;
  const lead = findLead(image, fn, range);
  return lead === undefined ? { site } : { refused: lead };
}

/** Why a function must not be touched, whatever its bytes are. */
function findForbidden(image: KernelImage, fn: CodeRange): string | undefined {
  const { symbols, btf } = image;
  const find = (name: string) => symbols.findUnique(name)?.address;
  for (const name of FORBIDDEN_TEXT) {
    const [start, end] = [find(`__${name}_text_start`), find(`__${name}_text_end`)];
    if (start !== undefined && end !== undefined && fn.address >= start && fn.address < end)
      return `it lies in the kernel's ${name} text, where no probe may be`;
  }
  const [first, last] = [find('__start_kprobe_blacklist'), find('__stop_kprobe_blacklist')];
  if (first !== undefined && last !== undefined) {
    const bytes = image.elf.bytesAt(linkAddress(first), last - first);
    if (bytes !== undefined && hasPointer(bytes, { low: fn.address, high: fn.address + 1 }))
      return 'the kernel forbids to probe it (NOKPROBE_SYMBOL)';
  }
  if (!isKnownInC(btf, fn.name))
    return 'nothing in the kernel’s types says that it is a C function: its callers may rely on registers that one changes';
  return undefined;
}

/**
 * Functions written in assembly have an entry without parameters and result, when they have any: so has a C function that takes
 * and returns nothing, which is refused as well.
 */
function isKnownInC(btf: BtfFile, name: string): boolean {
  const id = btf.findType('func', name);
  const fn = id === undefined ? undefined : btf.type(id);
  const prototype = fn?.kind === 'func' ? btf.type(fn.typeId) : undefined;
  return prototype?.kind === 'funcProto' && (prototype.parameters.length > 0 || prototype.returnTypeId !== 0);
}

/** What leads into the displaced bytes, or changes them, by the kernel's own tables and code. */
function findLead(image: KernelImage, fn: CodeRange, range: Bounds): string | undefined {
  const { elf, text } = image;
  const from = findLeadInto(text, fn, range);
  if (from !== undefined) {
    const name = image.symbols.findCovering(from)?.name ?? 'code';
    return `${name} seems to lead into its first instructions`;
  }
  // GCC tells callers which registers a function of the same file keeps (-fipa-ra), but not in files compiled for ftrace.
  const caller = findCallers(text, fn).find((place) => !isTraced(image, place));
  if (caller !== undefined)
    return `${image.symbols.findCovering(caller)?.name ?? 'code'}, which was compiled without it, too, calls it and may rely on registers that the old code keeps`;
  const find = (name: string) => image.symbols.findUnique(name)?.address;
  for (const [start, end] of RELATIVE_TABLES) {
    const [first, last] = [find(start), find(end)];
    const bytes =
      first === undefined || last === undefined ? undefined : elf.bytesAt(linkAddress(first), last - first);
    if (first !== undefined && bytes !== undefined && hasRelative(bytes, first, range))
      return `its first instructions are in the kernel's table ${start.replace(/^__start_+/, '')}`;
  }
  const sections = (names: readonly string[]) =>
    names.map((name) => elf.findSection(name)).filter((section) => section !== undefined);
  for (const section of sections(RELATIVE_SECTIONS))
    if (hasRelative(section.data, section.address, range))
      return `its first instructions are in the kernel's table ${section.name}`;
  for (const section of sections(POINTER_SECTIONS))
    if (hasPointer(section.data, { low: range.low + 1, high: range.high }))
      return `an address in ${section.name} leads into its first instructions`;
  return undefined;
}

/** Whether the function around a place of the text was compiled for ftrace, in the image. */
function isTraced({ symbols, text }: KernelImage, place: number): boolean {
  const around = symbols.findCovering(place);
  const parent = around && COLD_PART.exec(around.name)?.[1];
  const fn = parent === undefined ? around : symbols.findUnique(parent);
  if (fn === undefined) return false;
  const start = fn.address - text.address;
  const code = text.bytes.subarray(start, start + ENTRY_BYTES);
  return findFentry(code, fn.address, symbols.findUnique('__fentry__')?.address) !== undefined;
}

/** A word relative to its own place that leads to the bytes; entries have other sizes in other kernels, so at every place. */
function hasRelative(bytes: Uint8Array, address: number, { low, high }: Bounds): boolean {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  for (let at = 0; at + 4 <= bytes.length; at++) {
    const target = address + at + view.getInt32(at, true);
    if (target >= low && target < high) return true;
  }
  return false;
}

/** An address within the bounds, in 8 bytes. */
function hasPointer(bytes: Uint8Array, { low, high }: Bounds): boolean {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  // All addresses of the image have the same upper half.
  const top = Math.floor(low / 2 ** 32);
  const base = top * 2 ** 32;
  for (let at = 0; at + 8 <= bytes.length; at += 4) {
    if (view.getInt32(at + 4, true) !== top) continue;
    const value = base + view.getUint32(at, true);
    if (value >= low && value < high) return true;
  }
  return false;
}

/**
 * Whether bytes of the running kernel are those of its image, which address-space randomisation may have changed: words of
 * 4 bytes at the end of an instruction by `offset`. Other differences are the kernel's own changes, or a probe.
 */
export function isSameCode(
  arch: Architecture,
  running: Uint8Array,
  original: Uint8Array,
  offset: number,
): boolean {
  const view = (bytes: Uint8Array) => new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const [now, then] = [view(running), view(original)];
  for (let at = 0; at < original.length; ) {
    const length = arch.decoder.length(original, at);
    if (length === 0 || arch.decoder.length(running, at) !== length) return false;
    const end = at + length;
    const differs = (from: number, to: number) => {
      for (let i = from; i < to; i++) if (running[i] !== original[i]) return true;
      return false;
    };
    const isMoved = (field: number) =>
      field > at &&
      !differs(at, field) &&
      !differs(field + 4, end) &&
      now.getInt32(field, true) === ((then.getInt32(field, true) + offset) | 0);
    const fields = [end - 4, end - 5, end - 6, end - 8];
    if (differs(at, end) && !fields.some(isMoved)) return false;
    at = end;
  }
  return true;
}
