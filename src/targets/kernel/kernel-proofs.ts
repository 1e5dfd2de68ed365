import type { Proof } from '../../validate/proof.js';
import { ProofStore } from '../proof-store.js';
import type { GuestMemory } from './guest-memory.js';
import type { GuestSlices } from './guest-slices.js';
import type { KernelLayout } from './kernel-layout.js';
import type { KernelModule } from './kernel-modules.js';
import { type ModuleSection, readModuleBuildId, readModuleSections } from './module-identity.js';
import type { KernelAddresses } from './running-kernel.js';

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
  const ofModules: { module: KernelModule; proof: Proof; sections: readonly ModuleSection[] }[] = [];
  for (const module of modules) {
    await slices.stop();
    const sections = await readModuleSections(memory, layout, module.structAddress);
    const id = await readModuleBuildId(memory, sections);
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
