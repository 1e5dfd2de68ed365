import {
  GATE_BYTES,
  type Redirector,
  type RedirectSite,
  type StateSlotLocation,
} from '../../arch/architecture.js';
import { hex } from '../../base/brand.js';
import { LivegraftError } from '../../base/errors.js';
import type { MemoryRange, Redirect, RegisteredBarrier, RegisteredFunction, SlotArea } from './registry.js';
import { SLOT_BYTES } from './task-slots.js';

/** Room for one trampoline: the longest state test, displaced instructions at their longest, the jump back. */
export const TRAMPOLINE_BYTES = 256;

export interface RedirectRequest {
  readonly name: string;
  /** The original function in the target's addresses. */
  readonly old: MemoryRange;
  readonly newAddress: number;
  /** Original code around the function, as the file has it; `code[functionStart]` is its first byte. */
  readonly code: Uint8Array;
  readonly functionStart: number;
  /** Where the trampoline goes, its gate first: {@link TRAMPOLINE_BYTES} of the patch's own code memory. */
  readonly trampoline: number;
  /** The byte that the gate reads. */
  readonly gate: number;
  readonly slots: SlotArea;
  /** The newest version before this one, when an earlier patch has redirected the function already. */
  readonly earlier: RegisteredFunction | undefined;
}

export interface PlannedRedirect {
  readonly redirect: Redirect;
  readonly trampolineBytes: Uint8Array;
}

/** Decides how one function's entry is redirected. Throws `not-redirectable` naming the function and why. */
export function planRedirect(redirector: Redirector, request: RedirectRequest): PlannedRedirect {
  const { old, code, functionStart, earlier } = request;
  const gateAt = request.trampoline;
  const trampoline = gateAt + GATE_BYTES;
  const refuse = (why: string): never => {
    throw new LivegraftError(
      'not-redirectable',
      `function ${request.name} at ${hex(old.address)} can't be redirected: ${why}`,
      {
        remedy: 'leave it out of the patch, or patch its callers instead',
        details: { function: request.name, address: hex(old.address), why },
      },
    );
  };
  const chosen = redirector.chooseSite(code, functionStart, old.sizeBytes, old.address);
  if ('refused' in chosen) return refuse(chosen.refused);
  const test = redirector.encodeStateTest(trampoline, request.newAddress, slotLocation(request.slots));
  const belowEntry = trampoline + test.bytes.length;

  let below: Uint8Array;
  let displaced: { copy: number; original: number }[] = [];
  if (earlier === undefined) {
    const copy = redirector.displace(code, functionStart, chosen, old.address, belowEntry);
    if ('refused' in copy) return refuse(copy.refused);
    below = copy.bytes;
    displaced = copy.map.map((pair) => ({
      copy: belowEntry + pair.copy,
      original: old.address + pair.original,
    }));
  } else {
    below = redirector.encodeJump(belowEntry, earlier.new.address, 5);
  }
  const gate = redirector.encodeGate(gateAt, request.gate, belowEntry, request.newAddress);
  const trampolineBytes = Buffer.concat([gate, test.bytes, below]);
  if (trampolineBytes.length > TRAMPOLINE_BYTES) return refuse('its first instructions are too long to move');

  return {
    trampolineBytes,
    redirect: {
      ...encodeEntry(redirector, { ...request, trampoline }, chosen, gateAt),
      trampoline: {
        address: trampoline,
        sizeBytes: trampolineBytes.length - GATE_BYTES,
        gateAt,
        stateReadAt: test.stateReadAt,
        belowEntry,
        displaced,
      },
    },
  };
}

/**
 * Decides how a function is led back from an earlier patch's version to the original, for a patch that replaces that one:
 * a thread of the new state runs the copy of the first instructions; in the end the entry is the original one.
 */
export function planRestore(
  redirector: Redirector,
  request: Omit<RedirectRequest, 'newAddress'> & { readonly earlier: RegisteredFunction },
): PlannedRedirect & { readonly copy: MemoryRange } {
  const { name, old, code, functionStart, earlier, slots } = request;
  const gateAt = request.trampoline;
  const trampoline = gateAt + GATE_BYTES;
  const refuse = (why: string): never => {
    throw new LivegraftError(
      'not-redirectable',
      `function ${name} at ${hex(old.address)} can't be led back to the original: ${why}`,
      {
        remedy: 'revert the older patches first',
        details: { function: name, address: hex(old.address), why },
      },
    );
  };
  const chosen = redirector.chooseSite(code, functionStart, old.sizeBytes, old.address);
  if ('refused' in chosen) return refuse(chosen.refused);
  const testBytes = redirector.encodeStateTest(trampoline, trampoline, slotLocation(slots)).bytes.length;
  const belowEntry = trampoline + testBytes;
  const copyAt = belowEntry + 5;
  const copy = redirector.displace(code, functionStart, chosen, old.address, copyAt);
  if ('refused' in copy) return refuse(copy.refused);
  const test = redirector.encodeStateTest(trampoline, copyAt, slotLocation(slots));
  const trampolineBytes = Buffer.concat([
    redirector.encodeGate(gateAt, request.gate, belowEntry, copyAt),
    test.bytes,
    redirector.encodeJump(belowEntry, earlier.new.address, 5),
    copy.bytes,
  ]);
  if (trampolineBytes.length > TRAMPOLINE_BYTES) return refuse('its first instructions are too long to move');
  const led = { ...request, trampoline, newAddress: copyAt };
  const entry = encodeEntry(redirector, led, chosen, gateAt);
  const original = encodeEntry(redirector, { ...led, earlier: undefined }, chosen, gateAt);
  return {
    trampolineBytes,
    copy: { address: copyAt, sizeBytes: copy.bytes.length },
    redirect: {
      ...entry,
      direct: original.below,
      hop: entry.hop && original.hop && { ...entry.hop, direct: original.hop.below },
      trampoline: {
        address: trampoline,
        sizeBytes: trampolineBytes.length - GATE_BYTES,
        gateAt,
        stateReadAt: test.stateReadAt,
        belowEntry,
        displaced: copy.map.map((pair) => ({
          copy: copyAt + pair.copy,
          original: old.address + pair.original,
        })),
      },
    },
  };
}

export type BarrierRequest = Omit<RedirectRequest, 'newAddress' | 'earlier' | 'gate'> & {
  readonly object: string;
};

/** Decides how the entry of a barrier leads its callers through the code that sets their state. Throws as {@link planRedirect}. */
export function planBarrier(
  redirector: Redirector,
  request: BarrierRequest,
): { readonly barrier: RegisteredBarrier; readonly trampolineBytes: Uint8Array } {
  const { name, old, code, functionStart, trampoline, slots } = request;
  const refuse = (why: string): never => {
    throw new LivegraftError(
      'not-redirectable',
      `${name} at ${hex(old.address)} can't be a barrier: ${why}`,
      {
        remedy: 'declare another function that no thread calls while it is in a function of the patch',
        details: { function: name, address: hex(old.address), why },
      },
    );
  };
  const chosen = redirector.chooseSite(code, functionStart, old.sizeBytes, old.address);
  if ('refused' in chosen) return refuse(chosen.refused);
  const store = redirector.encodeStateStore(slotLocation(slots));
  const belowEntry = trampoline + store.bytes.length;
  const copy = redirector.displace(code, functionStart, chosen, old.address, belowEntry);
  if ('refused' in copy) return refuse(copy.refused);
  const trampolineBytes = new Uint8Array(store.bytes.length + copy.bytes.length);
  trampolineBytes.set(store.bytes);
  trampolineBytes.set(copy.bytes, store.bytes.length);
  if (trampolineBytes.length > TRAMPOLINE_BYTES) return refuse('its first instructions are too long to move');
  const entry = encodeEntry(redirector, { ...request, newAddress: trampoline, earlier: undefined }, chosen);
  return {
    trampolineBytes,
    barrier: {
      object: request.object,
      name,
      old,
      redirect: {
        ...entry,
        trampoline: {
          address: trampoline,
          sizeBytes: trampolineBytes.length,
          stateReadAt: store.bytes.length,
          belowEntry,
          displaced: copy.map.map((pair) => ({
            copy: belowEntry + pair.copy,
            original: old.address + pair.original,
          })),
        },
      },
      valueAt: trampoline + store.valueAt,
      slotUses: store.slotUses.map(({ at, resumeAt }) => ({
        at: trampoline + at,
        resumeAt: trampoline + resumeAt,
      })),
    },
  };
}

function encodeEntry(
  redirector: Redirector,
  request: Omit<RedirectRequest, 'gate'>,
  site: RedirectSite,
  gateAt?: number,
): Omit<Redirect, 'trampoline'> {
  const { old, code, functionStart, earlier } = request;
  const siteAddress = old.address + site.offset;
  const original = (offset: number, sizeBytes: number) =>
    toHex(code.subarray(functionStart + offset, functionStart + offset + sizeBytes));
  const jumps = (at: number) => ({
    choosing: toHex(redirector.encodeJump(at, request.trampoline, 5)),
    direct: toHex(redirector.encodeJump(at, request.newAddress, 5)),
    ...(gateAt === undefined ? {} : { gated: toHex(redirector.encodeJump(at, gateAt, 5)) }),
  });
  if (site.hopOffset === undefined) {
    return {
      site: { address: siteAddress, sizeBytes: 5 },
      below: earlier?.redirect.direct ?? original(site.offset, 5),
      ...jumps(siteAddress),
      hop: undefined,
    };
  }
  const hopAddress = old.address + site.hopOffset;
  const short = toHex(redirector.encodeJump(siteAddress, hopAddress, 2));
  return {
    site: { address: siteAddress, sizeBytes: 2 },
    below: earlier?.redirect.direct ?? original(site.offset, 2),
    choosing: short,
    direct: short,
    ...(gateAt === undefined ? {} : { gated: short }),
    hop: {
      site: { address: hopAddress, sizeBytes: 5 },
      below: earlier?.redirect.hop?.direct ?? original(site.hopOffset, 5),
      ...jumps(hopAddress),
    },
  };
}

function slotLocation(area: SlotArea): StateSlotLocation {
  return area.kind === 'gsBase'
    ? { kind: 'gsBase' }
    : { kind: 'threadPointerTable', table: area.address, entries: area.sizeBytes / SLOT_BYTES };
}

export function toHex(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('hex');
}

export function fromHex(text: string): Buffer {
  return Buffer.from(text, 'hex');
}
