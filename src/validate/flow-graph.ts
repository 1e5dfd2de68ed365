import { FlowCode, TOUCHES_ALL } from '../arch/instruction-table.js';
import { sortedOrder } from '../base/sorted-order.js';
import type { ExtraFlow } from './kernel-sections.js';
import type { CallsThatEnd } from './no-return.js';
import { lowerBound } from './position-index.js';
import type { Program } from './program.js';
import type { Scratch } from './scratch.js';

/** What a walk must look at, so that all other instructions cost it one read. */
export const Mark = {
  /** More than one way leads here. */
  join: 1,
  /** Control goes on elsewhere too. */
  edges: 2,
  /** Behind this instruction, control goes on elsewhere instead. */
  continuation: 4,
  /** An exception out of this call is caught. */
  landing: 8,
  /** Nothing follows, or not at once. */
  last: 16,
  /** A call, or a system call, that never returns. */
  noReturn: 32,
  /** A jump that may lead to another function. */
  wayOut: 64,
} as const;

/** More than an instruction has. */
const LONGEST_BYTES = 16;

/** Edges between instructions, by index: looked up by where they begin, in the order in which they were given. */
class EdgeList {
  readonly sources: Int32Array;
  readonly targets: Int32Array;

  /** Source and target of each, one pair behind the other. */
  constructor(pairs: readonly number[]) {
    const count = pairs.length >>> 1;
    const keys = new Float64Array(count);
    for (let edge = 0; edge < count; edge++) keys[edge] = pairs[2 * edge] as number;
    const order = sortedOrder(keys);
    this.sources = new Int32Array(count);
    this.targets = new Int32Array(count);
    for (let to = 0; to < count; to++) {
      const edge = order[to] as number;
      this.sources[to] = pairs[2 * edge] as number;
      this.targets[to] = pairs[2 * edge + 1] as number;
    }
  }

  /** Where the edges of a source begin, which lie one behind the other. */
  first(source: number): number {
    return lowerBound(this.sources, this.sources.length, source);
  }
}

export interface FlowGraphOptions {
  readonly program: Program;
  readonly scratch: Scratch;
  readonly extraFlow: ExtraFlow;
  readonly noReturn: CallsThatEnd;
  /** Without the edges that may be none. */
  readonly isIndependent?: boolean;
}

/** Where control goes that is more than to the next instruction, for a walk over instructions by index. */
export class FlowGraph {
  /** {@link Mark} bits of each instruction. */
  readonly marks: Uint8Array;
  readonly edges: EdgeList;
  /** Those that may be none. */
  readonly possibleEdges: EdgeList;
  /** By index of the instruction behind which it goes on elsewhere. */
  readonly continuations = new Map<number, number>();
  readonly #program: Program;

  constructor({ program, scratch, extraFlow, noReturn, isIndependent }: FlowGraphOptions) {
    const { index, table } = program;
    this.#program = program;
    this.marks = scratch.uint8('marks', table.count);
    markTransfers(program, noReturn, this.marks);
    for (const i of noReturn.lastCalls) this.mark(i, Mark.noReturn);
    const edges: number[] = [];
    for (const { from, to } of extraFlow.edges) this.#addEdge(index.find(from), index.find(to), edges);
    for (const position of extraFlow.resumed) {
      const i = index.find(position);
      if (i + 1 < table.count) this.#addEdge(i, i + 1, edges);
    }
    this.edges = new EdgeList(edges);
    const possibleEdges: number[] = [];
    for (const { from, to } of isIndependent === true ? [] : (extraFlow.possibleEdges ?? []))
      this.#addEdge(index.find(from), index.find(to), possibleEdges);
    this.possibleEdges = new EdgeList(possibleEdges);
    for (const [call, pad] of extraFlow.landingPads?.byCall ?? []) {
      this.mark(call, Mark.landing);
      this.mark(pad, Mark.join);
    }
    for (const [end, to] of extraFlow.continuations) {
      const target = index.find(to);
      if (target < 0) continue;
      this.mark(target, Mark.join);
      const last = this.#indexOfEnd(end);
      if (last < 0) continue;
      this.mark(last, Mark.continuation);
      this.continuations.set(last, target);
    }
  }

  mark(i: number, bit: number): void {
    this.marks[i] = (this.marks[i] as number) | bit;
    this.#program.table.touches[i] = TOUCHES_ALL;
  }

  #addEdge(source: number, target: number, edges: number[]): void {
    if (source < 0 || target < 0) return;
    this.mark(target, Mark.join);
    this.mark(source, Mark.edges);
    edges.push(source, target);
  }

  /** The instruction that ends at a position, -1 when none does. */
  #indexOfEnd(end: number): number {
    const { index, table } = this.#program;
    for (let position = end - 1; position >= end - LONGEST_BYTES; position--) {
      const i = index.find(position);
      if (i >= 0) return position + (table.lengths[i] as number) === end ? i : -1;
    }
    return -1;
  }
}

/**
 * What the program itself makes a walk look at. A loop of its own, as are others: compiled while it runs, it takes nothing along
 * that has not run yet.
 */
function markTransfers(program: Program, noReturn: CallsThatEnd, marks: Uint8Array): void {
  const { table, targetIndexes, isEntry, linkageNames } = program;
  const { transfers, transferCount, touches, flows, targets, lasts } = table;
  for (let t = 0; t < transferCount; t++) {
    const i = transfers[t] as number;
    const target = targetIndexes[i] as number;
    const flow = flows[i] as number;
    if (flow === FlowCode.call) {
      if (noReturn.isCalledAt(i)) marks[i] = (marks[i] as number) | Mark.noReturn;
    } else if (flow === FlowCode.jump || flow === FlowCode.branch) {
      const isOut =
        target < 0 ||
        isEntry[target] !== 0 ||
        (linkageNames.size > 0 && linkageNames.has(targets[i] as number));
      if (isOut) marks[i] = (marks[i] as number) | Mark.wayOut;
    }
    if (target < 0) continue;
    marks[target] = (marks[target] as number) | Mark.join;
    touches[target] = TOUCHES_ALL;
  }
  for (const i of lasts) marks[i] = (marks[i] as number) | Mark.last;
}
