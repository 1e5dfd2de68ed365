import type { ObjectModel } from './object-model.js';

/** One source file, compiled without and with the change. */
export interface CompiledPair {
  readonly original: ObjectModel;
  readonly patched: ObjectModel;
}
