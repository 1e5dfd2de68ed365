import { isInert } from '../../src/arch/instruction-table.js';
import { x86_64 } from '../../src/arch/x86-64/index.js';
import type { ElfFile } from '../../src/elf/elf-file.js';
import { readOrcClaims } from '../../src/validate/claim-sources.js';
import { Status } from '../../src/validate/claim-verdicts.js';
import { CodeSpace } from '../../src/validate/code-space.js';
import { proveFlow } from '../../src/validate/flow-proof.js';
import { readKernelFlow } from '../../src/validate/kernel-sections.js';
import { findNoReturnTargets } from '../../src/validate/no-return.js';
import { buildProgram, PART_NAME } from '../../src/validate/program.js';
import type { Scratch } from '../../src/validate/scratch.js';

/** Instructions by what the code alone says of their row; `assumed` are frames of saved registers, which are taken as given. */
export interface AgreementCounts {
  proven: number;
  assumed: number;
  disproved: number;
  unknown: number;
  unclaimed: number;
  unreached: number;
  /** Places where states met that differ. */
  conflicts: number;
}

export const NO_COUNTS: AgreementCounts = {
  proven: 0,
  assumed: 0,
  disproved: 0,
  unknown: 0,
  unclaimed: 0,
  unreached: 0,
  conflicts: 0,
};

export interface KernelNames {
  readonly release: string | undefined;
  readonly symbols: readonly { readonly name: string; readonly address: number }[];
}

/**
 * Holds objtool's table against the code: states are derived from the entries of functions, and the table is only looked at, never
 * used. `kernel`: of a linked kernel, which has no symbols of its own. Undefined without a table.
 */
export function compareWithObjtool(elf: ElfFile, scratch: Scratch, kernel?: KernelNames) {
  const space = CodeSpace.of(elf, scratch);
  const claims = readOrcClaims(elf, space, x86_64, kernel?.release)?.claims;
  if (claims === undefined) return undefined;
  const named = new Map(kernel?.symbols.map(({ name, address }) => [name, address]));
  const extraFunctions = [];
  for (const { name, address } of kernel?.symbols ?? []) {
    const start = space.positionOf(address);
    if (start !== undefined)
      extraFunctions.push({ name, start, end: start, isPart: PART_NAME.test(name), mayBeLabel: true });
  }
  const program = buildProgram(elf, space, { architecture: x86_64, scratch, extraFunctions });
  const extraFlow = readKernelFlow(elf, space, (name) => named.get(name));
  const { statuses, claimIds, conflicts } = proveFlow({
    architecture: x86_64,
    program,
    claims,
    name: 'orc',
    scratch,
    extraFlow,
    noReturn: findNoReturnTargets(program, extraFlow.resumed, scratch),
    redZoneBytes: 0,
    isIndependent: true,
  });
  const counts: AgreementCounts = { ...NO_COUNTS, conflicts };
  const differing = new Map<string, number>();
  for (let i = 0; i < program.table.count; i++) {
    const kind = kindOf(statuses[i] as number);
    if (kind === 'unreached' && (claimIds[i] === 0 || isInert(program.table, i))) continue;
    counts[kind]++;
    if (kind === 'proven' || kind === 'assumed') continue;
    const position = program.table.offsets[i] as number;
    const place = `${space.regionAt(position)?.name} ${program.functionAt(position)?.name ?? ''}`;
    differing.set(`${kind} ${place}`, (differing.get(`${kind} ${place}`) ?? 0) + 1);
  }
  return { counts, differing };
}

function kindOf(status: number): Exclude<keyof AgreementCounts, 'conflicts'> {
  switch (status) {
    case Status.proven:
      return 'proven';
    case Status.assumed:
      return 'assumed';
    case Status.disproved:
      return 'disproved';
    case Status.unknown:
      return 'unknown';
    case Status.unclaimed:
      return 'unclaimed';
    default:
      return 'unreached';
  }
}
