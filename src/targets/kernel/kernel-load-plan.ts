import { LivegraftError } from '../../base/errors.js';
import type { Patch } from '../../patch/content.js';
import { layoutPatch, type PatchLayout } from '../../patch/layout.js';
import type { LinkedImage } from '../../patch/link.js';
import { type EnabledStates, linkStates } from '../patch-states.js';
import { type PlannedBarrier, placeBarrier } from './kernel-barrier.js';
import { callbacksOf, KERNEL_CALLBACK_RECORD_BYTES, linkCallbacks } from './kernel-callbacks.js';
import type { EntrySite } from './kernel-entry-site.js';
import type { ReplacedFunction } from './kernel-objects.js';
import type { KernelRange, RegisteredKernelFunction, RegisteredKernelPatch } from './kernel-registry.js';
import { REDIRECT_BYTES } from './kernel-trampoline.js';
import type { ModulePlace } from './module-identity.js';

const PAGE_BYTES = 4096;

/** A function of a patch, or one that a cumulative patch leads back to the original: that has nothing to replace it. */
export interface PlannedFunction extends EntrySite {
  readonly replaced: ReplacedFunction | undefined;
  /** Which of the patch's redirects is its own. */
  readonly slot: number;
  readonly entry: number;
  /** The newest version of those that are there. */
  readonly below: RegisteredKernelFunction | undefined;
}

/** What a patch changes on top of those that are there. Functions of modules that are not loaded have a slot, and nothing else. */
export interface LoadPlan {
  readonly replaces: boolean;
  /** Of the patches that are there. */
  readonly states: readonly EnabledStates[];
  readonly functions: readonly PlannedFunction[];
  readonly places: readonly ModulePlace[];
  /** The first that is no function's. */
  readonly freeSlot: number;
}

/** A function and its parts, which lie as far from it as in the file. */
export function oldRanges({ fn }: ReplacedFunction, entry: number): readonly KernelRange[] {
  return [fn.old, ...fn.parts].map(({ name, address, sizeBytes }) => ({
    name,
    address: entry + Number(BigInt(address) - BigInt(fn.old.address)),
    sizeBytes,
  }));
}

/** The record of a patch whose image is about to be written. Completes the image by what leads to its callbacks, and to earlier states. */
export function describeLoaded(
  patch: Patch,
  plan: LoadPlan,
  barrier: PlannedBarrier | undefined,
  layout: PatchLayout,
  image: LinkedImage,
  appliedAt: string,
): RegisteredKernelPatch {
  const trampolineAt = (slot: number) => redirectAt(layout, image.base, slot);
  const { replaces, functions, places, freeSlot } = plan;
  const { ehFrame } = layout;
  return {
    id: patch.id,
    name: patch.manifest.name,
    state: 'applying',
    forced: false,
    appliedAt,
    memory: { address: image.base, sizeBytes: layout.sizeBytes },
    textPages: textPagesOf(layout),
    text: { address: image.base, sizeBytes: layout.codeSizeBytes },
    modules: places,
    ehFrame: ehFrame && { address: image.base + ehFrame.offset, sizeBytes: ehFrame.sizeBytes },
    slots: freeSlot + 1,
    functions: functions.map((planned) => describeFunction(planned, image, trampolineAt(planned.slot))),
    ...(barrier && { barrier: placeBarrier(barrier, trampolineAt(freeSlot)) }),
    ...(replaces && { replaces }),
    ...linkExtras(patch, plan, layout, image),
  };
}

export function redirectAt(layout: PatchLayout, base: number, slot: number): number {
  return base + layout.redirectOffset + slot * REDIRECT_BYTES;
}

export function describeFunction(
  { replaced, entry, site, original, isDisplaced, below }: PlannedFunction,
  image: LinkedImage,
  trampoline: number,
): RegisteredKernelFunction {
  if (replaced === undefined)
    return { ...(below as RegisteredKernelFunction), new: [], trampoline, restores: true };
  const { object, fn } = replaced;
  const loaded = (name: string): KernelRange => {
    const found = image.functions.find((each) => each.name === name);
    if (found !== undefined) return found;
    throw new LivegraftError(
      'patch-malformed',
      `the patch replaces ${fn.name} by ${name}, which it does not hold`,
    );
  };
  return {
    object,
    name: fn.name,
    old: oldRanges(replaced, entry),
    new: [loaded(fn.newSymbol), ...fn.newParts.map(loaded)],
    ...{ site, original, isDisplaced, trampoline },
  };
}

/** Whether the memory that a patch has already is enough. What follows its text is writable: that must begin where it did. */
export function fitsInto(layout: PatchLayout, { memory, textPages }: RegisteredKernelPatch): boolean {
  return layout.sizeBytes <= memory.sizeBytes && textPagesOf(layout) === textPages;
}

export function textPagesOf({ text }: PatchLayout): number {
  return Math.ceil(text.sizeBytes / PAGE_BYTES);
}

/** With so many trampolines: one for each function, and one for the barrier; behind them what leads to the callbacks. */
export function layoutForKernel(patch: Patch, slots: number): PatchLayout {
  const callbacks = callbacksOf(patch);
  const calls = callbacks.reduce((sum, { names }) => sum + names.length, 0);
  return layoutPatch(
    patch,
    (slots + calls) * REDIRECT_BYTES,
    callbacks.length * KERNEL_CALLBACK_RECORD_BYTES,
  );
}

function linkExtras(
  patch: Patch,
  { freeSlot, states }: LoadPlan,
  layout: PatchLayout,
  image: LinkedImage,
): Pick<RegisteredKernelPatch, 'callbacks' | 'states'> {
  const at = layout.redirectOffset + (freeSlot + 1) * REDIRECT_BYTES;
  const callbacks = linkCallbacks(patch, layout, image, at);
  const linked = linkStates(patch, layout, image, states);
  return { ...(callbacks.length > 0 && { callbacks }), ...(linked.length > 0 && { states: linked }) };
}
