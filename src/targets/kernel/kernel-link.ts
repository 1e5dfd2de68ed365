import type { Redirector } from '../../arch/architecture.js';
import type { Patch } from '../../patch/content.js';
import type { PatchLayout } from '../../patch/layout.js';
import { type LinkedImage, linkPatch, type SymbolSource } from '../../patch/link.js';
import { applyAlternatives, hasAlternatives } from './kernel-alternatives.js';
import { addressOf } from './kernel-layout.js';
import type { KernelSession } from './kernel-session.js';

const RETURN_THUNK = '__x86_return_thunk';

/** Links a patch for a place in the guest, with what the running kernel decided at boot: instructions for its CPU, and how functions return. */
export async function linkForKernel(
  { kernel, layout: types, data }: KernelSession,
  patch: Patch,
  layout: PatchLayout,
  address: number,
  symbols: SymbolSource,
  redirector: Redirector,
): Promise<LinkedImage> {
  // Kernels that have several ways to return keep the chosen one there (apply_returns).
  const [chosen] = kernel.image.symbols.findAll('x86_return_thunk');
  const thunk = chosen && addressOf(await data.readMemory(kernel.relocate(chosen.address), 8));
  const source: SymbolSource = {
    ...symbols,
    resolve: (symbol) => (symbol.name === RETURN_THUNK ? thunk : undefined) ?? symbols.resolve(symbol),
  };
  const image = linkPatch(patch, layout, address, source, redirector);
  // Newer kernels warn when the thunk is used that no mitigation has chosen: they have no jump to it left themselves.
  const isUnused = thunk !== undefined && thunk === kernel.find(RETURN_THUNK);
  if (isUnused && kernel.find('__warn_thunk') !== undefined) usePlainReturns(image, patch, layout);
  if (hasAlternatives(patch)) {
    const place = types.expect('cpuinfo_x86', 'x86_capability');
    const bytes = await data.readMemory(kernel.expect('boot_cpu_data') + place.offset, place.sizeBytes);
    applyAlternatives(image, patch, layout, new Uint32Array(bytes.slice().buffer));
  }
  return image;
}

/** `jmp rel32`, and what the kernel makes of one to the thunk where returns need no mitigation (`patch_return`): `ret`, then `int3`. */
const JUMP = 0xe9;
const PLAIN_RETURN = [0xc3, 0xcc, 0xcc, 0xcc, 0xcc];

/** Makes every jump to the return thunk the return that it stands for. */
export function usePlainReturns(image: LinkedImage, patch: Patch, layout: PatchLayout): void {
  patch.sections.forEach(({ relocations }, index) => {
    for (const { offset, symbolIndex } of relocations) {
      if (patch.symbols[symbolIndex]?.name !== RETURN_THUNK) continue;
      const at = (layout.sectionOffsets[index] ?? 0) + offset - 1;
      if (image.bytes[at] === JUMP) image.bytes.set(PLAIN_RETURN, at);
    }
  });
}
