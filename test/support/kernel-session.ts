import { x86_64 } from '../../src/arch/x86-64/index.js';
import type { KernelImage } from '../../src/kernel-image/kernel-image.js';
import { parseGdbEndpoint } from '../../src/targets/kernel/gdb-connection.js';
import { KernelSession } from '../../src/targets/kernel/kernel-session.js';
import type { Guest } from './guest.js';

/** Connects to a guest, which stands still at first, and lets it go on behind. */
export async function withKernelSession<T>(
  { guest, image }: { readonly guest: Guest; readonly image: KernelImage },
  use: (session: KernelSession) => Promise<T>,
): Promise<T> {
  const endpoint = parseGdbEndpoint(guest.gdb);
  if (endpoint === undefined) throw new Error(`${guest.gdb} is no endpoint`);
  const session = await KernelSession.open({ endpoint, image, arch: x86_64, timeoutMs: 10_000 });
  try {
    await session.stop();
    return await use(session);
  } finally {
    await session.close();
  }
}
