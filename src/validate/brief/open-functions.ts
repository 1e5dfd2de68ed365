import type { Architecture } from '../../arch/architecture.js';
import { FlowCode, NO_TARGET } from '../../arch/instruction-table.js';
import type { SkimTable } from '../../arch/skim-table.js';
import type { ElfFile } from '../../elf/elf-file.js';
import { UnfollowedJumps } from '../assumptions.js';
import { Status } from '../claim-verdicts.js';
import { ClaimTable } from '../claims.js';
import type { CodeSpace } from '../code-space.js';
import { proveFlow } from '../flow-proof.js';
import type { ExtraFlow } from '../kernel-sections.js';
import { lowerBound, PositionIndex } from '../position-index.js';
import { type CodeFunction, markLast, type Program } from '../program.js';
import { ReturnCheck } from '../return-check.js';
import type { Scratch } from '../scratch.js';
import type { BriefNoReturn } from './brief-no-return.js';
import type { Leaders } from './leaders.js';
import { BriefFlow, flowOf } from './module-code.js';
import type { ModuleFunctions } from './module-symbols.js';
import type { OrcPatterns, OrcRows } from './orc-rows.js';

/** Positions `[start, end)`. */
export interface CodeRange {
  readonly start: number;
  readonly end: number;
}

export interface OpenFunctionsOptions {
  readonly elf: ElfFile;
  readonly space: CodeSpace;
  readonly architecture: Architecture;
  readonly scratch: Scratch;
  readonly skim: SkimTable;
  readonly leaders: Leaders;
  readonly links: Int32Array;
  readonly functions: ModuleFunctions;
  readonly extraFlow: ExtraFlow;
  readonly noReturn: BriefNoReturn;
  /** As the table has them. */
  readonly rows: OrcRows;
  readonly patterns: OrcPatterns;
}

/**
 * Proves functions with all registers, that can't be proven by stack pointer and frame pointer alone: those that align their stack, or keep the stack
 * pointer elsewhere. Returns the code that was looked at, with what control leads to from there, and the stretches of it that control does not come
 * to; undefined unless every row is proven.
 */
export function proveOpenFunctions(
  open: readonly number[],
  options: OpenFunctionsOptions,
): { readonly ranges: readonly CodeRange[]; readonly gaps: readonly number[] } | undefined {
  const { architecture, scratch, extraFlow, noReturn, rows, patterns } = options;
  const ranges = findRanges(open, options);
  const program = ranges && makeProgram(ranges, options);
  if (ranges === undefined || program === undefined) return undefined;
  const { table, functionStarts, targetIndexes } = program;
  const isInside = (position: number) => program.index.find(position) >= 0;
  const flowInside: ExtraFlow = {
    edges: extraFlow.edges.filter(({ from }) => isInside(from)),
    continuations: new Map([...extraFlow.continuations].filter(([, to]) => isInside(to))),
    alternatives: extraFlow.alternatives.filter(({ replacement }) => isInside(replacement)),
    resumed: extraFlow.resumed.filter(isInside),
  };
  const toLink = (target: number) => (target >= 0 ? options.leaders.find(target) : target);
  const has = (target: number) => noReturn.has(toLink(target));
  const noReturnTargets = {
    has: (target: number) => (target < 0 || functionStarts.has(target)) && has(target),
    isCalledAt: (i: number) => has(table.targets[i] as number),
    lastCalls: new Set<number>(),
  };
  const returns = new ReturnCheck(architecture, program, [architecture.framePointer], noReturnTargets);
  const unfollowed = new Map<number, string>();
  for (let i = 0; i < table.count; i++) if (table.flows[i] === FlowCode.indirectJump) unfollowed.set(i, '');
  const jumps = new UnfollowedJumps({ architecture, jumpTables: { unfollowed } }, architecture.calleeSaved);
  const claims = claimsIn(ranges, rows, patterns);
  const { contradictions, hasUnknown, statuses } = proveFlow({
    architecture,
    name: 'open functions',
    scratch,
    program,
    claims,
    onTransfer: (i, states, state) => {
      if (table.flows[i] !== FlowCode.indirectJump) returns.look(i, states, state);
      else jumps.look(i, (register) => states.register(state, register));
    },
    transferMask: ReturnCheck.transferMask | UnfollowedJumps.transferMask,
    extraFlow: flowInside,
    noReturn: noReturnTargets,
    redZoneBytes: 0,
  });
  if (contradictions.length > 0 || hasUnknown || returns.hasFound || jumps.hasFound) return undefined;
  const gaps: number[] = [];
  const lasts = new Set(table.lasts);
  const resumed = new Set(flowInside.resumed);
  const endOf = (i: number) => (table.offsets[i] as number) + (table.lengths[i] as number);
  const continues = (i: number) => flowInside.continuations.has(endOf(i));
  for (let i = 0; i < table.count; i++) {
    const status = statuses[i] as number;
    if (status === Status.proven) {
      // What goes on outside of what was looked at was not followed.
      const isJump = table.flows[i] === FlowCode.jump || table.flows[i] === FlowCode.branch;
      const target = table.targets[i] as number;
      if (isJump && (targetIndexes[i] as number) < 0 && target >= 0 && !functionStarts.has(target))
        return undefined;
      if (!lasts.has(i) || continues(i)) continue;
      const isResumed = resumed.has(table.offsets[i] as number);
      if (isResumed || goesOn(table.flows[i] as number, noReturnTargets.isCalledAt(i))) return undefined;
      continue;
    }
    if (status !== Status.unreached) return undefined;
    const [start, end] = [table.offsets[i] as number, endOf(i)];
    if (gaps.length > 0 && gaps[gaps.length - 1] === start) gaps[gaps.length - 1] = end;
    else gaps.push(start, end);
  }
  return { ranges, gaps };
}

/** Whether control comes to what lies behind an instruction, in a range or not. */
function goesOn(flow: number, isNoReturnCall: boolean): boolean {
  switch (flow) {
    case FlowCode.next:
    case FlowCode.branch:
    case FlowCode.indirectCall:
    case FlowCode.systemCall:
    case FlowCode.breakpoint:
      return true;
    case FlowCode.call:
      return !isNoReturnCall;
    default:
      return false;
  }
}

/** The functions, the parts of them that were split off, and the code that takes the place of theirs. Undefined for what is in no function. */
function findRanges(
  open: readonly number[],
  options: OpenFunctionsOptions,
): readonly CodeRange[] | undefined {
  const { skim, leaders, links, functions, extraFlow } = options;
  const replacements = new Set(extraFlow.alternatives.map(({ replacement }) => replacement));
  const found = new Map<number, CodeRange>();
  const work: CodeRange[] = [];
  const add = (start: number, end: number) => {
    if (found.has(start)) return;
    const range = { start, end };
    found.set(start, range);
    work.push(range);
  };
  const addFunctionAt = (position: number): boolean => {
    const f = lowerBound(functions.starts, functions.count, position + 1) - 1;
    if (f < 0 || position >= (functions.ends[f] as number)) return false;
    add(functions.starts[f] as number, functions.ends[f] as number);
    return true;
  };
  for (const f of open) add(functions.starts[f] as number, functions.ends[f] as number);
  for (let range = work.pop(); range !== undefined; range = work.pop()) {
    const { start, end } = range;
    const isOutside = (position: number) => position < start || position >= end;
    const first = lowerBound(skim.positions, skim.count, start);
    for (let entry = first; (skim.positions[entry] as number) < end; entry++) {
      const flow = flowOf(skim.flows, entry);
      if (flow !== FlowCode.jump && flow !== FlowCode.branch) continue;
      const link = links[entry] as number;
      const target = link >= 0 ? (leaders.positions[link] as number) : start;
      if (isOutside(target) && !addFunctionAt(target)) return undefined;
    }
    for (const { original, replacement, replacementBytes } of extraFlow.alternatives)
      if (!isOutside(original)) add(replacement, replacement + replacementBytes);
    for (const { from, to } of extraFlow.edges) {
      if (isOutside(from) || !isOutside(to)) continue;
      if (!replacements.has(to) && !addFunctionAt(to)) return undefined;
    }
  }
  return [...found.values()].sort((a, b) => a.start - b.start);
}

/** The rows that hold in some ranges. */
function claimsIn(ranges: readonly CodeRange[], rows: OrcRows, patterns: OrcPatterns): ClaimTable {
  const starts: number[] = [];
  const ids: number[] = [];
  for (const { start, end } of ranges) {
    let row = Math.max(0, lowerBound(rows.positions, rows.count, start + 1) - 1);
    for (let at = start; at < end; at = row < rows.count ? (rows.positions[row] as number) : end) {
      starts.push(at);
      ids.push(rows.patterns[row++] as number);
    }
    starts.push(end);
    ids.push(0);
  }
  return new ClaimTable('orc', Int32Array.from(starts), Int32Array.from(ids), patterns.claims, []);
}

/** The instructions of some ranges, with the targets and flows that the skim has. */
function makeProgram(ranges: readonly CodeRange[], options: OpenFunctionsOptions): Program | undefined {
  const { elf, space, architecture, scratch, skim, functions } = options;
  const { table } = scratch;
  table.clear();
  let last = 0;
  for (const { start, end } of ranges) {
    if (start < last || architecture.sweeper.sweep(space.bytes, start, end, table) !== end) return undefined;
    last = end;
    markLast(table);
  }
  let entry = 0;
  for (let t = 0; t < table.transferCount; t++) {
    const i = table.transfers[t] as number;
    const position = table.offsets[i] as number;
    while ((skim.positions[entry] as number) < position) entry++;
    if (skim.positions[entry] !== position) return undefined;
    const flow = flowOf(skim.flows, entry);
    table.flows[i] = flow === BriefFlow.noReturnCall ? FlowCode.call : flow;
    if (table.targets[i] !== NO_TARGET) table.targets[i] = skim.values[entry] as number;
  }
  const index = new PositionIndex(table, space.bytes.length, scratch);
  const targetIndexes = scratch.int32('target indexes', table.count, -1);
  for (let t = 0; t < table.transferCount; t++) {
    const i = table.transfers[t] as number;
    targetIndexes[i] = index.find(table.targets[i] as number);
  }
  const isEntry = scratch.uint8('entries', table.count);
  const own: CodeFunction[] = [];
  for (const range of ranges) {
    for (let f = lowerBound(functions.starts, functions.count, range.start); f < functions.count; f++) {
      const start = functions.starts[f] as number;
      if (start >= range.end) break;
      const isPart = functions.areParts[f] === 1;
      const first = index.find(start);
      if (first >= 0 && !isPart) isEntry[first] = 1;
      own.push({ name: '', start, end: functions.ends[f] as number, isPart });
    }
  }
  return {
    space,
    table,
    index,
    targetIndexes,
    functions: own,
    functionStarts: {
      has: (position) => {
        const f = lowerBound(functions.starts, functions.count, position);
        return f < functions.count && functions.starts[f] === position && functions.areParts[f] === 0;
      },
    },
    isEntry,
    undecoded: [],
    elf,
    linkageNames: new Map(),
    slotNames: new Map(),
    nameOfTarget: () => undefined,
    functionAt: (position) => own.find(({ start, end }) => position >= start && position < end),
  };
}
