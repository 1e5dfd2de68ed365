import type { Readable } from 'node:stream';
import { GdbClient } from './gdb-client.js';
import { GdbConnection, type GdbEndpoint } from './gdb-connection.js';
import { GuestCalls } from './guest-calls.js';
import type { GuardedGuest, GuardMessage } from './guest-guard.js';
import { KernelRegistryStore } from './kernel-registry.js';

/** How long to try to reach a stub that does not listen (any more). */
const CONNECT_TIMEOUT_MS = 5000;
const CONNECT_AGAIN_MS = 50;
/**
 * For an answer, once connected: the longest that a timer takes. QEMU serves one debugger at a time and keeps others waiting, and
 * stops the guest for each of them when it is its turn, also for one that has left meanwhile.
 */
const PATIENCE_MS = 0x7fff_ffff;

/** Waits until `input` ends; unless it was dismissed, the guest at `endpoint` is then let go. Never rejects. */
export async function guardGuest(input: Readable, endpoint: GdbEndpoint): Promise<void> {
  let text = '';
  try {
    for await (const chunk of input) text += String(chunk);
  } catch {
    // As good as its end.
  }
  let guest: GuardedGuest | undefined;
  // The last line may be cut off.
  for (const line of text.split('\n').slice(0, -1)) {
    const message = JSON.parse(line) as GuardMessage;
    if (message.kind === 'dismiss') return;
    guest = message.guest;
  }
  if (guest !== undefined) {
    const client = await patiently(() => GdbClient.connect(endpoint, { timeoutMs: PATIENCE_MS }));
    if (client === undefined) return;
    try {
      await giveBack(client, guest);
    } catch {
      // A later livegraft will say what is wrong.
    }
    await client.detach();
    return;
  }
  // Nothing was changed yet.
  const connection = await patiently(() => GdbConnection.open(endpoint, CONNECT_TIMEOUT_MS));
  await connection?.finish(false, PATIENCE_MS);
}

/** A task that is borrowed would stand in a loop otherwise, and take a CPU from others. */
async function giveBack(client: GdbClient, { anchor, ...places }: GuardedGuest): Promise<void> {
  const store = new KernelRegistryStore(client, client, anchor);
  await store.read();
  if (store.borrowed === 0) return;
  await new GuestCalls(client, store, places).recover(store.borrowed);
}

/** Undefined when the stub is gone. */
async function patiently<T>(connect: () => Promise<T>): Promise<T | undefined> {
  const deadline = performance.now() + CONNECT_TIMEOUT_MS;
  for (;;) {
    try {
      return await connect();
    } catch {
      if (performance.now() > deadline) return undefined;
      await new Promise((resolve) => setTimeout(resolve, CONNECT_AGAIN_MS));
    }
  }
}
