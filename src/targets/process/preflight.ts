import { closeSync, openSync, readSync } from 'node:fs';
import { LivegraftError } from '../../base/errors.js';
import { isErrno } from './errno.js';
import { memoryFolder, PF_KTHREAD, readStatus, readThreadStat } from './proc.js';

const ELFCLASS32 = 1;

/**
 * Everything about a pid that can be refused before a single thread is touched. Whoever only looks at memory may do so
 * while another process traces it.
 */
export function expectPatchableProcess(pid: number, purpose: 'patch' | 'look' = 'patch'): void {
  if (!Number.isInteger(pid) || pid <= 0) {
    throw new LivegraftError('bad-pid', `${pid} is not a process id`, { remedy: 'give a positive number' });
  }
  if (pid === process.pid) {
    throw new LivegraftError('own-process', 'livegraft can not patch itself', {
      remedy: 'give the pid of another process',
      details: { pid },
    });
  }
  const status = readStatus(pid);
  const stat = readThreadStat(pid, pid);
  if (status === undefined || stat === undefined) {
    throw new LivegraftError('no-such-process', `there is no process ${pid}`, {
      remedy: 'check the pid (pgrep -a NAME)',
      details: { pid },
    });
  }
  const leader = Number(status.get('Tgid') ?? pid);
  if (leader !== pid) {
    throw new LivegraftError('not-a-process', `${pid} is a thread of process ${leader}`, {
      remedy: `use --pid ${leader}`,
      details: { pid, leader },
    });
  }
  if ((stat.flags & PF_KTHREAD) !== 0) {
    throw new LivegraftError(
      'kernel-thread',
      `${pid} (${stat.name}) is a kernel thread: it has no program to patch`,
      {
        remedy: 'give the pid of a user process',
        details: { pid, name: stat.name },
      },
    );
  }
  const tracer = Number(status.get('TracerPid') ?? 0);
  if (tracer > 0 && purpose === 'patch') {
    throw new LivegraftError('already-traced', `process ${pid} is being traced by process ${tracer}`, {
      remedy: 'stop that tracer (a debugger or strace), then try again',
      details: { pid, tracer },
    });
  }
  expectClass64(pid);
}

function expectClass64(pid: number): void {
  const identification = Buffer.alloc(5);
  try {
    const fd = openSync(`${memoryFolder(pid)}/exe`, 'r');
    try {
      readSync(fd, identification, 0, identification.length, 0);
    } finally {
      closeSync(fd);
    }
  } catch (cause) {
    if (isErrno(cause, 'EACCES') || isErrno(cause, 'EPERM')) {
      throw new LivegraftError('no-permission', `process ${pid} may not be inspected by this user`, {
        remedy:
          'run livegraft as the user who owns the process, or with CAP_SYS_PTRACE (root, outside of containers)',
        details: { pid },
        cause,
      });
    }
    if (isErrno(cause, 'ENOENT')) {
      throw new LivegraftError('target-gone', `process ${pid} has ended`, {
        remedy: 'give the pid of a running process',
        details: { pid },
        cause,
      });
    }
    throw cause;
  }
  if (identification[4] === ELFCLASS32) {
    throw new LivegraftError('not-64-bit', `process ${pid} runs a 32-bit program`, {
      remedy: 'livegraft patches 64-bit programs only',
      details: { pid },
    });
  }
}
