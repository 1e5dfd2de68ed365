import type { Architecture } from '../arch/architecture.js';
import { Status } from './claim-verdicts.js';
import { type Claim, type ClaimTable, describeClaim } from './claims.js';
import { type ClaimSource, type Finding, makeFinding } from './findings.js';
import type { Places } from './places.js';
import type { Program } from './program.js';

/** One source of claims with what the instructions say of it. */
export interface ProvenSource {
  readonly source: ClaimSource;
  readonly claims: ClaimTable;
  readonly claimIds: Int32Array;
  readonly statuses: Uint8Array;
}

/**
 * Where two sources speak of the same instruction they must mean the same frame. Two claims that look different agree when
 * both are proven (CFA = rsp+32 and CFA = rbp+16 may well be one address). The first instruction of each stretch counts.
 */
export function compareSources(
  program: Program,
  architecture: Architecture,
  places: Places,
  a: ProvenSource,
  b: ProvenSource,
): readonly Finding[] {
  const findings: Finding[] = [];
  const nameOf = (register: number) => architecture.idioms.registerName(register);
  let last = '';
  for (let i = 0; i < program.table.count; i++) {
    const [idA, idB] = [a.claimIds[i] as number, b.claimIds[i] as number];
    const claimA = a.claims.claims[idA];
    const claimB = b.claims.claims[idB];
    if (claimA === undefined || claimB === undefined || isSameFrame(claimA, claimB, architecture)) continue;
    if (isTrusted(a.statuses[i]) && isTrusted(b.statuses[i])) continue;
    const key = `${idA},${idB}`;
    if (key === last) continue;
    last = key;
    findings.push(
      makeFinding('sources-disagree', `${a.source} and ${b.source} claim different frames`, {
        place: places.at(program.table.offsets[i] as number),
        claimed: `${a.source}: ${describeClaim(claimA, nameOf)}`,
        derived: `${b.source}: ${describeClaim(claimB, nameOf)}`,
      }),
    );
  }
  return findings;
}

function isTrusted(status: number | undefined): boolean {
  return status === Status.proven;
}

/** The CFA and the caller's frame pointer: what all sources speak of. */
function isSameFrame(a: Claim, b: Claim, architecture: Architecture): boolean {
  if (a.isOutermost || b.isOutermost) return a.isOutermost === b.isOutermost;
  if (a.cfaRegister < 0 || a.cfaRegister !== b.cfaRegister || a.cfaOffset !== b.cfaOffset) return false;
  return savedAt(a, architecture.framePointer) === savedAt(b, architecture.framePointer);
}

function savedAt(claim: Claim, register: number): number | undefined {
  const index = claim.savedRegisters.indexOf(register);
  return index < 0 ? undefined : claim.savedOffsets[index];
}
