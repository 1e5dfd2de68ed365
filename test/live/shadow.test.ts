import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { compile, compilePatchOf, livegraft, nextLine, PATCH_INCLUDES, snapshot } from '../support/live.js';
import { startForTest } from '../support/test-target.js';

const program = compile('shadow.c', 'program');
const patchOf = (number: number) =>
  compilePatchOf('shadow.c', `count${number}`, [PATCH_INCLUDES, `-DPATCH=${number}`]);

describe('shadow variables', () => {
  it('live from patch to patch, one for each object, and are freed with their destructors', async () => {
    const [counting, goingOn, freeing] = [patchOf(2), patchOf(3), patchOf(4)];
    const target = await startForTest(program, '60');
    const before = snapshot(target.pid);
    const on = (command: string, ...args: string[]) => {
      const run = livegraft(command, '--pid', String(target.pid), ...args);
      expect(run.stderr).toBe('');
      expect(run.code).toBe(0);
    };
    const next = async () => Number(await nextLine(target));
    const maps = () => readFileSync(`/proc/${target.pid}/maps`, 'utf8');
    expect(await next()).toBe(1);
    on('apply', counting);
    const first = await next();
    expect(first).toBeGreaterThan(100);
    expect(await next()).toBeGreaterThan(first);
    on('apply', '--replace', goingOn);
    const second = await next();
    expect(second).toBeGreaterThan(1000 + first);
    // Without any patch the data stays, for the next one.
    on('revert');
    expect(await next()).toBe(1);
    expect(maps()).toContain('livegraft:shadow');
    expect(maps()).not.toContain('livegraft:registry');
    on('apply', goingOn);
    expect(await next()).toBeGreaterThan(second);
    on('apply', '--replace', freeing);
    // Those of main and of three threads.
    expect(await next()).toBe(5004);
    on('revert');
    expect(await next()).toBe(1);
    expect(maps()).not.toContain('livegraft:');
    expect(snapshot(target.pid).code).toBe(before.code);
    expect(target.isAlive()).toBe(true);
  });
});
