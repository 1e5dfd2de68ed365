import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { type JsonLine, jsonLineSchema } from '../../src/cli/json-schema.js';
import { compile, type LiveTarget, livegraft, nextLine, pause, startLivegraft } from '../support/live.js';
import { startForTest } from '../support/test-target.js';

/** `livegraft soak --pid`: stacks walked while the target runs on, which must not notice. */
type SoakLine = Extract<JsonLine, { event: 'soak' }>;

function soakLine(line: unknown): SoakLine {
  const parsed = jsonLineSchema.parse(line);
  if (parsed.event !== 'soak') throw new Error(JSON.stringify(parsed));
  return parsed;
}

function soak(target: LiveTarget, switches: number): SoakLine {
  const run = livegraft(
    ...['soak', '--json', '--pid', String(target.pid)],
    ...['--switches', String(switches), '--timeout', '10', '--seed', '7'],
  );
  const line = soakLine(run.lines.at(-1));
  expect(run.code, run.stderr).toBe(line.unreliable === 0 ? 0 : 4);
  return line;
}

function expectReliable(line: SoakLine): void {
  expect(line.findings).toEqual([]);
  expect(line.unreliable).toBe(0);
}

/**
 * The C library's clone3 makes its system call where it has no unwind table (seen with glibc 2.36): such places are found, and
 * are right, when readelf finds no table for them either.
 */
function expectReliableButClone(line: SoakLine): void {
  if (line.findings.length === 0) return;
  const libc = '/lib/x86_64-linux-gnu/libc.so.6';
  const { stdout } = spawnSync('readelf', ['--debug-dump=frames', libc], {
    encoding: 'utf8',
    maxBuffer: 2 ** 28,
  });
  const ranges = [...stdout.matchAll(/ pc=([0-9a-f]+)\.\.([0-9a-f]+)$/gm)].map(([, from, to]) => [
    Number.parseInt(from as string, 16),
    Number.parseInt(to as string, 16),
  ]) as [number, number][];
  expect(ranges.length).toBeGreaterThan(1000);
  for (const { cause, place } of line.findings) {
    expect([cause, place]).toEqual(['no-unwind-row', expect.stringMatching(/^libc\.so\.6\+0x/)]);
    const address = Number(place.replace(/^.*\+/, ''));
    expect(ranges.some(([from, to]) => address >= from && address < to)).toBe(false);
  }
  // All other walks were reliable, and there were some.
  expect(line.switches - line.unreliable).toBeGreaterThan(100);
}

/** Nobody traces it any more, and no thread is stopped. */
function expectFree(target: LiveTarget): void {
  for (const tid of readdirSync(`/proc/${target.pid}/task`)) {
    let status: string;
    try {
      status = readFileSync(`/proc/${target.pid}/task/${tid}/status`, 'utf8');
    } catch {
      // It has ended since it was listed.
      continue;
    }
    expect(status).toMatch(/^TracerPid:\s+0$/m);
    expect(status).not.toMatch(/^State:\s+[tT]/m);
  }
}

describe('soak of a process', () => {
  it.each(['churn', 'fork', 'vfork', 'signals'])(
    'walks every stack of it, which goes on (%s)',
    async (mode) => {
      const target = await startForTest(compile('pair.c', 'program'), '3', '60', mode);
      const line = soak(target, 1000);
      if (mode === 'churn' || mode === 'vfork') expectReliableButClone(line);
      else expectReliable(line);
      expect(line).toMatchObject({ endedBy: 'count' });
      expect(line.switches).toBeGreaterThanOrEqual(1000);
      expect(line.instants).toBeGreaterThan(10);
      expect(line.kthreads).toBe(undefined);
      // Those that were created meanwhile count, too.
      expect(line.tasks).toBeGreaterThanOrEqual(mode === 'churn' ? 10 : 4);
      expectFree(target);
      expect(await nextLine(target)).toBe('1');
    },
  );

  it('is not seen by system calls that answer a stop with EINTR', async () => {
    const target = await startForTest(compile('eintr.c', 'program'), '60');
    expectReliable(soak(target, 200));
    await pause(300);
    expect(target.output().trimEnd().split('\n')).toHaveLength(1);
    expect(target.isAlive()).toBe(true);
    expectFree(target);
  });

  it('fails with another exit code than that of a stack that is not reliable', () => {
    const run = livegraft('soak', '--json', '--pid', '4194304');
    expect(run.code).toBe(1);
    expect(run.lines.at(-1)).toMatchObject({ event: 'error' });
  });

  it('counts what it can not walk by cause and place', async () => {
    const target = await startForTest(compile('no-cfi.c', 'program'), '60');
    const line = soak(target, 200);
    // Each system call is made below the function without a table.
    expect(line.unreliable).toBeGreaterThan(150);
    expect(line.findings[0]).toMatchObject({ cause: 'no-unwind-row', place: 'without_table' });
    expect(line.findings.reduce((sum, finding) => sum + finding.count, 0)).toBe(line.unreliable);
    expect(target.isAlive()).toBe(true);
  });

  it.each(['exit', 'exec'])('says when the process has come to an end (%s)', async (mode) => {
    const target = await startForTest(compile('pair.c', 'program'), '2', '60', mode);
    const line = soak(target, 1_000_000);
    expect(line.endedBy).toBe(mode);
    expect(line.switches).toBeGreaterThan(0);
    expectReliable(line);
  });

  it('ends at Ctrl-C and shows what was counted', async () => {
    const target = await startForTest(compile('pair.c', 'program'), '2', '60');
    const run = startLivegraft('soak', '--json', '--pid', String(target.pid), '--switches', '1000000');
    await pause(700);
    run.signal('SIGINT');
    const line = soakLine((await run.done).lines.at(-1));
    expect(line.endedBy).toBe('interrupt');
    expect(line.switches).toBeGreaterThan(0);
    expectFree(target);
    expect(await nextLine(target)).toBe('1');
  });

  it('leaves a target that runs on when it is killed', async () => {
    const target = await startForTest(compile('pair.c', 'program'), '3', '60', 'churn');
    for (let i = 0; i < 2; i++) {
      const run = startLivegraft('soak', '--pid', String(target.pid), '--switches', '1000000');
      await pause(400 + 77 * i);
      run.signal('SIGKILL');
      await run.done;
      expectFree(target);
      expect(await nextLine(target)).toBe('1');
    }
  });
});
