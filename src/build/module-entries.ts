import type { Architecture } from '../arch/architecture.js';
import { LivegraftError } from '../base/errors.js';
import * as c from '../elf/constants.js';
import type { ElfRelocation, ElfSection, ElfSymbol } from '../elf/elf-file.js';
import type { ModuleImage } from '../kernel-image/module-image.js';
import {
  type Bounds,
  type CodeRange,
  chooseDisplaced,
  findCallers,
  findLeadInto,
  isInside,
} from '../patch/displacement.js';
import type { DisplacedEntry } from '../patch/manifest.js';
import type { LinkedModule } from './linked-module.js';
import { parentOfPart, relocatedBytes } from './object-model.js';

/** Where the kernel itself forbids probes (include/asm-generic/vmlinux.lds.h has the same texts). */
const FORBIDDEN_TEXT = /^\.(?:noinstr|entry|irqentry|softirqentry|cpuidle|kprobes)\.text\b/;
/** Tables that name instructions which the kernel changes, or goes on at. */
const TABLES =
  /^(?:__jump_table|__ex_table|__bug_table|\.altinstructions|\.parainstructions|\.smp_locks|\.static_call_sites|\.retpoline_sites|\.return_sites|\.call_sites)$/;
/** What says how far a stack has been built, for each instruction. */
const UNWIND_TABLES = /^(?:\.orc_unwind_ip|\.eh_frame)$/;
const BLACKLIST = '_kprobe_blacklist';
const LANDING_PAD_BYTES = 4;

/**
 * How functions of a module are redirected, by the module's file: at the nop of ftrace or, where there is none, over their first
 * instructions. Its relocations name all that the kernel's tables and the module's data refer to.
 */
export class ModuleEntries {
  readonly #module: ModuleImage;
  readonly #linked: LinkedModule;
  readonly #arch: Architecture;
  readonly #isKnownInC: (name: string) => boolean;
  #traced: ReadonlySet<number> | undefined;

  /** `isKnownInC`: whether something says that a function follows the compiler's calling convention. */
  constructor(
    module: ModuleImage,
    linked: LinkedModule,
    arch: Architecture,
    isKnownInC: (name: string) => boolean,
  ) {
    this.#module = module;
    this.#linked = linked;
    this.#arch = arch;
    this.#isKnownInC = isKnownInC;
  }

  /** Undefined for a function with the nop of ftrace. Throws `no-fentry` for one without whose instructions can't be displaced. */
  plan(fn: CodeRange): DisplacedEntry | undefined {
    if (this.#hasFentry(fn.address)) return undefined;
    const refuse = (why: string): never => {
      throw new LivegraftError(
        'no-fentry',
        `${fn.name} of ${this.#module.name} was compiled without the nop of ftrace, and ${why}`,
        { remedy: 'patch its callers', details: { function: fn.name, module: this.#module.name } },
      );
    };
    const home = this.#sectionAt(fn.address);
    if (home === undefined) return refuse('it lies in no section');
    const { section, address } = home;
    if (FORBIDDEN_TEXT.test(section.name)) return refuse(`it lies in ${section.name}, where no probe may be`);
    if (!this.#isKnownInC(fn.name))
      return refuse(
        "nothing in the module's types says that it is a C function: its callers may rely on registers that one changes",
      );
    const bytes = this.#linked.bytesAt(address, section.sizeBytes) ?? new Uint8Array();
    const chosen = chooseDisplaced(this.#arch, { address, bytes }, fn);
    if (chosen.refused !== undefined) return refuse(chosen.refused);
    const { low, high } = chosen.range;
    const lead = this.#findLead(fn, chosen.range);
    if (lead !== undefined) return refuse(lead);
    const relocated = this.#module.elf
      .relocationsFor(section)
      .filter(({ offset }) => offset + address >= low && offset + address < high)
      .flatMap(({ offset, type }) =>
        Array.from({ length: relocatedBytes(type) / 4 }, (_, word) => offset + address - low + word * 4),
      );
    return {
      offset: low - fn.address,
      bytes: Buffer.from(bytes.subarray(low - address, high - address)).toString('hex'),
      relocated,
    };
  }

  #sectionAt(address: number): { readonly section: ElfSection; readonly address: number } | undefined {
    for (const each of this.#linked.sections())
      if (address >= each.address && address < each.address + each.section.sizeBytes) return each;
    return undefined;
  }

  /** The compiler's call of ftrace, which the kernel makes a nop when it loads the module: in the code, and in ftrace's table. */
  #hasFentry(entry: number): boolean {
    if (this.#traced === undefined) {
      const traced = new Set<number>();
      const { elf } = this.#module;
      for (const { section, address } of this.#linked.sections())
        for (const relocation of elf.relocationsFor(section)) {
          if (section.name === '__mcount_loc') traced.add(this.#linked.targetOf(relocation) ?? -1);
          if (elf.symbols[relocation.symbolIndex]?.name === '__fentry__')
            traced.add(address + relocation.offset - 1);
        }
      this.#traced = traced;
    }
    return this.#traced.has(entry) || this.#traced.has(entry + LANDING_PAD_BYTES);
  }

  /** What leads into the bytes, changes them, or relies on registers that only the old code keeps. */
  #findLead(fn: CodeRange, range: Bounds): string | undefined {
    for (const block of this.#linked.code()) {
      const from = findLeadInto(block, fn, range);
      if (from !== undefined) return `${this.#nameAt(from)} seems to lead into its first instructions`;
      // GCC tells callers which registers a function of the same file keeps (-fipa-ra), but not in files compiled for ftrace.
      for (const caller of findCallers(block, fn)) {
        if (this.#isTracedAt(caller)) continue;
        return `${this.#nameAt(caller)}, which was compiled without it, too, calls it and may rely on registers that the old code keeps`;
      }
    }
    for (const { section } of this.#linked.sections()) {
      if (UNWIND_TABLES.test(section.name)) continue;
      for (const relocation of this.#module.elf.relocationsFor(section))
        if (this.#leadsInto(section, relocation, fn, range))
          return `its first instructions are in ${section.name}`;
    }
    return undefined;
  }

  #leadsInto(section: ElfSection, relocation: ElfRelocation, fn: CodeRange, range: Bounds): boolean {
    const target = this.#linked.targetOf(relocation);
    if (target === undefined) return false;
    if (section.name === BLACKLIST) return target === fn.address;
    if (TABLES.test(section.name)) return target >= range.low && target < range.high;
    // Jumps were looked for; an address that code computes counts from the end of its field.
    const isCode = (section.flags & c.SHF_EXECINSTR) !== 0;
    const isRelative = relocation.type === c.R_X86_64_PC32 || relocation.type === c.R_X86_64_PLT32;
    return isInside(isCode && isRelative ? target + 4 : target, range);
  }

  #isTracedAt(place: number): boolean {
    const symbol = this.#functionAt(place);
    if (symbol === undefined) return false;
    const parent = parentOfPart(symbol.name);
    const [fn, ...more] =
      parent === undefined ? [symbol] : this.#functions().filter(({ name }) => name === parent);
    return fn !== undefined && more.length === 0 && this.#hasFentry(this.#addressOf(fn) ?? -1);
  }

  #nameAt(place: number): string {
    return this.#functionAt(place)?.name ?? 'code';
  }

  #functionAt(place: number): ElfSymbol | undefined {
    return this.#functions().find((symbol) => {
      const start = this.#addressOf(symbol);
      return start !== undefined && place >= start && place < start + symbol.sizeBytes;
    });
  }

  #functions(): readonly ElfSymbol[] {
    return this.#module.elf.symbols.filter(({ type }) => type === c.STT_FUNC);
  }

  #addressOf({ index }: ElfSymbol): number | undefined {
    return this.#linked.targetOf({ symbolIndex: index, addend: 0, offset: 0, type: 0 });
  }
}
