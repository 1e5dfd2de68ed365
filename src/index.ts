/** What other programs may build on. */
export { x86_64 } from './arch/x86-64/index.js';
export { LivegraftError, ParseError } from './base/errors.js';
export type { CfaRule, CfiRow, RegisterRule } from './cfi/row.js';
export { toSarif } from './cli/sarif.js';
export { type FileReport, type ValidateJob, validateFile } from './cli/validate-files.js';
export type { SourceLine } from './dwarf/line-section.js';
export { parseElf } from './elf/reader.js';
export type { TransitionTarget } from './engine/target.js';
export { runTransition, TransitionControl } from './engine/transition.js';
export { parsePatch } from './patch/file.js';
export { ProofStore } from './targets/proof-store.js';
export { walkReliable } from './unwind/walk-reliable.js';
export {
  type ClaimSource,
  FINDING_CODES,
  type Finding,
  type FindingCode,
  type FindingPlace,
  parseSuppressions,
  type SuppressedFinding,
} from './validate/findings.js';
export { encodeProof, type Proof, parseProof } from './validate/proof.js';
export { Scratch } from './validate/scratch.js';
export {
  type SourceResult,
  type StatusCounts,
  type ValidateOptions,
  type ValidateResult,
  validateElf,
} from './validate/validate-file.js';
