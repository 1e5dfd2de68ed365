import type { ElfRelocation } from '../elf/elf-file.js';
import type { PatchManifest } from './manifest.js';

/** A patch in memory: what the builder makes, the file carries and the linker loads. */
export interface Patch {
  readonly manifest: PatchManifest;
  readonly sections: readonly PatchSection[];
  readonly symbols: readonly PatchSymbol[];
  /** First 16 hexadecimal digits of the file's checksum: names the patch in a target. */
  readonly id: string;
}

export type PatchSectionKind = 'text' | 'readOnly' | 'readWrite' | 'zero' | 'ehFrame';

export interface PatchSection {
  readonly name: string;
  readonly kind: PatchSectionKind;
  readonly alignment: number;
  /** Empty for `zero`. */
  readonly data: Uint8Array;
  readonly sizeBytes: number;
  /** `symbolIndex` indexes {@link Patch.symbols}. */
  readonly relocations: readonly ElfRelocation[];
}

export type PatchSymbol =
  | {
      readonly kind: 'defined';
      readonly name: string;
      readonly section: number;
      readonly value: number;
      readonly sizeBytes: number;
      readonly isFunction: boolean;
    }
  /** In the target: `object` names it, or is `*` for "as the dynamic linker binds it for the patched object". */
  | {
      readonly kind: 'external';
      readonly object: string;
      readonly name: string;
      readonly sympos: number;
      readonly isThreadLocal: boolean;
      readonly isWeak: boolean;
    };
