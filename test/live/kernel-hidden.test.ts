import { describe, expect, it } from 'vitest';
import { KernelLab } from '../support/kernel-lab.js';
import { killLivegraftAt, livegraft } from '../support/live.js';
import { countReads, readLoadavg } from '../support/loadavg-reads.js';

/** A processor of Intel's has Meltdown, as far as the kernel knows: it isolates page tables. */
const CPU = 'max,vendor=GenuineIntel';
/** As many as keep both CPUs in programs all the time, in between of whatever else there is. */
const SPINNERS = 4;
const ROUNDS = 2;

describe('a kernel that page-table isolation hides while programs run on all CPUs', () => {
  const lab = new KernelLab({ cpu: CPU });

  it('is walked and patched all the same, without a mix, with shared memory and without', async () => {
    const { guest, run } = lab;
    expect(await guest.run('cat /sys/devices/system/cpu/vulnerabilities/meltdown')).toContain('PTI');
    const spin = '(/tmp/busybox-spins sh -c "while :; do :; done") & sleep 0';
    await guest.run('cp /bin/busybox /tmp/busybox-spins');
    for (let i = 0; i < SPINNERS; i++) await guest.run(spin, 60_000);
    const patch = lab.patchOf('loadavg.c');
    const byProtocol = (...args: string[]) => livegraft(...args, ...lab.subject(), '--json');
    await guest.run(readLoadavg('/tmp/seen'), 60_000);
    await killLivegraftAt('"taskSwitched"', 0, 'apply', patch, ...lab.subject());
    expect(await guest.run('echo alive', 60_000)).toContain('alive');
    expect(run('revert', 'loadavg', '--timeout', '60').lines.at(-1)).toMatchObject({
      result: { kind: 'complete' },
    });
    for (let round = 0; round < ROUNDS; round++) {
      const use = round === 0 ? byProtocol : run;
      expect(use('stack').lines.at(-1)).toMatchObject({ event: 'kernelStack' });
      for (const args of [
        ['apply', patch],
        ['revert', 'loadavg'],
      ] as const) {
        const { lines } = use(...args, '--timeout', '60');
        expect(lines.at(-1)).toMatchObject({ result: { kind: 'complete' } });
      }
    }
    await guest.run(
      'killall busybox-spins; touch /tmp/stop; while [ ! -e /tmp/stopped ]; do sleep 0.1; done',
      60_000,
    );
    const { both, mixed } = await countReads(guest, '/tmp/seen');
    expect(both).toBeGreaterThan(0);
    expect(mixed).toBe(0);
    await lab.expectQuiet();
  });
});
