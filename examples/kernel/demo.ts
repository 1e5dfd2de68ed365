import { spawn } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { decompressors } from '../../src/cli/decompressors.js';
import { extractVmlinux } from '../../src/kernel-image/decompress.js';
import { bootGuest, type Guest } from '../../test/support/guest.js';
import { compileKernelObject } from '../../test/support/kernel-objects.js';
import { expect, heading, livegraft, makeWorkFolder, pause, ROOT, removeFolder, say } from '../support.js';
import { fetchKernelSource } from './source.js';

/**
 * `npm run demo:kernel`: Debian's unmodified cloud kernel boots in an emulator, is patched while it forks and reads files, from
 * a diff against its source, with a function that a kernel thread sleeps in, and with two that must change together; then all is taken back.
 */

async function show(guest: Guest, command: string): Promise<string> {
  const text = await guest.run(command, 60_000);
  say(`   guest# ${command}`);
  for (const line of text.trimEnd().split('\n')) say(`   ${line}`);
  return text;
}

/** Does not block, so that the guest's console is read meanwhile. */
function run(...args: string[]): Promise<number | null> {
  say(`   $ livegraft ${args.slice(0, args.indexOf('--gdb')).join(' ')} --gdb … --vmlinux …`);
  const child = spawn(process.execPath, [join(ROOT, 'bin/livegraft.js'), ...args], { stdio: 'inherit' });
  return new Promise((resolve) => child.on('exit', resolve));
}

async function demo(): Promise<void> {
  const folder = makeWorkFolder();
  let guest: Guest | undefined;
  try {
    heading('Boot the kernel to a shell, with two CPUs, and give it work');
    const booted = await bootGuest({ vcpus: 2, sharedMemory: true });
    guest = booted;
    await show(booted, 'uname -a');
    await booted.run('(while :; do cat /proc/version; ls /; done >/dev/null) & sleep 0');
    const vmlinux = join(folder, 'vmlinux');
    writeFileSync(vmlinux, extractVmlinux(readFileSync(booted.kernel.vmlinuz), 'vmlinuz', decompressors));
    const kernel = ['--gdb', booted.gdb, '--vmlinux', vmlinux, '--guest-memory', booted.memoryFile as string];

    heading("Make a patch from a diff against the kernel's source (fetched once: 140 MB, half a minute)");
    const { source, headers } = fetchKernelSource(booted.kernel.release);
    const diff = join(ROOT, 'examples/kernel/cmdline.diff');
    say(readFileSync(diff, 'utf8').trimEnd().replace(/^/gm, '   '));
    const cmdline = join(folder, 'cmdline.lgp');
    const fromDiff = ['build', '--kernel', '--source', source, '--headers', headers, '--diff', diff];
    expect(livegraft(...fromDiff, '--target', vmlinux, '-o', cmdline) === 0, 'the diff was not built');

    heading('Make two patches, each from one C file and the vmlinuz');
    const patches: Record<string, string> = {};
    for (const source of ['schedule-timeout.c', 'loadavg.c']) {
      const object = compileKernelObject(folder, source);
      const patch = object.replace(/\.o$/, '.lgp');
      const code = livegraft('build', '--replacement', object, '--target', vmlinux, '-o', patch);
      expect(code === 0, `${source} was not built`);
      patches[source] = patch;
    }

    heading('A function behind a file in /proc');
    const before = await show(booted, 'cat /proc/cmdline');
    expect((await run('apply', cmdline, ...kernel)) === 0, 'apply failed');
    const after = await show(booted, 'cat /proc/cmdline');
    expect(after === `patched: ${before}`, 'the new function does not run');

    heading('A function in which a kernel thread sleeps: it waits for it');
    const sleeping = patches['schedule-timeout.c'] as string;
    expect((await run('apply', sleeping, '--timeout', '3', ...kernel)) === 3, 'no straggler was left');
    say('   which stack it has, and what would release it:');
    expect((await run('status', '--explain', ...kernel)) === 0, 'status failed');
    say('   now the thread is woken, as a new setting does, and leaves the function');
    const second = run('apply', sleeping, '--timeout', '60', ...kernel);
    let ended = false;
    void second.finally(() => {
      ended = true;
    });
    while (!ended) {
      await booted.run('echo $((60 + RANDOM % 60)) > /proc/sys/kernel/hung_task_timeout_secs', 60_000);
      await pause(300);
    }
    expect((await second) === 0, 'the transition was not completed');

    heading('Two functions that must change together, while tasks fork and read');
    // Appended: two that write at once to one place of a file overwrite parts of each other's lines.
    await booted.run(
      '(while [ ! -e /tmp/stop ]; do cat /proc/loadavg; cat /proc/loadavg & done >> /tmp/seen; touch /tmp/stopped) & sleep 1',
    );
    expect((await run('apply', patches['loadavg.c'] as string, ...kernel)) === 0, 'apply failed');
    await pause(1000);
    expect((await run('revert', 'loadavg', ...kernel)) === 0, 'revert failed');
    await booted.run('touch /tmp/stop; while [ ! -e /tmp/stopped ]; do sleep 0.1; done', 60_000);
    const both = await show(booted, 'grep -c "both are new" /tmp/seen');
    expect(Number(both) > 0, 'nobody saw the new functions');
    const mix = await show(booted, 'grep -cvE "both are new|^[0-9]{1,3}\\.[0-9]+ " /tmp/seen');
    expect(mix.trim() === '0', 'a task saw a mix of old and new');

    heading('What it carries, and back to the original');
    await run('status', ...kernel);
    const woken = new AbortController();
    const wake = async () => {
      while (!woken.signal.aborted) {
        await booted
          .run('echo $((60 + RANDOM % 60)) > /proc/sys/kernel/hung_task_timeout_secs', 60_000)
          .catch(() => '');
        await pause(1000);
      }
    };
    const waking = wake();
    const codes = [
      await run('revert', 'schedule-timeout', '--timeout', '60', ...kernel),
      await run('revert', ...kernel),
    ];
    woken.abort();
    // Its answer is not to be taken for one to what is asked next.
    await waking;
    expect(
      codes.every((code) => code === 0),
      'revert failed',
    );
    expect((await show(booted, 'cat /proc/cmdline')) === before, 'the original does not run');
    const log = await show(booted, 'dmesg | grep -cE "BUG:|WARNING:|Oops"');
    expect(log.trim() === '0', 'the kernel complains');
    say('\nDone: the kernel never stopped being one or the other for any of its tasks.');
  } finally {
    guest?.stop();
    removeFolder(folder);
  }
}

await demo();
