import { spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { x86_64 } from '../../src/arch/x86-64/index.js';
import { hex, linkAddress } from '../../src/base/brand.js';
import { decompressors } from '../../src/cli/decompressors.js';
import { jsonLineSchema } from '../../src/cli/json-schema.js';
import { parseElf } from '../../src/elf/reader.js';
import { extractVmlinux } from '../../src/kernel-image/decompress.js';
import { type KernelImage, parseKernelImage } from '../../src/kernel-image/kernel-image.js';
import { GuestSlices } from '../../src/targets/kernel/guest-slices.js';
import { KernelLayout } from '../../src/targets/kernel/kernel-layout.js';
import { readKernelProofs } from '../../src/targets/kernel/kernel-proofs.js';
import type { KernelSession } from '../../src/targets/kernel/kernel-session.js';
import { soakKernel } from '../../src/targets/kernel/kernel-soak.js';
import type { KernelWalk } from '../../src/targets/kernel/kernel-stacks.js';
import { ProofStore } from '../../src/targets/proof-store.js';
import { Status } from '../../src/validate/claim-verdicts.js';
import { encodeProof } from '../../src/validate/proof.js';
import { validateElf } from '../../src/validate/validate-file.js';
import { bootGuest, type Guest } from '../support/guest.js';
import { compileKernelObject } from '../support/kernel-objects.js';
import { withKernelSession } from '../support/kernel-session.js';
import { livegraft, pause, ROOT } from '../support/live.js';

/** A module without dependencies that every Debian kernel package has. */
const MODULE = 'configfs';

const folder = mkdtempSync(join(tmpdir(), 'livegraft-kernel-test-'));
let guest: Guest;
let vmlinux: Uint8Array;
let image: KernelImage;

beforeAll(async () => {
  guest = await bootGuest({
    vcpus: 2,
    files: (kernel) => [
      {
        path: `lib/${MODULE}.ko`,
        data: readFileSync(join(kernel.modules, `kernel/fs/${MODULE}/${MODULE}.ko`)),
      },
    ],
  });
  vmlinux = extractVmlinux(readFileSync(guest.kernel.vmlinuz), 'vmlinuz', decompressors);
  image = parseKernelImage(vmlinux, 'vmlinuz');
  await guest.run(`insmod /lib/${MODULE}.ko`);
});
afterAll(() => {
  guest?.stop();
  rmSync(folder, { recursive: true, force: true });
});

function withSession<T>(use: (session: KernelSession) => Promise<T>): Promise<T> {
  return withKernelSession({ guest, image }, use);
}

/** What the guest has at a function and behind it. */
function textAt(name: string): Promise<Uint8Array> {
  return withSession(({ client, kernel }) => client.readMemory(kernel.expect(name), 4096));
}

/** A line of /proc/kallsyms. */
function row(address: number, type: string, name: string): string {
  return `${hex(address).slice(2).padStart(16, '0')} ${type} ${name}`;
}

/** A proof that disproves the whole text of a file, for what a walk then says. */
function disproveAll(path: string, bytes: Uint8Array): void {
  const result = validateElf(parseElf(bytes, path), { architecture: x86_64, kernelRelease: image.release });
  const sources = result.sources.map((each) => ({
    ...each,
    stretches: () => each.stretches().map((stretch) => ({ ...stretch, status: Status.disproved })),
  }));
  const proof = encodeProof({ ...result, sources }, 'orc');
  if (proof === undefined || result.buildId === undefined) throw new Error(`${path} has no proof`);
  new ProofStore().keep(result.buildId, proof);
}

describe('a kept proof', () => {
  it('of a module or the kernel is found by what runs, and a walk refuses what it disproves', async () => {
    const before = process.env.XDG_CACHE_HOME;
    process.env.XDG_CACHE_HOME = join(folder, 'cache');
    try {
      const module = join(guest.kernel.modules, `kernel/fs/${MODULE}/${MODULE}.ko`);
      disproveAll(module, readFileSync(module));
      await withSession(async ({ client, kernel, memory, modules }) => {
        const layout = new KernelLayout(image.btf, image.source);
        const isDisproved = await readKernelProofs(memory, new GuestSlices(client), kernel, layout, modules);
        const symbols = modules.find((each) => each.name === MODULE)?.symbols;
        const inModule = symbols?.findUnique('configfs_register_group')?.address as number;
        expect([isDisproved(inModule), isDisproved(kernel.expect('schedule'))]).toEqual([true, false]);
      });
      disproveAll('vmlinux', vmlinux);
      const walks = await withSession(async ({ tasks, stacks }) => {
        const cpus = await tasks.cpus();
        const found: KernelWalk[] = [];
        for (const task of await tasks.tasks(cpus)) found.push(await stacks.walk(task, cpus));
        return found;
      });
      expect(walks.some((walk) => !walk.reliable && walk.reason.code === 'row-disproved')).toBe(true);
    } finally {
      if (before === undefined) delete process.env.XDG_CACHE_HOME;
      else process.env.XDG_CACHE_HOME = before;
    }
  });
});

describe('the image of a kernel', () => {
  it('has the symbols that the running kernel and its modules say they have', async () => {
    const { offset, modules } = await withSession(async ({ kernel, modules }) => ({
      offset: kernel.offset,
      modules,
    }));
    const ours = Array.from({ length: image.symbols.size }, (_, i) => image.symbols.at(i)).map(
      ({ name, type, address }) => row(address < 0 ? address + offset : address, type, name),
    );
    expect(ours.length).toBeGreaterThan(50_000);
    // Compared by checksum: megabytes over a serial line take long.
    const sum = (await guest.run("grep -v '\\[' /proc/kallsyms | md5sum", 60_000)).slice(0, 32);
    expect(
      createHash('md5')
        .update(`${ours.join('\n')}\n`)
        .digest('hex'),
    ).toBe(sum);

    const loaded = modules.find((module) => module.name === MODULE);
    const inModule = Array.from({ length: loaded?.symbols.size ?? 0 }, (_, i) => loaded?.symbols.at(i)).map(
      (symbol) => row(symbol?.address ?? 0, symbol?.type ?? '', symbol?.name ?? ''),
    );
    const theirs = (await guest.run(`grep '\\[${MODULE}' /proc/kallsyms`)).replaceAll(`\t[${MODULE}]`, '');
    expect(inModule.length).toBeGreaterThan(20);
    // The kernel writes the letters of exported ones in upper case.
    const sorted = (lines: string[]) => lines.map((line) => line.toLowerCase()).sort();
    expect(sorted(inModule)).toEqual(sorted(theirs.trim().split('\n')));
    expect(modules.map((module) => module.name)).toEqual(
      (await guest.run('cat /proc/modules'))
        .trim()
        .split('\n')
        .map((line) => line.split(' ')[0]),
    );
  });

  it('exports what kallsyms says is exported, and names every place that may fault as text', () => {
    expect(image.exports.size).toBeGreaterThan(5000);
    const wrong = [...image.exports.values()].filter(
      ({ name, address }) => !image.symbols.findAll(name).some((symbol) => symbol.address === address),
    );
    expect(wrong).toEqual([]);
    expect(image.exceptions.size).toBeGreaterThan(100);
  });

  it('places members where bpftool places them', () => {
    const path = join(folder, 'vmlinux');
    writeFileSync(path, vmlinux);
    const { stdout } = spawnSync('bpftool', ['btf', 'dump', 'file', path, 'format', 'raw'], {
      encoding: 'utf8',
      maxBuffer: 2 ** 30,
    });
    const records = stdout.split(/\n(?=\[)/);
    expect(records.length).toBe(image.btf.typeCount - 1);
    for (const struct of ['task_struct', 'module', 'rq', 'pt_regs', 'signal_struct']) {
      const record = records.find((text) => text.includes(`] STRUCT '${struct}' size=`)) as string;
      const members = [...record.matchAll(/^\t'(\S+)' type_id=(\d+) bits_offset=(\d+)/gm)];
      const id = image.btf.findType('struct', struct) as number;
      const ours = members
        .filter(([, name]) => name !== '(anon)')
        .map(([, name]) => image.btf.findField(id, name as string));
      expect(ours.map((field) => [field?.typeId, field?.bitOffset])).toEqual(
        members
          .filter(([, name]) => name !== '(anon)')
          .map(([, , type, bits]) => [Number(type), Number(bits)]),
      );
      expect(members.length).toBeGreaterThan(5);
    }
  });
});

describe('livegraft stack --gdb', () => {
  const stackArguments = () => ['stack', '--gdb', guest.gdb, '--vmlinux', guest.kernel.vmlinuz];
  const stack = (...more: string[]) => livegraft(...stackArguments(), ...more);

  it('walks every task of an idle guest reliably, as the kernel walks those that sleep', async () => {
    const { code, lines, stderr } = stack('--json');
    expect(stderr).toBe('');
    expect(code).toBe(0);
    const line = jsonLineSchema.parse(lines.at(-1));
    if (line.event !== 'kernelStack') throw new Error('no kernelStack');
    expect(line.release).toBe(guest.kernel.release);
    expect(line.cpus).toBe(2);
    expect(line.tasks.filter((task) => !task.reliable)).toEqual([]);
    expect(line.tasks.filter((task) => task.pid === 0).length).toBe(2);

    const pids = line.tasks.filter((task) => task.pid > 1).map((task) => task.pid);
    const listed = await guest.run('ls /proc');
    for (const pid of pids) expect(listed).toMatch(new RegExp(`\\b${pid}\\b`));
    const theirs = await guest.run(
      `for p in ${pids.join(' ')}; do echo "task $p"; cat /proc/$p/stack; done`,
      60_000,
    );
    // The kernel leaves out its scheduler's functions.
    const sched = ['__sched_text_start', '__sched_text_end'].map(
      (name) => image.symbols.findUnique(name)?.address ?? 0,
    );
    let compared = 0;
    for (const part of theirs.split(/^task /m).slice(1)) {
      const task = line.tasks.find((each) => each.pid === Number.parseInt(part, 10));
      const frames = [...part.matchAll(/^\[<0>\] (\S+)\/0x[0-9a-f]+/gm)].map(([, symbol]) => symbol);
      // What has run in between has another stack now: kworkers do.
      if (task === undefined || /^kworker|^rcu|^sh$/.test(task.name)) continue;
      const ours = task.frames
        .filter((frame) => {
          const name = /^[^+]+/.exec(frame.symbol ?? '')?.[0] as string;
          const address = image.symbols.findAll(name)[0]?.address ?? 0;
          return address < (sched[0] as number) || address >= (sched[1] as number);
        })
        .map((frame) => frame.symbol);
      expect(ours, `task ${task.pid} ${task.name}`).toEqual(frames);
      compared++;
    }
    expect(compared).toBeGreaterThan(20);
  });

  it('is followed by a patch where no task makes a system call: a kernel thread is woken for it', async () => {
    const object = compileKernelObject(folder, 'cmdline.c');
    const patch = `${object}.lgp`;
    const target = ['--target', guest.kernel.vmlinuz];
    expect(livegraft('build', '--replacement', object, ...target, '-o', patch).code).toBe(0);
    const subject = ['--gdb', guest.gdb, '--vmlinux', guest.kernel.vmlinuz, '--timeout', '20', '--json'];
    const before = await guest.run('cat /proc/cmdline');
    for (const args of [['apply', patch], ['revert']]) {
      const { lines } = livegraft(...args, ...subject);
      expect(lines.at(-1)).toMatchObject({ result: { kind: 'complete' } });
      const now = await guest.run('cat /proc/cmdline');
      expect(now === before).toBe(args[0] === 'revert');
    }
    expect(await guest.run('dmesg | grep -E "BUG:|WARNING:|Oops|Call Trace"; true')).not.toMatch(/\w+:/);
  });

  it('gives a reason for every stack that it refuses under load', async () => {
    await guest.run(
      '(while :; do cat /proc/version; ls /proc; done >/dev/null 2>&1) & (while :; do :; done) & sleep 1',
    );
    let tasks = 0;
    const refused: string[] = [];
    await withSession(async ({ client, tasks: reader, stacks }) => {
      for (let round = 0; round < 25; round++) {
        const cpus = await reader.cpus();
        for (const task of await reader.tasks(cpus)) {
          const walk = await stacks.walk(task, cpus);
          tasks++;
          if (!walk.reliable) refused.push(walk.reason.code);
        }
        client.resume();
        await client.waitForStop(10 + round);
        await client.interrupt();
      }
    });
    expect(tasks).toBeGreaterThan(1000);
    // A CPU caught on its way from one task to the next, and nothing else.
    expect(refused.filter((code) => code !== 'between-cpus')).toEqual([]);
    await guest.run('kill $(jobs -p); wait');
    expect(await guest.run('echo alive')).toContain('alive');
  });

  it('finds every stack reliable at a context switch (soak)', async () => {
    await guest.run('(while :; do cat /proc/version; ls /proc; done >/dev/null 2>&1) & sleep 0');
    const run = livegraft(
      ...['soak', '--gdb', guest.gdb, '--vmlinux', guest.kernel.vmlinuz],
      ...['--switches', '300', '--timeout', '45', '--json'],
    );
    const line = jsonLineSchema.parse(run.lines.at(-1));
    if (line.event !== 'soak') throw new Error(run.stdout + run.stderr);
    expect(line.findings).toEqual([]);
    expect(line.switches).toBeGreaterThan(50);
    expect(line.kthreads).toBeGreaterThan(1);
    expect(run.code).toBe(0);
    await guest.run('kill $(jobs -p); wait');
    expect(await guest.run('echo alive')).toContain('alive');
  });

  it('counts what soak can not walk, by cause and place', async () => {
    const report = await withSession(async (session) => {
      // A task whose stack is said to lie elsewhere can't be walked.
      const real = session.tasks.task.bind(session.tasks);
      session.tasks.task = async (address, isIdle) => ({
        ...(await real(address, isIdle)),
        stack: -(2 ** 40),
      });
      return soakKernel(session, {
        ...{ switches: 5, timeoutMs: 30_000, signal: new AbortController().signal, onProgress: () => {} },
      });
    });
    expect(report.unreliable).toBe(report.switches);
    expect(report.findings.map((finding) => finding.cause)).toEqual(['between-cpus']);
  });

  it('refuses another kernel, and the guest goes on', async () => {
    const other = join(folder, 'other');
    const changed = vmlinux.slice();
    const banner = image.symbols.findUnique('linux_banner')?.address ?? 0;
    const bytes = image.elf.bytesAt(linkAddress(banner), 20) as Uint8Array;
    changed.set(new TextEncoder().encode('Linux version 5'), bytes.byteOffset);
    writeFileSync(other, changed);
    const before = await textAt('cmdline_proc_show');
    for (const command of ['stack', 'status', 'revert', 'soak']) {
      const run = livegraft(command, '--gdb', guest.gdb, '--vmlinux', other, '--json');
      expect(run.code).toBe(1);
      expect(run.lines.at(-1)).toMatchObject({ event: 'error', code: 'kernel-mismatch' });
    }
    expect(await guest.run('echo alive')).toContain('alive');
    expect(await textAt('cmdline_proc_show')).toEqual(before);
  });

  it('refuses the same release in another build', async () => {
    const other = join(folder, 'other-build');
    const changed = vmlinux.slice();
    const notes = image.elf.findSection('.notes');
    const id = Buffer.from(image.buildId as string, 'hex');
    const at = Buffer.from(changed.buffer).indexOf(id, notes?.offset);
    changed[at] = (changed[at] as number) ^ 1;
    writeFileSync(other, changed);
    const before = await textAt('cmdline_proc_show');
    const run = livegraft('stack', '--gdb', guest.gdb, '--vmlinux', other, '--json');
    expect(run.lines.at(-1)).toMatchObject({ event: 'error', code: 'kernel-mismatch' });
    expect(String(run.lines.at(-1)?.message)).toContain(image.buildId);
    expect(await guest.run('echo alive')).toContain('alive');
    expect(await textAt('cmdline_proc_show')).toEqual(before);
  });

  it('lets the guest go on when it is interrupted, whenever that is', async () => {
    const codes: (number | null)[] = [];
    const interrupt = (afterMs: number) => {
      const command = [process.execPath, 'bin/livegraft.js', ...stackArguments()];
      const { status } = spawnSync('timeout', ['-s', 'INT', String(afterMs / 1000), ...command], {
        encoding: 'utf8',
      });
      return status;
    };
    const start = performance.now();
    expect(interrupt(60_000)).toBe(0);
    const wholeMs = performance.now() - start;
    // Reading the image comes first, and takes most of it.
    for (const share of [0.6, 0.75, 0.85, 0.95]) {
      codes.push(interrupt(wholeMs * share));
      await pause(50);
      expect(await guest.run('echo alive')).toContain('alive');
    }
    expect(codes).toContain(124);
  });

  it('says how to use it', () => {
    expect(livegraft('stack').code).toBe(2);
    expect(livegraft('stack', '--gdb', guest.gdb).code).toBe(2);
    expect(livegraft('stack', '--pid', '1', '--gdb', guest.gdb, '--vmlinux', 'x').code).toBe(2);
    const nowhere = livegraft(
      'stack',
      '--gdb',
      `unix:${folder}/none`,
      '--vmlinux',
      guest.kernel.vmlinuz,
      '--json',
    );
    expect(nowhere.lines.at(-1)).toMatchObject({ event: 'error', code: 'gdb-unreachable' });
    const bad = livegraft('stack', '--gdb', 'somewhere', '--vmlinux', guest.kernel.vmlinuz, '--json');
    expect(bad.lines.at(-1)).toMatchObject({ event: 'error', code: 'gdb-endpoint' });
    const empty = livegraft('stack', '--gdb', guest.gdb, '--vmlinux', '/dev/null', '--json');
    expect(empty.lines.at(-1)).toMatchObject({ event: 'error', code: 'malformed-input' });
  });
});

describe('an emulator that ends', () => {
  it('is told in the middle of a transition', async () => {
    const object = compileKernelObject(folder, 'loadavg.c');
    const target = ['--target', guest.kernel.vmlinuz];
    expect(livegraft('build', '--replacement', object, ...target, '-o', `${object}.lgp`).code).toBe(0);
    // A task is borrowed where it begins a system call: an idle guest makes none.
    await guest.run('(while :; do cat /proc/version; done >/dev/null) & sleep 0');
    const child = spawn(process.execPath, [
      ...[join(ROOT, 'bin/livegraft.js'), 'apply', `${object}.lgp`, '--timeout', '60', '--model', 'stop'],
      ...['--gdb', guest.gdb, '--vmlinux', guest.kernel.vmlinuz, '--json'],
    ]);
    let output = '';
    child.stdout.on('data', (bytes) => {
      output += bytes;
      if (output.includes('"install"')) guest.stop();
    });
    expect([1, 3]).toContain(await new Promise((resolve) => child.on('exit', resolve)));
    const last = JSON.parse(output.trim().split('\n').at(-1) as string);
    expect(['gdb-connection-lost', 'transition-interrupted', 'target-gone']).toContain(last.code);
  });
});
