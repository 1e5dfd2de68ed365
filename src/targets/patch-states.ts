import { LivegraftError } from '../base/errors.js';
import { findStateConflict, type SystemState } from '../engine/states.js';
import type { Patch } from '../patch/content.js';
import { STATE_PREVIOUS_OFFSET } from '../patch/declarations.js';
import type { PatchLayout } from '../patch/layout.js';
import type { LinkedImage } from '../patch/link.js';

/** A state of a patch that is in a target: its variable there (`struct livegraft_state`). */
export interface RegisteredState extends SystemState {
  readonly address: number;
}

/** The states of a patch that is enabled. */
export interface EnabledStates {
  readonly name: string;
  readonly states: readonly RegisteredState[];
}

/**
 * Throws `state-incompatible` for a patch that is older in some state than the enabled ones, or would replace one whose states it
 * does not know. `target` names the process or kernel.
 */
export function expectCompatibleStates(
  target: string,
  { manifest }: Patch,
  enabled: readonly EnabledStates[],
  replaces: boolean,
): void {
  const conflict = findStateConflict({ replaces, states: manifest.states ?? [] }, enabled);
  if (conflict === undefined) return;
  const { id, enabledVersion, version } = conflict;
  throw new LivegraftError(
    'state-incompatible',
    `${target}: patch ${conflict.enabled} has brought state ${id} to version ${enabledVersion}; ${manifest.name} ${version === undefined ? 'would replace it and does not know that state' : `knows version ${version} of it`}`,
    {
      remedy: `revert ${conflict.enabled} first, or apply a patch that knows version ${enabledVersion} of the state`,
      details: { target, state: id },
    },
  );
}

/** Leads each state of the patch to the same one of the newest patch below that has it. `enabled`: oldest first. */
export function linkStates(
  patch: Patch,
  layout: PatchLayout,
  image: LinkedImage,
  enabled: readonly EnabledStates[],
): readonly RegisteredState[] {
  const view = new DataView(image.bytes.buffer, image.bytes.byteOffset);
  return (patch.manifest.states ?? []).map(({ id, version, symbol: name }) => {
    const symbol = patch.symbols.find((s) => s.kind === 'defined' && s.name === name);
    if (symbol?.kind !== 'defined')
      throw new LivegraftError('patch-malformed', `no state ${name} in the patch`);
    const offset = (layout.sectionOffsets[symbol.section] ?? 0) + symbol.value;
    const previous = enabled
      .toReversed()
      .flatMap(({ states }) => states)
      .find((state) => state.id === id);
    view.setBigInt64(offset + STATE_PREVIOUS_OFFSET, BigInt(previous?.address ?? 0), true);
    return { id, version, address: image.base + offset };
  });
}
