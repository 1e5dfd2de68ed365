import { closeSync, constants, fstatSync, openSync, readFileSync, readSync } from 'node:fs';
import { x86_64 } from '../arch/x86-64/index.js';
import { LivegraftError, ParseError } from '../base/errors.js';
import { findDebugFile } from '../build/debug-files.js';
import { ET_REL } from '../elf/constants.js';
import type { ElfFile } from '../elf/elf-file.js';
import { parseElf } from '../elf/reader.js';
import { extractVmlinux } from '../kernel-image/decompress.js';
import { parseKallsyms } from '../kernel-image/kallsyms.js';
import { ProofStore } from '../targets/proof-store.js';
import {
  type ClaimSource,
  type Finding,
  parseSuppressions,
  type SuppressedFinding,
} from '../validate/findings.js';
import { encodeProof } from '../validate/proof.js';
import type { Scratch } from '../validate/scratch.js';
import { type StatusCounts, type ValidateResult, validateElf } from '../validate/validate-file.js';
import { decompressors, sectionDecompressors } from './decompressors.js';

/** What every file of one run is validated with. Plain data: it goes to worker threads. */
export interface ValidateJob {
  readonly sources: readonly ClaimSource[] | undefined;
  readonly agree: readonly (readonly [ClaimSource, ClaimSource])[];
  /** The text of the suppression file. */
  readonly suppressions: string;
  readonly kernelRelease: string | undefined;
  readonly keepsProofs: boolean;
}

/** Whether the verdicts were kept for walks; not asked for, or impossible: nothing that runs leads to a file without build-id. */
export type ProofOutcome = 'kept' | 'not-kept' | 'not-asked' | 'no-build-id' | 'no-table';

/** What came of one file. Plain data. */
export type FileReport =
  | {
      readonly kind: 'validated';
      readonly file: string;
      readonly buildId: string | undefined;
      readonly proof: ProofOutcome;
      /** Why it could not be kept. */
      readonly proofProblem: { readonly message: string; readonly remedy: string | undefined } | undefined;
      readonly sources: readonly { readonly source: ClaimSource; readonly counts: StatusCounts }[];
      readonly findings: readonly Finding[];
      readonly suppressed: readonly SuppressedFinding[];
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

/** Smaller files are done before anybody looks. */
const WORTH_TELLING_BYTES = 4 * 1024 * 1024;
const TELL_EVERY_MS = 50;
/** How far a packed kernel is then, about. */
const [UNPACKED, READ] = [0.15, 0.25];

function atIntervals(onProgress: OnProgress | undefined): OnProgress | undefined {
  if (onProgress === undefined) return undefined;
  let last = 0;
  return (fraction) => {
    const now = performance.now();
    if (now - last < TELL_EVERY_MS) return;
    last = now;
    onProgress(fraction);
  };
}

/** Files beyond this are no program; reading one would only fill the memory. */
const MAX_FILE_BYTES = 2 ** 31;

/** The same of what is no ELF file: a disk image must not be read before it is known to be one. */
const MAX_PACKED_BYTES = 2 ** 28;

function beginsAsElf(descriptor: number): boolean {
  const magic = new Uint8Array(4);
  return readSync(descriptor, magic, 0, 4, 0) === 4 && Buffer.from(magic).equals(ELF_MAGIC);
}
const ELF_MAGIC = Buffer.from([0x7f, 0x45, 0x4c, 0x46]);

/** How much of a file is done, from 0 to 1. */
export type OnProgress = (fraction: number) => void;

/** Validates one file. Whatever is wrong with the file is in the report; only our own bugs are thrown. */
export function validateFile(
  file: string,
  job: ValidateJob,
  scratch: Scratch,
  onProgress?: OnProgress,
): FileReport {
  try {
    const result = validateInput(file, job, scratch, onProgress);
    const { proof, proofProblem } = keepProof(result, job);
    return {
      kind: 'validated',
      file,
      buildId: result.buildId,
      proof,
      proofProblem,
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

/** Reads a file, or the kernel packed inside of it, and validates it. Throws a LivegraftError for one that can't be read. */
export function validateInput(
  file: string,
  job: ValidateJob,
  scratch: Scratch,
  onProgress?: OnProgress,
): ValidateResult {
  const input = readInput(file, scratch);
  const tell = input.length > WORTH_TELLING_BYTES ? atIntervals(onProgress) : undefined;
  const bytes = extractVmlinux(input, file, decompressors);
  tell?.(UNPACKED);
  const elf = parseElf(bytes, file, sectionDecompressors);
  const kernel = readKernel(elf);
  tell?.(READ);
  const kernelRelease = job.kernelRelease ?? kernel?.release;
  return validateElf(elf, {
    architecture: x86_64,
    ...(job.sources !== undefined && { sources: job.sources }),
    agree: job.agree,
    scratch,
    ...(tell !== undefined && { onProgress: (fraction) => tell(READ + (1 - READ) * fraction) }),
    debugFile: () => findDebugFile(elf, file, []),
    suppressions: parseSuppressions(job.suppressions),
    ...(kernelRelease !== undefined && { kernelRelease }),
    ...(kernel !== undefined && { symbols: kernel.symbols }),
  });
}

/** Kernels are walked by ORC, processes by DWARF. */
function keepProof(
  result: ValidateResult,
  job: ValidateJob,
): Pick<FileReport & { kind: 'validated' }, 'proof' | 'proofProblem'> {
  const outcome = (proof: ProofOutcome) => ({ proof, proofProblem: undefined });
  if (!job.keepsProofs) return outcome('not-asked');
  if (result.buildId === undefined) return outcome('no-build-id');
  const proof = encodeProof(result, 'orc') ?? encodeProof(result, 'dwarf');
  if (proof === undefined) return outcome('no-table');
  try {
    new ProofStore().keep(result.buildId, proof);
    return outcome('kept');
  } catch (error) {
    // What was found is worth no less.
    if (!(error instanceof LivegraftError)) throw error;
    return { proof: 'not-kept', proofProblem: { message: error.message, remedy: error.remedy } };
  }
}

/** A linked kernel's release and function names, which its ORC table and its stripped code don't tell. */
export function readKernel(elf: ElfFile) {
  const section = elf.findSection('.rodata');
  if (elf.type === ET_REL || section === undefined || elf.findSection('.orc_unwind') === undefined)
    return undefined;
  const release = findRelease(section.data);
  if (elf.symbols.length > 1) return { release, symbols: [] };
  try {
    const { names, types, addresses } = parseKallsyms(section.data, section.address, elf.source);
    const symbols: { name: string; address: number }[] = [];
    names.forEach((name, i) => {
      if ('tTwW'.includes(types.charAt(i)) || name.startsWith('__st'))
        symbols.push({ name, address: addresses[i] as number });
    });
    return { release, symbols };
  } catch (error) {
    if (!(error instanceof ParseError)) throw error;
    return { release, symbols: [] };
  }
}

/** `linux_banner` (init/version.c). */
function findRelease(rodata: Uint8Array): string | undefined {
  const at = Buffer.from(rodata.buffer, rodata.byteOffset, rodata.length).indexOf('Linux version ');
  if (at < 0) return undefined;
  const text = new TextDecoder('latin1').decode(rodata.subarray(at, at + 128));
  return /^Linux version (\S+)/.exec(text)?.[1];
}

/** The bytes are valid until the next file is read: over a thousand modules, giving each its own would keep the collector busy. */
function readInput(file: string, scratch: Scratch): Uint8Array {
  try {
    // The opening of a pipe would wait for a writer.
    const descriptor = openSync(file, constants.O_RDONLY | constants.O_NONBLOCK);
    try {
      const stat = fstatSync(descriptor);
      // A device or pipe may never end.
      if (!stat.isFile() && !stat.isDirectory()) throw new Error('it is no regular file');
      // What /proc holds says that it is empty.
      if (stat.size === 0 || stat.isDirectory()) return readFileSync(descriptor);
      const { size } = stat;
      if (size > MAX_FILE_BYTES) throw new Error(`${size} bytes are more than any program has`);
      if (size > MAX_PACKED_BYTES && !beginsAsElf(descriptor))
        throw new Error(`it is no ELF file, and ${size} bytes are more than any packed kernel has`);
      const bytes = scratch.uint8('file', size);
      let filled = 0;
      while (filled < size) {
        const read = readSync(descriptor, bytes, filled, size - filled, filled);
        if (read === 0) break;
        filled += read;
      }
      return bytes.subarray(0, filled);
    } finally {
      closeSync(descriptor);
    }
  } catch (cause) {
    throw new LivegraftError('file-unreadable', `${file} can't be read: ${(cause as Error).message}`, {
      remedy: 'give an ELF file: an object, library, program, module or kernel',
      cause,
    });
  }
}
