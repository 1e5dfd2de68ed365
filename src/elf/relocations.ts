import type { ElfRelocation } from './elf-file.js';

const RELA_BYTES = 24;

/** `Elf64_Rela` records. */
export function parseRelocations(data: Uint8Array): ElfRelocation[] {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const relocations: ElfRelocation[] = [];
  for (let at = 0; at + RELA_BYTES <= data.length; at += RELA_BYTES) {
    relocations.push({
      offset: readSigned64(view, at),
      type: view.getUint32(at + 8, true),
      symbolIndex: view.getUint32(at + 12, true),
      addend: readSigned64(view, at + 16),
    });
  }
  return relocations;
}

/** Without a bigint for each: linked kernels and large modules have some hundred thousand. */
function readSigned64(view: DataView, at: number): number {
  return view.getInt32(at + 4, true) * 0x1_0000_0000 + view.getUint32(at, true);
}
