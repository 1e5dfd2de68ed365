import { readFileSync } from 'node:fs';
import { x86_64 } from '../arch/x86-64/index.js';
import { hex } from '../base/brand.js';
import { LivegraftError } from '../base/errors.js';
import { extractVmlinux } from '../kernel-image/decompress.js';
import { type KernelImage, parseKernelImage } from '../kernel-image/kernel-image.js';
import { parseGdbEndpoint } from '../targets/kernel/gdb-connection.js';
import { KernelSession } from '../targets/kernel/kernel-session.js';
import { decompressors } from './decompressors.js';

/** How a command names a running kernel. */
export interface KernelReference {
  /** `unix:PATH` or `HOST:PORT` */
  readonly gdb: string;
  readonly vmlinux: string;
}

export interface KernelTaskStack {
  readonly pid: number;
  readonly name: string;
  readonly kthread: boolean;
  readonly state: string;
  readonly reliable: boolean;
  readonly reason: { readonly code: string; readonly detail: string } | undefined;
  readonly frames: readonly {
    readonly index: number;
    readonly address: string;
    readonly symbol: string | undefined;
    readonly module: string;
    readonly by: string;
  }[];
}

export interface KernelStacksReport {
  readonly release: string;
  /** What address-space randomisation added to the addresses of the image. */
  readonly offset: string;
  readonly cpus: number;
  readonly modules: readonly string[];
  /** How long the guest stood still. */
  readonly stoppedMs: number;
  readonly tasks: readonly KernelTaskStack[];
}

/** How long one answer of a stub may take: an emulated guest on a crowded machine is slow. */
const ANSWER_TIMEOUT_MS = 10_000;

/** Every task's stack, in one stop of the guest. */
export async function kernelStacks(reference: KernelReference): Promise<KernelStacksReport> {
  const image = readKernelImage(reference.vmlinux);
  return withSession(reference, image, async (session, startedAt) => {
    const cpus = await session.tasks.cpus();
    const tasks: KernelTaskStack[] = [];
    for (const task of await session.tasks.tasks(cpus)) {
      const walk = await session.stacks.walk(task, cpus);
      const frames = session.stacks.reportFrames(walk.frames);
      tasks.push({
        pid: task.pid,
        name: task.name,
        kthread: task.isKthread || task.isIdle,
        state: task.state,
        reliable: walk.reliable,
        reason: walk.reliable ? undefined : walk.reason,
        frames: walk.frames.map((frame, index) => ({
          index,
          address: hex(frame.pc),
          symbol: frames[index]?.symbol,
          module: frame.module.name,
          by: frame.by,
        })),
      });
    }
    return {
      release: image.release,
      offset: hex(session.kernel.offset),
      cpus: cpus.length,
      modules: session.modules.map((module) => module.name),
      stoppedMs: Math.round(performance.now() - startedAt),
      tasks,
    };
  });
}

function readKernelImage(path: string): KernelImage {
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

/** Whatever ends this process in an orderly way lets the guest go on first. */
async function withSession<T>(
  reference: KernelReference,
  image: KernelImage,
  use: (session: KernelSession, startedAt: number) => Promise<T>,
): Promise<T> {
  const endpoint = parseGdbEndpoint(reference.gdb);
  if (endpoint === undefined) {
    throw new LivegraftError('gdb-endpoint', `"${reference.gdb}" names no gdb socket`, {
      remedy: 'write unix:PATH or HOST:PORT',
    });
  }
  const startedAt = performance.now();
  const session = await KernelSession.open({ endpoint, image, arch: x86_64, timeoutMs: ANSWER_TIMEOUT_MS });
  const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
  const leave = (signal: NodeJS.Signals) => {
    for (const each of signals) process.off(each, leave);
    void session.close().finally(() => process.kill(process.pid, signal));
  };
  for (const signal of signals) process.on(signal, leave);
  try {
    return await use(session, startedAt);
  } finally {
    for (const signal of signals) process.off(signal, leave);
    await session.close();
  }
}
