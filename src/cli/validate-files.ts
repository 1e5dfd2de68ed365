import { readFileSync, statSync } from 'node:fs';
import { inflateSync } from 'node:zlib';
import { x86_64 } from '../arch/x86-64/index.js';
import { LivegraftError } from '../base/errors.js';
import { parseElf } from '../elf/reader.js';
import { ProofStore } from '../targets/proof-store.js';
import { type ClaimSource, type Finding, parseSuppressions } from '../validate/findings.js';
import { encodeProof } from '../validate/proof.js';
import { type StatusCounts, validateElf } from '../validate/validate-file.js';

/** What every file of one run is validated with. Plain data: it goes to worker threads. */
export interface ValidateJob {
  readonly sources: readonly ClaimSource[] | undefined;
  readonly agree: readonly (readonly [ClaimSource, ClaimSource])[];
  /** The text of the suppression file. */
  readonly suppressions: string;
  readonly kernelRelease: string | undefined;
  readonly keepsProofs: boolean;
}

/** What came of one file. Plain data. */
export type FileReport =
  | {
      readonly kind: 'validated';
      readonly file: string;
      readonly buildId: string | undefined;
      readonly sources: readonly { readonly source: ClaimSource; readonly counts: StatusCounts }[];
      readonly findings: readonly Finding[];
      readonly suppressed: number;
      readonly textBytes: number;
      readonly instructions: number;
    }
  | {
      readonly kind: 'unreadable';
      readonly file: string;
      readonly code: string;
      readonly message: string;
      readonly remedy: string | undefined;
    };

/** Files beyond this are no program; reading one would only fill the memory. */
const MAX_FILE_BYTES = 2 ** 31;

/** Validates one file. Whatever is wrong with the file is in the report; only our own bugs are thrown. */
export function validateFile(file: string, job: ValidateJob): FileReport {
  try {
    const bytes = readInput(file);
    const elf = parseElf(bytes, file, { inflate: (packed) => inflateSync(packed) });
    const result = validateElf(elf, {
      architecture: x86_64,
      ...(job.sources !== undefined && { sources: job.sources }),
      agree: job.agree,
      suppressions: parseSuppressions(job.suppressions),
      ...(job.kernelRelease !== undefined && { kernelRelease: job.kernelRelease }),
    });
    if (job.keepsProofs && result.buildId !== undefined) {
      const proof = encodeProof(result, 'dwarf') ?? encodeProof(result, 'orc');
      if (proof !== undefined) new ProofStore().keep(result.buildId, proof);
    }
    return {
      kind: 'validated',
      file,
      buildId: result.buildId,
      sources: result.sources.map(({ source, counts }) => ({ source, counts })),
      findings: result.findings,
      suppressed: result.suppressed,
      textBytes: result.textBytes,
      instructions: result.instructions,
    };
  } catch (error) {
    if (!(error instanceof LivegraftError)) throw error;
    return { kind: 'unreadable', file, code: error.code, message: error.message, remedy: error.remedy };
  }
}

function readInput(file: string): Uint8Array {
  try {
    const { size } = statSync(file);
    if (size > MAX_FILE_BYTES) throw new Error(`${size} bytes are more than any program has`);
    return readFileSync(file);
  } catch (cause) {
    throw new LivegraftError('file-unreadable', `${file} can't be read: ${(cause as Error).message}`, {
      remedy: 'give an ELF file: an object, library, program, module or kernel',
      cause,
    });
  }
}
