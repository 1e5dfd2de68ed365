import type { ElfFile } from '../elf/elf-file.js';
import type { CodeSpace } from './code-space.js';

/** What the author of kernel code says about it in sections that the final link drops. */
export interface Hints {
  /** Positions of unwind hints (`.discard.unwind_hints`, include/linux/objtool.h). */
  readonly hints: ReadonlySet<number>;
  /** Names of functions with `STACK_FRAME_NON_STANDARD` (`.discard.func_stack_frame_non_standard`). */
  readonly exempt: ReadonlySet<string>;
}

export function readHints(elf: ElfFile, space: CodeSpace): Hints {
  const hints = new Set<number>();
  const exempt = new Set<string>();
  const positions = (name: string, each: (position: number, symbol: string) => void) => {
    const section = elf.findSection(name);
    if (section === undefined || !space.isRelocatable) return;
    for (const { symbolIndex, addend } of elf.relocationsFor(section)) {
      const symbol = elf.symbols[symbolIndex];
      const place = space.positionOfRelocation(symbol, addend);
      if (symbol !== undefined && place !== undefined) each(place, symbol.name);
    }
  };
  positions('.discard.unwind_hints', (position) => hints.add(position));
  const name = '.discard.func_stack_frame_non_standard';
  if (elf.findSection(name) === undefined) return { hints, exempt };
  const byPosition = new Map<number, string>();
  for (const symbol of elf.symbols) {
    const place = symbol.name === '' ? undefined : space.positionOfSymbol(symbol);
    if (place !== undefined) byPosition.set(place, symbol.name);
  }
  positions(name, (position, symbol) => {
    exempt.add(symbol === '' ? (byPosition.get(position) ?? '') : symbol);
  });
  exempt.delete('');
  return { hints, exempt };
}
