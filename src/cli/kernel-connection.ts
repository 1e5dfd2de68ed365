import { readFileSync } from 'node:fs';
import { x86_64 } from '../arch/x86-64/index.js';
import { LivegraftError } from '../base/errors.js';
import { extractVmlinux } from '../kernel-image/decompress.js';
import { type KernelImage, parseKernelImage } from '../kernel-image/kernel-image.js';
import { parseGdbEndpoint } from '../targets/kernel/gdb-connection.js';
import { GuestGuard } from '../targets/kernel/guest-guard.js';
import { KernelSession } from '../targets/kernel/kernel-session.js';
import { raisePriority } from '../targets/process/own-runtime.js';
import { decompressors } from './decompressors.js';

/** How a command names a running kernel. */
export interface KernelReference {
  /** `unix:PATH` or `HOST:PORT` */
  readonly gdb: string;
  readonly vmlinux: string;
  /** The file that QEMU shares as the guest's memory. */
  readonly guestMemory?: string | undefined;
  /** How long one answer of the stub may take, where that is not the usual time. */
  readonly answerTimeoutMs?: number | undefined;
}

/** How long one answer of a stub may take: an emulated guest on a crowded machine is slow. */
const ANSWER_TIMEOUT_MS = 10_000;

export function readKernelImage(path: string): KernelImage {
  let bytes: Uint8Array;
  try {
    bytes = new Uint8Array(readFileSync(path));
  } catch (cause) {
    throw new LivegraftError('file-unreadable', `${path} can't be read: ${(cause as Error).message}`, {
      remedy: 'give the vmlinuz or vmlinux of the running kernel',
      cause,
    });
  }
  return parseKernelImage(extractVmlinux(bytes, path, decompressors), path);
}

/** A command that only looks ends at once by these. */
export const LEAVING_SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/** These signals end this process, after the guest was let go; those that `use` is told of by its options do not. */
export async function withSession<T>(
  reference: KernelReference,
  signals: readonly NodeJS.Signals[],
  use: (session: KernelSession, image: KernelImage) => Promise<T>,
  onImage: (image: KernelImage) => void = () => {},
): Promise<T> {
  const endpoint = parseGdbEndpoint(reference.gdb);
  if (endpoint === undefined) {
    throw new LivegraftError('gdb-endpoint', `"${reference.gdb}" names no gdb socket`, {
      remedy: 'write unix:PATH or HOST:PORT',
    });
  }
  // It starts while the image is read.
  const guard = GuestGuard.start(reference.gdb);
  let image: KernelImage;
  try {
    image = readKernelImage(reference.vmlinux);
  } catch (error) {
    guard?.dismiss();
    throw error;
  }
  onImage(image);
  let session: KernelSession | undefined;
  let pending: NodeJS.Signals | undefined;
  const leave = (signal: NodeJS.Signals) => {
    // Connecting has stopped the guest already: it is let go once that is through, which takes a moment.
    pending = signal;
    if (session === undefined) return;
    for (const each of signals) process.off(each, leave);
    void session.close().finally(() => process.kill(process.pid, signal));
  };
  for (const signal of signals) process.on(signal, leave);
  // A guest that stands still waits for this process.
  raisePriority();
  try {
    session = await KernelSession.open({
      endpoint,
      image,
      arch: x86_64,
      timeoutMs: reference.answerTimeoutMs ?? ANSWER_TIMEOUT_MS,
      memoryFile: reference.guestMemory,
      guard,
    });
    if (pending !== undefined) {
      leave(pending);
      throw new LivegraftError('interrupted', `interrupted by ${pending}`);
    }
    const opened = session;
    return await opened.explain(() => use(opened, image));
  } finally {
    for (const signal of signals) process.off(signal, leave);
    await session?.close();
    // What interrupted a failing connection still ends this process.
    if (pending !== undefined) process.kill(process.pid, pending);
  }
}
