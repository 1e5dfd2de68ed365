import { fstatSync, writeSync } from 'node:fs';

/** Where a command writes, and what it knows of the terminal. Tests give their own. */
export interface Io {
  out(text: string): void;
  err(text: string): void;
  /** Of what `out` writes to. */
  readonly isTerminal: boolean;
  readonly columns: number;
  readonly rows: number;
  /** Of the terminal that `err` writes to; undefined where that is none. */
  readonly errorColumns: number | undefined;
  readonly noColor: boolean;
  /** Why output could not be written, if that has happened and is known. */
  readonly outputFailure?: Error | undefined;
  /** Calls back on SIGINT, SIGTERM and SIGHUP (a terminal that was closed); returns how to stop listening. */
  onInterrupt(stop: () => void): () => void;
  /** Calls back on every SIGQUIT (Ctrl-\ on a terminal); returns how to stop listening. */
  onReverse(reverse: () => void): () => void;
}

const INTERRUPTS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
const STDOUT = 1;
const STDERR = 2;

/** Of a process whose output may get lost: what it does to a target does not depend on that. */
export interface ProcessIo extends Io {
  /** Why output could not be written (a full disk), if that has happened. What came behind it was left out. */
  readonly outputFailure: Error | undefined;
}

/**
 * Of this process. Text is written to the descriptors: the streams of Node.js take 14 ms to be made, which is part of how
 * long an apply takes, and write to files and pipes no differently.
 */
export function processIo(): ProcessIo {
  const terminal = fstatSync(STDOUT).isCharacterDevice() ? process.stdout : undefined;
  let outputFailure: Error | undefined;
  return {
    get outputFailure() {
      return outputFailure;
    },
    out(text) {
      if (outputFailure === undefined) outputFailure = writeAll(STDOUT, text);
    },
    err(text) {
      writeAll(STDERR, text);
    },
    isTerminal: terminal?.isTTY === true,
    columns: terminal?.columns ?? 80,
    rows: terminal?.rows ?? 24,
    // Asked for seldom, and then made: see above.
    get errorColumns() {
      if (!fstatSync(STDERR).isCharacterDevice()) return undefined;
      return process.stderr.isTTY ? process.stderr.columns || 80 : undefined;
    },
    noColor: process.env.NO_COLOR !== undefined && process.env.NO_COLOR !== '',
    onInterrupt(stop) {
      for (const signal of INTERRUPTS) process.on(signal, stop);
      return () => {
        for (const signal of INTERRUPTS) process.off(signal, stop);
      };
    },
    onReverse(reverse) {
      process.on('SIGQUIT', reverse);
      return () => process.off('SIGQUIT', reverse);
    },
  };
}

/** Waits for a reader that is slower. One that has gone away (head, a closed pager) is no error; others are returned. */
function writeAll(fd: number, text: string): Error | undefined {
  const bytes = Buffer.from(text);
  for (let done = 0; done < bytes.length; ) {
    try {
      done += writeSync(fd, bytes, done);
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === 'EPIPE') return undefined;
      // Somebody else has made the pipe non-blocking.
      if (code !== 'EAGAIN') return error as Error;
      Atomics.wait(PAUSE, 0, 0, 1);
    }
  }
  return undefined;
}

const PAUSE = new Int32Array(new SharedArrayBuffer(4));
