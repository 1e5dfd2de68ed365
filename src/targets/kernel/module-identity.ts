import { NT_GNU_BUILD_ID } from '../../elf/constants.js';
import { parseNotes } from '../../elf/notes.js';
import { isMemoryError } from './gdb-memory.js';
import type { GuestMemory } from './guest-memory.js';
import { type FieldPlace, type KernelLayout, StructReader } from './kernel-layout.js';
import { findModuleList, isFormed, type KernelModule, MAX_MODULES, modulePlaces } from './kernel-modules.js';
import type { KernelAddresses } from './running-kernel.js';

/** A section of a loaded module. */
export interface ModuleSection {
  readonly name: string;
  readonly address: number;
}

/** More sections than any module has. */
const MAX_SECTIONS = 4096;
const MAX_NAME_BYTES = 64;
const NOTE_SECTION = '.note.gnu.build-id';
/** Of a note with a SHA-1, with room for longer ones. */
const NOTE_BYTES = 56;

/** The sections of a loaded module by address (`sect_attrs`, kernel/module/sysfs.c); none where this kernel keeps them otherwise. */
export async function readModuleSections(
  memory: GuestMemory,
  layout: KernelLayout,
  module: number,
): Promise<readonly ModuleSection[]> {
  const pointer = layout.find('module', 'sect_attrs');
  const list = layout.find('module_sect_attrs', 'grp.bin_attrs');
  if (pointer && list && layout.find('module_sect_attrs', 'nsections') === undefined)
    return readSectionFiles(memory, layout, module, pointer, list);
  const count = layout.find('module_sect_attrs', 'nsections');
  const first = layout.find('module_sect_attrs', 'attrs');
  const sizeBytes = layout.sizeOf('module_sect_attr');
  const address = layout.find('module_sect_attr', 'address');
  const name = layout.find('module_sect_attr', 'battr.attr.name');
  if (!pointer || !count || !first || !sizeBytes || !address || !name) return [];
  const read = new StructReader(memory);
  const attributes = await read.address(module, pointer);
  if (attributes === 0) return [];
  const sections: ModuleSection[] = [];
  const total = Math.min(await read.number(attributes, count), MAX_SECTIONS);
  for (let i = 0; i < total; i++) {
    const at = attributes + first.offset + i * sizeBytes;
    sections.push(await readSection(read, at, name, address));
  }
  return sections.sort((a, b) => a.address - b.address);
}

async function readSection(
  read: StructReader,
  attribute: number,
  name: FieldPlace,
  address: FieldPlace,
): Promise<ModuleSection> {
  return {
    name: await read.text(await read.address(attribute, name), { offset: 0, sizeBytes: MAX_NAME_BYTES }),
    address: await read.address(attribute, address),
  };
}

/** As they are since 6.14, which keeps the address in the attribute of each section's file: a list of pointers to them, 0 at its end. */
async function readSectionFiles(
  memory: GuestMemory,
  layout: KernelLayout,
  module: number,
  pointer: FieldPlace,
  list: FieldPlace,
): Promise<readonly ModuleSection[]> {
  const name = layout.expect('bin_attribute', 'attr.name');
  const address = layout.expect('bin_attribute', 'private');
  const read = new StructReader(memory);
  const attributes = await read.address(module, pointer);
  const first = attributes === 0 ? 0 : await read.address(attributes, list);
  const sections: ModuleSection[] = [];
  for (let i = 0; first !== 0 && i < MAX_SECTIONS; i++) {
    const file = await read.address(first, { offset: 8 * i });
    if (file === 0) break;
    sections.push(await readSection(read, file, name, address));
  }
  return sections.sort((a, b) => a.address - b.address);
}

/** A loaded module's build-id, from its note; undefined where it has none or it can't be found. */
export async function readModuleBuildId(
  memory: GuestMemory,
  sections: readonly ModuleSection[],
): Promise<string | undefined> {
  const section = sections.find(({ name }) => name === NOTE_SECTION);
  if (section === undefined) return undefined;
  const bytes = await memory.read(section.address, NOTE_BYTES);
  const sizeBytes = new DataView(bytes.buffer, bytes.byteOffset).getUint32(4, true);
  const note = parseNotes(bytes.subarray(0, Math.min(16 + sizeBytes, NOTE_BYTES)), 4, NOTE_SECTION).find(
    ({ name, type }) => name === 'GNU' && type === NT_GNU_BUILD_ID,
  );
  if (note === undefined) return undefined;
  return Array.from(note.description, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

/** Where one instance of a module lies: another instance at all of these places has the same addresses. */
export interface ModulePlace {
  readonly name: string;
  readonly structAddress: number;
  readonly textAddress: number;
  /** Of its ORC table: in the module's constants. */
  readonly orcAddress: number;
}

export function placeOf({ name, structAddress, text, orc }: KernelModule): ModulePlace {
  return { name, structAddress, textAddress: text.address, orcAddress: orc.ips.address };
}

/** A place, and what tells the module there from one that was loaded at the very same place later. */
export interface ModuleInstance extends ModulePlace {
  /** The number of its directory in sysfs, which the kernel counts up; undefined where its types do not say where that is. */
  readonly serial?: string | undefined;
}

/** Tells whether a module is still loaded where it was: what lies there otherwise must not be written to. */
export class ModuleWatch {
  readonly #read: StructReader;
  readonly #head: number | undefined;
  readonly #places: ReturnType<typeof modulePlaces>;
  readonly #orc: { readonly offset: number };
  readonly #directory: FieldPlace | undefined;
  readonly #serial: FieldPlace | undefined;

  constructor(memory: GuestMemory, kernel: KernelAddresses, layout: KernelLayout) {
    this.#read = new StructReader(memory);
    this.#head = findModuleList(kernel);
    this.#places = modulePlaces(layout);
    // Without ORC tables, by its symbols: in memory of its own as well.
    this.#orc = layout.find('module', 'arch.orc_unwind_ip') ?? layout.expect('module', 'kallsyms');
    this.#directory = layout.find('module', 'mkobj.kobj.sd');
    this.#serial = layout.find('kernfs_node', 'id');
  }

  /** The module that is loaded there now. In a stopped guest. */
  async instanceAt(place: ModulePlace): Promise<ModuleInstance> {
    if (this.#directory === undefined || this.#serial === undefined) return place;
    const directory = await this.#read.address(place.structAddress, this.#directory);
    if (directory === 0) return place;
    return { ...place, serial: `${await this.#read.address(directory, this.#serial)}` };
  }

  /** Whether that very module is still loaded. In a stopped guest. */
  async isSame(instance: ModuleInstance): Promise<boolean> {
    return (await this.isLoaded(instance)) && (await this.instanceAt(instance)).serial === instance.serial;
  }

  /** In a stopped guest, and true as long as it stands still. */
  async isLoaded(place: ModulePlace): Promise<boolean> {
    const { list, state, name, textAt } = this.#places;
    if (this.#head === undefined) return false;
    try {
      const all = await this.#read.list(this.#head, list, MAX_MODULES);
      return (
        all.includes(place.structAddress) &&
        isFormed(await this.#read.number(place.structAddress, state)) &&
        (await this.#read.text(place.structAddress, name)) === place.name &&
        (await this.#read.address(place.structAddress, textAt)) === place.textAddress &&
        (await this.#read.address(place.structAddress, this.#orc)) === place.orcAddress
      );
    } catch (error) {
      if (isMemoryError(error)) return false;
      throw error;
    }
  }
}
