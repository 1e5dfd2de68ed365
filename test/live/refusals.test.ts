import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { parsePatch, writePatch } from '../../src/patch/file.js';
import { ProcessMemory } from '../../src/targets/process/memory.js';
import { seizeAllThreads } from '../../src/targets/process/process-space.js';
import { Tracer } from '../../src/targets/process/tracer.js';
import {
  compilePatch,
  type LiveTarget,
  livegraft,
  livegraftUnder,
  pause,
  snapshot,
} from '../support/live.js';
import { startForTest } from '../support/test-target.js';

const pair = compilePatch('pair.c');
const folder = mkdtempSync(join(tmpdir(), 'livegraft-refusals-'));
const digest = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex');

function refusal(...args: string[]): { code: unknown; message: unknown; remedy: unknown } {
  const run = livegraft('--json', ...args);
  expect(run.code).toBe(1);
  const last = run.lines[run.lines.length - 1];
  expect(last, JSON.stringify(last)).toMatchObject({ event: 'error' });
  return last as { code: unknown; message: unknown; remedy: unknown };
}

/** Applies and expects one error, and the target exactly as it was. */
async function expectUntouched(target: LiveTarget, patch: string, code: string): Promise<string> {
  const before = snapshot(target.pid);
  const error = refusal('apply', '--pid', String(target.pid), patch);
  expect(error).toMatchObject({ code });
  expect(error.remedy).toEqual(expect.stringMatching(/\w/));
  expect(snapshot(target.pid)).toEqual(before);
  await pause(100);
  expect(target.isAlive()).toBe(true);
  return String(error.message);
}

/** A variant of the patch, with a checksum that fits. */
function variant(
  name: string,
  change: (patch: ReturnType<typeof parsePatch>) => Parameters<typeof writePatch>[0],
): string {
  const path = join(folder, name);
  writeFileSync(path, writePatch(change(parsePatch(readFileSync(pair.patch), 'pair', digest)), digest));
  return path;
}

describe('a full disk behind the output', () => {
  it('keeps no apply from its work, and is told', async () => {
    const target = await startForTest(pair.program);
    const redirected = ['sh', '-c', 'exec "$0" "$@" >/dev/full'];
    const run = livegraftUnder(redirected, 'apply', '--pid', String(target.pid), pair.patch);
    expect(run.code).toBe(1);
    expect(run.stderr).toMatch(
      /^livegraft: error: the output can't be written: ENOSPC.*\n {2}what to do: .*\n$/,
    );
    const [status] = livegraft('--json', 'status', '--pid', String(target.pid)).lines;
    expect(status).toMatchObject({ processes: [{ patches: [{ state: 'applied' }], transition: null }] });
  });

  it('is no finding of validate', () => {
    const redirected = ['sh', '-c', 'exec "$0" "$@" >/dev/full'];
    const library = '/usr/lib/x86_64-linux-gnu/libz.so.1';
    const { code, stderr } = livegraftUnder(redirected, 'validate', '--no-keep', library);
    expect([code, stderr]).toEqual([
      2,
      expect.stringMatching(/^livegraft: error: the output can't be written: ENOSPC/),
    ]);
  });
});

describe('a pid that can not be patched', () => {
  it('does not exist', () => {
    expect(refusal('apply', '--pid', '4194303', pair.patch)).toMatchObject({ code: 'no-such-process' });
    expect(refusal('watch', '--pid', '4194303')).toMatchObject({ code: 'no-such-process' });
  });

  it('is livegraft itself, or out of range', () => {
    expect(livegraft('apply', '--pid', 'x', pair.patch).code).toBe(2);
    expect(livegraft('apply', pair.patch).code).toBe(2);
  });

  it('is a kernel thread', () => {
    const kernelThread = readdirSync('/proc').find((pid) => {
      if (!/^\d+$/.test(pid)) return false;
      const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
      return (Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[6]) & 0x200000) !== 0;
    });
    // In a pid namespace of its own none is visible.
    expect(kernelThread).toBeDefined();
    expect(refusal('apply', '--pid', String(kernelThread), pair.patch)).toMatchObject({
      code: 'kernel-thread',
    });
  });

  it('is a thread of another process', async () => {
    const target = await startForTest(pair.program, '2', '30');
    const tid = readdirSync(`/proc/${target.pid}/task`).find((t) => Number(t) !== target.pid);
    expect(refusal('apply', '--pid', String(tid), pair.patch)).toMatchObject({ code: 'not-a-process' });
  });

  it('is a 32-bit program', async () => {
    const source = join(folder, 'wait32.s');
    // write(1, "ready PID") can't be done in so few lines: the shell prints it instead.
    writeFileSync(source, '.globl _start\n_start: mov $29,%eax\nint $0x80\njmp _start\n');
    const program = join(folder, 'wait32');
    expect(spawnSync('as', ['--32', '-o', `${program}.o`, source]).status).toBe(0);
    expect(spawnSync('ld', ['-m', 'elf_i386', '-o', program, `${program}.o`]).status).toBe(0);
    const target = await startForTest('/bin/sh', '-c', `echo ready $$; exec ${program}`);
    await pause(200);
    expect(refusal('apply', '--pid', String(target.pid), pair.patch)).toMatchObject({ code: 'not-64-bit' });
    expect(target.isAlive()).toBe(true);
  });

  it('belongs to another user', async () => {
    const target = await startForTest(pair.program, '1', '30');
    // A copy that the other user may read: the checkout's own folder may be closed to others.
    const open = mkdtempSync(join(tmpdir(), 'livegraft-other-user-'));
    chmodSync(open, 0o755);
    for (const part of ['bin', 'dist', 'package.json', 'node_modules/koffi', 'node_modules/@koromix'])
      if (existsSync(part)) cpSync(part, join(open, part), { recursive: true });
    const bin = join(open, 'bin/livegraft.js');
    const probe = spawnSync(process.execPath, [bin, '--json', 'stack', '--pid', String(target.pid)], {
      encoding: 'utf8',
      uid: 65534,
      gid: 65534,
    });
    expect(probe.status).toBe(1);
    expect(JSON.parse(probe.stdout.trim())).toMatchObject({ code: 'no-permission' });
    rmSync(open, { recursive: true });
  });
});

describe('a patch that does not fit', () => {
  it('is for another build, or an object that is not loaded', async () => {
    const target = await startForTest(pair.program, '2', '30');
    const other = variant('other.lgp', (p) => {
      const [object] = p.manifest.objects;
      if (object === undefined) throw new Error('no object');
      return {
        ...p,
        manifest: {
          ...p.manifest,
          objects: [{ ...object, identity: { kind: 'buildId', hex: 'ab'.repeat(20) } }],
        },
      };
    });
    await expectUntouched(target, other, 'wrong-build-id');
    const canary = compilePatch('canary.c');
    await expectUntouched(target, canary.patch, 'object-not-loaded');
  });

  it('is truncated, corrupted, from the future, or no patch at all', async () => {
    const target = await startForTest(pair.program, '2', '30');
    const bytes = readFileSync(pair.patch);
    const write = (name: string, data: Uint8Array) => {
      const path = join(folder, name);
      writeFileSync(path, data);
      return path;
    };
    await expectUntouched(target, write('short.lgp', bytes.subarray(0, bytes.length / 2)), 'patch-malformed');
    const flipped = Buffer.from(bytes);
    flipped.writeUInt8(flipped.readUInt8(80) ^ 1, 80);
    await expectUntouched(target, write('flipped.lgp', flipped), 'patch-corrupted');
    await expectUntouched(target, write('text.lgp', Buffer.from('no patch')), 'patch-malformed');
    await expectUntouched(target, pair.program, 'patch-malformed');
    await expectUntouched(target, join(folder, 'missing.lgp'), 'patch-unreadable');
    const future = variant('future.lgp', (p) => ({
      ...p,
      manifest: { ...p.manifest, formatVersion: 9 as 1 },
    }));
    await expectUntouched(target, future, 'patch-future-version');
  });

  it('refers to a symbol that nothing defines', async () => {
    const target = await startForTest(pair.program, '2', '30');
    const path = variant('unresolved.lgp', (p) => ({
      ...p,
      symbols: p.symbols.map((s) =>
        s.kind === 'external' && s.object === '*' ? { ...s, name: 'no_such_function' } : s,
      ),
    }));
    const message = await expectUntouched(target, path, 'symbol-unresolved');
    expect(message).toContain('no_such_function');
  });

  it('meets code that was changed in memory', async () => {
    const target = await startForTest(pair.program, '0', '30');
    const patch = parsePatch(readFileSync(pair.patch), 'pair', digest);
    const fn = patch.manifest.objects[0]?.functions.find((f) => f.name === 'outer');
    const base = Number.parseInt(
      readFileSync(`/proc/${target.pid}/maps`, 'latin1').split('-')[0] as string,
      16,
    );
    const memory = new ProcessMemory(target.pid);
    // Some kernels let only a tracer write to code.
    const tracer = new Tracer();
    seizeAllThreads(tracer, target.pid);
    // The program would crash on it: it is held until the test ends it.
    process.kill(target.pid, 'SIGSTOP');
    const at = base + Number(fn?.old.address) + (fn?.old.sizeBytes ?? 1) - 1;
    const old = memory.readExactly(at, 1);
    memory.write(at, Uint8Array.of((old[0] as number) ^ 0xff));
    tracer.detachAll(1000);
    const message = refusal('apply', '--pid', String(target.pid), pair.patch);
    memory.close();
    expect(message).toMatchObject({ code: 'code-differs' });
    expect(String(message.message)).toContain('outer');
  });

  it('meets an entry that was changed since it was applied', async () => {
    const target = await startForTest(pair.program, '2', '60');
    const pid = String(target.pid);
    expect(livegraft('apply', '--pid', pid, pair.patch).code).toBe(0);
    const patch = parsePatch(readFileSync(pair.patch), 'pair', digest);
    const old = patch.manifest.objects[0]?.functions.find((f) => f.name === 'outer')?.old.address;
    const map = readFileSync(`/proc/${pid}/maps`, 'latin1')
      .split('\n')
      .find((line) => line.endsWith(pair.program));
    const base = Number.parseInt(map?.split('-')[0] ?? '', 16);
    // The program would crash on it: it is held meanwhile.
    process.kill(target.pid, 'SIGSTOP');
    await pause(50);
    const change = (bytes: Uint8Array) => {
      const memory = new ProcessMemory(target.pid);
      const tracer = new Tracer();
      seizeAllThreads(tracer, target.pid);
      const before = Buffer.from(memory.readExactly(base + Number(old), bytes.length));
      memory.write(base + Number(old), bytes);
      tracer.detachAll(1000);
      memory.close();
      return before;
    };
    const before = change(Uint8Array.of(0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc));
    const error = refusal('revert', '--pid', pid);
    expect(error, JSON.stringify(error)).toMatchObject({ code: 'entry-changed' });
    expect(String(error.message)).toContain('outer');
    change(before);
    process.kill(target.pid, 'SIGCONT');
    const status = livegraft('--json', 'status', '--pid', pid);
    expect(status.lines[0]).toMatchObject({
      processes: [{ patches: [{ state: 'applied' }], transition: null }],
    });
    expect(livegraft('revert', '--pid', pid).code).toBe(0);
    expect(target.isAlive()).toBe(true);
  });

  it('is applied twice, or not there to be reverted', async () => {
    const target = await startForTest(pair.program, '2', '40');
    expect(refusal('revert', '--pid', String(target.pid))).toMatchObject({ code: 'no-such-patch' });
    expect(livegraft('apply', '--pid', String(target.pid), pair.patch).code).toBe(0);
    expect(refusal('apply', '--pid', String(target.pid), pair.patch)).toMatchObject({
      code: 'already-applied',
    });
  });
});

describe('a target that resists', () => {
  it.each(['seccomp-errno', 'seccomp-kill', 'seccomp-exec'])('forbids mapping memory: %s', async (mode) => {
    const target = await startForTest(pair.program, mode === 'seccomp-errno' ? '1' : '0', '30', mode);
    await expectUntouched(target, pair.patch, 'seccomp-forbids');
  });

  it.each(['exit', 'exec'])('ends in the middle: %s', async (mode) => {
    for (let i = 0; i < 6; i++) {
      const target = await startForTest(pair.program, '3', '30', mode);
      await pause(150 + i * 40);
      const run = livegraft('--json', 'apply', '--pid', String(target.pid), pair.patch);
      const last = run.lines[run.lines.length - 1];
      // Either it was quick enough, or it says what happened.
      if (run.code === 0) expect(last).toMatchObject({ event: 'transition' });
      else
        expect(last).toMatchObject({
          code: expect.stringMatching(/^(target-gone|target-replaced|no-such-process|object-not-loaded)$/),
        });
    }
  });
});
