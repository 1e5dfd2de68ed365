/** Where a command writes, and what it knows of the terminal. Tests give their own. */
export interface Io {
  out(text: string): void;
  err(text: string): void;
  readonly isTerminal: boolean;
  readonly columns: number;
  readonly rows: number;
  readonly noColor: boolean;
  /** Calls back on the first SIGINT or SIGTERM; returns how to stop listening. */
  onInterrupt(stop: () => void): () => void;
}

export function processIo(): Io {
  // A reader that has gone away (head, a closed pager) is no error.
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') throw error;
  });
  return {
    out: (text) => {
      process.stdout.write(text);
    },
    err: (text) => {
      process.stderr.write(text);
    },
    isTerminal: process.stdout.isTTY === true,
    columns: process.stdout.columns ?? 80,
    rows: process.stdout.rows ?? 24,
    noColor: process.env.NO_COLOR !== undefined && process.env.NO_COLOR !== '',
    onInterrupt(stop) {
      process.on('SIGINT', stop);
      process.on('SIGTERM', stop);
      return () => {
        process.off('SIGINT', stop);
        process.off('SIGTERM', stop);
      };
    },
  };
}
