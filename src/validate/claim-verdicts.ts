import type { Architecture } from '../arch/architecture.js';
import { assumeClaim, checkClaim, detail, Verdict } from './claim-check.js';
import type { Claim, ClaimTable } from './claims.js';
import { CHANGED_ALL } from './frame-state.js';
import type { Program } from './program.js';
import type { Scratch } from './scratch.js';
import type { StateId, StateSpace } from './state-space.js';
import { UNKNOWN, type Value } from './values.js';

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

/** What {@link ClaimVerdicts.check} returns where nothing goes on: no state. */
export const REFUSED = -1;

const FOLLOWED_BITS = 13;
const FOLLOWED = 1 << FOLLOWED_BITS;

export interface ClaimVerdictsOptions {
  readonly architecture: Architecture;
  readonly program: Program;
  readonly claims: ClaimTable;
  /** Claim ids of each instruction. */
  readonly claimIds: Int32Array;
  /** {@link Status} of each instruction, to be filled in. */
  readonly statuses: Uint8Array;
  readonly states: StateSpace;
  readonly scratch: Scratch;
  /** Positions where a hint in the file says what the frame is: the claim there is taken as given. */
  readonly hints?: ReadonlySet<number>;
  /** Claims are compared but never used. */
  readonly isIndependent?: boolean;
}

/** Holds the claims of a program against the states that come to its instructions, and keeps what comes of it. */
export class ClaimVerdicts {
  /** Some claim is neither proven nor contradicted. */
  hasUnknown = false;
  readonly #architecture: Architecture;
  readonly #program: Program;
  readonly #claims: ClaimTable;
  readonly #claimIds: Int32Array;
  readonly #statuses: Uint8Array;
  readonly #states: StateSpace;
  readonly #hints: ReadonlySet<number> | undefined;
  readonly #isIndependent: boolean;
  /** Claims and states from which they follow, one pair behind the other by their hash. */
  readonly #followed: Int32Array;
  readonly #contradictions = new Map<number, Contradiction>();
  #regionDelta = 0;
  #regionStart = 0;
  #regionEnd = 0;

  constructor(options: ClaimVerdictsOptions) {
    this.#architecture = options.architecture;
    this.#program = options.program;
    this.#claims = options.claims;
    this.#claimIds = options.claimIds;
    this.#statuses = options.statuses;
    this.#states = options.states;
    this.#hints = options.hints;
    this.#isIndependent = options.isIndependent === true;
    this.#followed = options.scratch.int32('claims that follow', 2 * FOLLOWED, -1);
  }

  /** In the order of the places. */
  get contradictions(): readonly Contradiction[] {
    return [...this.#contradictions.values()].sort((a, b) => a.at - b.at);
  }

  claimAt(i: number): Claim | undefined {
    return this.#claims.claims[this.#claimIds[i] as number];
  }

  /**
   * A way into `i` that contradicts the claim there is a finding, and adds nothing to what is known at `i`; unless it is a mistake that
   * was told of before.
   */
  isRefused(i: number, state: StateId, from: number): boolean {
    if (this.#isIndependent) return false;
    const claim = this.claimAt(i);
    if (claim === undefined) return false;
    if (this.#verdictOf(i, state) !== Verdict.wrongCfa) return false;
    if (detail.derived === this.#states.wrongCfa(state)) return false;
    if (!this.#isHint(i, from, claim) && !this.#isDeadEnd(i, state, from))
      this.#contradict(i, from, claim, state);
    return true;
  }

  /**
   * What comes of holding the claim at `i`, of which there must be one, against a state; {@link detail} tells more unless it is
   * proven.
   */
  #verdictOf(i: number, state: StateId): number {
    const claimId = this.#claimIds[i] as number;
    const claim = this.#claims.claims[claimId] as Claim;
    // What depends on everything may depend on the instruction's address too.
    if (claim.dependsOn === CHANGED_ALL)
      return checkClaim(claim, this.#states.load(state), this.addressOf(i));
    const followed = this.#followed;
    const slot = 2 * (Math.imul(state ^ Math.imul(claimId, 0x85ebca6b), 0x9e3779b1) >>> (32 - FOLLOWED_BITS));
    if (followed[slot] === state && followed[slot + 1] === claimId) return Verdict.proven;
    const verdict = checkClaim(claim, this.#states.load(state), this.addressOf(i));
    if (verdict === Verdict.proven) {
      followed[slot] = state;
      followed[slot + 1] = claimId;
    }
    return verdict;
  }

  /** A state that comes to `i`, with the table's mistake forgotten where the claim there makes it no more. */
  settle(i: number, state: StateId): StateId {
    if (this.#states.wrongCfa(state) === UNKNOWN || this.claimAt(i) === undefined) return state;
    const verdict = this.#verdictOf(i, state);
    const isRight = verdict === Verdict.proven || verdict === Verdict.wrongRegister;
    return isRight ? this.#states.withWrongCfa(state, UNKNOWN) : state;
  }

  /** A state that contradicts the claim at `i`, with that mistake noted. */
  blame(i: number, state: StateId): StateId {
    return this.#verdictOf(i, state) === Verdict.wrongCfa
      ? this.#states.withWrongCfa(state, detail.derived)
      : state;
  }

  isAgreed(i: number, state: StateId): boolean {
    return this.claimAt(i) !== undefined && this.#verdictOf(i, state) === Verdict.proven;
  }

  /**
   * Holds the claim at `i` against a state, and returns the one to go on with; {@link REFUSED} where another function begins, in
   * another frame.
   */
  check(i: number, state: StateId, from: number, claimId: number): StateId {
    const statuses = this.#statuses;
    const claim = this.#claims.claims[claimId];
    if (claim === undefined) {
      statuses[i] = Status.unclaimed;
      return state;
    }
    const verdict = this.#verdictOf(i, state);
    if (verdict === Verdict.proven) {
      // One way here that was taken on trust is enough; what was disproved or unknown by another stays so.
      if (!this.#states.isAssumed(state)) statuses[i] = Status.proven;
      else if (statuses[i] === Status.unreached || statuses[i] === Status.proven)
        statuses[i] = Status.assumed;
      return this.#states.withWrongCfa(state, UNKNOWN);
    }
    const mistake = this.#states.wrongCfa(state);
    const isHint = this.#isHint(i, from, claim);
    if (isHint) statuses[i] = Status.assumed;
    else if (verdict === Verdict.unknown) {
      // From a whole frame the CFA of every compiler's code can be told.
      if (!this.#states.isPartial(state) && mistake === UNKNOWN) this.#contradict(i, from, claim, state);
      statuses[i] = Status.unknown;
      this.hasUnknown = true;
    } else {
      const { derived } = detail;
      const isOut = verdict === Verdict.wrongCfa && !this.#isIndependent && this.#isFallThrough(from, i);
      if (isOut && this.#isDeadEnd(i, state, from)) return REFUSED;
      statuses[i] = Status.disproved;
      if (verdict === Verdict.wrongRegister) {
        this.#contradict(i, from, claim, state);
        return this.#states.withWrongCfa(state, UNKNOWN);
      }
      if (derived !== mistake) this.#contradict(i, from, claim, state);
      if (this.#isIndependent) return state;
      if (isOut) return REFUSED;
      // What follows from a call's frame is worth more than what is claimed; what follows from a claim is not.
      if (from >= 0 && !this.#states.isAssumed(state)) return this.#states.withWrongCfa(state, derived);
    }
    if (this.#isIndependent) return state;
    const assumed = this.#states.load(state);
    assumeClaim(claim, assumed, i, this.#architecture.stackPointer);
    // What else the frame held is no longer known.
    assumed.assume(true);
    return this.#states.keep(assumed);
  }

  /**
   * Frames of interrupts and exceptions are made by hardware or by hints, and of an outermost frame nothing is claimed:
   * nothing before explains what is behind.
   */
  #isHint(i: number, from: number, claim: Claim): boolean {
    if (claim.isSignalFrame) return true;
    if (this.#hints?.has(this.#program.table.offsets[i] as number) === true) return true;
    const before = from < 0 ? undefined : this.claimAt(from);
    return before !== undefined && (before.isSignalFrame || before.isOutermost);
  }

  /** Whether code that nothing shows would go on into another function: dead code behind the last call of its own, for all that is known. */
  #isDeadEnd(i: number, state: StateId, from: number): boolean {
    return this.#states.isAssumed(state) && this.#isFallThrough(from, i);
  }

  /** Whether control would go on from the end of one function to what lies behind it. */
  #isFallThrough(from: number, to: number): boolean {
    if (from < 0 || from !== to - 1) return false;
    const { offsets } = this.#program.table;
    const before = this.#program.functionAt(offsets[from] as number);
    return before !== this.#program.functionAt(offsets[to] as number);
  }

  #contradict(at: number, from: number, claim: Claim, state: StateId): void {
    if (this.#contradictions.has(at)) return;
    const { stackPointer, framePointer } = this.#architecture;
    this.#contradictions.set(at, {
      at,
      from,
      claim,
      verdict: detail.verdict,
      register: detail.register,
      derived: detail.derived,
      stackPointer: this.#states.register(state, stackPointer),
      framePointer: this.#states.register(state, framePointer),
    });
    this.#statuses[at] = detail.verdict === Verdict.unknown ? Status.unknown : Status.disproved;
  }

  addressOf(i: number): number {
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
