import { afterAll, beforeAll, expect, it } from 'vitest';
import { bootGuest, type Guest } from '../support/guest.js';
import { errorOf } from '../support/kernel-lab.js';
import { livegraft } from '../support/live.js';

const TRIES = 5;
let guest: Guest;
beforeAll(async () => {
  // A processor of Intel's has Meltdown, as far as the kernel knows: it isolates page tables.
  guest = await bootGuest({ sharedMemory: true, cpu: 'max,vendor=GenuineIntel' });
});
afterAll(() => guest?.stop());

it('says that page-table isolation hides the kernel while programs run, and works when they end', async () => {
  const stack = (...more: string[]) =>
    livegraft('stack', '--gdb', guest.gdb, '--vmlinux', guest.kernel.vmlinuz, '--json', ...more);
  expect(await guest.run('cat /sys/devices/system/cpu/vulnerabilities/meltdown')).toContain('PTI');
  await guest.run('cp /bin/busybox /tmp/busybox-spins');
  await guest.run('(/tmp/busybox-spins sh -c "while :; do :; done") & sleep 0');
  const codes: unknown[] = [];
  // A stop may come upon a CPU that is in the kernel, for once.
  for (let i = 0; i < TRIES && !codes.includes('kernel-hidden'); i++)
    for (const memory of [[], ['--guest-memory', guest.memoryFile as string]]) {
      const run = stack(...memory);
      codes.push(run.code === 0 ? 'walked' : errorOf(run.lines)?.code);
    }
  expect(codes).toContain('kernel-hidden');
  expect(codes.filter((code) => code !== 'kernel-hidden' && code !== 'walked')).toEqual([]);
  await guest.run('killall busybox-spins', 60_000);
  expect(stack().code).toBe(0);
});
