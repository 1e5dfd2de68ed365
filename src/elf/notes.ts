import { ByteReader, decodeText } from '../base/byte-reader.js';
import type { ElfNote } from './elf-file.js';

/** Notes of one segment or section; entries are padded to 4 bytes, or to 8 where the area says so (gABI "Note Section"). */
export function parseNotes(bytes: Uint8Array, areaAlignment: number, source: string): ElfNote[] {
  const alignment = areaAlignment === 8 ? 8 : 4;
  const reader = new ByteReader(bytes, `${source}(notes)`);
  const notes: ElfNote[] = [];
  const align = () => {
    const rest = reader.offset % alignment;
    if (rest !== 0) reader.skip(Math.min(alignment - rest, reader.remaining));
  };
  while (reader.remaining >= 12) {
    const nameSize = reader.readU32();
    const descriptionSize = reader.readU32();
    const type = reader.readU32();
    const name = decodeText(reader.readBytes(nameSize)).replace(/\0+$/, '');
    align();
    const description = reader.readBytes(descriptionSize);
    align();
    notes.push({ name, type, description });
  }
  return notes;
}
