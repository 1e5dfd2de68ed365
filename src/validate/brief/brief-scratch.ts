import type { Architecture } from '../../arch/architecture.js';
import { InstructionTable } from '../../arch/instruction-table.js';
import { SkimTable } from '../../arch/skim-table.js';
import type { OrcFormat } from '../../orc/format.js';
import { Leaders } from './leaders.js';
import { OrcPatterns } from './orc-rows.js';

/** What brief proofs of many files share. */
export class BriefScratch {
  readonly skim = new SkimTable();
  readonly leaders = new Leaders();
  /** For stretches of a few instructions. */
  readonly few = new InstructionTable(0);
  readonly #patterns = new Map<string, OrcPatterns>();

  patterns(architecture: Architecture, format: OrcFormat): OrcPatterns {
    const key = `${architecture.name},${format}`;
    let patterns = this.#patterns.get(key);
    if (patterns === undefined) {
      patterns = new OrcPatterns(architecture, format);
      this.#patterns.set(key, patterns);
    }
    return patterns;
  }
}
