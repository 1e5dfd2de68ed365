import type { Architecture } from '../../arch/architecture.js';
import type { ElfFile } from '../../elf/elf-file.js';
import { Status } from '../claim-verdicts.js';
import { CodeSpace } from '../code-space.js';
import { buildProgram, type Program } from '../program.js';
import { Scratch } from '../scratch.js';
import type { Stretch, ValidateResult } from '../validate-file.js';
import type { BriefResult } from './validate-brief.js';

/**
 * A brief proof as the result of a validation. What it says of single instructions is worked out when somebody asks: then they are decoded once
 * more.
 */
export function resultOf(
  elf: ElfFile,
  { regions }: CodeSpace,
  architecture: Architecture,
  { instructions, unreached, gaps, indirectJumps }: BriefResult,
): ValidateResult {
  let program: Program | undefined;
  let statuses: Uint8Array | undefined;
  const getProgram = () => {
    const scratch = new Scratch();
    program ??= buildProgram(elf, CodeSpace.of(elf, scratch), { architecture, scratch });
    return program;
  };
  return {
    file: elf.source,
    buildId: elf.buildId,
    sources: [
      {
        source: 'orc',
        counts: {
          proven: instructions - unreached,
          assumed: 0,
          unknown: 0,
          disproved: 0,
          unclaimed: 0,
          unreached,
        },
        get statuses() {
          statuses ??= statusesOf(getProgram(), gaps);
          return statuses;
        },
        stretches: () => reachedStretches(regions, gaps),
      },
    ],
    findings: [],
    suppressed: [],
    textBytes: regions.reduce((sum, region) => sum + region.end - region.start, 0),
    regions,
    isRelocatable: true,
    instructions,
    jumpTables: { followed: 0, notFollowed: indirectJumps },
    get program() {
      return getProgram();
    },
  };
}

function statusesOf({ table }: Program, gaps: readonly number[]): Uint8Array {
  const statuses = new Uint8Array(table.count).fill(Status.proven);
  let gap = 0;
  for (let i = 0; i < table.count; i++) {
    const position = table.offsets[i] as number;
    while (gap < gaps.length && position >= (gaps[gap + 1] as number)) gap += 2;
    if (gap < gaps.length && position >= (gaps[gap] as number)) statuses[i] = Status.unreached;
  }
  return statuses;
}

/** What lies between the gaps. */
function reachedStretches(regions: CodeSpace['regions'], gaps: readonly number[]): Stretch[] {
  const stretches: Stretch[] = [];
  let gap = 0;
  for (const { start, end } of regions) {
    let at = start;
    for (; gap < gaps.length && (gaps[gap] as number) < end; gap += 2) {
      if ((gaps[gap] as number) > at)
        stretches.push({ start: at, end: gaps[gap] as number, status: Status.proven });
      at = gaps[gap + 1] as number;
    }
    if (at < end) stretches.push({ start: at, end, status: Status.proven });
  }
  return stretches;
}
