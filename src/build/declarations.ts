import { LivegraftError } from '../base/errors.js';
import { CALLBACK_SECTIONS, STATE_BYTES, STATES_SECTION } from '../patch/declarations.js';
import type { PatchCallbacks } from '../patch/manifest.js';
import type { Definition, ObjectModel } from './object-model.js';

/** What the source of a patch declares to livegraft, with the macros of include/livegraft.h. */
export interface Declarations {
  readonly callbacks: ReadonlyMap<keyof PatchCallbacks, Definition>;
  readonly states: readonly {
    readonly id: number;
    readonly version: number;
    readonly variable: Definition;
  }[];
}

/** Throws `declaration-malformed` for sections that the macros can't have made. */
export function readDeclarations(model: ObjectModel): Declarations {
  const callbacks = new Map<keyof PatchCallbacks, Definition>();
  const states: { id: number; version: number; variable: Definition }[] = [];
  for (const section of model.elf.sections) {
    const kind = CALLBACK_SECTIONS[section.name as keyof typeof CALLBACK_SECTIONS];
    if (kind !== undefined) {
      const [first, ...more] = model.relocationsOf(section);
      const reference = first && model.referenceOf(section, first);
      if (more.length > 0) throw malformed(model, `several ${kind} callbacks`);
      if (
        reference?.kind !== 'definition' ||
        reference.definition.kind !== 'function' ||
        reference.offset !== 0
      )
        throw malformed(model, `a ${kind} callback that is no function of the same file`);
      callbacks.set(kind, reference.definition);
    } else if (section.name === STATES_SECTION) {
      const view = new DataView(section.data.buffer, section.data.byteOffset, section.data.length);
      for (const variable of model.definitionsIn(section)) {
        const { value, sizeBytes } = variable.symbol;
        if (sizeBytes !== STATE_BYTES || value + sizeBytes > section.data.length)
          throw malformed(model, `a state, ${variable.name}, of ${sizeBytes} bytes`);
        const id = Number(view.getBigUint64(value, true));
        if (!Number.isSafeInteger(id))
          throw malformed(model, `a state, ${variable.name}, of a number beyond 2^53`);
        states.push({ id, version: view.getUint32(value + 8, true), variable });
      }
    }
  }
  return { callbacks, states };
}

export function hasDeclarations({ callbacks, states }: Declarations): boolean {
  return callbacks.size > 0 || states.length > 0;
}

function malformed(model: ObjectModel, what: string): LivegraftError {
  return new LivegraftError('declaration-malformed', `${model.source} declares ${what}`, {
    remedy: 'declare callbacks and states with the macros of livegraft.h, each once',
    details: { object: model.source },
  });
}

export function declaredTwice(what: string, files: string): LivegraftError {
  return new LivegraftError('declaration-malformed', `the patch declares ${what} twice (${files})`, {
    remedy: 'a patch has one callback of each kind, and one state of each number',
  });
}
