import type { Architecture } from '../arch/architecture.js';
import type { ElfFile, ElfSection, ElfSymbol } from '../elf/elf-file.js';

/**
 * A copy of a section of a relocatable object with its relocations applied, as if it lay at `address` and symbols where
 * `placeOf` says. A field whose symbol has no place becomes 0.
 */
export function relocatedSection(
  elf: ElfFile,
  section: ElfSection,
  architecture: Architecture,
  address: number,
  placeOf: (symbol: ElfSymbol) => number | undefined,
): Uint8Array {
  const bytes = section.data.slice();
  const view = new DataView(bytes.buffer);
  for (const { offset, type, symbolIndex, addend } of elf.relocationsFor(section)) {
    const kind = architecture.idioms.relocationKind(type);
    const symbol = elf.symbols[symbolIndex];
    if (kind === undefined || symbol === undefined || offset < 0 || offset + kind.sizeBytes > bytes.length)
      continue;
    const place = placeOf(symbol);
    const value = place === undefined ? 0 : place + addend - (kind.isRelative ? address + offset : 0);
    if (kind.sizeBytes === 8) view.setBigInt64(offset, BigInt(value), true);
    else view.setInt32(offset, value, true);
  }
  return bytes;
}
