import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import Ajv from 'ajv';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { FINDING_CODES, makeFinding } from '../validate/findings.js';
import { Scratch } from '../validate/scratch.js';
import { toSarif } from './sarif.js';
import { type FileReport, validateFile } from './validate-files.js';

/** The log against the schema that goes with the specification, and against what the specification says beyond it. */

const CORPUS = fileURLToPath(new URL('../../test/corpus/validate', import.meta.url));
const require = createRequire(import.meta.url);
const ajv = new Ajv({ schemaId: 'id', allErrors: true, format: 'full', meta: false });
ajv.addMetaSchema(require('ajv/lib/refs/json-schema-draft-04.json'));
const check = ajv.compile(require('@microsoft/jest-sarif/lib/schemas/sarif-2.1.0-rtm.5.json'));

function problemsOf(log: unknown): string[] {
  check(log);
  return (check.errors ?? []).map(({ dataPath, message }) => `${dataPath} ${message}`);
}

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'livegraft sarif #%-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function report(file: string, suppressions = ''): FileReport {
  const job = {
    sources: ['dwarf', 'orc', 'frame-pointer'] as const,
    agree: [['dwarf', 'frame-pointer']] as const,
    suppressions,
    kernelRelease: '6.1.0',
    keepsProofs: false,
  };
  return validateFile(file, job, new Scratch());
}

function assemble(code: string, quality = 'bad'): string {
  const object = join(folder, `${code}.o`);
  expect(spawnSync('as', ['-g', '-o', object, `${CORPUS}/${code}.${quality}.s`]).status).toBe(0);
  return object;
}

interface Log {
  readonly version: string;
  readonly $schema: string;
  readonly runs: readonly {
    readonly tool: { readonly driver: { readonly rules: readonly { readonly id: string }[] } };
    readonly invocations: readonly {
      readonly executionSuccessful: boolean;
      readonly toolExecutionNotifications: readonly unknown[];
    }[];
    readonly results: readonly {
      readonly ruleId: string;
      readonly ruleIndex: number;
      readonly suppressions?: readonly object[];
    }[];
  }[];
}

describe('a SARIF log', () => {
  it('of every finding code follows the schema of version 2.1.0', () => {
    const reports = Object.keys(FINDING_CODES).map((code) => report(assemble(code)));
    const log = toSarif(reports) as Log;
    expect(problemsOf(log)).toEqual([]);
    const [run] = log.runs;
    // 3.27.6: an index into the rules, of the one with this id.
    for (const { ruleId, ruleIndex } of run?.results ?? [])
      expect(run?.tool.driver.rules[ruleIndex]?.id).toBe(ruleId);
    const found = new Set(run?.results.map(({ ruleId }) => ruleId));
    expect([...found].sort()).toEqual(Object.keys(FINDING_CODES).sort());
  });

  it('says of a file that could not be read that the run was no success', () => {
    const none = join(folder, 'no ELF');
    writeFileSync(none, 'x'.repeat(100));
    const log = toSarif([report(none), report(assemble('orphan-entry'))]) as Log;
    expect(problemsOf(log)).toEqual([]);
    const [invocation] = log.runs[0]?.invocations ?? [];
    // 3.20.14, 3.20.21
    expect(invocation?.executionSuccessful).toBe(false);
    expect(invocation?.toolExecutionNotifications).toHaveLength(1);
    expect(toSarif([])).toMatchObject({ runs: [{ invocations: [{ executionSuccessful: true }] }] });
    expect(problemsOf(toSarif([]))).toEqual([]);
  });

  it('names places of kernels and sources with strange names in a way that the schema takes', () => {
    const place = (address: number, file: string) => ({
      section: '.text',
      address,
      function: undefined,
      functionOffset: undefined,
      line: { file, line: 7, column: 0 },
    });
    const validated = report(assemble('orphan-entry'));
    if (validated.kind !== 'validated') throw new Error(validated.message);
    const findings = ['../a b/ü:c?.S', '/usr/src/%41.c', 'x.c', '', 'C:\\a.c'].map((file) =>
      makeFinding('cfa-mismatch', 'x', { place: place(-4096, file), from: place(2 ** 40, file) }),
    );
    expect(problemsOf(toSarif([{ ...validated, findings }]))).toEqual([]);
  });

  it('has what is suppressed, and says by whom and why', () => {
    const list = '# of old\nregister-* f\ncfa-mismatch f # seen in review #12\n';
    const reports = [
      report(assemble('cfa-mismatch'), list),
      report(assemble('register-clobbered'), list),
      report(assemble('non-standard-stack', 'good'), list),
      report(assemble('stack-not-restored'), list),
    ];
    const log = toSarif(reports) as Log;
    expect(problemsOf(log)).toEqual([]);
    const results = log.runs[0]?.results ?? [];
    const saidOf = (isSuppressed: boolean) => [
      ...new Set(
        results
          .filter(({ suppressions }) => (suppressions !== undefined) === isSuppressed)
          .map(({ ruleId, suppressions = [] }) =>
            [ruleId, ...suppressions.map((s) => JSON.stringify(s))].join(' '),
          ),
      ),
    ];
    expect(saidOf(true)).toEqual([
      'cfa-mismatch {"kind":"external","justification":"seen in review #12"}',
      'register-clobbered {"kind":"external"}',
      'register-not-restored {"kind":"external"}',
      'cfa-mismatch {"kind":"inSource","justification":"STACK_FRAME_NON_STANDARD"}',
    ]);
    expect(saidOf(false)).toEqual(expect.arrayContaining(['stack-not-restored', 'missing-table']));
    expect(saidOf(false)).not.toContain('cfa-mismatch');
    const [result] = results;
    const wrong = { ...log.runs[0], results: [{ ...result, suppressions: [{ kind: 'mine' }] }] };
    expect(problemsOf({ ...log, runs: [wrong] })).not.toEqual([]);
  });

  it('that is wrong is noticed by the schema', () => {
    const { runs, ...rest } = toSarif([report(assemble('cfa-mismatch'))]) as Log;
    const [run] = runs;
    const results = run?.results ?? [];
    const withResult = (more: object) => ({
      ...rest,
      runs: [{ ...run, results: [{ ...results[0], ...more }] }],
    });
    expect(problemsOf(withResult({}))).toEqual([]);
    expect(problemsOf(withResult({ level: 'grave' }))).toHaveLength(1);
    expect(problemsOf(withResult({ message: undefined }))).not.toEqual([]);
    expect(problemsOf(withResult({ occurrenceCount: 0 }))).toHaveLength(1);
    expect(problemsOf(withResult({ analysisTarget: { uri: 'a b' } }))).toHaveLength(1);
    expect(problemsOf({ ...rest, runs: [{ results }] })).toHaveLength(1);
    expect(problemsOf(readFileSync(join(CORPUS, 'join.bad.s'), 'utf8'))).toHaveLength(1);
  });
});
