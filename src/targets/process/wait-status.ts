/** A raw wait status of a seized thread as one of the things that can have happened (ptrace(2), "Stopped states"). */
export type WaitEvent =
  | { readonly kind: 'exited'; readonly code: number }
  | { readonly kind: 'killed'; readonly signal: number }
  /** PTRACE_EVENT_STOP with SIGTRAP: our interrupt, or the first stop of a new tracee. */
  | { readonly kind: 'interruptStop' }
  /** PTRACE_EVENT_STOP with a stopping signal: the process is stopped (SIGSTOP and its like). */
  | { readonly kind: 'groupStop'; readonly signal: number }
  | { readonly kind: 'cloneStop' }
  | { readonly kind: 'forkStop' }
  | { readonly kind: 'vforkStop' }
  | { readonly kind: 'execStop' }
  | { readonly kind: 'syscallStop' }
  /** A signal is about to be delivered; resume with it. */
  | { readonly kind: 'signalStop'; readonly signal: number };

const SIGTRAP = 5;

const PTRACE_EVENT_FORK = 1;
const PTRACE_EVENT_VFORK = 2;
const PTRACE_EVENT_CLONE = 3;
const PTRACE_EVENT_EXEC = 4;
const PTRACE_EVENT_STOP = 128;

export function parseWaitStatus(status: number): WaitEvent {
  if ((status & 0x7f) === 0) return { kind: 'exited', code: (status >> 8) & 0xff };
  if ((status & 0xff) !== 0x7f) return { kind: 'killed', signal: status & 0x7f };
  const signal = (status >> 8) & 0xff;
  switch ((status >> 16) & 0xff) {
    case PTRACE_EVENT_FORK:
      return { kind: 'forkStop' };
    case PTRACE_EVENT_VFORK:
      return { kind: 'vforkStop' };
    case PTRACE_EVENT_CLONE:
      return { kind: 'cloneStop' };
    case PTRACE_EVENT_EXEC:
      return { kind: 'execStop' };
    case PTRACE_EVENT_STOP:
      return signal === SIGTRAP ? { kind: 'interruptStop' } : { kind: 'groupStop', signal };
    default:
      return signal === (SIGTRAP | 0x80) ? { kind: 'syscallStop' } : { kind: 'signalStop', signal };
  }
}
