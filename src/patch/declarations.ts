/**
 * `struct livegraft_state` of include/livegraft.h: number and version, a pointer for the patch's own use, and the address of
 * the same state in the patch below, which livegraft fills in.
 */
export const STATE_BYTES = 32;
export const STATE_PREVIOUS_OFFSET = 24;

/** Sections in which the source of a patch declares things to livegraft (include/livegraft.h). None becomes part of the patch but the states. */
export const STATES_SECTION = '.livegraft.states';
export const CALLBACK_SECTIONS = {
  '.livegraft.callbacks.pre_patch': 'prePatch',
  '.livegraft.callbacks.post_patch': 'postPatch',
  '.livegraft.callbacks.pre_unpatch': 'preUnpatch',
  '.livegraft.callbacks.post_unpatch': 'postUnpatch',
} as const;
