import { LivegraftError } from '../../base/errors.js';
import type { Patch } from '../../patch/content.js';
import type { PatchLayout } from '../../patch/layout.js';
import type { LinkedImage } from '../../patch/link.js';

/** The sections that `livegraft build` keeps alternatives in, one for each section of code. */
const SECTION = /^\.livegraft\.alternatives\./;
const ENTRY_BYTES = 12;
/** `call rel32` and `jmp rel32`: the displacement counts from where the replacement ends up. */
const [CALL, JUMP, JUMP_AND_CALL_BYTES] = [0xe8, 0xe9, 5];

/** The features of the guest's boot CPU: `boot_cpu_data.x86_capability`, 32 to a word. */
export type CpuFeatures = Uint32Array;

export function hasAlternatives(patch: Patch): boolean {
  return patch.sections.some((section) => SECTION.test(section.name));
}

/**
 * Puts the instructions that the kernel chose for its CPU into new code, before it is written into the guest: what
 * `apply_alternatives` (arch/x86/kernel/alternative.c) does for a module. Entries are applied in their order, later ones win.
 */
export function applyAlternatives(
  image: LinkedImage,
  patch: Patch,
  layout: PatchLayout,
  features: CpuFeatures,
): void {
  const { bytes } = image;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  patch.sections.forEach((section, index) => {
    if (!SECTION.test(section.name)) return;
    const start = layout.sectionOffsets[index] ?? 0;
    for (let at = start; at + ENTRY_BYTES <= start + section.sizeBytes; at += ENTRY_BYTES) {
      const instruction = at + view.getInt32(at, true);
      const replacement = at + 4 + view.getInt32(at + 4, true);
      const word = view.getUint16(at + 8, true);
      const [length, replacementLength] = [view.getUint8(at + 10), view.getUint8(at + 11)];
      const feature = word & 0x7fff;
      const isInside = (from: number, size: number) => from >= 0 && from + size <= bytes.length;
      if (
        feature >= features.length * 32 ||
        replacementLength > length ||
        !isInside(instruction, length) ||
        !isInside(replacement, replacementLength)
      ) {
        throw new LivegraftError(
          'patch-malformed',
          `${section.name}: an entry at ${at - start} leads astray`,
          {
            remedy: 'build the patch again',
          },
        );
      }
      const isPresent = (((features[feature >>> 5] as number) >>> (feature & 31)) & 1) === 1;
      if (isPresent === ((word & 0x8000) !== 0)) continue;
      const chosen = bytes.slice(replacement, replacement + replacementLength);
      const isRelative = chosen.length === JUMP_AND_CALL_BYTES && (chosen[0] === CALL || chosen[0] === JUMP);
      bytes.set(chosen, instruction);
      if (isRelative)
        view.setInt32(
          instruction + 1,
          view.getInt32(replacement + 1, true) + replacement - instruction,
          true,
        );
      fillWithNops(bytes, instruction + replacementLength, length - replacementLength);
    }
  });
}

/** The processor manuals' nops of 1 to 8 bytes (Intel SDM, NOP, table 4-12). */
const NOPS = [
  [],
  [0x90],
  [0x66, 0x90],
  [0x0f, 0x1f, 0x00],
  [0x0f, 0x1f, 0x40, 0x00],
  [0x0f, 0x1f, 0x44, 0x00, 0x00],
  [0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00],
  [0x0f, 0x1f, 0x80, 0x00, 0x00, 0x00, 0x00],
  [0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],
];

function fillWithNops(bytes: Uint8Array, at: number, count: number): void {
  for (let left = count; left > 0; ) {
    const size = Math.min(left, 8);
    bytes.set(NOPS[size] as number[], at + count - left);
    left -= size;
  }
}
