import { LivegraftError } from '../base/errors.js';
import * as c from '../elf/constants.js';
import type { Comparison } from './compare.js';
import type { CompiledPair } from './compiled-pair.js';
import type { Definition, ObjectModel } from './object-model.js';

/** Tables of a kernel whose entries go with the code that they are about (`kernel-code.ts`). */
const KERNEL_TABLES = ['__bug_table', '__jump_table', '__ex_table', '__mcount_loc'];
/** Static variables that a kernel's macros make: what they remember is how often something was said. */
export const FORGETFUL =
  /^(?:__already_done|__warned|__print_once|__ret_once|__func__|_rs|__key|descriptor|_entry)\.\d+$/;

/** Refuses, by name, changes that redirecting functions can't bring about in a running program. */
export function refuseUnsafe(
  pair: CompiledPair,
  comparison: Comparison,
  acceptedTypes: readonly string[],
  isKernel = false,
): void {
  const { original, patched } = pair;
  const file = original.fileName ?? original.source;
  const { changedFunctions, changedData } = comparison;
  const refuse = (code: string, what: string, names: readonly Definition[], remedy: string): void => {
    if (names.length === 0) return;
    const list = names.map((d) => d.name).join(', ');
    throw new LivegraftError(code, `${file}: ${what}: ${list}`, { remedy, details: { file, symbols: list } });
  };
  refuse(
    'static-data-ambiguous',
    'which static variables of the original these are can not be told',
    comparison.ambiguousData.filter((d) => !(isKernel && FORGETFUL.test(d.name))),
    'rename the new ones, so that each name is used by one function alone',
  );
  const originalOf = (d: Definition) => comparison.counterpart.get(d);
  refuse(
    'tls-changed',
    'the diff changes thread-local variables',
    changedData.filter((p) => p.patched.kind === 'tls').map((p) => p.patched),
    'thread-local data of running threads can not be changed',
  );
  const data = changedData.map((p) => p.patched).filter((d) => d.kind === 'data');
  refuse(
    'data-layout-changed',
    'the diff changes the size of existing data',
    data.filter((d) => d.symbol.sizeBytes !== originalOf(d)?.symbol.sizeBytes),
    'the program is using the old layout; keep it, and put new state into new variables',
  );
  refuse(
    'data-initial-value-changed',
    'the diff changes the initial value of existing data',
    data,
    'the program has long since initialised it; set the value from code instead',
  );
  // What they are made of differs in size as well: said first, by name.
  refuse(
    'init-code-changed',
    'the diff changes functions in sections that run only at start',
    changedFunctions
      .map((p) => p.patched)
      .filter((d) => /^\.(init|text\.startup)/.test(d.section.name) && d.name !== 'main'),
    'they have run already',
  );
  const sectionsRunAtStart = ['.init_array', '.ctors', '.preinit_array', '.init', '.fini_array', '.dtors'];
  for (const name of sectionsRunAtStart) {
    const [a, b] = [original, patched].map((m) =>
      m.elf.sections
        .filter((s) => s.name === name || s.name.startsWith(`${name}.`))
        .reduce((sum, s) => sum + s.sizeBytes, 0),
    );
    if (a !== b) {
      throw new LivegraftError(
        'constructors-changed',
        `${file}: the diff adds or removes functions that run at start or exit (${name})`,
        {
          remedy: 'a running program will not run them; do the work in a changed function',
          details: { file, section: name },
        },
      );
    }
  }
  const types = changedFunctions.length === 0 ? [] : changedTypes(original, patched);
  const unexpected = types.filter((name) => !acceptedTypes.includes(name.replace(/^\w+ /, '')));
  if (unexpected.length > 0) {
    const list = unexpected.join(', ');
    throw new LivegraftError(
      'type-layout-changed',
      `${file}: the diff changes how ${list} is laid out in memory: the program holds objects of the old layout`,
      {
        remedy:
          'keep the layout, and put new state elsewhere; where no object outlives a changed function, say so with --accept-layout-change NAME',
        details: { file, types: list },
      },
    );
  }
  const gathered = gatheredSections(original, patched, isKernel ? KERNEL_TABLES : []);
  if (gathered !== undefined) {
    throw new LivegraftError(
      'gathered-section-changed',
      `${file}: the diff changes section ${gathered}, whose parts the program finds by their place between __start_${gathered} and __stop_${gathered}`,
      {
        remedy: 'the program can not see an entry that a patch adds there; register it from code',
        details: { file, section: gathered },
      },
    );
  }
  const common = commonSymbols(patched).filter((name) => !commonSymbols(original).includes(name));
  if (common.length > 0) {
    throw new LivegraftError(
      'common-new',
      `${file}: the diff adds variables without a place of their own (-fcommon): ${common.join(', ')}`,
      { remedy: 'declare them static, or initialise them', details: { file, symbols: common.join(', ') } },
    );
  }
  const changed = changedFunctions.map((p) => p.patched);
  refuse(
    'ifunc-changed',
    'the diff changes functions that choose an implementation at start (IFUNC)',
    changed.filter((d) => d.symbol.type === c.STT_GNU_IFUNC),
    'the choice was made when the program started; patch the implementations',
  );
  refuse(
    'no-function-sections',
    'functions share a section, so that one can not be taken alone',
    changed.filter((d) =>
      patched
        .definitionsIn(d.section)
        .some(
          (other) =>
            other.kind === 'function' &&
            other.symbol.value !== d.symbol.value &&
            !other.name.startsWith('.L'),
        ),
    ),
    'compile both versions with -ffunction-sections -fdata-sections',
  );
}

/** A section with the name of a C identifier is gathered by the linker; the first that differs in size. */
function gatheredSections(
  original: ObjectModel,
  patched: ObjectModel,
  known: readonly string[],
): string | undefined {
  const sizes = (model: ObjectModel) => {
    const bySection = new Map<string, number>();
    for (const { name, flags, sizeBytes } of model.elf.sections) {
      if ((flags & c.SHF_ALLOC) === 0 || (flags & c.SHF_EXECINSTR) !== 0 || !/^[A-Za-z_]\w*$/.test(name))
        continue;
      bySection.set(name, (bySection.get(name) ?? 0) + sizeBytes);
    }
    return bySection;
  };
  const [before, after] = [sizes(original), sizes(patched)];
  return [...new Set([...before.keys(), ...after.keys()])].find(
    (name) => !known.includes(name) && before.get(name) !== after.get(name),
  );
}

function commonSymbols(model: ObjectModel): readonly string[] {
  return model.elf.symbols.filter((s) => s.sectionIndex === c.SHN_COMMON).map((s) => s.name);
}

/** Structures that both compilations know, laid out in different ways. */
function changedTypes(original: ObjectModel, patched: ObjectModel): readonly string[] {
  const [before, after] = [original.typeLayouts, patched.typeLayouts];
  if (before === undefined || after === undefined) return [];
  return [...after.keys()].filter((name) => before.has(name) && before.get(name) !== after.get(name));
}
