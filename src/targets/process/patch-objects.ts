import type { RegisteredState } from '../patch-states.js';
import type { ProcessMemory } from './memory.js';
import type { LoadedModule } from './modules.js';
import type { Mapping } from './proc.js';
import type {
  MemoryRange,
  RegisteredFunction,
  RegisteredObject,
  RegisteredPart,
  RegisteredPatch,
  Registry,
  RetiredImage,
} from './registry.js';

/**
 * The objects of a patch: executables and libraries, which come and go while the process runs, as modules do in a kernel
 * (klp_module_coming, klp_module_going). Each has its own part of the patch in memory; one without is pending.
 */

export function partsOf(patch: RegisteredPatch): readonly RegisteredPart[] {
  return patch.objects.flatMap(({ part }) => part ?? []);
}

/** What the patch says of the state of the program, as far as it is there. */
export function statesOf(patch: RegisteredPatch): readonly RegisteredState[] {
  return partsOf(patch).flatMap(({ states = [] }) => states);
}

export function pendingObjects(patch: RegisteredPatch): readonly RegisteredObject[] {
  return patch.objects.filter(({ part }) => part === undefined);
}

/** The patch as if it were for these objects only; all of it for undefined. */
export function restrictTo(patch: RegisteredPatch, objects: readonly string[] | undefined): RegisteredPatch {
  if (objects === undefined) return patch;
  const { barrier, ...rest } = patch;
  return {
    ...rest,
    objects: patch.objects.filter(({ name }) => objects.includes(name)),
    functions: patch.functions.filter(({ object }) => objects.includes(object)),
    ...(barrier !== undefined && objects.includes(barrier.object) ? { barrier } : {}),
  };
}

/** A patch's part for an object, as the loader has just mapped it. */
export interface LoadedPart {
  readonly object: string;
  readonly part: RegisteredPart;
  readonly functions: readonly RegisteredFunction[];
  readonly barrier: RegisteredPatch['barrier'];
}

export function withParts(patch: RegisteredPatch, loaded: readonly LoadedPart[]): RegisteredPatch {
  const barrier = loaded.find((one) => one.barrier !== undefined)?.barrier ?? patch.barrier;
  return {
    ...patch,
    objects: patch.objects.map((object) => {
      const found = loaded.find((one) => one.object === object.name);
      return found === undefined ? object : { ...object, part: found.part };
    }),
    functions: [...patch.functions, ...loaded.flatMap((one) => one.functions)],
    ...(barrier === undefined ? {} : { barrier }),
  };
}

/** These objects are pending from now on. */
export function withoutParts(patch: RegisteredPatch, objects: readonly string[]): RegisteredPatch {
  const { barrier, ...rest } = patch;
  return {
    ...rest,
    objects: patch.objects.map((object) => {
      if (!objects.includes(object.name)) return object;
      const { part, ...pending } = object;
      return pending;
    }),
    functions: patch.functions.filter(({ object }) => !objects.includes(object)),
    ...(barrier !== undefined && !objects.includes(barrier.object) ? { barrier } : {}),
  };
}

export function asInstalled(patch: RegisteredPatch, objects: readonly string[] | undefined): RegisteredPatch {
  return {
    ...patch,
    objects: patch.objects.map((object) =>
      object.part === undefined || objects?.includes(object.name) === false
        ? object
        : { ...object, part: { ...object.part, state: 'installed' } },
    ),
  };
}

/** An object of a patch that has been unloaded by the program, redirects and all. */
export interface LeftObject {
  readonly patch: RegisteredPatch;
  readonly object: RegisteredObject;
  readonly part: RegisteredPart;
}

/**
 * Objects that have gone: no file's code lies where they lay, or another file's; or the file has been loaded anew there,
 * and none of the redirects that were final is left.
 */
export function findLeft(
  { patches, transition }: Registry,
  memory: Pick<ProcessMemory, 'read'>,
  mappings: readonly Mapping[],
): readonly LeftObject[] {
  return patches.flatMap((patch) =>
    patch.objects.flatMap((object) => {
      const { part } = object;
      if (part === undefined) return [];
      const isFinal = transition?.patchId !== patch.id && part.state === 'installed';
      const functions = patch.functions.filter((fn) => fn.object === object.name);
      const isThere =
        isMapped(part, mappings) && !(isFinal && functions.every((fn) => isOriginal(patches, memory, fn)));
      return isThere ? [] : [{ patch, object, part }];
    }),
  );
}

/** Whether the object's first page still is where it was. A file that is replaced on disk keeps its inode while it is mapped. */
function isMapped({ module }: RegisteredPart, mappings: readonly Mapping[]): boolean {
  const first = mappings.find(({ start }) => start === module.address);
  return first !== undefined && fileOf(first) === module.file;
}

export function fileOf({ device, inode }: Mapping): string {
  return `${device} ${inode}`;
}

/** Whether a module is the file of a part, at another place. */
export function isOtherCopy({ mappings, start }: LoadedModule, { module }: RegisteredPart): boolean {
  const [first] = mappings;
  return first !== undefined && start !== module.address && fileOf(first) === module.file;
}

/** Whether an entry is as the file has it, below all patches. */
function isOriginal(
  patches: readonly RegisteredPatch[],
  memory: Pick<ProcessMemory, 'read'>,
  { old }: RegisteredFunction,
): boolean {
  const oldest = patches.flatMap((patch) => patch.functions).find((fn) => fn.old.address === old.address);
  if (oldest === undefined) return false;
  const { redirect } = oldest;
  return [redirect, ...(redirect.hop === undefined ? [] : [redirect.hop])].every(({ site, below }) => {
    const now = Buffer.alloc(site.sizeBytes);
    // What can't be read is being mapped anew.
    return memory.read(site.address, now) < site.sizeBytes || now.toString('hex') === below;
  });
}

/**
 * The registry without the parts of objects that have gone. Their memory is kept as that of a removed patch is, until no
 * thread and no pointer leads into it; there is nothing to restore, and what was displaced is gone, too.
 */
export function withoutLeft(registry: Registry, left: readonly LeftObject[]): Registry {
  return {
    ...registry,
    patches: registry.patches.map((patch) => {
      const names = left.filter((one) => one.patch.id === patch.id).map(({ object }) => object.name);
      return names.length === 0 ? patch : withoutParts(patch, names);
    }),
    retired: [...registry.retired, ...left.map(({ patch, part }) => retirePart(part, patch.forced))],
  };
}

/** The record of memory that no patch uses any more; `inUse` until each thread has been looked at. */
export function retirePart(part: RegisteredPart, forced: boolean): RetiredImage {
  return {
    ...part.image,
    forced,
    inUse: true,
    textBytes: part.text.sizeBytes,
    entries: part.symbols.map((symbol) => symbol.address),
    displaced: [],
  };
}

export function isWithin(range: MemoryRange, address: number): boolean {
  return address >= range.address && address < range.address + range.sizeBytes;
}
