import { ByteReader } from '../base/byte-reader.js';
import type { ElfRelocation } from './elf-file.js';

const RELA_BYTES = 24;

/** `Elf64_Rela` records. */
export function parseRelocations(data: Uint8Array, source: string): ElfRelocation[] {
  const reader = new ByteReader(data, source);
  const relocations: ElfRelocation[] = [];
  while (reader.remaining >= RELA_BYTES) {
    const offset = reader.readAddress();
    const type = reader.readU32();
    const symbolIndex = reader.readU32();
    relocations.push({ offset, type, symbolIndex, addend: reader.readAddress() });
  }
  return relocations;
}
