import { FlowCode } from '../../arch/instruction-table.js';
import type { SkimTable } from '../../arch/skim-table.js';
import { INNER_CALL_BYTES } from '../inner-call.js';
import type { Leaders } from './leaders.js';
import { BriefFlow, flowOf, lengthOf } from './module-code.js';
import type { ModuleSymbols } from './module-symbols.js';

/** A function that shows no return in so many bytes is taken to return. */
const MAX_BYTES = 16_000;
const MAX_ROUNDS = 8;

export interface NoReturnOptions {
  readonly skim: SkimTable;
  readonly leaders: Leaders;
  readonly symbols: ModuleSymbols;
  /** By entry of the skim: the leader that a direct jump or call leads to, or {@link elsewhere}. */
  readonly links: Int32Array;
  /** By leader: 1 for the start of a function. */
  readonly areEntries: Uint8Array;
  /** Entries of the skim that control may go on behind, although they don't look so. */
  readonly resumed: ReadonlySet<number>;
  /** Whether all instructions between two positions do nothing. */
  readonly isPadding: (from: number, to: number) => boolean;
}

/** Which functions of a module, and of others, never return: by name, by how they are called, and by content. See `no-return.ts`. */
export class BriefNoReturn {
  /** A function ends in a call of nobody knows what, or in a system call. */
  hasLastCall = false;
  /** By leader. */
  readonly #here: Uint8Array;
  readonly #elsewhere: Uint8Array;
  readonly #options: NoReturnOptions;
  readonly #seen: Int32Array;
  readonly #work: number[] = [];
  #stamp = 0;
  /** The links that functions were found to return by, since what they lead to may return; one function's behind the other's. */
  #trusted = new Int32Array(1 << 10);
  #trustedCount = 0;

  constructor(options: NoReturnOptions) {
    this.#options = options;
    this.#here = new Uint8Array(options.leaders.count);
    this.#elsewhere = options.symbols.noReturn;
    this.#seen = new Int32Array(options.skim.count);
    this.#findByName();
    this.#findByEnd();
    this.#findByContent();
  }

  /** Whether what a link leads to never returns. */
  has(link: number): boolean {
    return (link >= 0 ? this.#here[link] : this.#elsewhere[-2 - link]) === 1;
  }

  #add(link: number): void {
    if (link >= 0) this.#here[link] = 1;
    else this.#elsewhere[-2 - link] = 1;
  }

  #findByName(): void {
    const { leaders, symbols } = this.#options;
    const { starts, noReturn, count } = symbols.functions;
    for (let f = 0; f < count; f++) if (noReturn[f] === 1) this.#add(leaders.find(starts[f] as number));
  }

  /** What functions call last, with nothing behind the call but padding. */
  #findByEnd(): void {
    const { skim, symbols, links, isPadding } = this.#options;
    const { positions, flows } = skim;
    const { starts, ends, count } = symbols.functions;
    let next = 0;
    for (let f = 0; f < count; f++) {
      const end = ends[f] as number;
      const start = starts[f] as number;
      while ((positions[next] as number) < end) next++;
      let last = next - 1;
      while (last >= 0 && (positions[last] as number) >= start && flowOf(flows, last) === FlowCode.breakpoint)
        last--;
      if (last < 0 || (positions[last] as number) < start) continue;
      const flow = flowOf(flows, last);
      const isOther = flow === FlowCode.indirectCall || flow === FlowCode.systemCall;
      if (flow !== FlowCode.call && !isOther) continue;
      const behind = (positions[last] as number) + lengthOf(flows, last);
      if (behind !== end && (behind > end || !isPadding(behind, end))) continue;
      if (isOther) this.hasLastCall = true;
      else this.#add(links[last] as number);
    }
  }

  /** Until nothing changes: a function that only calls such functions is one too. */
  #findByContent(): void {
    const { leaders, symbols } = this.#options;
    const { starts, areParts, count } = symbols.functions;
    const firsts: number[] = [];
    for (let f = 0; f < count; f++) {
      const first = areParts[f] === 1 ? -1 : leaders.find(starts[f] as number);
      if (first >= 0 && this.#here[first] === 0) firsts.push(first);
    }
    const trustedFrom = new Int32Array(firsts.length);
    const trustedTo = new Int32Array(firsts.length);
    let last: ReadonlySet<number> = new Set();
    for (let round = 0; round < MAX_ROUNDS && (round === 0 || last.size > 0); round++) {
      const news = new Set<number>();
      for (let f = 0; f < firsts.length; f++) {
        const first = firsts[f] as number;
        if (this.#here[first] === 1) continue;
        // What a function was found to return by still holds unless it went through what was found since.
        if (round > 0 && !this.#isShaken(trustedFrom[f] as number, trustedTo[f] as number, last, news))
          continue;
        trustedFrom[f] = this.#trustedCount;
        if (!this.#mayReturn(first)) {
          this.#add(first);
          news.add(first);
        }
        trustedTo[f] = this.#trustedCount;
      }
      last = news;
    }
  }

  #isShaken(from: number, to: number, last: ReadonlySet<number>, news: ReadonlySet<number>): boolean {
    for (let at = from; at < to; at++) {
      const link = this.#trusted[at] as number;
      if (last.has(link) || news.has(link)) return true;
    }
    return false;
  }

  #trust(link: number): void {
    if (this.#trustedCount === this.#trusted.length) {
      const larger = new Int32Array(this.#trusted.length * 2);
      larger.set(this.#trusted);
      this.#trusted = larger;
    }
    this.#trusted[this.#trustedCount++] = link;
  }

  /** Most functions show a return soon. */
  #mayReturn(first: number): boolean {
    const { skim, leaders, links, areEntries, resumed } = this.#options;
    const { flows, positions } = skim;
    const seen = this.#seen;
    const work = this.#work;
    const stamp = ++this.#stamp;
    work.length = 0;
    work.push(first);
    let bytes = 0;
    for (let leader = work.pop(); leader !== undefined; leader = work.pop()) {
      let from = leaders.positions[leader] as number;
      for (let entry = leaders.entries[leader] as number; ; entry++) {
        const flow = flowOf(flows, entry);
        if (flow === FlowCode.next) continue;
        if (seen[entry] === stamp) break;
        seen[entry] = stamp;
        const position = positions[entry] as number;
        bytes += position - from;
        from = position;
        if (bytes > MAX_BYTES) return true;
        if (flow === FlowCode.jump || flow === FlowCode.branch) {
          const link = links[entry] as number;
          // A sibling call returns if what it jumps to does.
          if (link < 0 || (areEntries[link] === 1 && link !== first)) {
            if (!this.has(link)) {
              this.#trust(link);
              return true;
            }
          } else work.push(link);
          if (flow === FlowCode.jump && !resumed.has(entry)) break;
        } else if (flow === FlowCode.call) {
          const link = links[entry] as number;
          // As isInnerCall has it.
          const toward =
            link < 0 || areEntries[link] === 1 ? 0 : (leaders.positions[link] as number) - position;
          if (toward > 0 && toward <= INNER_CALL_BYTES) {
            work.push(link);
            break;
          }
          if (this.has(link)) break;
          this.#trust(link);
        } else if (flow === FlowCode.deadEnd) {
          if (!resumed.has(entry)) break;
        } else if (
          flow === FlowCode.return ||
          flow === FlowCode.indirectJump ||
          flow === FlowCode.interruptReturn ||
          flow === BriefFlow.end
        ) {
          return true;
        }
      }
    }
    return false;
  }
}
