import { parseNotes } from '../../elf/notes.js';
import type { Proof } from '../../validate/proof.js';
import { ProofStore } from '../proof-store.js';
import type { GuestMemory } from './guest-memory.js';
import type { GuestSlices } from './guest-slices.js';
import { type KernelLayout, StructReader } from './kernel-layout.js';
import type { KernelModule } from './kernel-modules.js';
import type { KernelAddresses } from './running-kernel.js';

/** More sections than any module has. */
const MAX_SECTIONS = 4096;
const MAX_NAME_BYTES = 64;
const NOTE_SECTION = '.note.gnu.build-id';
/** Of a note with a SHA-1, with room for longer ones. */
const NOTE_BYTES = 56;
const NT_GNU_BUILD_ID = 3;

/**
 * Whether a kept proof (`livegraft validate`) says that the row of an address is wrong, for the kernel and its loaded modules.
 * A module's build-id and the places of its sections come from the kernel's memory (`sect_attrs`, kernel/module/sysfs.c); a module
 * without them has no proof.
 */
export async function readKernelProofs(
  memory: GuestMemory,
  slices: GuestSlices,
  kernel: KernelAddresses,
  layout: KernelLayout,
  modules: readonly KernelModule[],
  store = new ProofStore(),
): Promise<(address: number) => boolean> {
  if (store.isEmpty) return () => false;
  const { buildId } = kernel.image;
  const ofKernel = buildId === undefined ? undefined : store.find(buildId);
  const ofModules: { module: KernelModule; proof: Proof; sections: readonly Section[] }[] = [];
  for (const module of modules) {
    await slices.stop();
    const sections = await readSections(memory, layout, module.structAddress);
    const id = await readBuildId(memory, sections);
    slices.breathe();
    const proof = id === undefined ? undefined : store.find(id);
    if (proof !== undefined) ofModules.push({ module, proof, sections });
  }
  return (address) => {
    for (const { module, proof, sections } of ofModules) {
      if (address < module.text.address || address >= module.text.address + module.text.sizeBytes) continue;
      const section = sections.findLast((each) => each.address <= address);
      return (
        section !== undefined &&
        proof.verdictInSection(section.name, address - section.address) === 'disproved'
      );
    }
    return ofKernel?.verdictAt(address - kernel.offset) === 'disproved';
  };
}

interface Section {
  readonly name: string;
  readonly address: number;
}

/** The sections of a loaded module by address; none where this kernel keeps them otherwise. */
async function readSections(
  memory: GuestMemory,
  layout: KernelLayout,
  module: number,
): Promise<readonly Section[]> {
  const pointer = layout.find('module', 'sect_attrs');
  const count = layout.find('module_sect_attrs', 'nsections');
  const first = layout.find('module_sect_attrs', 'attrs');
  const sizeBytes = layout.sizeOf('module_sect_attr');
  const address = layout.find('module_sect_attr', 'address');
  const name = layout.find('module_sect_attr', 'battr.attr.name');
  if (!pointer || !count || !first || !sizeBytes || !address || !name) return [];
  const read = new StructReader(memory);
  const attributes = await read.address(module, pointer);
  if (attributes === 0) return [];
  const sections: Section[] = [];
  const total = Math.min(await read.number(attributes, count), MAX_SECTIONS);
  for (let i = 0; i < total; i++) {
    const at = attributes + first.offset + i * sizeBytes;
    sections.push({
      name: await read.text(await read.address(at, name), { offset: 0, sizeBytes: MAX_NAME_BYTES }),
      address: await read.address(at, address),
    });
  }
  return sections.sort((a, b) => a.address - b.address);
}

async function readBuildId(memory: GuestMemory, sections: readonly Section[]): Promise<string | undefined> {
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
