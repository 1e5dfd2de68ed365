import type { Architecture } from '../arch/architecture.js';
import { FlowCode, isInert, OpCode } from '../arch/instruction-table.js';
import { assumeClaim, checkClaim, detail, Verdict } from './claim-check.js';
import type { Claim, ClaimTable } from './claims.js';
import { CHANGED_ALL, FrameState, SnapshotPool } from './frame-state.js';
import type { ExtraFlow } from './kernel-sections.js';
import type { Program } from './program.js';
import type { Scratch } from './scratch.js';
import { addTo, UNKNOWN, type Value } from './values.js';

/** What is known of the claim at one instruction. */
export const Status = {
  /** No control flow that we know leads there. */
  unreached: 0,
  /** Follows from the instructions, from the function's entry on. */
  proven: 1,
  /** The claim was taken as given, since nothing before it says anything; or it follows from one that was. */
  assumed: 2,
  /** Control leads there, but its state is not known well enough to tell. */
  unknown: 3,
  disproved: 4,
  /** Control leads there and nothing is claimed. */
  unclaimed: 5,
} as const;

/** A claim that the code contradicts. */
export interface Contradiction {
  /** Index of the instruction that the claim is about. */
  readonly at: number;
  /** Index of the instruction from which control came, -1 for the entry of a function. */
  readonly from: number;
  readonly claim: Claim;
  readonly verdict: number;
  readonly register: number;
  readonly derived: Value;
  /** Derived stack pointer and frame pointer. */
  readonly stackPointer: Value;
  readonly framePointer: Value;
}

export interface FlowProofOptions {
  readonly architecture: Architecture;
  readonly program: Program;
  readonly claims: ClaimTable;
  /** Names what is kept in the scratch for this proof. */
  readonly name: string;
  readonly scratch: Scratch;
  readonly extraFlow: ExtraFlow;
  readonly noReturn: ReadonlySet<number>;
  /** Bytes below the stack pointer that survive signals. */
  readonly redZoneBytes: number;
  /**
   * Derive from the code alone: claims are compared but never used, neither to start where no control flow leads nor to go
   * on behind a contradiction.
   */
  readonly isIndependent?: boolean;
  /** Positions where a hint in the file says what the frame is: the claim there is taken as given. */
  readonly hints?: ReadonlySet<number>;
  /** Called now and then with how many of the functions are done, from 0 to 1. */
  readonly onProgress?: (fraction: number) => void;
  /** Called before transfers that control reaches; more than once where states meet. */
  readonly onTransfer?: (i: number, state: FrameState) => void;
  /** Bit per flow code: which transfers {@link onTransfer} is called for. */
  readonly transferMask?: number;
}

export interface FlowProofResult {
  /** {@link Status} of each instruction. */
  readonly statuses: Uint8Array;
  readonly contradictions: readonly Contradiction[];
  /** Claim ids of each instruction. */
  readonly claimIds: Int32Array;
  /** Instructions from whose fall-through or jump two states that differ in the stack met, with no claim to decide. */
  readonly conflicts: number;
}

/**
 * Carries states along control flow from every function's entry and holds each claim against them. Where nothing leads,
 * the claim itself is the state to start from, so that every row is proven from the rows before it (DESIGN.md section 4).
 */
export function proveFlow(options: FlowProofOptions): FlowProofResult {
  return new FlowProof(options).run();
}

/** A loop of its own, as are others here: compiled while it runs, it takes nothing along that has not run yet. */
function markTargets({ table, targetIndexes }: Program, marks: Uint8Array): void {
  const { transfers, transferCount, touches } = table;
  for (let t = 0; t < transferCount; t++) {
    const target = targetIndexes[transfers[t] as number] as number;
    if (target < 0) continue;
    marks[target] = Mark.join;
    touches[target] = TOUCHES_ALL;
  }
}

/** What {@link InstructionTable.touches} says of an instruction that a walk has to look at in any case. */
const TOUCHES_ALL = 0xffff;

const FUNCTIONS_PER_STEP = 512;
const INNER_CALL_BYTES = 64;
/** More than an instruction has. */
const LONGEST_BYTES = 16;
const LINKAGE_ALIGNMENT = 8;

/** What a walk must look at, so that all other instructions cost it one read. */
const Mark = {
  /** More than one way leads here. */
  join: 1,
  /** Control goes on elsewhere too. */
  edges: 2,
  /** Behind this instruction, control goes on elsewhere instead. */
  continuation: 4,
  /** An exception out of this call is caught. */
  landing: 8,
} as const;

class FlowProof {
  readonly #program: Program;
  readonly #claims: ClaimTable;
  readonly #claimIds: Int32Array;
  readonly #options: FlowProofOptions;
  readonly #statuses: Uint8Array;
  /** Position in the pool of the state kept at a join, -1 for none. */
  readonly #snapshots: Int32Array;
  /** From where control came first to a join that has a state: an instruction, -1 for the entry of a function. */
  readonly #origins: Int32Array;
  /** {@link Mark} bits of each instruction. */
  readonly #marks: Uint8Array;
  readonly #pool = new SnapshotPool();
  readonly #state: FrameState;
  readonly #work: number[] = [];
  readonly #contradictions = new Map<number, Contradiction>();
  readonly #edges = new Map<number, number[]>();
  readonly #possibleEdges = new Map<number, number[]>();
  /** By index of the instruction behind which it goes on elsewhere. */
  readonly #continuations = new Map<number, number>();
  /** By claim id and unit: the state at a call or indirect jump, for places in the same unit that only those lead to. */
  readonly #donors = new Map<number, number>();
  /** By index behind a call that never returns: the state there if it did. What nothing else leads to is dead, or goes on so. */
  readonly #behindCalls = new Map<number, number>();
  #regionDelta = 0;
  #regionStart = 0;
  #regionEnd = 0;
  #conflicts = 0;

  constructor(options: FlowProofOptions) {
    const { program, claims, extraFlow, scratch } = options;
    const { table } = program;
    this.#options = options;
    this.#program = program;
    this.#claims = claims;
    const { touches } = table;
    this.#claimIds = claims.claimOfEach(
      program.index,
      scratch.rawInt32(`${options.name} claims`, table.count),
      (i) => {
        if (i < table.count) touches[i] = TOUCHES_ALL;
      },
    );
    this.#statuses = scratch.uint8(`${options.name} statuses`, table.count);
    this.#snapshots = scratch.int32('snapshots', table.count, -1);
    this.#origins = scratch.rawInt32('origins', table.count);
    this.#marks = scratch.uint8('marks', table.count);
    this.#state = new FrameState(options.architecture, options.redZoneBytes, claims.registerMask);
    markTargets(program, this.#marks);
    for (const { from, to } of extraFlow.edges)
      this.#addEdge(program.index.find(from), program.index.find(to));
    if (options.isIndependent !== true) {
      for (const { from, to } of extraFlow.possibleEdges ?? [])
        this.#addEdge(program.index.find(from), program.index.find(to), this.#possibleEdges);
    }
    for (const [call, pad] of extraFlow.landingPads?.byCall ?? []) {
      this.#mark(call, Mark.landing);
      this.#mark(pad, Mark.join);
    }
    for (const position of extraFlow.resumed) {
      const i = program.index.find(position);
      if (i + 1 < table.count) this.#addEdge(i, i + 1);
    }
    for (const { original, replacement, replacementBytes } of extraFlow.alternatives) {
      let i = program.index.find(replacement);
      for (
        ;
        i >= 0 && i < table.count && (table.offsets[i] as number) < replacement + replacementBytes;
        i++
      ) {
        this.#claimIds[i] = claims.idAt(original + (table.offsets[i] as number) - replacement);
        touches[i] = TOUCHES_ALL;
      }
      if (i >= 0 && i < table.count) touches[i] = TOUCHES_ALL;
    }
    for (const [end, to] of extraFlow.continuations) {
      const target = program.index.find(to);
      if (target < 0) continue;
      this.#mark(target, Mark.join);
      const last = this.#indexOfEnd(end);
      if (last < 0) continue;
      this.#mark(last, Mark.continuation);
      this.#continuations.set(last, target);
    }
  }

  #mark(i: number, bit: number): void {
    this.#marks[i] = (this.#marks[i] as number) | bit;
    this.#program.table.touches[i] = TOUCHES_ALL;
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

  #addEdge(source: number, target: number, edges = this.#edges): void {
    if (source < 0 || target < 0) return;
    this.#mark(target, Mark.join);
    this.#mark(source, Mark.edges);
    const list = edges.get(source);
    if (list === undefined) edges.set(source, [target]);
    else list.push(target);
  }

  run(): FlowProofResult {
    const program = this.#program;
    const { functions, index } = program;
    const { onProgress } = this.#options;
    let done = 0;
    for (const f of functions) {
      if (++done % FUNCTIONS_PER_STEP === 0) onProgress?.(done / functions.length);
      if (f.isPart) continue;
      const first = index.find(f.start);
      // Without a symbol, all that is known of a start is the table's word.
      if (first < 0 || (f.name === undefined && this.#isPadding(first))) continue;
      this.#state.enterFunction();
      this.#arrive(first, -1);
      this.#drain();
    }
    // What calls and jumps through a linkage table find there is a function's entry.
    for (const position of program.linkageNames.keys()) {
      const first = index.find(position);
      if (first < 0 || this.#statuses[first] !== Status.unreached) continue;
      // Padding before the first entry is named with it, as a branch-tracking instruction would be.
      if (isInert(program.table, first) && position % LINKAGE_ALIGNMENT !== 0) continue;
      this.#state.enterFunction();
      this.#arrive(first, -1);
      this.#drain();
    }
    if (this.#options.isIndependent !== true) this.#startFromClaims();
    return {
      statuses: this.#statuses,
      contradictions: [...this.#contradictions.values()].sort((a, b) => a.at - b.at),
      claimIds: this.#claimIds,
      conflicts: this.#conflicts,
    };
  }

  /** What no known control flow reaches: targets of jumps that could not be followed, parts; each starts from its own claim. */
  #startFromClaims(): void {
    const { count } = this.#program.table;
    for (let i = 0; i < count; i++) {
      if (this.#statuses[i] !== Status.unreached) continue;
      const claim = this.#claimAt(i);
      if (claim === undefined || this.#isPadding(i)) continue;
      if (this.#goOnBehindCall(i)) continue;
      this.#assumeAtStart(claim, i);
      this.#state.assume(this.#state.isPartial);
      this.#mark(i, Mark.join);
      this.#arrive(i, -1);
      this.#statuses[i] = Status.assumed;
      this.#drain(true);
    }
  }

  #goOnBehindCall(i: number): boolean {
    const kept = this.#behindCalls.get(i);
    if (kept === undefined) return false;
    this.#state.load(this.#pool.words, kept);
    if (!this.#isAgreed(i)) return false;
    this.#mark(i, Mark.join);
    this.#arrive(i, i - 1);
    this.#drain();
    return true;
  }

  /**
   * Targets of indirect jumps are reached from one in the same unit: what that knows of the frame holds there, if the claim
   * agrees.
   */
  #assumeAtStart(claim: Claim, i: number): void {
    if (claim.cfaRegister !== this.#options.architecture.stackPointer) {
      const donor = this.#donors.get(this.#donorKey(i));
      if (donor !== undefined) {
        this.#state.load(this.#pool.words, donor);
        if (checkClaim(claim, this.#state, this.#addressOf(i)) === Verdict.proven) return;
      }
    }
    assumeClaim(claim, this.#state, i, this.#options.architecture.stackPointer);
  }

  #donorKey(i: number): number {
    const unit = this.#claims.unitIndexAt(this.#program.table.offsets[i] as number) + 1;
    return unit * 0x1_0000_0000 + (this.#claimIds[i] as number);
  }

  /** Nothing of effect from here up to where control is known to come, or where another claim begins. */
  #isPadding(first: number): boolean {
    const { table, functionStarts } = this.#program;
    const { offsets, lengths, count } = table;
    for (let i = first; ; i++) {
      if (!isInert(table, i)) return false;
      if (i + 1 >= count || (offsets[i + 1] as number) !== (offsets[i] as number) + (lengths[i] as number))
        return true;
      if (this.#statuses[i + 1] !== Status.unreached || this.#claimIds[i + 1] !== this.#claimIds[i])
        return true;
      if (functionStarts.has(offsets[i + 1] as number)) return true;
    }
  }

  #claimAt(i: number): Claim | undefined {
    return this.#claims.claims[this.#claimIds[i] as number];
  }

  #drain(startsAssumed = false): void {
    let assumed = startsAssumed;
    for (let i = this.#work.pop(); i !== undefined; i = this.#work.pop()) {
      this.#state.load(this.#pool.words, this.#snapshots[i] as number);
      this.#walk(i, assumed);
      assumed = false;
    }
  }

  /**
   * The current state reaches instruction `i`, from `from`. Queues it when that is news. `proven`: the claim that this very state
   * proves, 0 for none.
   */
  #arrive(i: number, from: number, proven = 0): void {
    const at = this.#snapshots[i] as number;
    if (at < 0) {
      if (from >= 0 && !(proven !== 0 && proven === this.#claimIds[i]) && this.#isRefused(i, from)) return;
      this.#origins[i] = from;
      this.#snapshots[i] = this.#pool.add(this.#state);
      this.#work.push(i);
    } else if (at !== this.#state.savedAt && this.#join(i, at, from)) this.#work.push(i);
  }

  /** Reduces the state kept at `i` to what holds here too; true when it changed. */
  #join(i: number, at: number, from: number): boolean {
    const state = this.#state;
    if (state.covers(this.#pool.words, at)) return false;
    if (this.#isRefused(i, from)) return false;
    if (this.#options.isIndependent === true && state.conflictsWith(this.#pool.words, at)) {
      this.#conflicts++;
      return false;
    }
    const { changed } = state;
    const own = this.#pool.add(state);
    state.load(this.#pool.words, at);
    state.meet(this.#pool.words, own);
    this.#snapshots[i] = this.#pool.add(state);
    state.load(this.#pool.words, own);
    state.changed = changed;
    return true;
  }

  /** A way into `i` that contradicts the claim there is a finding, and adds nothing to what is known at `i`. */
  #isRefused(i: number, from: number): boolean {
    if (this.#options.isIndependent === true) return false;
    const claim = this.#claimAt(i);
    if (claim === undefined) return false;
    if (checkClaim(claim, this.#state, this.#addressOf(i)) !== Verdict.wrongCfa) return false;
    if (!this.#isHint(i, from, claim)) this.#contradict(i, from, claim);
    return true;
  }

  #walk(first: number, startsAssumed: boolean): void {
    const { table, targetIndexes } = this.#program;
    const { flows, offsets, lengths, targets, ops, writes, touches } = table;
    const state = this.#state;
    const { noReturn, onTransfer, transferMask = 0 } = this.#options;
    const marks = this.#marks;
    const snapshots = this.#snapshots;
    const origins = this.#origins;
    // Every instruction that a walk must look at touches the stack pointer, by what the table says.
    const stopMask = 1 << this.#options.architecture.stackPointer;
    const claimIds = this.#claimIds;
    const statuses = this.#statuses;
    const { claims } = this.#claims;
    const landings = this.#options.extraFlow.landingPads?.byCall;
    const isDwarf = this.#claims.source === 'dwarf';
    let previous = this.#origins[first] as number;
    let isFirst = true;
    let lastClaimId = -1;
    // Which changes can make another verdict of the same claim.
    let relevant = CHANGED_ALL;
    let i = first;
    for (;;) {
      const mark = marks[i] as number;
      if (!isFirst && (mark & Mark.join) !== 0) {
        const at = snapshots[i] as number;
        if (at < 0) {
          origins[i] = previous;
          snapshots[i] = this.#pool.add(state);
        } else {
          if (at === state.savedAt || !this.#join(i, at, previous)) return;
          state.load(this.#pool.words, snapshots[i] as number);
        }
      }
      const claimId = claimIds[i] as number;
      if (claimId !== lastClaimId || (state.changed & relevant) !== 0) {
        if (startsAssumed && isFirst) statuses[i] = Status.assumed;
        else this.#check(i, previous, claimId);
        lastClaimId = claimId;
        relevant = statuses[i] === Status.proven ? (claims[claimId]?.dependsOn ?? 0) : CHANGED_ALL;
        state.changed = 0;
      } else statuses[i] = statuses[i - 1] as number;

      if ((mark & Mark.edges) !== 0) {
        for (const other of this.#edges.get(i) ?? []) this.#arrive(other, i);
        for (const other of this.#possibleEdges.get(i) ?? [])
          if (this.#isAgreed(other)) this.#arrive(other, i);
      }
      isFirst = false;
      const flow = flows[i] as number;
      if (flow === FlowCode.next) state.apply(table, i);
      else {
        if (((transferMask >> flow) & 1) !== 0) onTransfer?.(i, state);
        const target = targetIndexes[i] as number;
        if (
          isDwarf &&
          (flow === FlowCode.call || flow === FlowCode.indirectCall || flow === FlowCode.indirectJump)
        ) {
          this.#keepDonor(i, claimId);
        }
        if (flow === FlowCode.call && target > i && this.#isInnerCall(i, target)) {
          this.#pushReturnAddress();
          if (target !== i + 1) {
            this.#arrive(target, i);
            return;
          }
        } else {
          if (ops[i] !== OpCode.none || ((writes[i] as number) & state.known) !== 0) state.apply(table, i);
          if ((mark & Mark.landing) !== 0) this.#land(i, landings?.get(i));
          const proven = statuses[i] === Status.proven && (state.changed & relevant) === 0 ? claimId : 0;
          switch (flow) {
            case FlowCode.indirectCall:
            case FlowCode.systemCall:
            case FlowCode.breakpoint:
              break;
            case FlowCode.branch:
              if (target >= 0 && !this.#isSibling(i, target)) this.#arrive(target, i, proven);
              break;
            case FlowCode.jump:
              if (target >= 0 && !this.#isSibling(i, target)) this.#arrive(target, i, proven);
              return;
            case FlowCode.call:
              if (noReturn.has(targets[i] as number)) {
                // Compilers that don't know write on behind it.
                if (claimIds[i + 1] === claimId && snapshots[i + 1] === -1) this.#keepBehindCall(i + 1);
                return;
              }
              break;
            default:
              return;
          }
        }
      }
      if ((mark & Mark.continuation) !== 0) {
        this.#arrive(this.#continuations.get(i) as number, i);
        return;
      }
      const end = (offsets[i] as number) + (lengths[i] as number);
      // What follows was not decoded, or is another section.
      if (i + 1 >= table.count || (offsets[i + 1] as number) !== end) return;
      if ((state.changed & relevant) === 0) {
        // Most instructions do nothing to what is known.
        const mask = state.known | stopMask;
        const status = statuses[i] as number;
        for (i++; ((touches[i] as number) & mask) === 0; i++) statuses[i] = status;
        previous = i - 1;
      } else previous = i++;
    }
  }

  /** An exception comes out of the call `i`, whose effects are in the state. */
  #land(i: number, pad: number | undefined): void {
    if (pad === undefined) return;
    const argumentBytes = this.#options.extraFlow.landingPads?.argumentBytes.get(i) ?? 0;
    if (argumentBytes === 0) {
      this.#arrive(pad, i);
      return;
    }
    const { stackPointer } = this.#options.architecture;
    const before = this.#state.registers[stackPointer] as number;
    this.#state.setRegister(stackPointer, addTo(before, argumentBytes));
    this.#arrive(pad, i);
    this.#state.setRegister(stackPointer, before);
  }

  #isAgreed(i: number): boolean {
    const claim = this.#claimAt(i);
    return claim !== undefined && checkClaim(claim, this.#state, this.#addressOf(i)) === Verdict.proven;
  }

  /**
   * A call into the same function a few bytes on only pushes its own address: position-independent code, and what the
   * kernel does to branch predictors. What lies between is a trap for speculation.
   */
  #isInnerCall(i: number, target: number): boolean {
    const { table, isEntry } = this.#program;
    const [from, to] = [table.offsets[i] as number, table.offsets[target] as number];
    if (to - from > INNER_CALL_BYTES || isEntry[target] === 1) return false;
    return this.#program.functionAt(from)?.start === this.#program.functionAt(to)?.start;
  }

  #keepDonor(i: number, claimId: number): void {
    const claim = this.#claims.claims[claimId];
    if (claim === undefined || claim.cfaRegister === this.#options.architecture.stackPointer) return;
    if (this.#statuses[i] !== Status.proven && this.#statuses[i] !== Status.assumed) return;
    if (this.#state.isPartial) return;
    const key = this.#donorKey(i);
    if (!this.#donors.has(key)) this.#donors.set(key, this.#pool.add(this.#state));
  }

  #keepBehindCall(i: number): void {
    if (this.#options.isIndependent === true || this.#state.isAssumed) return;
    this.#behindCalls.set(i, this.#pool.add(this.#state));
  }

  #pushReturnAddress(): void {
    const { stackPointer } = this.#options.architecture;
    const address = addTo(this.#state.registers[stackPointer] as number, -8);
    this.#state.setRegister(stackPointer, address);
    this.#state.setSlot(address, UNKNOWN);
  }

  /** A jump to another function's entry hands over a frame that is as it was on entry: nothing of ours goes on there. */
  #isSibling(i: number, target: number): boolean {
    const { isEntry, table } = this.#program;
    if (isEntry[target] === 0) return false;
    const own = this.#program.functionAt(table.offsets[i] as number);
    return own === undefined || own.start !== table.offsets[target];
  }

  #check(i: number, from: number, claimId: number): void {
    const claim = this.#claims.claims[claimId];
    if (claim === undefined) {
      this.#statuses[i] = Status.unclaimed;
      return;
    }
    const verdict = checkClaim(claim, this.#state, this.#addressOf(i));
    if (verdict === Verdict.proven) {
      // One way here that was taken on trust is enough; what was disproved or unknown by another stays so.
      if (!this.#state.isAssumed) this.#statuses[i] = Status.proven;
      else if (this.#statuses[i] === Status.unreached || this.#statuses[i] === Status.proven)
        this.#statuses[i] = Status.assumed;
      return;
    }
    const isIndependent = this.#options.isIndependent === true;
    if (this.#isHint(i, from, claim)) this.#statuses[i] = Status.assumed;
    else if (verdict === Verdict.unknown) {
      // From a whole frame the CFA of every compiler's code can be told.
      if (!this.#state.isPartial) this.#contradict(i, from, claim);
      this.#statuses[i] = Status.unknown;
    } else {
      this.#statuses[i] = Status.disproved;
      this.#contradict(i, from, claim);
    }
    // With the right CFA, what was derived is worth more than what is claimed.
    if (!isIndependent && (verdict !== Verdict.wrongRegister || this.#statuses[i] === Status.assumed)) {
      assumeClaim(claim, this.#state, i, this.#options.architecture.stackPointer);
      // What else the frame held is no longer known.
      this.#state.assume(true);
    }
  }

  /**
   * Frames of interrupts and exceptions are made by hardware or by hints, and of an outermost frame nothing is claimed:
   * nothing before explains what is behind.
   */
  #isHint(i: number, from: number, claim: Claim): boolean {
    if (claim.isSignalFrame) return true;
    if (this.#options.hints?.has(this.#program.table.offsets[i] as number) === true) return true;
    const before = from < 0 ? undefined : this.#claimAt(from);
    return before !== undefined && (before.isSignalFrame || before.isOutermost);
  }

  #contradict(at: number, from: number, claim: Claim): void {
    if (this.#contradictions.has(at)) return;
    const { registers } = this.#state;
    const { stackPointer, framePointer } = this.#options.architecture;
    this.#contradictions.set(at, {
      at,
      from,
      claim,
      verdict: detail.verdict,
      register: detail.register,
      derived: detail.derived,
      stackPointer: registers[stackPointer] as number,
      framePointer: registers[framePointer] as number,
    });
    this.#statuses[at] = detail.verdict === Verdict.unknown ? Status.unknown : Status.disproved;
  }

  #addressOf(i: number): number {
    const position = this.#program.table.offsets[i] as number;
    if (position < this.#regionStart || position >= this.#regionEnd) {
      const region = this.#program.space.regionAt(position);
      if (region === undefined) return position;
      this.#regionStart = region.start;
      this.#regionEnd = region.end;
      this.#regionDelta = region.address - region.start;
    }
    return position + this.#regionDelta;
  }
}
