import { FlowCode, firstOf, OpCode, opOf, secondOf, writesOf } from '../../arch/instruction-table.js';
import type { SkimTable } from '../../arch/skim-table.js';
import {
  ASTRAY,
  ENTRY_FRAME,
  type Frame,
  framePointerOf,
  joinFrames,
  LOST,
  MAX_POINTER,
  MAX_SAVED,
  makeFrame,
  ON_ENTRY,
  savedOf,
  stackPointerOf,
} from './frame.js';
import type { Leaders } from './leaders.js';
import { BriefFlow, flowOf, lengthOf } from './module-code.js';
import type { OrcPatterns, OrcRows } from './orc-rows.js';

export interface BriefProofOptions {
  readonly skim: SkimTable;
  readonly leaders: Leaders;
  readonly rows: OrcRows;
  readonly patterns: OrcPatterns;
  /** DWARF numbers. */
  readonly stackPointer: number;
  readonly framePointer: number;
  /** By entry of the skim: where a jump or branch goes on in the same function ({@link Leaders}), or {@link WAY_OUT} or {@link AWAY}. */
  readonly links: Int32Array;
  /** Where control goes from before the instruction at a leader, too. */
  readonly edges: ReadonlyMap<number, readonly number[]>;
  /** By position: the leader at which control goes on instead of there. */
  readonly continuations: ReadonlyMap<number, number>;
  /** 1 for leaders that {@link edges} or {@link continuations} speak of. */
  readonly special: Uint8Array;
}

/** A jump to another function: the frame has to be as it was on entry. */
export const WAY_OUT = -1;
/** A jump to what never returns. */
export const AWAY = -2;

const WORD_BYTES = 8;

/**
 * Carries frames along control flow from the entries of functions, over what the skim holds and past all else, and holds each row against them. Whatever
 * is not as compilers write it ends the proof: this one only knows "proven". All it says, {@link proveFlow} says too.
 */
export class BriefProof {
  /** By leader: where the stretch ends that control runs through from there, 0 for a leader that it does not come to. */
  readonly ends: Int32Array;
  readonly #options: BriefProofOptions;
  /** By leader, -1 for none. */
  readonly #frames: Int32Array;
  /** The frame with which it was gone on from a leader. */
  readonly #walked: Int32Array;
  /** By leader: the row that holds there. */
  readonly #rowOf: Int32Array;
  readonly #masks: Int32Array;
  readonly #values: Int32Array;
  readonly #work: number[] = [];

  constructor(options: BriefProofOptions) {
    this.#options = options;
    const { leaders, rows, patterns } = options;
    this.ends = new Int32Array(leaders.count);
    this.#frames = new Int32Array(leaders.count).fill(-1);
    this.#walked = new Int32Array(leaders.count).fill(-1);
    this.#rowOf = new Int32Array(leaders.count);
    this.#masks = Int32Array.from(patterns.masks);
    this.#values = Int32Array.from(patterns.values);
    let row = 0;
    for (let l = 0; l < leaders.count; l++) {
      const position = leaders.positions[l] as number;
      while (row + 1 < rows.count && (rows.positions[row + 1] as number) <= position) row++;
      this.#rowOf[l] = row;
    }
  }

  /** From the entry of a function. False when something that control comes to from there can't be proven so. */
  proveFrom(leader: number): boolean {
    this.#arrive(leader, ENTRY_FRAME);
    for (let l = this.#work.pop(); l !== undefined; l = this.#work.pop()) {
      const frame = this.#frames[l] as number;
      if (this.#walked[l] === frame || this.#walk(l, frame)) continue;
      this.#work.length = 0;
      return false;
    }
    return true;
  }

  #arrive(leader: number, frame: Frame): void {
    const kept = this.#frames[leader] as number;
    if (kept === frame) return;
    const joined = kept < 0 ? frame : joinFrames(kept, frame);
    if (joined === kept) return;
    this.#frames[leader] = joined;
    this.#work.push(leader);
  }

  #holds(row: number, frame: Frame): boolean {
    const pattern = this.#options.rows.patterns[row] as number;
    return (frame & (this.#masks[pattern] as number)) === (this.#values[pattern] as number);
  }

  /** Goes on from a leader until control leaves or comes to where it has been. */
  #walk(first: number, start: Frame): boolean {
    const { skim, leaders, rows, links, stackPointer, framePointer, special } = this.#options;
    const { positions, flows, effects, values } = skim;
    const leaderPositions = leaders.positions;
    const rowPositions = rows.positions;
    const frameWrites = (1 << stackPointer) | (1 << framePointer);
    let leader = first;
    let row = this.#rowOf[first] as number;
    let sp = stackPointerOf(start);
    let fp = framePointerOf(start);
    let saved = savedOf(start);
    this.#walked[first] = start;
    if (!this.#holds(row, start)) return false;
    if (special[first] === 1) this.#leave(first, start);
    let nextLeader = leaderPositions[first + 1] as number;
    let nextRow = row + 1 < rows.count ? (rowPositions[row + 1] as number) : MAX_POSITION;
    for (let entry = leaders.entries[first] as number; ; entry++) {
      const position = positions[entry] as number;
      while (nextRow <= position || nextLeader <= position) {
        let frame = makeFrame(sp, fp, saved);
        const at = Math.min(nextRow, nextLeader);
        if (nextRow === at) {
          row++;
          nextRow = row + 1 < rows.count ? (rowPositions[row + 1] as number) : MAX_POSITION;
        }
        if (nextLeader === at) {
          this.ends[leader] = at;
          leader++;
          if (special[leader] === 1 && this.#continueElsewhere(at, frame)) return true;
          const kept = this.#frames[leader] as number;
          if (kept === frame) return true;
          if (kept >= 0) {
            frame = joinFrames(kept, frame);
            if (frame === kept) return true;
            sp = stackPointerOf(frame);
            fp = framePointerOf(frame);
            saved = savedOf(frame);
          }
          this.#frames[leader] = frame;
          this.#walked[leader] = frame;
          if (special[leader] === 1) this.#leave(leader, frame);
          nextLeader = leaderPositions[leader + 1] as number;
        }
        if (!this.#holds(row, frame)) return false;
      }
      const effect = effects[entry] as number;
      const flow = flowOf(flows, entry);
      if ((writesOf(effect) & frameWrites) !== 0) {
        if ((writesOf(effect) >> stackPointer) & 1) return false;
        fp = LOST;
      }
      const value = values[entry] as number;
      switch (opOf(effect)) {
        case OpCode.push:
        case OpCode.pushOther:
          if (value !== WORD_BYTES) return false;
          if (sp === ASTRAY) break;
          sp++;
          if (sp === saved) saved = 0;
          if (opOf(effect) === OpCode.push && firstOf(effect) === framePointer && fp === ON_ENTRY) {
            if (saved !== 0) return false;
            saved = sp;
            // What is saved may be changed: one frame for both, where ways meet.
            fp = LOST;
          }
          break;
        case OpCode.pop:
        case OpCode.popOther:
          if (value !== WORD_BYTES || sp === 1) return false;
          if (opOf(effect) === OpCode.pop) {
            if (firstOf(effect) === framePointer) fp = saved === sp && sp !== ASTRAY ? ON_ENTRY : LOST;
            else if (firstOf(effect) === stackPointer) return false;
          }
          if (sp === ASTRAY) break;
          sp--;
          if (saved > sp) saved = 0;
          break;
        case OpCode.add: {
          const [to, from] = [firstOf(effect), secondOf(effect)];
          if (to !== stackPointer && to !== framePointer) break;
          const words = from === stackPointer ? sp : from === framePointer && fp > LOST ? fp : ASTRAY;
          const sum = words - value / WORD_BYTES;
          const isKnown = words !== ASTRAY && Number.isInteger(sum);
          if (to === framePointer) fp = isKnown && sum > LOST && sum <= MAX_POINTER ? sum : LOST;
          else if (isKnown) {
            if (sum < 1) return false;
            sp = sum;
            if (saved > sp) saved = 0;
          } else if (from !== stackPointer || sp !== ASTRAY) return false;
          break;
        }
        case OpCode.and:
          // Aligned, by what only the machine knows.
          if (firstOf(effect) === stackPointer) sp = ASTRAY;
          else if (firstOf(effect) === framePointer) fp = LOST;
          break;
        case OpCode.store: {
          const [from, base] = [firstOf(effect), secondOf(effect)];
          // Where the stack pointer is kept on another stack, that one comes next.
          if (from === stackPointer && base === framePointer && fp <= LOST) return false;
          const words = base === stackPointer ? sp : base === framePointer && fp > LOST ? fp : ASTRAY;
          if (words === ASTRAY) break;
          const place = words - value / WORD_BYTES;
          if (place === saved) saved = 0;
          if (place === 1) return false;
          if (from === framePointer && fp === ON_ENTRY) {
            if (saved !== 0 || !Number.isInteger(place) || place < 2) return false;
            saved = place;
            fp = LOST;
          }
          break;
        }
        case OpCode.load: {
          const [to, base] = [firstOf(effect), secondOf(effect)];
          if (to === stackPointer) return false;
          if (to !== framePointer) break;
          const words = base === stackPointer ? sp : base === framePointer && fp > LOST ? fp : ASTRAY;
          const isSaved = words !== ASTRAY && saved !== 0 && words - value / WORD_BYTES === saved;
          fp = isSaved ? ON_ENTRY : LOST;
          break;
        }
        case OpCode.leave:
          if (fp <= LOST) return false;
          sp = fp;
          if (saved > sp) saved = 0;
          fp = saved === sp ? ON_ENTRY : LOST;
          sp--;
          if (saved > sp) saved = 0;
          break;
        case OpCode.callPush:
          if (sp !== ASTRAY && saved > sp) saved = 0;
          break;
        case OpCode.none:
        case OpCode.returnPop:
          break;
        default:
          return false;
      }
      if (sp > MAX_POINTER || saved > MAX_SAVED) return false;
      const end = position + lengthOf(flows, entry);
      switch (flow) {
        case FlowCode.next:
        case FlowCode.call:
        case FlowCode.indirectCall:
        case FlowCode.systemCall:
        case FlowCode.breakpoint:
          // Where another row begins, that one is to hold.
          if (nextRow !== end && !this.#holds(row, makeFrame(sp, fp, saved))) return false;
          continue;
        case FlowCode.branch:
        case FlowCode.jump: {
          const link = links[entry] as number;
          if (link >= 0) this.#arrive(link, makeFrame(sp, fp, saved));
          else if (link === WAY_OUT && (sp !== 1 || fp !== ON_ENTRY)) return false;
          if (flow === FlowCode.branch) continue;
          break;
        }
        case FlowCode.return:
        case FlowCode.indirectJump:
          if (sp !== 1 || fp !== ON_ENTRY) return false;
          break;
        case BriefFlow.end:
          this.ends[leader] = position;
          return this.#continueElsewhere(position, makeFrame(sp, fp, saved));
        default:
          break;
      }
      this.ends[leader] = end;
      return true;
    }
  }

  #continueElsewhere(position: number, frame: Frame): boolean {
    const to = this.#options.continuations.get(position);
    if (to === undefined) return false;
    this.#arrive(to, frame);
    return true;
  }

  #leave(leader: number, frame: Frame): void {
    for (const to of this.#options.edges.get(leader) ?? []) this.#arrive(to, frame);
  }
}

const MAX_POSITION = 0x7fff_ffff;
