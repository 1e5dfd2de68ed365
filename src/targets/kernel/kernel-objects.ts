import { linkAddress } from '../../base/brand.js';
import { LivegraftError } from '../../base/errors.js';
import type { Patch } from '../../patch/content.js';
import type { Digest } from '../../patch/file.js';
import type { ExternalSymbol, SymbolSource } from '../../patch/link.js';
import type { PatchFunction, PatchObject } from '../../patch/manifest.js';
import type { KernelModule } from './kernel-modules.js';
import type { KernelPatchModule } from './kernel-registry.js';
import type { KernelSession } from './kernel-session.js';
import { type ModulePlace, placeOf, readModuleBuildId, readModuleSections } from './module-identity.js';

/** What patches call the kernel itself. */
export const VMLINUX = 'vmlinux';

/** A function that a patch replaces, with the object that it is in. */
export interface ReplacedFunction {
  readonly object: string;
  readonly fn: PatchFunction;
}

/** All functions that a patch replaces, in the order of its redirects. */
export function replacedFunctions(patch: Patch): readonly ReplacedFunction[] {
  return patch.manifest.objects.flatMap((object) =>
    object.functions.map((fn) => ({ object: object.name, fn })),
  );
}

/** The modules whose functions a patch replaces. */
export function modulesOf(patch: Patch): readonly KernelPatchModule[] {
  return patch.manifest.objects.flatMap(({ name, identity, functions }) =>
    name === VMLINUX || identity.kind !== 'buildId'
      ? []
      : [{ name, buildId: identity.hex, functions: functions.map((fn) => fn.name) }],
  );
}

/** What patches name in a running kernel: the kernel itself, and its modules as they are loaded now. */
export class KernelObjects {
  readonly #session: KernelSession;

  constructor(session: KernelSession) {
    this.#session = session;
  }

  /**
   * Holds the kernel and the modules that a patch is for against those that run: `wrong-target`, `old-code-differs`. Modules that are
   * not loaded are passed over.
   */
  async expectSame(patch: Patch, digest: Digest): Promise<void> {
    const [kernel, ...modules] = patch.manifest.objects;
    if (kernel?.name !== VMLINUX) {
      throw new LivegraftError('wrong-target', `the patch is for ${kernel?.name}, not for a kernel`, {
        remedy: 'build it with a vmlinuz as --target',
      });
    }
    this.#expectKernel(kernel, digest);
    for (const module of modules) if (this.isLoaded(module.name)) await this.expectModule(module);
  }

  #expectKernel({ identity, functions }: PatchObject, digest: Digest): void {
    const { image } = this.#session.kernel;
    if (identity.kind !== 'buildId' || identity.hex !== image.buildId) {
      throw new LivegraftError('wrong-target', `the patch was not made for this build of ${image.release}`, {
        remedy: 'build it with the vmlinuz of the kernel that runs as --target',
        details: { release: image.release },
      });
    }
    for (const range of functions.flatMap((fn) => [fn.old, ...fn.parts])) {
      const bytes = image.elf.bytesAt(linkAddress(addressOf(range.address)), range.sizeBytes);
      if (bytes === undefined || digest(bytes) !== range.sha256)
        throw differs(range.name, image.source, 'the vmlinuz of the kernel');
    }
  }

  /** Rejects `wrong-target`, `old-code-differs`, `module-not-loaded`. */
  async expectModule({ name, identity, functions }: PatchObject): Promise<void> {
    const module = this.#expectLoaded(name);
    const { memory, layout } = this.#session;
    await this.#session.stop();
    const buildId = await readModuleBuildId(
      memory,
      await readModuleSections(memory, layout, module.structAddress),
    );
    this.#session.breathe();
    if (buildId === undefined) {
      throw new LivegraftError('kernel-unsupported', `the build-id of module ${name} can't be read`, {
        remedy:
          'modules can be patched where the kernel keeps their sections (CONFIG_KALLSYMS, CONFIG_SYSFS)',
        details: { module: name },
      });
    }
    if (identity.kind !== 'buildId' || identity.hex !== buildId) {
      throw new LivegraftError('wrong-target', `the patch was not made for this build of module ${name}`, {
        remedy: 'build it with the .ko file that is loaded as --module',
        details: { module: name, buildId },
      });
    }
    for (const range of functions.flatMap((fn) => [fn.old, ...fn.parts])) {
      const address = module.text.address + addressOf(range.address);
      if (!module.symbols.findAll(range.name).some((symbol) => symbol.address === address))
        throw differs(range.name, `module ${name}`, 'the .ko file');
    }
  }

  isLoaded(object: string): boolean {
    return object === VMLINUX || this.#find(object) !== undefined;
  }

  #expectLoaded(name: string): KernelModule {
    const module = this.#find(name);
    if (module !== undefined) return module;
    throw notLoaded(name);
  }

  #find(name: string): KernelModule | undefined {
    return this.#session.modules.find((module) => module.name === name);
  }

  /** Where a function, or a part of it, is now. */
  addressOf(object: string, range: PatchFunction['old']): number {
    const address = addressOf(range.address);
    if (object === VMLINUX) return this.#session.kernel.relocate(address);
    return this.#expectLoaded(object).text.address + address;
  }

  /** Where the modules lie whose functions a patch replaces. */
  placesOf(patch: Patch): readonly ModulePlace[] {
    return patch.manifest.objects
      .filter(({ name }) => name !== VMLINUX && this.isLoaded(name))
      .map((object) => placeOf(this.#expectLoaded(object.name)));
  }

  /** How the references of a patch are resolved. */
  get symbols(): SymbolSource {
    return {
      resolve: (symbol) => this.#resolve(symbol),
      threadOffset: () => undefined,
      moduleOffset: () => undefined,
      moduleId: () => undefined,
    };
  }

  #resolve({ object, name, sympos }: ExternalSymbol): number | undefined {
    const { kernel } = this.#session;
    const module = this.#find(object);
    // Another of that name in the kernel is not meant.
    if (module === undefined && object !== VMLINUX) return undefined;
    const all = (module?.symbols ?? kernel.image.symbols).findAll(name);
    const symbol = sympos === 0 ? (all.length === 1 ? all[0] : undefined) : all[sympos - 1];
    if (symbol === undefined) return undefined;
    return module === undefined ? kernel.relocate(symbol.address) : symbol.address;
  }
}

export function notLoaded(name: string): LivegraftError {
  return new LivegraftError('module-not-loaded', `the module ${name} is not loaded`, {
    remedy: `load it (modprobe ${name}), then repeat the command; or let the patch wait for it with --late`,
    details: { module: name },
  });
}

function differs(name: string, where: string, what: string): LivegraftError {
  return new LivegraftError('old-code-differs', `${name} in ${where} is not what the patch replaces`, {
    remedy: `build the patch again with ${what} that runs`,
    details: { function: name },
  });
}

/** A manifest's `0x…` as a signed number. */
function addressOf(text: string): number {
  return Number(BigInt.asIntN(64, BigInt(text)));
}
