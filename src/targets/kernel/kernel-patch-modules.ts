import type { KernelPatchModule, KernelRegistry, RegisteredKernelPatch } from './kernel-registry.js';

/**
 * The modules of a patch, which come and go while the kernel runs (klp_module_coming, klp_module_going): the record of a patch has
 * the functions of those that it was brought to. The patch's memory has room for all.
 */

/** Those that the patch was not brought to, or that have gone since. */
export function pendingModules({
  objects = [],
  modules,
}: RegisteredKernelPatch): readonly KernelPatchModule[] {
  return objects.filter(({ name }) => !modules.some((place) => place.name === name));
}

/** The patch as if it were for these objects only; all of it for undefined. */
export function restrictToModules(
  patch: RegisteredKernelPatch,
  objects: readonly string[] | undefined,
): RegisteredKernelPatch {
  if (objects === undefined) return patch;
  return {
    ...patch,
    functions: patch.functions.filter(({ object }) => objects.includes(object)),
    modules: patch.modules.filter(({ name }) => objects.includes(name)),
  };
}

/** These modules are pending from now on. */
export function withoutModules(
  patch: RegisteredKernelPatch,
  objects: readonly string[],
): RegisteredKernelPatch {
  return {
    ...patch,
    functions: patch.functions.filter(({ object }) => !objects.includes(object)),
    modules: patch.modules.filter(({ name }) => !objects.includes(name)),
  };
}

/** As if no watch had begun to bring the patch to these modules. */
export function withoutArrivals(
  patch: RegisteredKernelPatch,
  objects: readonly string[],
): RegisteredKernelPatch {
  const { arriving = [], ...rest } = patch;
  const left = arriving.filter(({ name }) => !objects.includes(name));
  return left.length > 0 ? { ...rest, arriving: left } : rest;
}

/** A module that a patch was brought to, and that is not there any more. */
export interface LeftModule {
  readonly patch: RegisteredKernelPatch;
  readonly object: string;
}

/** The registry when modules have gone, redirects and all. A transition that was only for them is over. */
export function withoutLeftModules(registry: KernelRegistry, left: readonly LeftModule[]): KernelRegistry {
  const { transition } = registry;
  const patches = registry.patches.map((patch) =>
    withoutModules(
      patch,
      left.filter((one) => one.patch.id === patch.id).map(({ object }) => object),
    ),
  );
  const own = patches.find(({ id }) => id === transition?.patchId);
  const isOver =
    transition?.objects !== undefined &&
    own !== undefined &&
    restrictToModules(own, transition.objects).functions.length === 0;
  return { ...registry, patches, transition: isOver ? undefined : transition };
}
