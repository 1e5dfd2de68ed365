import { decodeText } from '../../base/byte-reader.js';
import { crc32 } from '../../base/crc32.js';
import { LivegraftError } from '../../base/errors.js';
import type { CallbackKind } from '../../engine/callbacks.js';
import type { RegisteredState } from '../patch-states.js';
import type { GuestChange } from './gdb-client.js';
import type { BorrowRecord } from './guest-calls.js';
import type { MemorySource } from './guest-memory.js';
import type { ModuleInstance, ModulePlace } from './module-identity.js';

export interface KernelRange {
  readonly name: string;
  readonly address: number;
  readonly sizeBytes: number;
}

export interface RegisteredKernelFunction {
  /** `vmlinux`, or the module that it is in. */
  readonly object: string;
  readonly name: string;
  /** The original and the parts that were split from it. */
  readonly old: readonly KernelRange[];
  readonly new: readonly KernelRange[];
  /** The fentry nop and its bytes, or the first instructions where there is none. */
  readonly site: number;
  readonly original: readonly number[];
  /** Whether the original goes on in a copy of them. */
  readonly isDisplaced: boolean;
  readonly trampoline: number;
  /** Of a patch that replaces older ones, a function that only those changed: it has no new version, tasks go back to the original. */
  readonly restores?: boolean;
}

/** One instruction of 5 bytes that is a jump or a call to code that stores the state and goes on to `next`. */
export interface KernelBarrierPlace {
  readonly site: number;
  readonly original: readonly number[];
  readonly next: number;
  readonly trampoline: number;
}

/** Where tasks switch themselves while a transition runs: a function's fentry nop, or the kernel's edge. */
export interface RegisteredKernelBarrier {
  readonly name: string;
  readonly places: readonly KernelBarrierPlace[];
}

export interface RegisteredKernelCallbacks {
  /** `vmlinux`, or the module that they are of. */
  readonly object: string;
  /** In the patch's memory; see kernel-callbacks.ts. */
  readonly record: number;
  /** Code that calls one and comes back by itself. */
  readonly calls: readonly { readonly kind: CallbackKind; readonly at: number }[];
}

/** A module that a patch is for. */
export interface KernelPatchModule {
  readonly name: string;
  readonly buildId: string;
  readonly functions: readonly string[];
}

export interface RegisteredKernelPatch {
  readonly id: string;
  readonly name: string;
  readonly state: 'applying' | 'applied' | 'reverting' | 'reverted';
  readonly forced: boolean;
  readonly appliedAt: string;
  readonly memory: { readonly address: number; readonly sizeBytes: number };
  /** How much of the memory was made executable; of a patch that a run of before this was noted has loaded, unknown. */
  readonly textPages?: number;
  /** The patch's own code, without redirects. */
  readonly text: { readonly address: number; readonly sizeBytes: number };
  readonly ehFrame: { readonly address: number; readonly sizeBytes: number } | undefined;
  readonly functions: readonly RegisteredKernelFunction[];
  /** Where the modules lay whose functions it replaces: the entries are theirs. */
  readonly modules: readonly ModulePlace[];
  /** Modules that a watch is bringing it to as they are loaded, or was when it ended: their pre-patch callbacks may have run. */
  readonly arriving?: readonly ModuleInstance[];
  /** All modules that it is for. One that has no place is not loaded, or was loaded while nobody watched. */
  readonly objects?: readonly KernelPatchModule[];
  /** The file that it was applied from. */
  readonly path?: string;
  /** For how many redirects its memory has room: what lies behind them depends on it. */
  readonly slots?: number;
  readonly barrier?: RegisteredKernelBarrier;
  /** Until it is applied: all older patches go in the same transition. */
  readonly replaces?: boolean;
  /** Of each of its objects that has some. */
  readonly callbacks?: readonly RegisteredKernelCallbacks[];
  readonly states?: readonly RegisteredState[];
}

export interface RegisteredKernelStraggler {
  readonly id: string;
  /** With the id it tells a later task of the same pid apart, mostly. */
  readonly name: string;
  /** Over all runs. */
  readonly attempts: number;
  /** ISO 8601. */
  readonly since: string;
}

export interface KernelRegistry {
  readonly patches: readonly RegisteredKernelPatch[];
  /** One that runs or was left half-done. */
  readonly transition:
    | {
        readonly patchId: string;
        /** Of an applied patch, the modules that came later: the transition is of their functions alone. */
        readonly objects?: readonly string[];
        /** Which way the redirects choose: a task that has switched runs the new code, or the old. */
        readonly begunAs: 'patch' | 'unpatch';
        readonly direction: 'patch' | 'unpatch';
        /** What a task's state word is when it has switched. */
        readonly switchedValue: number;
        /** ISO 8601: when it was begun, or last turned around. */
        readonly startedAt?: string;
        /** Those that the runs that have left it could not switch. */
        readonly stragglers?: readonly RegisteredKernelStraggler[];
        /** Of that word in the task_struct. Registries of before it was noted meant `patch_state`, where there is one. */
        readonly stateOffset?: number;
      }
    | undefined;
  /** Counts transitions. */
  readonly serial: number;
}

const EMPTY_REGISTRY: KernelRegistry = { patches: [], transition: undefined, serial: 0 };

const MAGIC = 0x3174_6661_7267_766cn; // "lvgraft1"
const ANCHOR_BYTES = 40;
export const REGISTRY_BYTES = 64 * 1024;
const COPY_BYTES = REGISTRY_BYTES / 2;

interface Anchor {
  /** Of the registry's memory; 0 before there is any. */
  readonly address: number;
  readonly copy: 0 | 1;
  readonly sizeBytes: number;
  readonly crc: number;
  readonly borrowed: number;
}

const PAGE_BYTES = 4096;
/** What the linker fills text with where there is none (`int3`). */
const FILLING = 0xcc;

/**
 * Where the anchor of a kernel's registry lies whose text ends at `end` (`_etext`, in the running kernel): in the rest of the last page or, where the
 * text was filled up to its end, in that filling, which `imageBytes` shows. Nothing uses either. Throws `kernel-unsupported`.
 */
export function findAnchorPlace(
  end: number,
  imageBytes: (address: number, sizeBytes: number) => Uint8Array | undefined,
): number {
  const behind = Math.ceil(end / 64) * 64;
  if (Math.ceil(end / PAGE_BYTES) * PAGE_BYTES - behind >= ANCHOR_BYTES) return behind;
  const before = Math.floor((end - ANCHOR_BYTES) / 64) * 64;
  if (imageBytes(before, end - before)?.every((byte) => byte === FILLING) === true) return before;
  throw new LivegraftError('kernel-unsupported', 'no room is left behind the text of this kernel', {
    remedy: 'report this kernel: livegraft keeps 40 bytes there',
  });
}

/**
 * What livegraft has done to a kernel, kept in that kernel. An anchor ({@link findAnchorPlace}) names the memory that holds the registry, as text, in two copies. A new text is
 * written to the copy that is not in use, then the anchor, in one packet.
 */
export class KernelRegistryStore implements BorrowRecord {
  readonly #memory: MemorySource;
  readonly #stopped: MemorySource;
  readonly #place: number;
  #anchor: Anchor = { address: 0, copy: 0, sizeBytes: 0, crc: 0, borrowed: 0 };

  /**
   * `place` is the anchor's. Both sources must be able to change code pages. `memory` may let the guest run before and
   * behind; `stopped` is for what happens to a guest that stands still.
   */
  constructor(memory: MemorySource, stopped: MemorySource, place: number) {
    this.#memory = memory;
    this.#stopped = stopped;
    this.#place = place;
  }

  get hasMemory(): boolean {
    return this.#anchor.address !== 0;
  }

  /** Where a task's registers were put that was never given back; 0 for none. */
  get borrowed(): number {
    return this.#anchor.borrowed;
  }

  /** Rejects with `registry-damaged` when what is there can't be what livegraft wrote. */
  async read(): Promise<KernelRegistry> {
    const bytes = await this.#memory.readMemory(this.#place, ANCHOR_BYTES);
    const view = new DataView(bytes.buffer, bytes.byteOffset, ANCHOR_BYTES);
    if (view.getBigUint64(0, true) !== MAGIC) return EMPTY_REGISTRY;
    this.#anchor = {
      address: Number(view.getBigInt64(8, true)),
      copy: view.getUint32(16, true) === 0 ? 0 : 1,
      sizeBytes: view.getUint32(20, true),
      crc: view.getUint32(24, true),
      borrowed: Number(view.getBigInt64(32, true)),
    };
    const { address, copy, sizeBytes, crc } = this.#anchor;
    if (sizeBytes === 0) return EMPTY_REGISTRY;
    const text = await this.#memory.readMemory(address + copy * COPY_BYTES, Math.min(sizeBytes, COPY_BYTES));
    if (crc32(text) !== crc) {
      throw new LivegraftError('registry-damaged', "livegraft's registry in the guest is damaged", {
        remedy: 'restart the guest: what runs in it can not be told any more',
      });
    }
    const registry = JSON.parse(decodeText(text)) as KernelRegistry;
    return { ...registry, patches: registry.patches.map(withBarrierPlaces) };
  }

  /** Where the anchor is, which stays as it is written; undefined before there is any. */
  get anchorPlace(): { readonly address: number; readonly sizeBytes: number } | undefined {
    return this.hasMemory ? { address: this.#place, sizeBytes: ANCHOR_BYTES } : undefined;
  }

  /** Whether what was found there is what was read or written last. */
  isAnchor(found: Uint8Array): boolean {
    return encodeAnchor(this.#anchor).every((byte, i) => found[i] === byte);
  }

  /** In a stopped guest: takes `REGISTRY_BYTES` of the guest's memory for good. */
  async useMemory(address: number): Promise<void> {
    await this.#writeAnchor({ ...this.#anchor, address, sizeBytes: 0 }, this.#stopped);
  }

  /** Throws `registry-full`. */
  expectRoom(registry: KernelRegistry): void {
    encodeRegistry(registry);
  }

  async write(registry: KernelRegistry): Promise<void> {
    const anchor = await this.#prepare(registry);
    await this.#writeAnchor(anchor, this.#memory);
  }

  /** In a stopped guest: the registry together with other changes, either all of it or nothing. */
  async writeWith(
    registry: KernelRegistry,
    change: (changes: readonly GuestChange[]) => Promise<void>,
    changes: readonly GuestChange[],
  ): Promise<void> {
    const anchor = await this.#prepare(registry);
    await change([...changes, { kind: 'write', address: this.#place, bytes: encodeAnchor(anchor) }]);
    this.#anchor = anchor;
  }

  /** Writes the text to the copy that is not in use; returns the anchor that makes it the one that is. */
  async #prepare(registry: KernelRegistry): Promise<Anchor> {
    const text = encodeRegistry(registry);
    const copy = this.#anchor.copy === 0 ? 1 : 0;
    await this.#memory.writeMemory(this.#anchor.address + copy * COPY_BYTES, text);
    return { ...this.#anchor, copy, sizeBytes: text.length, crc: crc32(text) };
  }

  /** In a stopped guest. */
  async noteBorrowed(frame: number): Promise<void> {
    await this.#writeAnchor({ ...this.#anchor, borrowed: frame }, this.#stopped);
  }

  async #writeAnchor(anchor: Anchor, memory: MemorySource): Promise<void> {
    await memory.writeMemory(this.#place, encodeAnchor(anchor));
    this.#anchor = anchor;
  }
}

/** Of registries that were written before a barrier could have several places: it was a function's fentry nop. */
interface OldKernelBarrier extends Omit<KernelBarrierPlace, 'next'> {
  readonly name: string;
}

function withBarrierPlaces(patch: RegisteredKernelPatch): RegisteredKernelPatch {
  const barrier = patch.barrier as RegisteredKernelBarrier | OldKernelBarrier | undefined;
  if (barrier === undefined || 'places' in barrier) return patch;
  const { name, ...place } = barrier;
  return { ...patch, barrier: { name, places: [{ ...place, next: place.site + place.original.length }] } };
}

function encodeRegistry(registry: KernelRegistry): Uint8Array {
  const text = new TextEncoder().encode(JSON.stringify(registry));
  if (text.length > COPY_BYTES) {
    throw new LivegraftError(
      'registry-full',
      `the registry needs ${text.length} bytes and has ${COPY_BYTES}`,
      {
        remedy: 'combine patches into one',
      },
    );
  }
  return text;
}

/** Of one that says nothing all bytes are 0, as before there was any. */
function encodeAnchor(anchor: Anchor): Uint8Array {
  const bytes = new Uint8Array(ANCHOR_BYTES);
  if (anchor.address === 0 && anchor.borrowed === 0) return bytes;
  const view = new DataView(bytes.buffer);
  view.setBigUint64(0, MAGIC, true);
  view.setBigInt64(8, BigInt(anchor.address), true);
  view.setUint32(16, anchor.copy, true);
  view.setUint32(20, anchor.sizeBytes, true);
  view.setUint32(24, anchor.crc, true);
  view.setBigInt64(32, BigInt(anchor.borrowed), true);
  return bytes;
}
