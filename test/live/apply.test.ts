import { describe, expect, it } from 'vitest';
import { jsonLineSchema } from '../../src/cli/json-schema.js';
import { createProcessOperations } from '../../src/cli/process-operations.js';
import { compilePatch, livegraft, nextLine, pause, snapshot } from '../support/live.js';
import { startForTest } from '../support/test-target.js';

const pair = compilePatch('pair.c');

describe('apply and revert', () => {
  it('basic function patching: changes two functions whose contract changes together, and leaves memory and code as they were', async () => {
    const target = await startForTest(pair.program, '8', '60');
    const before = snapshot(target.pid);
    expect(await nextLine(target)).toBe('1');
    const applied = livegraft('--json', 'apply', '--pid', String(target.pid), pair.patch);
    expect(applied.stderr).toBe('');
    expect(applied.code).toBe(0);
    for (const line of applied.lines) jsonLineSchema.parse(line);
    expect(await nextLine(target)).toBe('2');
    const status = livegraft('--json', 'status', '--pid', String(target.pid));
    expect(jsonLineSchema.parse(status.lines[0])).toMatchObject({
      event: 'status',
      processes: [{ patches: [{ name: 'test', state: 'applied' }], transition: null }],
    });
    const reverted = livegraft('--json', 'revert', '--pid', String(target.pid));
    expect(reverted.code).toBe(0);
    for (const line of reverted.lines) jsonLineSchema.parse(line);
    expect(await nextLine(target)).toBe('1');
    expect(snapshot(target.pid)).toEqual(before);
  });

  it('goes back and forth many times without a thread seeing a mix', async () => {
    const target = await startForTest(pair.program, '6', '300');
    for (let i = 0; i < 10; i++) {
      expect(livegraft('apply', '--pid', String(target.pid), pair.patch).stderr).toBe('');
      expect(livegraft('revert', '--pid', String(target.pid)).stderr).toBe('');
    }
    expect(target.isAlive()).toBe(true);
    expect(await nextLine(target)).toBe('1');
  });

  it('patch getpid syscall while being heavily hammered: every one of 16 threads migrates', async () => {
    const target = await startForTest(pair.program, '16', '60');
    const { code, lines } = livegraft('--json', 'apply', '--pid', String(target.pid), pair.patch);
    expect(code).toBe(0);
    expect(lines.at(-1)).toMatchObject({ result: { kind: 'complete', tasks: 17, forced: false } });
    const switched = lines.filter(({ event }) => event === 'taskSwitched').map(({ task }) => task);
    expect(new Set(switched).size).toBe(17);
    expect(livegraft('revert', '--pid', String(target.pid)).code).toBe(0);
    expect(target.isAlive()).toBe(true);
  });

  it.each(['churn', 'fork', 'gs'])('keeps every thread consistent in a target of kind "%s"', async (kind) => {
    const target = await startForTest(pair.program, '4', '300', kind);
    for (let i = 0; i < 3; i++) {
      const applied = livegraft('apply', '--pid', String(target.pid), pair.patch);
      expect(applied.stderr).toBe('');
      expect(await nextLine(target)).toBe('2');
      const reverted = livegraft('revert', '--pid', String(target.pid));
      expect(reverted.stderr).toBe('');
      expect(await nextLine(target)).toBe('1');
    }
    expect(target.isAlive()).toBe(true);
  });

  it.each(['stop', 'immediate'])('applies with model %s where the functions are not mixed', async (model) => {
    const canary = compilePatch('canary.c');
    const target = await startForTest(canary.program, '60');
    expect(livegraft('apply', '--pid', String(target.pid), '--model', model, canary.patch).code).toBe(0);
    expect(livegraft('revert', '--pid', String(target.pid), '--model', model).code).toBe(0);
    expect(target.isAlive()).toBe(true);
  });

  it('keeps all registers, flags, red zone and errno over many transitions', async () => {
    const canary = compilePatch('canary.c');
    // Its threads spin on both cores: livegraft is to come first, or this takes twice as long.
    const target = await startForTest('/usr/bin/nice', '-n', '10', canary.program, '900');
    expect(livegraft('apply', '--pid', String(target.pid), canary.patch).stderr).toBe('');
    expect(livegraft('revert', '--pid', String(target.pid)).stderr).toBe('');
    // The others from within this process: starting a command takes several times as long as what it then does.
    const operations = createProcessOperations();
    const common = {
      pid: target.pid,
      model: 'hybrid',
      timeoutMs: 30_000,
      allowSuspendedContexts: false,
      signal: new AbortController().signal,
      onEvent: () => {},
    } as const;
    for (let i = 1; i < 100; i++) {
      const patch = { patchPath: canary.patch, barrier: undefined, replace: false };
      expect((await operations.apply({ ...common, ...patch })).result.kind).toBe('complete');
      expect((await operations.revert({ ...common, patch: undefined })).result.kind).toBe('complete');
    }
    expect(target.output().trimEnd()).toBe(`ready ${target.pid}`);
    expect(target.isAlive()).toBe(true);
  }, 900_000);

  it('lets no blocking system call fail with EINTR or end early', async () => {
    const eintr = compilePatch('eintr.c');
    const target = await startForTest(eintr.program, '300');
    for (let i = 0; i < 15; i++) {
      expect(livegraft('apply', '--pid', String(target.pid), eintr.patch).stderr).toBe('');
      await pause(37);
      expect(livegraft('revert', '--pid', String(target.pid)).stderr).toBe('');
      await pause(53);
    }
    await pause(300);
    expect(target.output().trimEnd()).toBe(`ready ${target.pid}`);
    expect(target.isAlive()).toBe(true);
  });
});
