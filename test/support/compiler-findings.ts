import { existsSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { hex } from '../../src/base/brand.js';
import { type ValidateJob, validateInput } from '../../src/cli/validate-files.js';
import type { Finding } from '../../src/validate/findings.js';
import { describePlace } from '../../src/validate/places.js';
import type { Scratch } from '../../src/validate/scratch.js';
import type { StatusCounts, ValidateResult } from '../../src/validate/validate-file.js';

/** Programs and libraries of Debian 12 that docs/validation-results.md has rows of, by the names there. */
export const COMPILED_FILES: readonly { readonly name: string; readonly path: string }[] = [
  { name: 'libc.so.6 (glibc 2.36)', path: '/usr/lib/x86_64-linux-gnu/libc.so.6' },
  { name: 'ld.so', path: '/lib64/ld-linux-x86-64.so.2' },
  { name: 'libstdc++.so.6 (GCC 12)', path: '/usr/lib/x86_64-linux-gnu/libstdc++.so.6' },
  { name: 'libssl.so.3 (OpenSSL 3.0)', path: '/usr/lib/x86_64-linux-gnu/libssl.so.3' },
  { name: 'libcrypto.so.3', path: '/usr/lib/x86_64-linux-gnu/libcrypto.so.3' },
  { name: 'libz.so.1', path: '/usr/lib/x86_64-linux-gnu/libz.so.1' },
  { name: "redis 7.0 (`redis-check-rdb`, the server's file)", path: '/usr/bin/redis-check-rdb' },
  { name: 'bash', path: '/usr/bin/bash' },
  { name: 'gdb', path: '/usr/bin/gdb' },
  { name: 'python3.11', path: '/usr/bin/python3.11' },
  { name: 'node 20.20.2', path: process.execPath },
];

interface Cause {
  readonly name: string;
  readonly has: (file: string, finding: Finding, place: string) => boolean;
}

const at = (...addresses: number[]) => {
  const all = new Set(addresses);
  return ({ place }: Finding) => place !== undefined && all.has(place.address);
};
const isOpenSsl = (file: string, place: string) =>
  file.startsWith('libcrypto') ||
  /^(_?x86_64_|__ecp_|ecp_|__rsaz_|_*bn_|_?mulx?(4x|_1x1)|__ocb_|ossl_|_*aesni_|AES_|Camellia_|__poly1305_|__KeccakF|x25519_|sha\d+_|vpaes|rsaz_|_bsaes|asm_AES)/.test(
    place,
  );

/**
 * Where in compiled files findings come from: docs/validation-results.md tells of each by its name. The first that has a finding counts.
 * Files without symbols are known by addresses, of the builds that `compiler-findings.json` lists.
 */
const CAUSES: readonly Cause[] = [
  {
    name: 'OpenSSL: the size of the frame added',
    has: (file, finding, place) =>
      isOpenSsl(file, place) &&
      (finding.code === 'stack-not-restored' ||
        /^x25519_fe(51|64)_sqr/.test(place) ||
        at(0x1dc232, 0x1dc5be)(finding)),
  },
  {
    name: 'OpenSSL: frames without directives',
    has: (file, { code }, place) => isOpenSsl(file, place) && code === 'cfa-mismatch',
  },
  {
    name: 'OpenSSL: saved registers exchanged',
    has: (file, { code }, place) => isOpenSsl(file, place) && code === 'saved-register-mismatch',
  },
  {
    name: 'OpenSSL: a saved stack pointer',
    has: (file, { code }, place) => isOpenSsl(file, place) && code === 'cfa-unproven',
  },
  {
    name: 'OpenSSL: subroutines',
    has: (file, { code }, place) =>
      (isOpenSsl(file, place) || (file.startsWith('node') && place.startsWith('.text+'))) &&
      /^register-(clobbered|not-restored)$/.test(code),
  },
  {
    name: 'GCC: the epilogue of a realigned stack',
    has: (_, { code }, place) => code === 'saved-register-mismatch' && place.includes('simdutf'),
  },
  {
    name: 'GCC: null dereferences in .cold',
    has: (_, { code }, place) => code === 'saved-register-mismatch' && place.includes('Http2Stream7Destroy'),
  },
  {
    name: 'GCC: a branch for the impossible case',
    has: (file, finding, place) =>
      (file.startsWith('node') && /^_ZN2v8/.test(place)) ||
      (file.startsWith('python') && at(0x4489d7)(finding)) ||
      (file === 'gdb' && at(0xe9905)(finding)),
  },
  {
    name: 'GCC: arguments that nobody takes away',
    has: (file, finding) => file === 'gdb' && at(0x43e773, 0x4e7c04)(finding),
  },
  { name: 'gdb: push and ret', has: (file, finding) => file === 'gdb' && at(0x3a6f61)(finding) },
  {
    name: 'glibc: contexts',
    has: (file, finding, place) =>
      (file.startsWith('libc.so') &&
        (/^(set|swap)context/.test(place) || at(0x3be63, 0x3bec3, 0x4105d, 0x519c3, 0x118133)(finding))) ||
      (file === 'ld.so' && at(0x20f0d)(finding)),
  },
  {
    name: 'glibc: multiplications',
    has: (file, { place }) =>
      file.startsWith('libc.so') &&
      place !== undefined &&
      ((place.address >= 0x4c6e0 && place.address <= 0x4c7ca) ||
        (place.address >= 0x4e140 && place.address <= 0x4e22a)),
  },
  {
    name: 'glibc: a register that was not saved',
    has: (file, finding) => file.startsWith('libc.so') && at(0x1180ed)(finding),
  },
];

/** What is written down of one file: whatever of it changes, changes in review. */
export interface CompilerEntry {
  readonly buildId: string;
  readonly counts: StatusCounts;
  /** `code place` of errors and warnings, by cause. */
  readonly findings: Readonly<Record<string, readonly string[]>>;
  /** How many notes of each code. */
  readonly notes: Readonly<Record<string, number>>;
}

export const UNEXPLAINED = 'NOT EXPLAINED';
export const SNAPSHOT = fileURLToPath(new URL('./compiler-findings.json', import.meta.url));

/** By name and build-id. */
export function readSnapshot(): Readonly<Record<string, CompilerEntry>> {
  return existsSync(SNAPSHOT) ? JSON.parse(readFileSync(SNAPSHOT, 'utf8')) : {};
}

const JOB: ValidateJob = {
  sources: undefined,
  agree: [],
  suppressions: '',
  kernelRelease: undefined,
  keepsProofs: false,
};

export function describeCompiled(name: string, path: string, scratch: Scratch): CompilerEntry {
  return describeResult(name, validateInput(path, JOB, scratch));
}

export function describeResult(
  name: string,
  { buildId = '', sources, findings }: ValidateResult,
): CompilerEntry {
  const counts = sources[0]?.counts;
  if (counts === undefined) throw new Error(`${name} has no table`);
  const byCause: Record<string, string[]> = {};
  const notes: Record<string, number> = {};
  for (const finding of findings) {
    const { code, level, place } = finding;
    if (level === 'note') {
      notes[code] = (notes[code] ?? 0) + 1;
      continue;
    }
    const where = place === undefined ? '' : `${describePlace(place)} ${hex(place.address)}`;
    const cause = CAUSES.find(({ has }) => has(name, finding, where))?.name ?? UNEXPLAINED;
    const known = byCause[cause] ?? [];
    byCause[cause] = known;
    known.push(`${code} ${where}`);
  }
  return { buildId, counts, findings: byCause, notes };
}
