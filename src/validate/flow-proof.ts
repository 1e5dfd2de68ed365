import type { Architecture } from '../arch/architecture.js';
import { FlowCode, isInert, OpCode, opOf, TOUCHES_ALL, writesOf } from '../arch/instruction-table.js';
import { AssumedStarts } from './assumed-starts.js';
import { ClaimVerdicts, type Contradiction, REFUSED, Status } from './claim-verdicts.js';
import type { ClaimTable } from './claims.js';
import { FlowGraph, Mark } from './flow-graph.js';
import { CHANGED_ALL } from './frame-state.js';
import { isInnerCall } from './inner-call.js';
import type { ExtraFlow } from './kernel-sections.js';
import type { CallsThatEnd } from './no-return.js';
import type { Program } from './program.js';
import type { Scratch } from './scratch.js';
import { COVERED, type StateId, type StateSpace } from './state-space.js';
import { addTo, UNKNOWN } from './values.js';

export interface FlowProofOptions {
  readonly architecture: Architecture;
  readonly program: Program;
  readonly claims: ClaimTable;
  /** Names what is kept in the scratch for this proof. */
  readonly name: string;
  readonly scratch: Scratch;
  readonly extraFlow: ExtraFlow;
  readonly noReturn: CallsThatEnd;
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
  /** Called before transfers that control reaches, of jumps those that may lead to another function; more than once where states meet. */
  readonly onTransfer?: (i: number, states: StateSpace, state: StateId) => void;
  /** Bit per flow code: which transfers {@link onTransfer} is called for. */
  readonly transferMask?: number;
}

export interface FlowProofResult {
  /** {@link Status} of each instruction. */
  readonly statuses: Uint8Array;
  readonly contradictions: readonly Contradiction[];
  /** Claim ids of each instruction. */
  readonly claimIds: Int32Array;
  /** Indexes of instructions where two states met that differ in the stack, with no claim to decide. */
  readonly conflicts: readonly number[];
  /** Some claim is neither proven nor contradicted. */
  readonly hasUnknown: boolean;
}

/**
 * Carries states along control flow from every function's entry and holds each claim against them. Where nothing leads,
 * the claim itself is the state to start from, so that every row is proven from the rows before it (DESIGN.md section 4).
 */
export function proveFlow(options: FlowProofOptions): FlowProofResult {
  return new FlowProof(options).run();
}

/** The registers whose value on entry is followed: those that callers rely on, and those that the table speaks of. */
function entryMaskOf({ architecture, claims }: FlowProofOptions): number {
  let mask = claims.registerMask;
  for (const register of architecture.calleeSaved) mask |= 1 << register;
  return mask & ~(1 << architecture.stackPointer);
}

const FUNCTIONS_PER_STEP = 512;
const LINKAGE_ALIGNMENT = 8;

class FlowProof {
  readonly #program: Program;
  readonly #claims: ClaimTable;
  readonly #claimIds: Int32Array;
  readonly #options: FlowProofOptions;
  readonly #statuses: Uint8Array;
  /** The state kept at a join, -1 for none. */
  readonly #snapshots: Int32Array;
  /** From where control came first to a join that has a state: an instruction, -1 for the entry of a function. */
  readonly #origins: Int32Array;
  readonly #flow: FlowGraph;
  readonly #states: StateSpace;
  readonly #verdicts: ClaimVerdicts;
  /** Of a function that has just been called. */
  readonly #entry: StateId;
  readonly #work: number[] = [];
  readonly #starts: AssumedStarts;
  /** By index behind a call that never returns: the state there if it did. What nothing else leads to is dead, or goes on so. */
  readonly #behindCalls = new Map<number, number>();
  /** What is walked is only reached from behind a call that never returns. */
  #isDoubtful = false;
  /** Joins that were reached so, and not before. */
  readonly #doubtfulJoins = new Set<number>();
  /** States that contradict the claim where a jump of the same function brings them, and where they come from; by that place. */
  readonly #refused = new Map<number, { readonly state: StateId; readonly from: number }>();
  readonly #conflicts: number[] = [];

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
    this.#flow = new FlowGraph(options);
    this.#states = scratch.states(options.architecture, options.redZoneBytes);
    this.#states.begin();
    this.#entry = this.#states.entry(entryMaskOf(options));
    this.#starts = new AssumedStarts(options.architecture, claims, this.#states, this.#entry);
    this.#verdicts = new ClaimVerdicts({
      ...options,
      claimIds: this.#claimIds,
      statuses: this.#statuses,
      states: this.#states,
    });
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
      this.#arrive(first, this.#entry, -1);
      this.#drain();
    }
    // What calls and jumps through a linkage table find there is a function's entry.
    for (const position of program.linkageNames.keys()) {
      const first = index.find(position);
      if (first < 0 || this.#statuses[first] !== Status.unreached) continue;
      // Padding before the first entry is named with it, as a branch-tracking instruction would be.
      if (isInert(program.table, first) && position % LINKAGE_ALIGNMENT !== 0) continue;
      this.#arrive(first, this.#entry, -1);
      this.#drain();
    }
    if (this.#options.isIndependent !== true) {
      this.#startFromRefused();
      this.#startFromClaims();
    }
    return {
      statuses: this.#statuses,
      contradictions: this.#verdicts.contradictions,
      claimIds: this.#claimIds,
      conflicts: this.#conflicts,
      hasUnknown: this.#verdicts.hasUnknown,
    };
  }

  /** Where nothing else leads than a way that contradicts the claim, the claim is wrong, and what that way knows is known. */
  #startFromRefused(): void {
    for (const [i, { state, from }] of this.#refused) {
      if ((this.#snapshots[i] as number) >= 0) continue;
      this.#arrive(i, state, from);
      this.#drain();
    }
  }

  /** What no known control flow reaches: targets of jumps that could not be followed, parts; each starts from its own claim. */
  #startFromClaims(): void {
    const statuses = this.#statuses;
    for (let i = 0; i < statuses.length; i++) {
      if (statuses[i] !== Status.unreached) continue;
      const claim = this.#verdicts.claimAt(i);
      if (claim === undefined || this.#isPadding(i)) continue;
      if (this.#goOnBehindCall(i)) continue;
      this.#flow.mark(i, Mark.join);
      const position = this.#program.table.offsets[i] as number;
      const [address, id] = [this.#verdicts.addressOf(i), this.#claimIds[i] as number];
      this.#arrive(i, this.#starts.stateAt(i, position, address, claim, id), -1);
      statuses[i] = Status.assumed;
      this.#drain(true);
    }
  }

  #goOnBehindCall(i: number): boolean {
    const kept = this.#behindCalls.get(i);
    if (kept === undefined || !this.#verdicts.isAgreed(i, kept)) return false;
    this.#flow.mark(i, Mark.join);
    this.#isDoubtful = true;
    this.#arrive(i, kept, i - 1);
    this.#drain();
    this.#isDoubtful = false;
    return true;
  }

  /**
   * Code behind a call that never returns runs as rows and code agree, or never: where it leads, it says something of what nothing else
   * leads to, and only what the claim there says as well. clang fills such places with jumps to the function's end.
   */
  #mayDoubtReach(i: number, state: StateId): boolean {
    if (this.#statuses[i] !== Status.unreached && !this.#doubtfulJoins.has(i)) return false;
    if (!this.#verdicts.isAgreed(i, state)) return false;
    this.#doubtfulJoins.add(i);
    return true;
  }

  /** Whether a doubtful walk must not go on to instruction `i`: another function, code without a row, or what is known otherwise. */
  #endsDoubt(i: number, state: StateId, mark: number): boolean {
    if (this.#program.isEntry[i] === 1 || this.#verdicts.claimAt(i) === undefined) return true;
    return (mark & Mark.join) !== 0 && !this.#mayDoubtReach(i, state);
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

  #drain(startsAssumed = false): void {
    let assumed = startsAssumed;
    for (let i = this.#work.pop(); i !== undefined; i = this.#work.pop()) {
      this.#walk(i, assumed);
      assumed = false;
    }
  }

  /**
   * A state reaches instruction `i`, from `from`. Queues it when that is news. `proven`: the claim that this very state
   * proves, 0 for none.
   */
  #arrive(i: number, coming: StateId, from: number, proven = 0): void {
    if (this.#isDoubtful && !this.#mayDoubtReach(i, coming)) return;
    const state = this.#verdicts.settle(i, coming);
    const kept = this.#snapshots[i] as number;
    if (kept < 0) {
      if (
        from >= 0 &&
        !(proven !== 0 && proven === this.#claimIds[i]) &&
        this.#verdicts.isRefused(i, state, from)
      ) {
        this.#keepRefused(i, state, from);
        return;
      }
      this.#origins[i] = from;
      this.#snapshots[i] = state;
      this.#work.push(i);
    } else if (kept !== state && this.#join(i, kept, state, from)) this.#work.push(i);
  }

  #keepRefused(i: number, state: StateId, from: number): void {
    if (this.#states.isAssumed(state) || this.#refused.has(i)) return;
    const { offsets } = this.#program.table;
    const own = this.#program.functionAt(offsets[from] as number);
    if (own === undefined || own !== this.#program.functionAt(offsets[i] as number)) return;
    this.#refused.set(i, { state: this.#verdicts.blame(i, state), from });
  }

  /** Reduces the state kept at `i` to what holds in another that comes there; true when it changed. */
  #join(i: number, kept: StateId, state: StateId, from: number): boolean {
    const mistake = this.#states.wrongCfa(state);
    if (mistake !== this.#states.wrongCfa(kept)) {
      // The way that agrees with the claim, if one does, is what is known.
      if (this.#verdicts.isRefused(i, state, from) || mistake !== UNKNOWN) return false;
      this.#snapshots[i] = state;
      return true;
    }
    const joined = this.#states.join(kept, state);
    if (joined === COVERED || this.#verdicts.isRefused(i, state, from)) return false;
    if (this.#options.isIndependent === true && this.#states.conflict(kept, state)) {
      this.#conflicts.push(i);
      return false;
    }
    this.#snapshots[i] = joined;
    return true;
  }

  #walk(first: number, startsAssumed: boolean): void {
    const { table, targetIndexes } = this.#program;
    const { flows, effects, touches } = table;
    const states = this.#states;
    const { onTransfer, transferMask = 0 } = this.#options;
    const { marks } = this.#flow;
    const snapshots = this.#snapshots;
    const origins = this.#origins;
    // Every instruction that a walk must look at touches the stack pointer, by what the table says.
    const stopMask = 1 << this.#options.architecture.stackPointer;
    const claimIds = this.#claimIds;
    const statuses = this.#statuses;
    const { claims } = this.#claims;
    const landings = this.#options.extraFlow.landingPads?.byCall;
    const isDwarf = this.#claims.source === 'dwarf';
    const isDoubtful = this.#isDoubtful;
    let state = snapshots[first] as StateId;
    let known = states.known(state);
    let previous = this.#origins[first] as number;
    let isFirst = true;
    let lastClaimId = -1;
    // Which changes can make another verdict of the same claim.
    let relevant = CHANGED_ALL;
    states.changed = CHANGED_ALL;
    let i = first;
    for (;;) {
      const mark = marks[i] as number;
      if (isDoubtful && !isFirst && this.#endsDoubt(i, state, mark)) return;
      if (!isFirst && (mark & Mark.join) !== 0) {
        state = this.#verdicts.settle(i, state);
        const kept = snapshots[i] as number;
        if (kept < 0) {
          origins[i] = previous;
          snapshots[i] = state;
        } else {
          if (kept === state || !this.#join(i, kept, state, previous)) return;
          state = snapshots[i] as StateId;
          known = states.known(state);
          states.changed = CHANGED_ALL;
        }
      }
      const claimId = claimIds[i] as number;
      if (claimId !== lastClaimId || (states.changed & relevant) !== 0) {
        if (startsAssumed && isFirst) statuses[i] = Status.assumed;
        else {
          const checked = this.#verdicts.check(i, state, previous, claimId);
          if (checked !== state) {
            // What comes here from elsewhere meets what was made of the claim, not what the claim contradicts.
            if (snapshots[i] === state && (checked === REFUSED || !states.isAssumed(checked)))
              snapshots[i] = checked;
            if (checked === REFUSED) return;
            state = checked;
            known = states.known(state);
          }
        }
        lastClaimId = claimId;
        relevant = statuses[i] === Status.proven ? (claims[claimId]?.dependsOn ?? 0) : CHANGED_ALL;
        states.changed = 0;
      } else statuses[i] = statuses[i - 1] as number;

      if ((mark & Mark.edges) !== 0) this.#followEdges(i, state);
      isFirst = false;
      const flow = flows[i] as number;
      if (flow === FlowCode.next) {
        const effect = effects[i] as number;
        if (opOf(effect) !== OpCode.none || (writesOf(effect) & known) !== 0) {
          state = states.after(state, table, i);
          known = states.known(state);
        }
      } else {
        const isJump = flow === FlowCode.jump || flow === FlowCode.branch;
        const isWayOut = (mark & Mark.wayOut) !== 0;
        if (((transferMask >> flow) & 1) !== 0 && (isJump ? isWayOut && !isDoubtful : true))
          onTransfer?.(i, states, state);
        const target = targetIndexes[i] as number;
        if (
          isDwarf &&
          (flow === FlowCode.call || flow === FlowCode.indirectCall || flow === FlowCode.indirectJump)
        ) {
          this.#keepDonor(i, state, claimId);
        }
        if (flow === FlowCode.call && target > i && isInnerCall(this.#program, i, target)) {
          this.#keepBehindCall(i, claimId, this.#states.after(state, table, i));
          state = this.#pushReturnAddress(state);
          known = states.known(state);
          if (target !== i + 1) {
            this.#arrive(target, state, i);
            return;
          }
        } else {
          const effect = effects[i] as number;
          if (opOf(effect) !== OpCode.none || (writesOf(effect) & known) !== 0) {
            state = states.after(state, table, i);
            known = states.known(state);
          }
          if ((mark & Mark.landing) !== 0) this.#land(i, state, landings?.get(i));
          const proven = statuses[i] === Status.proven && (states.changed & relevant) === 0 ? claimId : 0;
          switch (flow) {
            case FlowCode.breakpoint:
              break;
            case FlowCode.branch:
              if (target >= 0 && !(isWayOut && this.#isSibling(i, target)))
                this.#arrive(target, state, i, proven);
              break;
            case FlowCode.jump:
              if (target >= 0 && !(isWayOut && this.#isSibling(i, target)))
                this.#arrive(target, state, i, proven);
              return;
            case FlowCode.call:
            case FlowCode.indirectCall:
            case FlowCode.systemCall:
              if ((mark & Mark.noReturn) === 0) break;
              // Compilers that don't know write on behind it.
              this.#keepBehindCall(i, claimId, state);
              return;
            default:
              return;
          }
        }
      }
      if ((mark & Mark.continuation) !== 0) {
        this.#arrive(this.#flow.continuations.get(i) as number, state, i);
        return;
      }
      if ((mark & Mark.last) !== 0) return;
      if ((states.changed & relevant) === 0) {
        // Most instructions do nothing to what is known.
        const mask = known | stopMask;
        const status = statuses[i] as number;
        for (i++; ((touches[i] as number) & mask) === 0; i++) statuses[i] = status;
        previous = i - 1;
      } else previous = i++;
    }
  }

  #followEdges(i: number, state: StateId): void {
    const { edges, possibleEdges } = this.#flow;
    for (let at = edges.first(i); edges.sources[at] === i; at++)
      this.#arrive(edges.targets[at] as number, state, i);
    for (let at = possibleEdges.first(i); possibleEdges.sources[at] === i; at++) {
      const to = possibleEdges.targets[at] as number;
      if (this.#verdicts.isAgreed(to, state)) this.#arrive(to, state, i);
    }
  }

  /** An exception comes out of the call `i`, whose effects are in the state. */
  #land(i: number, state: StateId, pad: number | undefined): void {
    if (pad === undefined) return;
    const argumentBytes = this.#options.extraFlow.landingPads?.argumentBytes.get(i) ?? 0;
    if (argumentBytes === 0) {
      this.#arrive(pad, state, i);
      return;
    }
    const { stackPointer } = this.#options.architecture;
    const landed = this.#states.load(state);
    landed.setRegister(stackPointer, addTo(landed.registers[stackPointer] as number, argumentBytes));
    this.#arrive(pad, this.#states.keep(landed), i);
  }

  #keepDonor(i: number, state: StateId, claimId: number): void {
    if (this.#statuses[i] === Status.proven || this.#statuses[i] === Status.assumed)
      this.#starts.keepDonor(this.#program.table.offsets[i] as number, state, claimId);
  }

  #keepBehindCall(call: number, claimId: number, state: StateId): void {
    const i = call + 1;
    if (this.#claimIds[i] !== claimId || this.#snapshots[i] !== -1) return;
    if (this.#options.isIndependent === true || this.#states.isAssumed(state)) return;
    this.#behindCalls.set(i, state);
  }

  #pushReturnAddress(before: StateId): StateId {
    const { stackPointer } = this.#options.architecture;
    const state = this.#states.load(before);
    const address = addTo(state.registers[stackPointer] as number, -8);
    state.setRegister(stackPointer, address);
    state.setSlot(address, UNKNOWN);
    this.#states.changed |= state.changed;
    return this.#states.keep(state);
  }

  /** A jump to another function's entry hands over a frame that is as it was on entry: nothing of ours goes on there. */
  #isSibling(i: number, target: number): boolean {
    const { isEntry, table } = this.#program;
    if (isEntry[target] === 0) return false;
    const own = this.#program.functionAt(table.offsets[i] as number);
    return own === undefined || own.start !== table.offsets[target];
  }
}
