import type { Architecture } from '../arch/architecture.js';
import { FlowCode, NO_EFFECT } from '../arch/instruction-table.js';
import { Status } from './claim-verdicts.js';
import { ClaimBuilder, type ClaimTable } from './claims.js';
import type { Finding, FindingCode } from './findings.js';
import { makeFinding } from './findings.js';
import { proveFlow } from './flow-proof.js';
import type { ExtraFlow } from './kernel-sections.js';
import type { CallsThatEnd } from './no-return.js';
import type { Places } from './places.js';
import type { Program } from './program.js';
import type { Scratch } from './scratch.js';
import type { StateId, StateSpace } from './state-space.js';
import { cfaValue, describeValue, entryValue } from './values.js';

export interface FramePointerOptions {
  readonly architecture: Architecture;
  readonly program: Program;
  readonly extraFlow: ExtraFlow;
  readonly noReturn: CallsThatEnd;
  readonly places: Places;
  readonly scratch: Scratch;
  readonly redZoneBytes: number;
}

export interface FramePointerResult {
  readonly findings: readonly Finding[];
  /** Where the frame pointer holds a frame: CFA = frame pointer + 16. */
  readonly claims: ClaimTable;
  readonly statuses: Uint8Array;
}

/**
 * The rules of code whose stacks are walked by frame pointers (tools/objtool/Documentation/objtool.txt, "stack metadata
 * validation"): a function that calls has set up its frame before, and leaves with stack and frame pointer as they were.
 */
export function checkFramePointers(options: FramePointerOptions): FramePointerResult {
  const { architecture, program, extraFlow, noReturn, places, redZoneBytes } = options;
  const { table, functionStarts, targetIndexes } = program;
  const { framePointer, stackPointer, idioms } = architecture;
  const found = new Map<string, Finding>();
  const report = (code: FindingCode, i: number, message: string, derived?: string) => {
    const position = table.offsets[i] as number;
    const key = `${code},${i}`;
    if (!found.has(key))
      found.set(
        key,
        makeFinding(code, message, { source: 'frame-pointer', place: places.at(position), derived }),
      );
  };
  const name = (register: number) => idioms.registerName(register);
  const hasFrame = (states: StateSpace, state: StateId) =>
    states.register(state, framePointer) === cfaValue(-16) &&
    states.slot(state, cfaValue(-16)) === entryValue(framePointer);
  const framed = new Uint8Array(table.count);
  const unmarked = new Set<number>();

  const onLeave = (i: number, states: StateSpace, state: StateId, how: string) => {
    const sp = states.register(state, stackPointer);
    const fp = states.register(state, framePointer);
    if (sp !== cfaValue(-8)) {
      const value = describeValue(sp, name);
      report('stack-not-restored', i, `${name(stackPointer)} is ${value} at this ${how}, not CFA-8`, value);
    } else if (fp !== entryValue(framePointer)) {
      const value = describeValue(fp, name);
      report('frame-pointer-not-restored', i, `${name(framePointer)} is ${value} at this ${how}`, value);
    }
  };

  const { statuses } = proveFlow({
    architecture,
    name: 'frame-pointer',
    scratch: options.scratch,
    program,
    claims: new ClaimBuilder([framePointer], architecture.returnAddress).build('frame-pointer', []),
    extraFlow,
    noReturn,
    redZoneBytes,
    isIndependent: true,
    transferMask: ~(1 << FlowCode.next),
    onTransfer(i, states, state) {
      const target = table.targets[i] as number;
      switch (table.flows[i]) {
        case FlowCode.call:
        case FlowCode.indirectCall:
          if (hasFrame(states, state)) framed[i] = 1;
          // The tracing call comes before the frame on purpose: the tracer makes one (-mfentry).
          else if (!isTracingCall(program.nameOfTarget(target))) {
            report(
              'call-without-frame-pointer',
              i,
              'a call without a frame set up before it',
              describeValue(states.register(state, framePointer), name),
            );
          }
          if (
            table.flows[i] === FlowCode.call &&
            target >= 0 &&
            !functionStarts.has(target) &&
            !unmarked.has(target) &&
            !program.linkageNames.has(target)
          ) {
            unmarked.add(target);
            report(
              'call-to-unmarked-code',
              i,
              `calls ${places.describe(target)}, which is marked as no function`,
            );
          }
          break;
        case FlowCode.return:
          onLeave(i, states, state, 'return');
          break;
        case FlowCode.indirectJump:
          break;
        case FlowCode.jump: {
          const index = targetIndexes[i] as number;
          const own = program.functionAt(table.offsets[i] as number);
          const isSibling = index < 0 || (functionStarts.has(target) && own?.start !== target);
          if (isSibling) onLeave(i, states, state, 'sibling call');
          break;
        }
        default:
          break;
      }
    },
  });
  const findings = [
    ...found.values(),
    ...findFallThroughs(options, statuses),
    ...findUnreachable(options, statuses),
  ];
  return { findings, claims: framedClaims(architecture, program, framed), statuses };
}

function isTracingCall(name: string | undefined): boolean {
  return name === '__fentry__' || name === 'mcount';
}

/** Reached instructions at the end of a function from which control runs into the next. */
function findFallThroughs(options: FramePointerOptions, statuses: Uint8Array): Finding[] {
  const { program, noReturn, places } = options;
  const { table, functionStarts } = program;
  const findings: Finding[] = [];
  for (let i = 0; i + 1 < table.count; i++) {
    const next = table.offsets[i + 1] as number;
    if (!functionStarts.has(next) || statuses[i] === Status.unreached) continue;
    const end = (table.offsets[i] as number) + (table.lengths[i] as number);
    const flow = table.flows[i] as number;
    const ends =
      flow === FlowCode.jump ||
      flow >= FlowCode.return ||
      flow === FlowCode.indirectJump ||
      (flow === FlowCode.call && noReturn.isCalledAt(i));
    if (ends || end !== next) continue;
    const from = program.functionAt(table.offsets[i] as number);
    if (from === undefined || from.isPart || end > from.end) continue;
    findings.push(
      makeFinding('falls-through', `control runs on into ${places.describe(next)}`, {
        source: 'frame-pointer',
        place: places.at(table.offsets[i] as number),
      }),
    );
  }
  return findings;
}

/** The first instruction of each stretch inside a function that nothing leads to; padding does not count. */
function findUnreachable(options: FramePointerOptions, statuses: Uint8Array): Finding[] {
  const { program, places } = options;
  const { table } = program;
  const findings: Finding[] = [];
  for (const f of program.functions) {
    if (f.isPart || f.name === undefined) continue;
    let i = program.index.find(f.start);
    if (i < 0 || statuses[i] === Status.unreached) continue;
    for (; i < table.count && (table.offsets[i] as number) < f.end; i++) {
      if (statuses[i] !== Status.unreached || isHarmless(program, i)) continue;
      // Where a jump leads through a table that we can't read, unreached code is no surprise.
      if (hasIndirectJump(program, f.start, f.end)) break;
      findings.push(
        makeFinding('unreachable-code', 'nothing leads to this instruction', {
          source: 'frame-pointer',
          place: places.at(table.offsets[i] as number),
        }),
      );
      break;
    }
  }
  return findings;
}

function isHarmless(program: Program, i: number): boolean {
  const { table } = program;
  const flow = table.flows[i] as number;
  return (
    flow === FlowCode.deadEnd ||
    flow === FlowCode.breakpoint ||
    (flow === FlowCode.next && table.effects[i] === NO_EFFECT)
  );
}

function hasIndirectJump(program: Program, start: number, end: number): boolean {
  const { table } = program;
  for (let i = program.index.find(start); i >= 0 && i < table.count; i++) {
    if ((table.offsets[i] as number) >= end) return false;
    if (table.flows[i] === FlowCode.indirectJump) return true;
  }
  return false;
}

/** What a walk by frame pointers assumes at the calls where the frame was proven. */
function framedClaims(architecture: Architecture, program: Program, framed: Uint8Array): ClaimTable {
  const { framePointer, returnAddress } = architecture;
  const builder = new ClaimBuilder([framePointer], returnAddress);
  const id = builder.intern({
    cfa: { kind: 'register', register: framePointer, offset: 16 },
    registers: new Map([
      [framePointer, { kind: 'offset', offset: -16 }],
      [returnAddress, { kind: 'offset', offset: -8 }],
    ]),
    signalFrame: false,
  });
  const { table } = program;
  for (let i = 0; i < table.count; i++) {
    const offset = table.offsets[i] as number;
    if (framed[i] === 1) builder.addRow(offset, offset + (table.lengths[i] as number), id);
  }
  return builder.build('frame-pointer', []);
}
