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
  if (hasAlternatives(patch)) {
    const place = types.expect('cpuinfo_x86', 'x86_capability');
    const bytes = await data.readMemory(kernel.expect('boot_cpu_data') + place.offset, place.sizeBytes);
    applyAlternatives(image, patch, layout, new Uint32Array(bytes.slice().buffer));
  }
  return image;
}
