import { linkAddress } from '../base/brand.js';
import { ParseError } from '../base/errors.js';
import { frameRows } from '../dwarf/frame-program.js';
import { type Fde, FrameSection, parseFrameHeaderTable } from '../dwarf/frame-section.js';
import { PF_X, PT_GNU_EH_FRAME, PT_LOAD } from '../elf/constants.js';
import type { ElfFile } from '../elf/elf-file.js';
import { prepareRow, type UnwindRow } from './unwind-row.js';

/** Code with its unwind table. Addresses are the target's. */
export interface CodeModule {
  readonly name: string;
  readonly start: number;
  readonly end: number;
  isText(address: number): boolean;
  /**
   * The prepared row of an address, undefined where the table claims nothing. `interrupted` as `ModuleMap.frameInfo` has it: tables
   * say the same, frame pointers do not.
   */
  findRow(address: number, interrupted: boolean): UnwindRow | undefined;
  /** Up to `sizeBytes` of code that end right before `address`. */
  codeBefore(address: number, sizeBytes: number): Uint8Array;
}

/** An ELF file as it is loaded, at `bias` from its link addresses. Its tables are read when first needed. */
export function createElfModule(
  name: string,
  elf: ElfFile,
  bias: number,
  start: number,
  end: number,
): CodeModule {
  return new ElfModule(name, elf, bias, start, end);
}

class ElfModule implements CodeModule {
  readonly name: string;
  readonly start: number;
  readonly end: number;
  readonly #elf: ElfFile;
  readonly #bias: number;
  readonly #text: readonly { readonly start: number; readonly end: number }[];
  #frames: FrameIndex | undefined;

  constructor(name: string, elf: ElfFile, bias: number, start: number, end: number) {
    this.name = name;
    this.start = start;
    this.end = end;
    this.#elf = elf;
    this.#bias = bias;
    this.#text = elf.segments
      .filter((s) => s.type === PT_LOAD && (s.flags & PF_X) !== 0)
      .map((s) => ({ start: s.address + bias, end: s.address + bias + s.memorySizeBytes }));
  }

  isText(address: number): boolean {
    return this.#text.some((range) => address >= range.start && address < range.end);
  }

  findRow(address: number): UnwindRow | undefined {
    this.#frames ??= indexElfFrames(this.#elf);
    return this.#frames.findRow(address - this.#bias);
  }

  codeBefore(address: number, sizeBytes: number): Uint8Array {
    const from = linkAddress(address - this.#bias - sizeBytes);
    return this.#elf.bytesAt(from, sizeBytes) ?? new Uint8Array();
  }
}

/** Code whose bytes and `.eh_frame` were read from the target's memory: what livegraft put there. */
export function createMemoryModule(options: {
  readonly name: string;
  readonly address: number;
  readonly code: Uint8Array;
  readonly ehFrame: { readonly address: number; readonly bytes: Uint8Array } | undefined;
}): CodeModule {
  const { name, address, code, ehFrame } = options;
  let frames: FrameIndex | undefined;
  return {
    name,
    start: address,
    end: address + code.length,
    isText: (at) => at >= address && at < address + code.length,
    findRow(at) {
      if (ehFrame === undefined) return undefined;
      frames ??= indexBySweep(
        new FrameSection({ bytes: ehFrame.bytes, address: ehFrame.address, kind: 'eh_frame', source: name }),
        name,
      );
      return frames.findRow(at);
    },
    codeBefore(at, sizeBytes) {
      const offset = at - address;
      return code.subarray(Math.max(0, offset - sizeBytes), Math.max(0, offset));
    },
  };
}

/** Finds the FDE of an address in a sorted list of starts. A malformed entry claims nothing. */
class FrameIndex {
  readonly #starts: Float64Array;
  readonly #fdeAt: (index: number) => Fde;
  readonly #source: string;
  /** Of entries that were asked for: a task that runs is met at another instruction of the same function next time. */
  readonly #tables = new Map<number, RowTable>();

  constructor(starts: Float64Array, fdeAt: (index: number) => Fde, source: string) {
    this.#starts = starts;
    this.#fdeAt = fdeAt;
    this.#source = source;
  }

  findRow(address: number): UnwindRow | undefined {
    let low = 0;
    let high = this.#starts.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#starts[middle] as number) <= address) low = middle + 1;
      else high = middle;
    }
    return low === 0 ? undefined : findInTable(this.#tableAt(low - 1), address);
  }

  #tableAt(index: number): RowTable {
    let table = this.#tables.get(index);
    if (table === undefined) {
      table = this.#readTable(index);
      this.#tables.set(index, table);
    }
    return table;
  }

  #readTable(index: number): RowTable {
    const starts: number[] = [];
    const rows: UnwindRow[] = [];
    let end = 0;
    try {
      for (const row of frameRows(this.#fdeAt(index), this.#source)) {
        starts.push(row.start);
        rows.push(prepareRow(row));
        end = row.end;
      }
    } catch (error) {
      // What was read up to the damage still counts.
      if (!(error instanceof ParseError)) throw error;
    }
    return { starts, rows, end };
  }
}

/** The rows of one entry: row `i` holds from `starts[i]` to the next start, the last one to `end`. */
interface RowTable {
  readonly starts: readonly number[];
  readonly rows: readonly UnwindRow[];
  readonly end: number;
}

function findInTable({ starts, rows, end }: RowTable, address: number): UnwindRow | undefined {
  if (address >= end) return undefined;
  let index = starts.length - 1;
  while (index >= 0 && (starts[index] as number) > address) index--;
  return rows[index];
}

function indexElfFrames(elf: ElfFile): FrameIndex {
  const header = elf.segments.find((s) => s.type === PT_GNU_EH_FRAME);
  const section = elf.findSection('.eh_frame');
  if (header !== undefined) {
    const bytes = elf.bytesAt(header.address, header.fileSizeBytes);
    // The linker writes an empty table when it could not read some FDE.
    const table = bytes && parseFrameHeaderTable(bytes, header.address, elf.source);
    const frameAddress = bytes === undefined ? undefined : ehFrameAddress(bytes, header.address);
    if (table !== undefined && table.starts.length > 0 && frameAddress !== undefined) {
      const frameBytes = section?.data ?? elf.bytesAt(linkAddress(frameAddress), 2 ** 31);
      if (frameBytes !== undefined) {
        const frames = new FrameSection({
          bytes: frameBytes,
          address: frameAddress,
          kind: 'eh_frame',
          source: elf.source,
        });
        return new FrameIndex(
          table.starts,
          (i) => frames.fdeAt((table.entries[i] as number) - frameAddress),
          elf.source,
        );
      }
    }
  }
  if (section === undefined) return new FrameIndex(new Float64Array(), () => expectNoCall(), elf.source);
  return indexBySweep(
    new FrameSection({ bytes: section.data, address: section.address, kind: 'eh_frame', source: elf.source }),
    elf.source,
  );
}

function expectNoCall(): never {
  throw new Error('an empty index has no entries');
}

/** `eh_frame_ptr` of `.eh_frame_hdr`, in its usual encoding pcrel | sdata4. */
function ehFrameAddress(bytes: Uint8Array, address: number): number | undefined {
  if (bytes.length < 8 || bytes[1] !== 0x1b) return undefined;
  return address + 4 + new DataView(bytes.buffer, bytes.byteOffset, bytes.length).getInt32(4, true);
}

function indexBySweep(frames: FrameSection, source: string): FrameIndex {
  const fdes: Fde[] = [];
  try {
    for (const fde of frames.entries()) if (fde.end > fde.start) fdes.push(fde);
  } catch (error) {
    // What was read up to the damage still counts; the rest claims nothing.
    if (!(error instanceof ParseError)) throw error;
  }
  fdes.sort((a, b) => a.start - b.start);
  return new FrameIndex(
    Float64Array.from(fdes, (fde) => fde.start),
    (i) => fdes[i] as Fde,
    source,
  );
}
