import type { Architecture } from '../arch/architecture.js';
import { FlowCode, isInert } from '../arch/instruction-table.js';
import { ParseError } from '../base/errors.js';
import { ET_CORE } from '../elf/constants.js';
import type { ElfFile } from '../elf/elf-file.js';
import { compareSources, type ProvenSource } from './agreement.js';
import { findAssumedRows, findUnboundedTables, opensOnAssumed, UnfollowedJumps } from './assumptions.js';
import { resultOf } from './brief/brief-result.js';
import { validateBriefly } from './brief/validate-brief.js';
import { type ReadClaims, readDwarfClaims, readOrcClaims } from './claim-sources.js';
import { Status } from './claim-verdicts.js';
import { speaksOf } from './claims.js';
import { type CodeRegion, CodeSpace } from './code-space.js';
import { contradictionsToFindings } from './contradictions.js';
import {
  type ClaimSource,
  type Finding,
  makeFinding,
  type SuppressedFinding,
  type Suppression,
  sortOut,
} from './findings.js';
import { type FlowProofResult, proveFlow } from './flow-proof.js';
import { checkFramePointers } from './frame-pointer.js';
import { readHints } from './hints.js';
import { findJumpTables, type JumpTables } from './jump-tables.js';
import { coverOf, type ExtraFlow, findHalts, readKernelFlow } from './kernel-sections.js';
import { readLandingPads } from './landing-pads.js';
import { findNoReturnTargets } from './no-return.js';
import { Places } from './places.js';
import { buildProgram, type CodeFunction, PART_NAME, type Program } from './program.js';
import { ReturnCheck } from './return-check.js';
import { Scratch } from './scratch.js';
import { SourceLines } from './source-lines.js';

export interface ValidateOptions {
  readonly architecture: Architecture;
  /** Default: every table that the file has. */
  readonly sources?: readonly ClaimSource[];
  readonly agree?: readonly (readonly [ClaimSource, ClaimSource])[];
  readonly suppressions?: readonly Suppression[];
  /** For ORC tables that don't say which format they have: `6.1.0`. */
  readonly kernelRelease?: string;
  /** For many files one after the other. */
  readonly scratch?: Scratch;
  /** Function names that the file itself does not have, by link address. */
  readonly symbols?: readonly { readonly name: string; readonly address: number }[];
  /** Default: true. False leaves out the quick proof of kernel modules, which comes to the same where it comes to anything. */
  readonly tryBrief?: boolean;
  /** Called now and then with how much is done, from 0 to 1. */
  readonly onProgress?: (fraction: number) => void;
  /** The file's separate debug file, for the lines of findings. Called when there is one and the file has no line table. */
  readonly debugFile?: () => ElfFile | undefined;
}

/** How many instructions have which {@link Status}. */
export interface StatusCounts {
  readonly proven: number;
  readonly assumed: number;
  readonly unknown: number;
  readonly disproved: number;
  readonly unclaimed: number;
  readonly unreached: number;
}

export interface SourceResult {
  readonly source: ClaimSource;
  readonly counts: StatusCounts;
  /** Of each instruction. */
  readonly statuses: Uint8Array;
  /** The same by place, in order, without those that control does not come to. */
  stretches(): readonly Stretch[];
}

/** Instructions from one position up to another that have one {@link Status}. */
export interface Stretch {
  readonly start: number;
  readonly end: number;
  readonly status: number;
}

export interface ValidateResult {
  readonly file: string;
  readonly buildId: string | undefined;
  readonly sources: readonly SourceResult[];
  readonly findings: readonly Finding[];
  readonly suppressed: readonly SuppressedFinding[];
  readonly textBytes: number;
  /** The executable sections, or segments, of the file, in the order of their positions. */
  readonly regions: readonly CodeRegion[];
  /** Positions are called by section and offset, not by link address. */
  readonly isRelocatable: boolean;
  readonly instructions: number;
  /** How many indirect jumps' tables were followed, and how many indirect jumps have none that was found. */
  readonly jumpTables: Pick<JumpTables, 'followed' | 'notFollowed'>;
  readonly program: Program;
}

/** How far it is when tables are read, instructions decoded, and all that steers control is known; about. */
const [TABLES_READ, DECODED, FLOW_READ] = [0.15, 0.4, 0.5];

/** As `push`, for more than fit on the call stack as arguments. */
function append(to: Finding[], more: readonly Finding[]): void {
  for (const finding of more) to.push(finding);
}

/** Below the stack pointer, user code keeps what signals leave alone; the kernel has no such zone. */
function redZoneOf(source: ClaimSource, elf: ElfFile, architecture: Architecture): number {
  return source === 'orc' || elf.findSection('.modinfo') !== undefined ? 0 : architecture.redZoneBytes;
}

/**
 * Holds what a file's tables claim about its frames against its instructions. Throws a ParseError when the file can't be
 * read at all; what is malformed in a table is a finding.
 */
export function validateElf(elf: ElfFile, options: ValidateOptions): ValidateResult {
  const { architecture } = options;
  if (elf.machine !== architecture.elfMachine) {
    throw new ParseError(elf.source, 18, `made for machine ${elf.machine}, not for ${architecture.name}`, {
      remedy: `validate reads ${architecture.name} files`,
    });
  }
  if (elf.type === ET_CORE) {
    throw new ParseError(elf.source, 16, 'a core file: the memory of a process that ended, not its code', {
      remedy: 'give the program that it is of, or its libraries',
    });
  }
  const scratch = options.scratch ?? new Scratch();
  const space = CodeSpace.of(elf, scratch);
  const brief = mayBeBrief(options) ? validateBriefly(elf, space, { ...options, scratch }) : undefined;
  if (brief !== undefined) return resultOf(elf, space, architecture, brief);
  const findings: Finding[] = [];
  const tables = readTables(elf, space, options, findings);
  const { onProgress } = options;
  onProgress?.(TABLES_READ);
  const program = buildProgram(elf, space, {
    architecture,
    scratch,
    extraFunctions: functionsOf(tables, space, options),
  });
  onProgress?.(DECODED);
  const places = new Places(program, new SourceLines(elf, space, architecture, options.debugFile));
  const symbols = new Map(options.symbols?.map(({ name, address }) => [name, address]));
  const jumpTables = findJumpTables(elf, space, program, architecture);
  const landingPads = readLandingPads(elf, space, program, architecture);
  const kernelFlow = readKernelFlow(elf, space, (name) => symbols.get(name));
  const extraFlow: ExtraFlow = {
    ...kernelFlow,
    resumed: [...kernelFlow.resumed, ...findHalts(program, architecture)],
    edges: [...kernelFlow.edges, ...jumpTables.edges],
    possibleEdges: jumpTables.possibleEdges,
    landingPads,
  };
  for (const problem of landingPads.problems)
    findings.push(makeFinding('malformed-table', problem, { source: 'dwarf' }));
  const { hints, exempt } = readHints(elf, space);
  const noReturn = findNoReturnTargets(program, extraFlow.resumed, scratch);
  const assumptions = { architecture, program, places, jumpTables };
  if (tables.length > 0) append(findings, findUnboundedTables(assumptions));
  const proven: ProvenSource[] = [];
  const portion = (1 - FLOW_READ) / tables.length;
  for (const [index, { source, read }] of tables.entries()) {
    const done = FLOW_READ + portion * index;
    const registers = source === 'orc' ? [architecture.framePointer] : architecture.calleeSaved;
    const returns = new ReturnCheck(architecture, program, registers, noReturn);
    const jumps = new UnfollowedJumps(assumptions, architecture.calleeSaved);
    const result = proveFlow({
      architecture,
      name: source,
      scratch,
      program,
      claims: read.claims,
      onTransfer: (i, states, state) => {
        if (program.table.flows[i] !== FlowCode.indirectJump) returns.look(i, states, state);
        else jumps.look(i, (register) => states.register(state, register));
      },
      transferMask: ReturnCheck.transferMask | UnfollowedJumps.transferMask,
      ...(onProgress !== undefined && { onProgress: (fraction) => onProgress(done + portion * fraction) }),
      extraFlow,
      noReturn,
      redZoneBytes: redZoneOf(source, elf, architecture),
      hints,
    });
    for (const { text, position } of read.problems) {
      findings.push(
        makeFinding(
          position === undefined && text.includes('describes no code') ? 'orphan-entry' : 'malformed-table',
          text,
          {
            source,
            place: position === undefined ? undefined : places.at(position),
          },
        ),
      );
    }
    append(findings, contradictionsToFindings(result, source, program, places, architecture));
    append(
      findings,
      returns.findings(source, places, (i, register) => {
        const claim = read.claims.claims[result.claimIds[i] as number];
        if (claim === undefined || claim.isSignalFrame || claim.isOutermost) return false;
        return register === architecture.stackPointer || speaksOf(claim, register);
      }),
    );
    append(findings, findMissingRows(result, source, program, places));
    const { statuses, claimIds } = result;
    const claimOf = (i: number) => read.claims.claims[claimIds[i] as number];
    append(findings, jumps.findings(source, assumptions, claimOf, opensOnAssumed(program, statuses)));
    append(findings, findAssumedRows(assumptions, source, read.claims, claimIds, statuses));
    append(findings, findSplitInstructions(read, source, program, places, extraFlow));
    proven.push({ source, claims: read.claims, claimIds: result.claimIds, statuses: result.statuses });
  }
  const wantsFrames =
    options.sources?.includes('frame-pointer') === true ||
    options.agree?.some((pair) => pair.includes('frame-pointer')) === true;
  if (wantsFrames) {
    const redZoneBytes = redZoneOf('frame-pointer', elf, architecture);
    const result = checkFramePointers({
      architecture,
      program,
      extraFlow,
      noReturn,
      places,
      redZoneBytes,
      scratch,
    });
    if (options.sources?.includes('frame-pointer') === true) append(findings, result.findings);
    const claimIds = result.claims.claimOfEach(program.index, new Int32Array(program.table.count));
    const statuses =
      claimIds.length > 0
        ? Uint8Array.from(claimIds, (id) => (id > 0 ? Status.proven : Status.unclaimed))
        : new Uint8Array();
    proven.push({ source: 'frame-pointer', claims: result.claims, claimIds, statuses });
  }
  for (const { start, end } of program.undecoded) {
    if (program.functionAt(start) === undefined) continue;
    findings.push(
      makeFinding('undecodable-code', `${end - start} bytes are no instructions`, {
        place: places.at(start),
      }),
    );
  }
  for (const [a, b] of options.agree ?? []) {
    const [first, second] = [proven.find((p) => p.source === a), proven.find((p) => p.source === b)];
    if (first !== undefined && second !== undefined)
      append(findings, compareSources(program, architecture, places, first, second));
  }
  const { kept, suppressed } = sortOut(findings, exempt, options.suppressions ?? []);
  return {
    file: elf.source,
    buildId: elf.buildId,
    sources: proven.map(({ source, statuses }) => ({
      source,
      statuses,
      counts: countStatuses(statuses),
      stretches: () => stretchesOf(program, statuses),
    })),
    findings: kept,
    suppressed,
    textBytes: space.regions.reduce((sum, region) => sum + region.end - region.start, 0),
    regions: space.regions,
    isRelocatable: space.isRelocatable,
    instructions: program.table.count,
    jumpTables: { followed: jumpTables.followed, notFollowed: jumpTables.notFollowed },
    program,
  };
}

/** Where ORC is all that is asked for. */
function mayBeBrief({ tryBrief = true, sources, agree = [] }: ValidateOptions): boolean {
  return tryBrief && agree.length === 0 && (sources === undefined || sources.every((each) => each === 'orc'));
}

function stretchesOf({ table }: Program, statuses: Uint8Array): Stretch[] {
  const stretches: { start: number; end: number; status: number }[] = [];
  for (let i = 0; i < table.count; i++) {
    const status = statuses[i] as number;
    if (status === Status.unreached) continue;
    const start = table.offsets[i] as number;
    const end = start + (table.lengths[i] as number);
    const last = stretches[stretches.length - 1];
    if (last !== undefined && last.end === start && last.status === status) last.end = end;
    else stretches.push({ start, end, status });
  }
  return stretches;
}

function readTables(
  elf: ElfFile,
  space: CodeSpace,
  options: ValidateOptions,
  findings: Finding[],
): { source: ClaimSource; read: ReadClaims }[] {
  const { architecture, sources, agree = [], kernelRelease } = options;
  const wants = (source: ClaimSource) =>
    sources === undefined || sources.includes(source) || agree.some((pair) => pair.includes(source));
  const readers: [ClaimSource, () => ReadClaims | undefined][] = [
    ['dwarf', () => readDwarfClaims(elf, space, architecture, 'eh_frame')],
    ['debug-frame', () => readDwarfClaims(elf, space, architecture, 'debug_frame')],
    ['orc', () => readOrcClaims(elf, space, architecture, kernelRelease)],
  ];
  const tables: { source: ClaimSource; read: ReadClaims }[] = [];
  const missing = new Set<ClaimSource>();
  for (const [source, reader] of readers) {
    if (!wants(source)) continue;
    try {
      const read = reader();
      if (read !== undefined) tables.push({ source, read });
      else missing.add(source);
    } catch (error) {
      if (!(error instanceof ParseError)) throw error;
      const { message, remedy } = error;
      findings.push(
        makeFinding('malformed-table', message, { source, ...(remedy !== undefined && { remedy }) }),
      );
    }
  }
  if (space.regions.length > 0) append(findings, reportMissing(missing, options));
  return tables;
}

const TABLE_NAMES: Readonly<Record<ClaimSource, string>> = {
  dwarf: '.eh_frame',
  'debug-frame': '.debug_frame',
  orc: '.orc_unwind',
  'frame-pointer': '',
};

/** Tables that were asked for by name. Of the sections with DWARF, one will do where both are asked for. */
function reportMissing(
  missing: ReadonlySet<ClaimSource>,
  { sources = [], agree = [] }: ValidateOptions,
): Finding[] {
  const groups = [
    sources.filter((source) => source === 'dwarf' || source === 'debug-frame'),
    sources.filter((source) => source === 'orc'),
    ...agree.flat().map((source) => [source]),
  ];
  const texts = new Map<string, ClaimSource>();
  for (const group of groups) {
    const [first] = group;
    if (first !== undefined && group.every((source) => missing.has(source)))
      texts.set(`the file has no ${group.map((source) => TABLE_NAMES[source]).join(' and no ')}`, first);
  }
  return [...texts].map(([text, source]) => makeFinding('missing-table', text, { source }));
}

/** Functions that only tables or a symbol list of its own know. */
function functionsOf(
  tables: readonly { read: ReadClaims }[],
  space: CodeSpace,
  options: ValidateOptions,
): CodeFunction[] {
  const functions: CodeFunction[] = [];
  for (const { name, address } of options.symbols ?? []) {
    const start = space.positionOf(address);
    if (start === undefined) continue;
    // Among symbols that may be labels, one inside of a frame is.
    const isInside = tables.some(({ read }) => isInsideFrame(read, start, options.architecture.stackPointer));
    functions.push({ name, start, end: start, isPart: isInside || PART_NAME.test(name), mayBeLabel: true });
  }
  const { stackPointer } = options.architecture;
  for (const { read } of tables) {
    for (const unit of read.claims.units) {
      const { end } = unit;
      const start = isEarly(read, unit.start, space) ? unit.start + 1 : unit.start;
      // A unit that begins with a frame is a part of another function.
      const isPart = isInsideFrame(read, start, stackPointer) || read.claims.findAt(start) === undefined;
      functions.push({ name: undefined, start, end, isPart });
    }
  }
  return functions;
}

/** Code that signals return to is aligned; an entry for it may begin a byte before. */
const SIGNAL_CODE_ALIGNMENT = 16;

/**
 * Unwinders look up the address before the one that a frame returns to. glibc has the entry of its `__restore_rt` begin in the padding before
 * it, for those that know no signal frames.
 */
function isEarly(read: ReadClaims, position: number, space: CodeSpace): boolean {
  return (
    read.claims.findAt(position)?.isSignalFrame === true &&
    (space.addressOf(position) + 1) % SIGNAL_CODE_ALIGNMENT === 0
  );
}

function isInsideFrame(read: ReadClaims, position: number, stackPointer: number): boolean {
  const claim = read.claims.findAt(position);
  return claim !== undefined && (claim.cfaRegister !== stackPointer || claim.cfaOffset !== 8);
}

function countStatuses(statuses: Uint8Array): StatusCounts {
  const counts = new Uint32Array(6);
  // Nearly all are proven: four at a time.
  const words = statuses.byteOffset % 4 === 0 ? statuses.length >>> 2 : 0;
  const four = new Uint32Array(statuses.buffer, words === 0 ? 0 : statuses.byteOffset, words);
  let allProven = 0;
  for (let word = 0; word < words; word++) {
    if (four[word] === FOUR_PROVEN) allProven++;
    else for (let i = 4 * word; i < 4 * word + 4; i++) count(counts, statuses[i] as number);
  }
  for (let i = 4 * words; i < statuses.length; i++) count(counts, statuses[i] as number);
  const of = (status: number) => counts[status] as number;
  return {
    proven: of(Status.proven) + 4 * allProven,
    assumed: of(Status.assumed),
    unknown: of(Status.unknown),
    disproved: of(Status.disproved),
    unclaimed: of(Status.unclaimed),
    unreached: of(Status.unreached),
  };
}

const FOUR_PROVEN = Status.proven * 0x0101_0101;

function count(counts: Uint32Array, status: number): void {
  counts[status] = (counts[status] as number) + 1;
}

/** The first instruction of each function, or stretch between functions, that control reaches without a row. */
function findMissingRows(
  result: FlowProofResult,
  source: ClaimSource,
  program: Program,
  places: Places,
): Finding[] {
  const findings: Finding[] = [];
  let lastOwner: number | undefined;
  const next = (from: number) => result.statuses.indexOf(Status.unclaimed, from);
  for (let i = next(0); i >= 0; i = next(i + 1)) {
    const position = program.table.offsets[i] as number;
    const f = program.functionAt(position);
    const owner = f?.start ?? -1;
    if (owner === lastOwner) continue;
    lastOwner = owner;
    findings.push(
      makeFinding('missing-row', 'control reaches code that no row covers', {
        source,
        place: places.at(position),
      }),
    );
  }
  return findings;
}

/** Rows that begin in the middle of an instruction. */
function findSplitInstructions(
  read: ReadClaims,
  source: ClaimSource,
  program: Program,
  places: Places,
  extraFlow: ExtraFlow,
): Finding[] {
  // There they describe the code that takes the place of this one.
  const inAlternative = coverOf(
    extraFlow.alternatives.map(({ original, originalBytes }) => ({
      start: original,
      end: original + originalBytes,
    })),
  );
  const { starts, ids } = read.claims;
  const { offsets, lengths } = program.table;
  const findings: Finding[] = [];
  for (let row = 0; row < starts.length; row++) {
    const start = starts[row] as number;
    // What goes on to say the same begins nowhere.
    if (ids[row] === 0 || ids[row] === ids[row - 1] || program.index.find(start) >= 0) continue;
    const i = program.index.rank(start) - 1;
    if (i < 0 || (offsets[i] as number) + (lengths[i] as number) <= start || inAlternative(start)) continue;
    if (isInert(program.table, i) && isEarly(read, start, program.space)) continue;
    findings.push(
      makeFinding(
        'row-inside-instruction',
        `a row begins ${start - (offsets[i] as number)} bytes into this instruction`,
        {
          source,
          place: places.at(offsets[i] as number),
        },
      ),
    );
  }
  return findings;
}
