/** Exit codes, stable: 0 done, 1 refused or failed with nothing changed, 2 usage, 3 transition not complete. */
export const EXIT = { done: 0, failed: 1, usage: 2, incomplete: 3 } as const;

/** Of `soak`: 4 stands beside {@link EXIT}'s codes, since a run that failed has found nothing out. */
export const SOAK_EXIT = { reliable: 0, unreliable: 4 } as const;

/** Of `validate`, whose outcome is about files: 0 clean, 1 findings, 2 a file could not be read. */
export const VALIDATE_EXIT = { clean: 0, findings: 1, unreadable: 2 } as const;

export const VERSION = '0.1.0';

export interface BuildCommandOptions {
  readonly source?: string;
  readonly diff?: string;
  readonly orig?: string;
  readonly patched?: string;
  readonly replacement?: string;
  readonly module?: readonly string[];
  readonly kernel?: boolean;
  readonly headers?: string;
  readonly format: 'lgp' | 'klp';
  readonly target: string;
  readonly debugDir?: readonly string[];
  readonly acceptLayoutChange?: readonly string[];
  readonly output: string;
  readonly name?: string;
  readonly replace?: boolean;
  readonly barrier?: string;
}
