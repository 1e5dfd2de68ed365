import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { sha256 } from '../../src/build/from-objects.js';
import { buildReplacement } from '../../src/build/kernel-replacement.js';
import { writeKlpModule } from '../../src/build/klp-module.js';
import { decompressors } from '../../src/cli/decompressors.js';
import { jsonLineSchema } from '../../src/cli/json-schema.js';
import { LIVEPATCH_SNAPSHOT_COMMAND } from '../../src/cli/klp-state.js';
import { parseElf } from '../../src/elf/reader.js';
import { extractVmlinux } from '../../src/kernel-image/decompress.js';
import { parseKernelImage } from '../../src/kernel-image/kernel-image.js';
import { parsePatch } from '../../src/patch/file.js';
import { bootGuest, fetchKernel, type Guest } from '../support/guest.js';
import { compileKernelObject } from '../support/kernel-objects.js';
import { livegraft } from '../support/live.js';
import { readLoadavg } from '../support/loadavg-reads.js';

/** One change, two engines: livegraft from outside in one guest, the kernel's own livepatch inside the other. */
const folder = mkdtempSync(join(tmpdir(), 'livegraft-kernel-klp-'));
const vmlinux = join(folder, 'vmlinux');
const SOURCES = ['cmdline', 'schedule-timeout', 'loadavg', 'callbacks'];
/** For the last one. */
const FLAGS = ['-DPREFIX="with callbacks: "', '-DCALLBACKS="both"'];
let outside: Guest;
let inside: Guest;

beforeAll(async () => {
  writeFileSync(vmlinux, extractVmlinux(readFileSync(fetchKernel().vmlinuz), 'vmlinuz', decompressors));
  const image = parseKernelImage(readFileSync(vmlinux), 'vmlinux');
  const createdAt = new Date().toISOString();
  for (const name of SOURCES) {
    const flags = name === 'callbacks' ? FLAGS : [];
    const object = parseElf(readFileSync(compileKernelObject(folder, `${name}.c`, ...flags)), name);
    const options = { name, description: '', digest: sha256, createdAt };
    const { bytes } = buildReplacement(object, image, options);
    writeFileSync(join(folder, `${name}.lgp`), bytes);
    writeFileSync(join(folder, `${name}.ko`), writeKlpModule(parsePatch(bytes, name, sha256), image));
  }
  const modules = SOURCES.map((name) => ({
    path: `lib/${name}.ko`,
    data: readFileSync(join(folder, `${name}.ko`)),
  }));
  [outside, inside] = await Promise.all([
    bootGuest({ vcpus: 2, sharedMemory: true }),
    bootGuest({ vcpus: 1, files: () => modules }),
  ]);
  await outside.run('(while :; do cat /proc/version; ls /; done >/dev/null) & sleep 0');
});
afterAll(() => {
  outside?.stop();
  inside?.stop();
  rmSync(folder, { recursive: true, force: true });
});

const apply = (name: string, timeout: string) =>
  livegraft(
    ...[
      'apply',
      join(folder, `${name}.lgp`),
      '--timeout',
      timeout,
      '--gdb',
      outside.gdb,
      '--vmlinux',
      vmlinux,
    ],
    ...['--guest-memory', outside.memoryFile as string, '--json'],
  );

async function livepatches() {
  const snapshot = join(folder, 'snapshot');
  writeFileSync(snapshot, await inside.run(`${LIVEPATCH_SNAPSHOT_COMMAND} 2>/dev/null`));
  const status = jsonLineSchema.parse(livegraft('status', '--klp-state', snapshot, '--json').lines.at(-1));
  if (status.event !== 'livepatchStatus') throw new Error('no status');
  return status.patches;
}

async function insert(name: string) {
  expect(await inside.run(`insmod /lib/${name}.ko && echo loaded`)).toContain('loaded');
}

async function settled(name: string) {
  for (let i = 0; i < 300; i++) {
    const patch = (await livepatches()).find((each) => each.name === name);
    if (patch?.transition === null) return patch;
  }
  throw new Error(`${name} stays in transition`);
}

describe('a patch and the same change as a livepatch module', () => {
  it('show the same new text', async () => {
    const before = await inside.run('cat /proc/cmdline');
    await insert('cmdline');
    expect(await settled('livegraft_cmdline')).toMatchObject({
      enabled: true,
      functions: [{ object: 'vmlinux', name: 'cmdline_proc_show' }],
    });
    expect(apply('cmdline', '30').lines.at(-1)).toMatchObject({ result: { kind: 'complete' } });
    expect(await inside.run('cat /proc/cmdline')).toBe(`patched: ${before}`);
    expect(await outside.run('cat /proc/cmdline')).toContain('patched: ');
  });

  it('are made by one command each', () => {
    const object = join(folder, 'cmdline.o');
    const run = livegraft(
      ...['build', '--replacement', object, '--target', vmlinux, '--format', 'klp', '-o', `${object}.ko`],
    );
    expect(run.stderr).toBe('');
    expect(readFileSync(`${object}.ko`)).toEqual(readFileSync(join(folder, 'cmdline.ko')));
    const usage = livegraft(
      ...['build', '--orig', object, '--patched', object, '--target', vmlinux, '--format', 'klp', '-o', 'x'],
    );
    expect(usage.code).toBe(2);
  });

  it('wait for the same kernel thread, and both go back', async () => {
    const name = 'livegraft_schedule_timeout';
    const left = apply('schedule-timeout', '3').lines.at(-1) as {
      result: { kind: string; stragglers: { name: string; reason: { function: string } }[] };
    };
    expect(left.result.kind).toBe('incomplete');
    expect(left.result.stragglers.find((task) => task.name === 'khungtaskd')?.reason.function).toBe(
      'schedule_timeout',
    );
    await insert('schedule-timeout');
    await inside.run('sleep 2');
    const patch = (await livepatches()).find((each) => each.name === name);
    expect(patch?.transition).toBe('patch');
    const thread = patch?.stragglers.find((task) => task.name === 'khungtaskd');
    // The kernel leaves the functions of its scheduler out of what it prints.
    expect(thread?.stack[0]).toMatch(/^watchdog\+/);
    // One that goes round through the function is never met outside by looking once a second (docs/kernel.md).
    const others = patch?.stragglers.map((task) => task.name).filter((each) => each !== 'khungtaskd');
    expect(['kcompactd0']).toEqual(expect.arrayContaining(others ?? []));

    await inside.run(`echo 0 > /sys/kernel/livepatch/${name}/enabled`);
    for (let i = 0; i < 50 && (await livepatches()).some((each) => each.name === name); i++);
    expect((await livepatches()).map((each) => each.name)).toEqual(['livegraft_cmdline']);
    const back = livegraft(
      ...['revert', 'schedule-timeout', '--timeout', '30', '--gdb', outside.gdb, '--vmlinux', vmlinux],
      ...['--guest-memory', outside.memoryFile as string, '--json'],
    );
    expect(back.lines.at(-1)).toMatchObject({ result: { kind: 'complete', direction: 'unpatch' } });
  });

  it('run the same callbacks in the same order', async () => {
    const name = 'livegraft_callbacks';
    await insert('callbacks');
    await settled(name);
    await inside.run(`echo 0 > /sys/kernel/livepatch/${name}/enabled`);
    for (let i = 0; i < 50 && (await livepatches()).some((each) => each.name === name); i++);
    expect(apply('callbacks', '30').lines.at(-1)).toMatchObject({ result: { kind: 'complete' } });
    const back = livegraft(
      ...['revert', 'callbacks', '--timeout', '30', '--gdb', outside.gdb, '--vmlinux', vmlinux, '--json'],
    );
    expect(back.lines.at(-1)).toMatchObject({ result: { kind: 'complete', direction: 'unpatch' } });
    for (const guest of [inside, outside]) {
      const log = await guest.run('dmesg | grep "callback both"');
      expect(log.match(/(?<=callback both )\w+/g)).toEqual([
        ...['pre_patch', 'post_patch', 'pre_unpatch', 'post_unpatch'],
      ]);
    }
  });

  it('never show a mix of two functions that change together, under fork load', async () => {
    await inside.run(readLoadavg('/tmp/seen'));
    await insert('loadavg');
    expect((await settled('livegraft_loadavg')).functions.map((fn) => fn.name).sort()).toEqual([
      'get_avenrun',
      'loadavg_proc_show',
    ]);
    await inside.run('echo 0 > /sys/kernel/livepatch/livegraft_loadavg/enabled; sleep 2');
    await inside.run('touch /tmp/stop; while [ ! -e /tmp/stopped ]; do sleep 0.1; done', 60_000);
    const seen = await inside.run(
      'grep -c "both are new" /tmp/seen; grep -cE "^[0-9]{1,3}\\.[0-9]+ " /tmp/seen; grep -cvE "both are new|^[0-9]{1,3}\\.[0-9]+ " /tmp/seen',
    );
    const [both, old, mix] = seen.trim().split('\n').map(Number);
    expect(both).toBeGreaterThan(0);
    expect(old).toBeGreaterThan(0);
    expect(mix).toBe(0);
    expect((await inside.run('dmesg | grep -cE "BUG:|Oops|general protection"')).trim()).toBe('0');
  });
});
