import { x86_64 } from '../arch/x86-64/index.js';
import { LivegraftError } from '../base/errors.js';
import type { KernelImage } from '../kernel-image/kernel-image.js';
import type { ModuleImage } from '../kernel-image/module-image.js';
import { LinkedModule } from './linked-module.js';
import { ModuleEntries } from './module-entries.js';
import { type ModuleSurroundings, TargetModel } from './target-model.js';

/** A module as what is to be patched; its addresses are those of a {@link LinkedModule}. */
export function moduleTarget(module: ModuleImage, surroundings: ModuleSurroundings): TargetModel {
  const linked = new LinkedModule(module);
  const entries = new ModuleEntries(module, linked, x86_64, () => true);
  const { elf, name } = module;
  const { source, bytes, buildId, type, segments, symbols, dynamicSymbols } = elf;
  const file = { source, bytes, buildId, type, segments, symbols, dynamicSymbols };
  return new TargetModel(
    { ...file, bytesAt: (address, sizeBytes) => linked.bytesAt(address, sizeBytes) },
    name,
    linked.symbols(),
    // What a diff changes is compiled from C, by the conventions that the original was.
    { isKernel: true, surroundings, planEntry: (fn) => entries.plan(fn) },
  );
}

/** Rejects `wrong-target` for a module of another kernel release. */
export function expectModuleOf(image: Pick<KernelImage, 'source' | 'release'>, module: ModuleImage): void {
  if (module.release === image.release) return;
  throw new LivegraftError(
    'wrong-target',
    `${module.source} is a module of ${module.release}, and ${image.source} is ${image.release}`,
    { remedy: 'give the module of that kernel', details: { module: module.name, release: module.release } },
  );
}
