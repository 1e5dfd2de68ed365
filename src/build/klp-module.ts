import { decodeText } from '../base/byte-reader.js';
import { ByteWriter } from '../base/byte-writer.js';
import { LivegraftError } from '../base/errors.js';
import * as c from '../elf/constants.js';
import type { ElfRelocation } from '../elf/elf-file.js';
import {
  type RelocationsToWrite,
  type SectionToWrite,
  type SymbolToWrite,
  writeRelocatable,
} from '../elf/writer.js';
import type { KernelImage } from '../kernel-image/kernel-image.js';
import type { Patch, PatchSection } from '../patch/content.js';
import { BELOW_OBJECT } from '../patch/link.js';
import type { PatchCallbacks } from '../patch/manifest.js';
import { EXCEPTION_SEARCH, EXCEPTIONS, sectionsFor } from '../patch/part.js';
import { ALTERNATIVES } from './kernel-code.js';
import { VMLINUX } from './kernel-target.js';

const RETURN_THUNK = '__x86_return_thunk';
const [CODE, CONSTANT, DATA] = [c.SHF_ALLOC | c.SHF_EXECINSTR, c.SHF_ALLOC, c.SHF_ALLOC | c.SHF_WRITE];

/**
 * Writes a patch as a module that the kernel's own livepatch loads (Documentation/livepatch/module-elf-format.rst). All that
 * it refers to is resolved by livepatch, exported or not, so that it needs no versions of symbols but that of
 * the module format. Structures are laid out by the kernel's BTF. Throws a LivegraftError `klp-unsupported`.
 */
export function writeKlpModule(patch: Patch, image: KernelImage): Uint8Array {
  const module = new KlpModule(patch, image);
  return module.write();
}

type CallbackName = keyof PatchCallbacks;
const KLP_CALLBACKS: Readonly<Record<CallbackName, string>> = {
  prePatch: 'pre_patch',
  postPatch: 'post_patch',
  preUnpatch: 'pre_unpatch',
  postUnpatch: 'post_unpatch',
};

/** The module's name: letters, digits and underscores, as file and as /sys/kernel/livepatch/NAME. */
function klpModuleName(patchName: string): string {
  return `livegraft_${patchName.replace(/[^A-Za-z0-9]/g, '_')}`.slice(0, 50);
}

interface Section {
  readonly name: string;
  readonly flags: number;
  readonly type: number;
  readonly data: Uint8Array;
  readonly sizeBytes: number;
  readonly alignment: number;
  readonly relocations: ElfRelocation[];
}

class KlpModule {
  readonly #patch: Patch;
  readonly #image: KernelImage;
  readonly #sections: Section[] = [];
  readonly #symbols: SymbolToWrite[] = [];
  readonly #external = new Map<string, number>();
  /** Of symbols that livepatch resolves: in which object. */
  readonly #objectOf = new Map<number, string>();

  constructor(patch: Patch, image: KernelImage) {
    this.#patch = patch;
    this.#image = image;
  }

  write(): Uint8Array {
    this.#takePatch();
    this.#addAlternatives();
    this.#addReturnSites();
    const name = klpModuleName(this.#patch.manifest.name);
    const klp = this.#addStructures();
    this.#addModule(name, klp);
    const sections: SectionToWrite[] = this.#sections.map(
      ({ name, type, flags, data, sizeBytes, alignment }) => ({
        name,
        type,
        flags,
        data,
        sizeBytes,
        alignment,
      }),
    );
    return writeRelocatable({
      machine: c.EM_X86_64,
      sections,
      symbols: this.#symbols,
      relocations: this.#sections.flatMap((section, index) => this.#split(section, index)),
    });
  }

  /** Sections and symbols as they are in the patch; indexes stay the same, so that relocations do, too. */
  #takePatch(): void {
    for (const section of this.#patch.sections) {
      const taken = asSection(section);
      this.#sections.push(section.name === EXCEPTIONS ? { ...taken, name: '__ex_table' } : taken);
    }
    for (const symbol of this.#patch.symbols) {
      if (symbol.kind === 'defined') {
        const type = symbol.isFunction ? c.STT_FUNC : c.STT_OBJECT;
        const { value, sizeBytes } = symbol;
        // The file's empty first symbol keeps its number: as an undefined one with no name the kernel would look for it.
        const [name, section] = symbol.section < 0 ? ['.Lnone', 0] : [symbol.name, symbol.section];
        this.#symbols.push({ name, section, value, sizeBytes, type, binding: c.STB_LOCAL });
      } else {
        if (symbol.object === VMLINUX) this.#external.set(symbol.name, this.#symbols.length);
        // Only the search of exception tables goes on below, which nothing calls in a module.
        const object = symbol.object === BELOW_OBJECT ? VMLINUX : symbol.object;
        this.#objectOf.set(this.#symbols.length, object);
        this.#symbols.push(klpSymbol(object, symbol.name, symbol.sympos));
      }
    }
  }

  /** The kernel applies one section of that name, in its own form. */
  #addAlternatives(): void {
    const parts = this.#sections.filter((section) => section.name.startsWith(`${ALTERNATIVES}.`));
    if (parts.length === 0) return;
    const entryBytes = this.#sizeOf('alt_instr');
    if (entryBytes !== 12) throw unsupported(`its alternatives have ${entryBytes} bytes each`);
    const writer = new ByteWriter();
    const relocations: ElfRelocation[] = [];
    for (const part of parts) {
      for (const r of part.relocations) relocations.push({ ...r, offset: r.offset + writer.length });
      writer.writeBytes(part.data);
    }
    this.#add('.altinstructions', CONSTANT, writer.toBytes(), 1, relocations);
  }

  /** Where functions return: the kernel writes what its CPU needs there. */
  #addReturnSites(): void {
    const relocations: ElfRelocation[] = [];
    this.#sections.forEach((section, index) => {
      if ((section.flags & c.SHF_EXECINSTR) === 0) return;
      const sites = section.relocations.filter(
        (r) =>
          this.#patch.symbols[r.symbolIndex]?.name === RETURN_THUNK && section.data[r.offset - 1] === 0xe9,
      );
      if (sites.length === 0) return;
      const start = this.#define(`.Lreturns.${index}`, index, 0, c.STT_OBJECT, c.STB_LOCAL);
      for (const site of sites) {
        relocations.push({
          offset: relocations.length * 4,
          type: c.R_X86_64_PC32,
          symbolIndex: start,
          addend: site.offset - 1,
        });
      }
    });
    if (relocations.length > 0)
      this.#add('.return_sites', CONSTANT, new Uint8Array(relocations.length * 4), 4, relocations);
  }

  /** `struct klp_patch`, its objects and their functions, each list with an empty one behind it. Returns the patch's symbol. */
  #addStructures(): number {
    if (this.#patch.manifest.states !== undefined)
      throw unsupported("it declares states, which point to one another in a way of livegraft's own");
    const objects = this.#patch.manifest.objects
      .map(({ name, functions, callbacks = {} }) => ({
        name,
        callbacks,
        // A module has an exception table of its own.
        functions: functions.filter((fn) => fn.newSymbol !== EXCEPTION_SEARCH),
      }))
      .filter(({ functions }) => functions.length > 0);
    const [patchBytes, objectBytes, functionBytes] = ['klp_patch', 'klp_object', 'klp_func'].map((name) =>
      this.#sizeOf(name),
    ) as [number, number, number];
    const objectsAt = align(patchBytes, 16);
    const functionsAt = align(objectsAt + (objects.length + 1) * objectBytes, 16);
    const slots = objects.reduce((sum, { functions }) => sum + functions.length + 1, 0);
    const data = new Uint8Array(functionsAt + slots * functionBytes);
    const view = new DataView(data.buffer);
    const relocations: ElfRelocation[] = [];
    const index = this.#add('.data.livepatch', DATA, data, 64, relocations);
    const self = this.#define('livegraft_patch', index, 0, c.STT_OBJECT, c.STB_LOCAL);
    const point = (offset: number, symbolIndex: number, addend: number) =>
      relocations.push({ offset, type: c.R_X86_64_64, symbolIndex, addend });
    const names = new ByteWriter();
    const namesAt = this.#symbols.length;
    this.#define('.Lnames', index + 1, 0, c.STT_OBJECT, c.STB_LOCAL);
    const text = (offset: number, value: string) => {
      point(offset, namesAt, names.length);
      names.writeBytes(new TextEncoder().encode(`${value}\0`));
    };
    point(this.#offsetOf('klp_patch', 'mod'), this.#thisModule(), 0);
    point(this.#offsetOf('klp_patch', 'objs'), self, objectsAt);
    let at = functionsAt;
    for (const [i, { name, functions, callbacks }] of objects.entries()) {
      const objectAt = objectsAt + i * objectBytes;
      // The kernel itself has no name there.
      if (name !== VMLINUX) text(objectAt + this.#offsetOf('klp_object', 'name'), name);
      point(objectAt + this.#offsetOf('klp_object', 'funcs'), self, at);
      // They get the object as an argument, which they leave alone.
      for (const [kind, callback] of Object.entries(callbacks) as [CallbackName, string][]) {
        const place = objectAt + this.#offsetOf('klp_object', 'callbacks');
        point(place + this.#offsetOf('klp_callbacks', KLP_CALLBACKS[kind]), this.#function(callback), 0);
      }
      for (const fn of functions) {
        if (fn.displaced !== undefined) throw unsupported(`ftrace can't redirect ${fn.name} of ${name}`);
        const replacement = this.#function(fn.newSymbol);
        text(at + this.#offsetOf('klp_func', 'old_name'), fn.name);
        point(at + this.#offsetOf('klp_func', 'new_func'), replacement, 0);
        view.setBigUint64(at + this.#offsetOf('klp_func', 'old_sympos'), BigInt(fn.sympos), true);
        at += functionBytes;
      }
      at += functionBytes;
    }
    this.#add('.rodata.livepatch', CONSTANT, names.toBytes(), 1, []);
    return self;
  }

  #function(name: string): number {
    const found = this.#patch.symbols.findIndex(
      (symbol) => symbol.kind === 'defined' && symbol.isFunction && symbol.name === name,
    );
    if (found < 0) throw unsupported(`there is no function ${name} in the patch`);
    return found;
  }

  #addModule(name: string, klp: number): void {
    const code = new ByteWriter();
    const relocations: ElfRelocation[] = [];
    const jump = (symbol: string) => {
      code.writeU8(0xe9);
      relocations.push({
        offset: code.length,
        type: c.R_X86_64_PLT32,
        symbolIndex: this.#klp(symbol),
        addend: -4,
      });
      code.writeI32(0);
    };
    // mov $livegraft_patch, %rdi; jmp klp_enable_patch
    for (const byte of [0x48, 0xc7, 0xc7]) code.writeU8(byte);
    relocations.push({ offset: code.length, type: c.R_X86_64_32S, symbolIndex: klp, addend: 0 });
    code.writeI32(0);
    jump('klp_enable_patch');
    const exitAt = code.length;
    if (this.#image.symbols.findUnique(RETURN_THUNK) !== undefined) jump(RETURN_THUNK);
    else code.writeU8(0xc3);
    const text = this.#add('.text.livepatch', CODE, code.toBytes(), 16, relocations);
    const init = this.#define('init_module', text, 0, c.STT_FUNC, c.STB_GLOBAL);
    const exit = this.#define('cleanup_module', text, exitAt, c.STT_FUNC, c.STB_GLOBAL);

    const info = [
      'license=GPL',
      'livepatch=Y',
      `name=${name}`,
      'depends=',
      'retpoline=Y',
      `vermagic=${this.#vermagic()}`,
    ];
    this.#add(
      '.modinfo',
      CONSTANT,
      new TextEncoder().encode(info.map((each) => `${each}\0`).join('')),
      1,
      [],
    );
    const crc = this.#moduleLayoutCrc();
    if (crc !== undefined) {
      // struct modversion_info: the checksum and a name of 56 bytes.
      const version = new Uint8Array(64);
      new DataView(version.buffer).setBigUint64(0, BigInt(crc), true);
      version.set(new TextEncoder().encode('module_layout'), 8);
      this.#add('__versions', CONSTANT, version, 8, []);
    }
    const module = new Uint8Array(this.#sizeOf('module'));
    module.set(new TextEncoder().encode(name), this.#offsetOf('module', 'name'));
    const index = this.#add('.gnu.linkonce.this_module', DATA, module, 64, [
      { offset: this.#offsetOf('module', 'init'), type: c.R_X86_64_64, symbolIndex: init, addend: 0 },
      { offset: this.#offsetOf('module', 'exit'), type: c.R_X86_64_64, symbolIndex: exit, addend: 0 },
    ]);
    const self = this.#symbols[this.#thisModule()] as SymbolToWrite;
    this.#symbols[this.#thisModule()] = { ...self, section: index, sizeBytes: module.length };
  }

  #thisModuleIndex: number | undefined;
  /** Defined before its section is there. */
  #thisModule(): number {
    this.#thisModuleIndex ??= this.#define('__this_module', 0, 0, c.STT_OBJECT, c.STB_GLOBAL);
    return this.#thisModuleIndex;
  }

  #add(
    name: string,
    flags: number,
    data: Uint8Array,
    alignment: number,
    relocations: ElfRelocation[],
  ): number {
    const type = c.SHT_PROGBITS;
    this.#sections.push({ name, flags, type, data, sizeBytes: data.length, alignment, relocations });
    return this.#sections.length - 1;
  }

  #define(name: string, section: number, value: number, type: number, binding: number): number {
    this.#symbols.push({ name, section, value, sizeBytes: 0, type, binding });
    return this.#symbols.length - 1;
  }

  #klp(name: string): number {
    let index = this.#external.get(name);
    if (index === undefined) {
      if (this.#image.symbols.findUnique(name) === undefined)
        throw unsupported(`${this.#image.release} has no ${name}: CONFIG_LIVEPATCH is off`);
      index = this.#symbols.length;
      this.#symbols.push(klpSymbol(VMLINUX, name, 0));
      this.#external.set(name, index);
    }
    return index;
  }

  #owners: ReadonlyMap<number, string> | undefined;
  /**
   * In which module's table the relocations for something of another module are, that is not patched itself: the table of the module
   * whose code refers to it, since that can't be loaded before the other one.
   */
  #ownerOf(section: number, object: string): string {
    if (this.#owners === undefined) {
      const modules = this.#patch.manifest.objects.filter(
        ({ name, functions }) => name !== VMLINUX && functions.length > 0,
      );
      this.#owners = new Map(
        modules.flatMap((module) =>
          Array.from(sectionsFor(this.#patch, module), (index) => [index, module.name] as const),
        ),
      );
    }
    const owner = this.#owners.get(section);
    if (owner === undefined)
      throw unsupported(`its code for the kernel itself refers to the module ${object}`);
    return owner;
  }

  /**
   * Relocations that livepatch resolves are in sections of their own, for each object: those of a module are applied when it is there
   * (klp_apply_section_relocs).
   */
  #split(section: Section, index: number): RelocationsToWrite[] {
    const patched = this.#patch.manifest.objects.filter(({ functions }) => functions.length > 0);
    const objectOf = (r: ElfRelocation) => {
      if (typeof this.#symbols[r.symbolIndex]?.section !== 'object') return undefined;
      const object = this.#objectOf.get(r.symbolIndex) ?? VMLINUX;
      const hasTable = object === VMLINUX || patched.some(({ name }) => name === object);
      return hasTable ? object : this.#ownerOf(index, object);
    };
    const bare = section.name.replace(/^\./, '');
    const tables = new Map<string | undefined, ElfRelocation[]>();
    for (const relocation of section.relocations) {
      const object = objectOf(relocation);
      const known = tables.get(object);
      if (known === undefined) tables.set(object, [relocation]);
      else known.push(relocation);
    }
    return Array.from(tables, ([object, relocations]) =>
      object === undefined
        ? { name: `.rela${section.name}`, section: index, flags: 0, relocations }
        : {
            name: `.klp.rela.${object}.${bare}`,
            section: index,
            flags: c.SHF_RELA_LIVEPATCH | c.SHF_ALLOC,
            relocations,
          },
    );
  }

  /** What modules must have been built for: a text in the image that begins with the release. */
  #vermagic(): string {
    const section = this.#image.elf.findSection('.rodata');
    const wanted = new TextEncoder().encode(`${this.#image.release} `);
    const data = Buffer.from(section?.data ?? []);
    for (let at = data.indexOf(wanted); at >= 0; at = data.indexOf(wanted, at + 1)) {
      const text = decodeText(data.subarray(at, data.indexOf(0, at)));
      if (/^\S+ (?:SMP |preempt|mod_unload|modversions)/.test(text)) return text;
    }
    throw unsupported(`${this.#image.source} has no text that says what modules must be built for`);
  }

  /** The checksum over the module format, where the kernel asks for one (CONFIG_MODVERSIONS): beside its export. */
  #moduleLayoutCrc(): number | undefined {
    const sums = this.#image.elf.findSection('__kcrctab');
    if (sums === undefined || sums.sizeBytes === 0) return undefined;
    const index = [...this.#image.exports.values()]
      .filter((symbol) => !symbol.isGplOnly)
      .findIndex((symbol) => symbol.name === 'module_layout');
    if (index < 0 || index * 4 + 4 > sums.data.length) return undefined;
    return new DataView(sums.data.buffer, sums.data.byteOffset).getUint32(index * 4, true);
  }

  #sizeOf(struct: string): number {
    const { btf } = this.#image;
    const id = btf.findType('struct', struct);
    const size = id === undefined ? undefined : btf.sizeOf(id);
    if (size === undefined) throw unsupported(`its type information has no struct ${struct}`);
    return size;
  }

  #offsetOf(struct: string, member: string): number {
    const { btf } = this.#image;
    const id = btf.findType('struct', struct);
    const field = id === undefined ? undefined : btf.findField(id, member);
    if (field === undefined) throw unsupported(`its struct ${struct} has no member ${member}`);
    return field.bitOffset / 8;
  }
}

function asSection(section: PatchSection): Section {
  const { name, data, sizeBytes, alignment } = section;
  const flags = { text: CODE, readOnly: CONSTANT, readWrite: DATA, zero: DATA, ehFrame: CONSTANT }[
    section.kind
  ];
  const type = section.kind === 'zero' ? c.SHT_NOBITS : c.SHT_PROGBITS;
  return { name, flags, type, data, sizeBytes, alignment, relocations: [...section.relocations] };
}

function klpSymbol(object: string, name: string, sympos: number): SymbolToWrite {
  return {
    name: `.klp.sym.${object}.${name},${sympos}`,
    section: { reserved: c.SHN_LIVEPATCH },
    value: 0,
    sizeBytes: 0,
    type: c.STT_NOTYPE,
    binding: c.STB_GLOBAL,
  };
}

function align(value: number, alignment: number): number {
  return Math.ceil(value / alignment) * alignment;
}

function unsupported(why: string): LivegraftError {
  return new LivegraftError(
    'klp-unsupported',
    `the patch can't be a livepatch module of this kernel: ${why}`,
    {
      remedy: 'apply it from outside: build it without --format klp',
    },
  );
}
