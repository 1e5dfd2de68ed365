import type { Flow } from '../../src/arch/instruction.js';
import { FlowCode, isInert } from '../../src/arch/instruction-table.js';
import { x86_64 } from '../../src/arch/x86-64/index.js';
import { linkAddress } from '../../src/base/brand.js';
import type { ElfFile } from '../../src/elf/elf-file.js';
import { readOrcClaims } from '../../src/validate/claim-sources.js';
import { Status } from '../../src/validate/claim-verdicts.js';
import { CodeSpace } from '../../src/validate/code-space.js';
import { proveFlow } from '../../src/validate/flow-proof.js';
import { findJumpTables } from '../../src/validate/jump-tables.js';
import { findHalts, readKernelFlow } from '../../src/validate/kernel-sections.js';
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

/** Instructions of one function that differ from the table in one way. */
export interface DifferingPlace {
  readonly kind: Exclude<keyof AgreementCounts, 'proven' | 'assumed'>;
  readonly section: string;
  /** Empty where no symbol names it. */
  readonly function: string;
  /**
   * How the last instruction before them ends that does anything to registers, stack or control; `padding` where unreached code begins at a
   * boundary behind instructions that do nothing; `start` where there is nothing before.
   */
  readonly behind: Flow | 'padding' | 'start';
  /** Of the first. */
  readonly address: number;
  count: number;
}

/** Where compilers begin functions. */
const BOUNDARY_BYTES = 16;
const FLOW_NAMES = Object.keys(FlowCode) as readonly Flow[];

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
  for (const start of tracedEntries(elf, space, named))
    extraFunctions.push({ name: undefined, start, end: start, isPart: false, mayBeLabel: true });
  const program = buildProgram(elf, space, { architecture: x86_64, scratch, extraFunctions });
  const kernelFlow = readKernelFlow(elf, space, (name) => named.get(name));
  const jumps = findJumpTables(elf, space, program, x86_64);
  const extraFlow = {
    ...kernelFlow,
    resumed: [...kernelFlow.resumed, ...findHalts(program, x86_64)],
    // Wherever a table may lead, a state goes: a wrong one would contradict the table.
    edges: [...kernelFlow.edges, ...jumps.edges, ...jumps.possibleEdges],
  };
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
  const counts: AgreementCounts = { ...NO_COUNTS, conflicts: conflicts.length };
  const differing = new Map<string, DifferingPlace>();
  const { table } = program;
  let behind: DifferingPlace['behind'] = 'start';
  let isPadded = false;
  const differs = (kind: DifferingPlace['kind'], i: number) => {
    const position = table.offsets[i] as number;
    const region = space.regionAt(position);
    const [section, name] = [region?.name ?? '', program.functionAt(position)?.name ?? ''];
    if (kind === 'unreached' && isPadded && position % BOUNDARY_BYTES === 0) behind = 'padding';
    const key = `${kind} ${section} ${name} ${behind}`;
    const known = differing.get(key);
    if (known !== undefined) known.count++;
    else {
      const address = position - (region?.start ?? 0) + (region?.address ?? 0);
      differing.set(key, { kind, section, function: name, behind, address, count: 1 });
    }
  };
  const met = new Set(conflicts);
  for (let i = 0; i < table.count; i++) {
    const kind = kindOf(statuses[i] as number);
    const isInertHere = isInert(table, i);
    // Padding, which is not reached.
    if (kind === 'unreached' && (claimIds[i] === 0 || isInertHere)) {
      isPadded = true;
      continue;
    }
    counts[kind]++;
    if (met.has(i)) differs('conflicts', i);
    if (kind !== 'proven' && kind !== 'assumed') differs(kind, i);
    isPadded = false;
    if (!isInertHere && kind !== 'unreached') behind = FLOW_NAMES[table.flows[i] as number] ?? 'start';
  }
  return { counts, differing: [...differing.values()] };
}

/**
 * Where functions begin by the calls of `__fentry__` that compilers noted (`__mcount_loc`, include/linux/ftrace.h; in a module by its relocations): also those that no
 * symbol names any more, weak ones whose place another has taken.
 */
function tracedEntries(elf: ElfFile, space: CodeSpace, named: ReadonlyMap<string, number>): number[] {
  const starts: number[] = [];
  const section = elf.findSection('__mcount_loc');
  for (const { symbolIndex, addend } of section === undefined ? [] : elf.relocationsFor(section)) {
    const place = space.positionOfRelocation(elf.symbols[symbolIndex], addend);
    if (place !== undefined) starts.push(place);
  }
  const [from, to] = [named.get('__start_mcount_loc'), named.get('__stop_mcount_loc')];
  if (from === undefined || to === undefined) return starts;
  const bytes = elf.bytesAt(linkAddress(from), to - from) ?? new Uint8Array();
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  for (let at = 0; at + 8 <= bytes.length; at += 8) {
    const start = space.positionOf(Number(view.getBigInt64(at, true)));
    if (start !== undefined) starts.push(start);
  }
  return starts;
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
