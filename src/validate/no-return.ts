import { FlowCode, isInert, NO_TARGET, TOUCHES_ALL } from '../arch/instruction-table.js';
import { isInnerCall } from './inner-call.js';
import { isNoReturnName } from './no-return-names.js';
import type { Program } from './program.js';
import type { Scratch } from './scratch.js';

/** What a walk asks of {@link NoReturnTargets}. */
export interface CallsThatEnd {
  /** Whether a call target (a position, or an external target) never returns. */
  has(target: number): boolean;
  /** Whether what instruction `i` calls is one. */
  isCalledAt(i: number): boolean;
  /** Calls of nobody knows what, and system calls, behind which their function ends: control does not come back there. */
  readonly lastCalls: ReadonlySet<number>;
}

/** Call targets (positions, or external targets) that never return. */
export class NoReturnTargets implements CallsThatEnd {
  readonly #program: Program;
  readonly #targets = new Set<number>();
  /** 1 for those that are known by their first instruction, or their symbol, as nearly all are. */
  readonly #byIndex: Uint8Array;
  readonly #bySymbol: Uint8Array;
  readonly lastCalls = new Set<number>();

  constructor(program: Program, scratch: Scratch) {
    this.#program = program;
    this.#byIndex = scratch.uint8('no return by index', program.table.count);
    this.#bySymbol = scratch.uint8('no return by symbol', program.elf.symbols.length);
  }

  add(target: number): void {
    this.#targets.add(target);
    if (target <= -2) this.#bySymbol[-2 - target] = 1;
    const first = this.#program.index.find(target);
    if (first >= 0) this.#byIndex[first] = 1;
  }

  has(target: number): boolean {
    return this.#targets.has(target);
  }

  /** Whether what instruction `i` calls is one. */
  isCalledAt(i: number): boolean {
    const { table, targetIndexes } = this.#program;
    const first = targetIndexes[i] as number;
    if (first >= 0) return this.#byIndex[first] === 1;
    const target = table.targets[i] as number;
    const flag = this.#bySymbol[-2 - target];
    return flag === undefined ? target !== NO_TARGET && this.#targets.has(target) : flag === 1;
  }
}

/**
 * Finds them by name; by evidence, when a function's code ends in
 * a call, or a call is followed by nothing but padding; and by content: no way through the function leads to a return or
 * out of it. `resumed`: positions of instructions that control may go on behind although they don't look so.
 */
export function findNoReturnTargets(
  program: Program,
  resumed: readonly number[],
  scratch: Scratch,
): NoReturnTargets {
  const found = new NoReturnTargets(program, scratch);
  findByName(program, found);
  findByEnd(program, found);
  new ContentSearch(program, resumed, found, scratch).run();
  return found;
}

function findByName({ elf, slotNames, linkageNames, functions }: Program, found: NoReturnTargets): void {
  for (const symbol of elf.symbols) {
    if (symbol.sectionIndex === 0 && symbol.index > 0 && isNoReturnName(symbol.name))
      found.add(-2 - symbol.index);
  }
  for (const [target, name] of slotNames) if (isNoReturnName(name)) found.add(target);
  for (const [position, name] of linkageNames) if (isNoReturnName(name)) found.add(position);
  for (const { name, start } of functions) if (name !== undefined && isNoReturnName(name)) found.add(start);
}

/**
 * What functions call last, with nothing behind the call but padding. Where nothing tells what that is (a function pointer, a weak symbol
 * that is not there), the call itself is kept. So are system calls, `rt_sigreturn` and `exit`, that padding parts from the next function.
 */
function findByEnd({ functions, index, table, isEntry }: Program, found: NoReturnTargets): void {
  const { flows, targets, offsets, lengths, touches } = table;
  for (const { end, start } of functions) {
    let last = index.rank(end) - 1;
    if (last < 0 || (offsets[last] as number) + (lengths[last] as number) > end) continue;
    // Padding may follow.
    while (last >= 0 && (offsets[last] as number) >= start && isInert(table, last)) last--;
    if (last < 0 || (offsets[last] as number) < start) continue;
    const flow = flows[last];
    const target = targets[last] as number;
    if (flow === FlowCode.call && target !== NO_TARGET) found.add(target);
    else if (
      flow === FlowCode.call ||
      flow === FlowCode.indirectCall ||
      (flow === FlowCode.systemCall && isEntry[last + 1] !== 1)
    ) {
      found.lastCalls.add(last);
      touches[last] = TOUCHES_ALL;
    }
  }
}

const MAX_STEPS = 4000;
const MAX_ROUNDS = 8;

/** By content, until nothing changes: a function that only calls such functions is one too. */
class ContentSearch {
  readonly #program: Program;
  readonly #found: NoReturnTargets;
  readonly #seen: Int32Array;
  readonly #goesOn: Uint8Array;
  readonly #work: number[] = [];
  #stamp = 0;
  /** The calls and jumps that a function was found to return behind, since what they lead to may return; one function's behind the other's. */
  #trusted = new Int32Array(1 << 12);
  #trustedCount = 0;

  constructor(program: Program, resumed: readonly number[], found: NoReturnTargets, scratch: Scratch) {
    const { table, index } = program;
    this.#program = program;
    this.#found = found;
    this.#seen = scratch.int32('no return seen', table.count, 0);
    this.#goesOn = scratch.uint8('goes on', table.count);
    for (const position of resumed) {
      const i = index.find(position);
      if (i >= 0) this.#goesOn[i] = 1;
    }
  }

  run(): void {
    const { functions, index } = this.#program;
    const found = this.#found;
    const starts: number[] = [];
    for (const { start, isPart } of functions) if (!isPart && !found.has(start)) starts.push(start);
    const trustedFrom = new Int32Array(starts.length);
    const trustedTo = new Int32Array(starts.length);
    let last: ReadonlySet<number> = new Set();
    for (let round = 0; round < MAX_ROUNDS && (round === 0 || last.size > 0); round++) {
      const news = new Set<number>();
      for (let f = 0; f < starts.length; f++) {
        const start = starts[f] as number;
        if (found.has(start)) continue;
        // What a function was found to return by still holds unless it went through what was found since.
        const [from, to] = [trustedFrom[f] as number, trustedTo[f] as number];
        if (round > 0 && !this.#isShaken(from, to, last, news)) continue;
        const first = index.find(start);
        if (first < 0) continue;
        trustedFrom[f] = this.#trustedCount;
        if (!this.#mayReturn(first)) {
          found.add(start);
          news.add(start);
        }
        trustedTo[f] = this.#trustedCount;
      }
      last = news;
    }
  }

  #isShaken(from: number, to: number, last: ReadonlySet<number>, news: ReadonlySet<number>): boolean {
    for (let at = from; at < to; at++) {
      const target = this.#trusted[at] as number;
      if (last.has(target) || news.has(target)) return true;
    }
    return false;
  }

  #trust(target: number): void {
    if (this.#trustedCount === this.#trusted.length) {
      const larger = new Int32Array(this.#trusted.length * 2);
      larger.set(this.#trusted);
      this.#trusted = larger;
    }
    this.#trusted[this.#trustedCount++] = target;
  }

  /** Most functions show a return soon; one that is too long to tell is taken to return. */
  #mayReturn(first: number): boolean {
    const { table, targetIndexes, isEntry } = this.#program;
    const { flows, targets, offsets, lengths, touches, count } = table;
    const noReturn = this.#found;
    const seen = this.#seen;
    const goesOn = this.#goesOn;
    const work = this.#work;
    const stamp = ++this.#stamp;
    work.length = 0;
    work.push(first);
    let steps = 0;
    for (;;) {
      let i = work.pop();
      if (i === undefined) return false;
      for (; ; i++) {
        const start = i;
        // Those that lead on to the next one and nowhere else.
        while (touches[i] !== TOUCHES_ALL) i++;
        if (seen[i] === stamp) break;
        seen[i] = stamp;
        steps += i - start + 1;
        if (steps > MAX_STEPS) return true;
        const flow = flows[i] as number;
        if (flow === FlowCode.jump || flow === FlowCode.branch) {
          const target = targetIndexes[i] as number;
          // A sibling call returns if what it jumps to does.
          if (target < 0 || (isEntry[target] === 1 && target !== first)) {
            const position = targets[i] as number;
            if (!noReturn.has(position)) {
              this.#trust(position);
              return true;
            }
          } else work.push(target);
          if (flow === FlowCode.jump && goesOn[i] === 0) break;
        } else if (flow === FlowCode.call) {
          const target = targetIndexes[i] as number;
          if (target > i && isInnerCall(this.#program, i, target)) {
            work.push(target);
            break;
          }
          if (noReturn.isCalledAt(i) || noReturn.lastCalls.has(i)) break;
          this.#trust(targets[i] as number);
        } else if (flow === FlowCode.indirectCall || flow === FlowCode.systemCall) {
          if (noReturn.lastCalls.has(i)) break;
        } else if (flow === FlowCode.deadEnd) {
          if (goesOn[i] === 0) break;
        } else if (
          flow === FlowCode.return ||
          flow === FlowCode.indirectJump ||
          flow === FlowCode.interruptReturn
        ) {
          return true;
        }
        // Code that does not follow on was not decoded.
        if (i + 1 >= count || (offsets[i + 1] as number) !== (offsets[i] as number) + (lengths[i] as number))
          return true;
      }
    }
  }
}
