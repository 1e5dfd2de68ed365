import type { Architecture } from '../arch/architecture.js';
import { PairMap } from '../base/pair-map.js';
import { assumeClaim, checkClaim, Verdict } from './claim-check.js';
import type { Claim, ClaimTable } from './claims.js';
import type { StateId, StateSpace } from './state-space.js';

/** With what to start where no known control flow leads: targets of jumps that could not be followed, parts. */
export class AssumedStarts {
  readonly #stackPointer: number;
  readonly #claims: ClaimTable;
  readonly #states: StateSpace;
  readonly #entry: StateId;
  /** By unit and claim id: the state at a call or indirect jump, for places in the same unit that only those lead to. */
  readonly #donors = new PairMap();

  /** `entry`: the state of a function that has just been called. */
  constructor(architecture: Architecture, claims: ClaimTable, states: StateSpace, entry: StateId) {
    this.#stackPointer = architecture.stackPointer;
    this.#claims = claims;
    this.#states = states;
    this.#entry = entry;
  }

  /** Takes the state at a call or indirect jump whose row was not contradicted. */
  keepDonor(position: number, state: StateId, claimId: number): void {
    const claim = this.#claims.claims[claimId];
    if (claim === undefined || claim.cfaRegister === this.#stackPointer || this.#states.isPartial(state))
      return;
    const unit = this.#claims.unitIndexAt(position);
    if (this.#donors.get(unit, claimId) < 0) this.#donors.set(unit, claimId, state);
  }

  /**
   * Targets of indirect jumps are reached from one in the same unit: what that knows of the frame holds there, if the claim
   * agrees. `i`, `position`, `address`: of the instruction.
   */
  stateAt(i: number, position: number, address: number, claim: Claim, claimId: number): StateId {
    const donor =
      claim.cfaRegister === this.#stackPointer
        ? -1
        : this.#donors.get(this.#claims.unitIndexAt(position), claimId);
    const state = this.#states.load(donor < 0 ? this.#entry : donor);
    if (donor < 0 || checkClaim(claim, state, address) !== Verdict.proven)
      assumeClaim(claim, state, i, this.#stackPointer);
    state.assume(state.isPartial);
    return this.#states.keep(state);
  }
}
