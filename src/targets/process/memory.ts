import { closeSync, openSync, readSync, writeSync } from 'node:fs';
import { hex } from '../../base/brand.js';
import { LivegraftError } from '../../base/errors.js';
import { isErrno } from './errno.js';
import { memoryFolder } from './proc.js';

/**
 * Memory of a process through `/proc/PID/mem`. Reads need no stop. Writes reach read-only private mappings (the
 * kernel copies the page for this process), so code can be written where the program can't.
 */
export class ProcessMemory {
  readonly pid: number;
  #fd: number | undefined;

  constructor(pid: number) {
    this.pid = pid;
    try {
      this.#fd = openSync(`${memoryFolder(pid)}/mem`, 'r+');
    } catch (cause) {
      throw new LivegraftError('no-permission', `process ${pid}: its memory can't be opened for writing`, {
        remedy:
          'run livegraft as the user who owns the process, or with CAP_SYS_PTRACE (root, outside of containers)',
        details: { pid },
        cause,
      });
    }
  }

  /** Reads up to `into.length` bytes at `address`; returns how many could be read (0 for unmapped memory). */
  read(address: number, into: Uint8Array): number {
    if (!isUserAddress(address)) return 0;
    try {
      return readSync(this.#expectFd(), into, 0, into.length, address);
    } catch (error) {
      if (isErrno(error, 'EIO') || isErrno(error, 'EFAULT')) return 0;
      throw error;
    }
  }

  /** Reads exactly `sizeBytes`, or throws `memory-unreadable`. */
  readExactly(address: number, sizeBytes: number): Buffer {
    const bytes = Buffer.alloc(sizeBytes);
    let done = 0;
    while (done < sizeBytes) {
      const count = this.read(address + done, bytes.subarray(done));
      if (count === 0) {
        throw new LivegraftError(
          'memory-unreadable',
          `process ${this.pid}: no memory at ${hex(address + done)} (wanted ${sizeBytes} bytes from ${hex(address)})`,
          { details: { pid: this.pid, address: hex(address), sizeBytes } },
        );
      }
      done += count;
    }
    return bytes;
  }

  /** Writes all of `bytes`, or throws `memory-unwritable`. A write inside one page is never torn by our own death. */
  write(address: number, bytes: Uint8Array): void {
    let done = 0;
    while (done < bytes.length) {
      let count = 0;
      try {
        count = writeSync(this.#expectFd(), bytes, done, bytes.length - done, address + done);
      } catch (error) {
        if (!isErrno(error, 'EIO') && !isErrno(error, 'EFAULT')) throw error;
      }
      if (count === 0) {
        throw new LivegraftError(
          'memory-unwritable',
          `process ${this.pid}: ${hex(address + done)} can't be written`,
          { details: { pid: this.pid, address: hex(address + done) } },
        );
      }
      done += count;
    }
  }

  /** What reads or writes afterwards throws `memory-unreadable`, as when the process had just ended. */
  close(): void {
    if (this.#fd !== undefined) closeSync(this.#fd);
    this.#fd = undefined;
  }

  #expectFd(): number {
    if (this.#fd === undefined) {
      throw new LivegraftError('memory-unreadable', `process ${this.pid} has ended, or was let go`, {
        details: { pid: this.pid },
      });
    }
    return this.#fd;
  }
}

/** User space of x86-64 ends at 2^47, or at 2^56 with five page-table levels. */
function isUserAddress(address: number): boolean {
  return Number.isInteger(address) && address >= 0 && address < 2 ** 56;
}
