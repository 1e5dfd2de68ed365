import type { Architecture } from '../arch/architecture.js';
import { Verdict } from './claim-check.js';
import type { Contradiction } from './claim-verdicts.js';
import { describeClaim } from './claims.js';
import { type ClaimSource, type Finding, makeFinding } from './findings.js';
import type { FlowProofResult } from './flow-proof.js';
import type { Places } from './places.js';
import type { Program } from './program.js';
import { describeValue } from './values.js';

/** One finding for each wrong row, and one for each register that a function treats wrongly. */
export function contradictionsToFindings(
  result: FlowProofResult,
  source: ClaimSource,
  program: Program,
  places: Places,
  architecture: Architecture,
): Finding[] {
  const nameOf = (register: number) => architecture.idioms.registerName(register);
  const findings: Finding[] = [];
  const indexOfKey = new Map<string, number>();
  for (const contradiction of result.contradictions) {
    const { at, from, claim, verdict, register } = contradiction;
    const position = program.table.offsets[at] as number;
    const owner = program.functionAt(position)?.start ?? -1;
    const key = `${owner},${verdict},${register}`;
    const known = verdict === Verdict.wrongRegister ? indexOfKey.get(key) : undefined;
    if (known !== undefined) {
      const first = findings[known] as Finding;
      findings[known] = { ...first, repeats: first.repeats + 1 };
      continue;
    }
    indexOfKey.set(key, findings.length);
    const { code, message } = explain(contradiction, architecture);
    findings.push(
      makeFinding(code, message, {
        source,
        place: places.at(position),
        from: from < 0 ? undefined : places.at(program.table.offsets[from] as number),
        claimed: describeClaim(claim, nameOf),
        derived: describeDerived(contradiction, architecture),
      }),
    );
  }
  return findings;
}

function explain(
  { claim, verdict, register, derived }: Contradiction,
  architecture: Architecture,
): {
  code:
    | 'cfa-mismatch'
    | 'cfa-unproven'
    | 'return-address-mismatch'
    | 'saved-register-mismatch'
    | 'register-clobbered';
  message: string;
} {
  const name = (number: number) => architecture.idioms.registerName(number);
  if (verdict === Verdict.unknown) {
    return { code: 'cfa-unproven', message: 'nothing before shows that what is claimed to be the CFA is it' };
  }
  if (verdict === Verdict.wrongCfa) {
    return {
      code: 'cfa-mismatch',
      message: `what is claimed to be the CFA is ${describeValue(derived, name)}`,
    };
  }
  const found = describeValue(derived, name);
  if (register === architecture.returnAddress) {
    return {
      code: 'return-address-mismatch',
      message: `where the return address is claimed to be lies: ${found}`,
    };
  }
  return claim.sameRegisters.includes(register)
    ? {
        code: 'register-clobbered',
        message: `${name(register)} is claimed to be unchanged; it holds: ${found}`,
      }
    : {
        code: 'saved-register-mismatch',
        message: `where ${name(register)} is claimed to be saved lies: ${found}`,
      };
}

function describeDerived(contradiction: Contradiction, architecture: Architecture): string {
  const name = (register: number) => architecture.idioms.registerName(register);
  const value = (register: number, of: number) => `${name(register)}=${describeValue(of, name)}`;
  const { stackPointer, framePointer } = architecture;
  return `${value(stackPointer, contradiction.stackPointer)}, ${value(framePointer, contradiction.framePointer)}`;
}
