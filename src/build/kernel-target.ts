import type { KernelImage } from '../kernel-image/kernel-image.js';
import { TargetModel, type TargetSymbolDraft } from './target-model.js';

/** What patches call the kernel itself, as its livepatch does. */
export const VMLINUX = 'vmlinux';

/**
 * A kernel by its own symbols. kallsyms knows no sizes and no source files: a symbol reaches up to the next one, and which
 * of several of one name a file means is told by its code.
 */
export function kernelTarget(image: KernelImage): TargetModel {
  const drafts: TargetSymbolDraft[] = [];
  for (let index = 0; index < image.symbols.size; index++) {
    const { name, type, address, sizeBytes } = image.symbols.at(index);
    drafts.push({
      name,
      address,
      sizeBytes,
      kind: /[tTwW]/.test(type) ? 'func' : 'object',
      isLocal: type === type.toLowerCase() && type !== 'w' && type !== 'v',
      fileName: undefined,
    });
  }
  return new TargetModel(image.elf, VMLINUX, drafts, { isKernel: true });
}
