import { describe, expect, it } from 'vitest';
import { parseLivepatchState } from './klp-state.js';

/** As busybox in a guest with Debian's 6.1 prints it, over a serial line. */
const SNAPSHOT = [
  '/sys/kernel/livepatch/livegraft_a/vmlinux/schedule_timeout,1',
  '/sys/kernel/livepatch/livegraft_a/enabled:1',
  '/sys/kernel/livepatch/livegraft_a/transition:1',
  '/sys/kernel/livepatch/livegraft_b/vmlinux/cmdline_proc_show,1',
  '/sys/kernel/livepatch/livegraft_b/enabled:0',
  '/sys/kernel/livepatch/livegraft_b/transition:0',
  '[   12.345678] livepatch: signaling remaining tasks',
  '/proc/1/task/1/patch_state:1',
  '/proc/1/task/1/comm:sh',
  '/proc/27/task/27/patch_state:0',
  '/proc/27/task/27/comm:khungtaskd',
  '/proc/27/task/27/stack:[<0>] schedule_timeout+0x9d/0x140',
  '/proc/27/task/27/stack:[<0>] watchdog+0x33c/0x4a0',
  '/proc/30/task/30/patch_state:0',
  '/proc/30/task/30/comm:runs: here',
  '/proc/31/task/31/patch_state:-1',
].join('\r\n');

describe('parseLivepatchState', () => {
  it('shows patches, and who has not switched and why', () => {
    expect(parseLivepatchState(SNAPSHOT)).toEqual([
      {
        name: 'livegraft_a',
        enabled: true,
        transition: 'patch',
        functions: [{ object: 'vmlinux', name: 'schedule_timeout', sympos: 1 }],
        stragglers: [
          {
            tid: 27,
            name: 'khungtaskd',
            stack: ['schedule_timeout+0x9d/0x140', 'watchdog+0x33c/0x4a0'],
            function: 'schedule_timeout',
          },
          { tid: 30, name: 'runs: here', stack: [], function: null },
        ],
      },
      {
        name: 'livegraft_b',
        enabled: false,
        transition: null,
        functions: [{ object: 'vmlinux', name: 'cmdline_proc_show', sympos: 1 }],
        stragglers: [],
      },
    ]);
  });

  it('names the patched state as the one that is left when a patch goes', () => {
    const back = SNAPSHOT.replace('livegraft_a/enabled:1', 'livegraft_a/enabled:0');
    expect(parseLivepatchState(back)[0]).toMatchObject({
      transition: 'unpatch',
      stragglers: [{ tid: 1, name: 'sh', function: null }],
    });
  });

  it('reads nothing out of anything else', () => {
    expect(parseLivepatchState('')).toEqual([]);
    expect(parseLivepatchState('/proc/1/task/1/stack:\n/sys/kernel/livepatch/:\n::::')).toEqual([]);
  });
});
