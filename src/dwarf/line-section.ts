import { ByteReader } from '../base/byte-reader.js';
import { ParseError } from '../base/errors.js';
import { type LineHeader, readLineHeader } from './line-header.js';

/** A place in a source file. `line` 0 means that the compiler knows none; `column` 0 that it says none. */
export interface SourceLine {
  /** As the compiler was given it, joined with its folder where the table tells that. */
  readonly file: string;
  readonly line: number;
  readonly column: number;
}

/** A row of the line number matrix (DWARF 5 section 6.2.2): holds from `address` up to the next row's. */
export interface LineRow extends SourceLine {
  readonly address: number;
  readonly isStatement: boolean;
  /** The first address behind the sequence: no source belongs to it. */
  readonly endsSequence: boolean;
}

export interface LineSectionOptions {
  /** `.debug_line`, with its relocations applied. */
  readonly bytes: Uint8Array;
  /** `.debug_line_str` and `.debug_str`, which version 5 refers to. */
  readonly lineStrings?: Uint8Array | undefined;
  readonly strings?: Uint8Array | undefined;
  readonly source: string;
}

/** Rows of one sequence have ascending addresses and are decoded when first asked for. */
interface Sequence {
  readonly header: LineHeader;
  /** Offset of its first opcode. */
  readonly at: number;
  readonly start: number;
  readonly end: number;
}

/** Of sequences that overlap (what a linker discarded stays at address 0), so many are looked at for one address. */
const MAX_OVERLAPS = 64;
/** Rows of the sequences asked for last, unless one alone has more. */
const MAX_KEPT_ROWS = 1 << 20;

/**
 * Reads `.debug_line` (DWARF 2 to 5, section 6.2; both formats). One pass finds the sequences, so that memory grows with their
 * number; rows are made for those that are asked for. A unit that can't be read is left out and named in `problems`.
 */
export class LineTable {
  readonly problems: readonly ParseError[];
  readonly #options: LineSectionOptions;
  /** By start. */
  readonly #sequences: readonly Sequence[];
  /** The greatest end of a sequence and all before it. */
  readonly #reach: Float64Array;
  readonly #rows = new Map<Sequence, SequenceRows>();
  #keptRows = 0;

  constructor(options: LineSectionOptions) {
    this.#options = options;
    const problems: ParseError[] = [];
    const sequences: Sequence[] = [];
    for (const header of readUnits(options, problems)) {
      try {
        sequences.push(...findSequences(header, options));
      } catch (error) {
        if (!(error instanceof ParseError)) throw error;
        problems.push(error);
      }
    }
    this.problems = problems;
    this.#sequences = sequences.sort((a, b) => a.start - b.start);
    this.#reach = new Float64Array(sequences.length);
    let reach = Number.NEGATIVE_INFINITY;
    this.#sequences.forEach(({ end }, i) => {
      reach = Math.max(reach, end);
      this.#reach[i] = reach;
    });
  }

  /** Where the instruction at `address` comes from: the last row at or before it. */
  find(address: number): SourceLine | undefined {
    let low = 0;
    let high = this.#sequences.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#sequences[middle] as Sequence).start <= address) low = middle + 1;
      else high = middle;
    }
    for (let i = low - 1; i >= Math.max(0, low - MAX_OVERLAPS); i--) {
      if ((this.#reach[i] as number) <= address) return undefined;
      const sequence = this.#sequences[i] as Sequence;
      if (sequence.end > address) return this.#rowsOf(sequence).find(address, sequence.header);
    }
    return undefined;
  }

  /** All rows, sequence by sequence. */
  *rows(): IterableIterator<LineRow> {
    for (const sequence of this.#sequences) yield* decodeRows(sequence.header, sequence.at, this.#options);
  }

  #rowsOf(sequence: Sequence): SequenceRows {
    let rows = this.#rows.get(sequence);
    if (rows === undefined) {
      rows = SequenceRows.of(sequence, this.#options);
      this.#keptRows += rows.count;
      for (const [oldest, { count }] of this.#rows) {
        if (this.#keptRows <= MAX_KEPT_ROWS) break;
        this.#rows.delete(oldest);
        this.#keptRows -= count;
      }
      this.#rows.set(sequence, rows);
    }
    return rows;
  }
}

/** The rows of one sequence in typed arrays, 20 bytes each. */
class SequenceRows {
  count = 0;
  #addresses = new Float64Array(64);
  #files = new Int32Array(64);
  #lines = new Int32Array(64);
  #columns = new Int32Array(64);

  static of(sequence: Sequence, options: LineSectionOptions): SequenceRows {
    const rows = new SequenceRows();
    const machine = new LineMachine(sequence.header, sequence.at, options);
    while (machine.runToRow() && !machine.endsSequence) rows.#add(machine);
    return rows;
  }

  #add({ address, file, line, column }: LineMachine): void {
    const n = this.count++;
    if (n === this.#addresses.length) this.#grow(n * 2);
    this.#addresses[n] = address;
    this.#files[n] = file;
    this.#lines[n] = line;
    this.#columns[n] = column;
  }

  #grow(size: number): void {
    const old = [this.#addresses, this.#files, this.#lines, this.#columns] as const;
    this.#addresses = new Float64Array(size);
    this.#addresses.set(old[0]);
    this.#files = new Int32Array(size);
    this.#files.set(old[1]);
    this.#lines = new Int32Array(size);
    this.#lines.set(old[2]);
    this.#columns = new Int32Array(size);
    this.#columns.set(old[3]);
  }

  find(address: number, header: LineHeader): SourceLine | undefined {
    let low = 0;
    let high = this.count;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#addresses[middle] as number) <= address) low = middle + 1;
      else high = middle;
    }
    if (low === 0) return undefined;
    return {
      file: header.fileName(this.#files[low - 1] as number),
      line: this.#lines[low - 1] as number,
      column: this.#columns[low - 1] as number,
    };
  }
}

function* readUnits(options: LineSectionOptions, problems: ParseError[]): IterableIterator<LineHeader> {
  const { bytes, source } = options;
  for (let offset = 0; offset + 4 <= bytes.length; ) {
    const reader = new ByteReader(bytes, `${source}(.debug_line)`).seek(offset);
    let end: number | undefined;
    try {
      let length = reader.readU32();
      const is64 = length === 0xffffffff;
      if (is64) length = reader.readSize();
      else if (length >= 0xfffffff0) reader.fail(`a unit of reserved length ${length}`);
      if (length > reader.remaining) reader.fail(`a unit of ${length} bytes, ${reader.remaining} left`);
      end = reader.offset + length;
      // Linkers pad between units.
      if (length > 0) yield readLineHeader(reader, end, is64, options);
    } catch (error) {
      if (!(error instanceof ParseError)) throw error;
      problems.push(error);
    }
    if (end === undefined) return;
    offset = end;
  }
}

function findSequences(header: LineHeader, options: LineSectionOptions): Sequence[] {
  const sequences: Sequence[] = [];
  const machine = new LineMachine(header, header.programAt, options);
  let first: number | undefined;
  let at = header.programAt;
  while (machine.runToRow()) {
    first ??= machine.address;
    if (!machine.endsSequence) continue;
    if (machine.address > first) sequences.push({ header, at, start: first, end: machine.address });
    machine.reset();
    first = undefined;
    at = machine.offset;
  }
  return sequences;
}

function* decodeRows(header: LineHeader, at: number, options: LineSectionOptions): IterableIterator<LineRow> {
  const machine = new LineMachine(header, at, options);
  while (machine.runToRow()) {
    yield {
      address: machine.address,
      file: header.fileName(machine.file),
      line: machine.line,
      column: machine.column,
      isStatement: machine.isStatement,
      endsSequence: machine.endsSequence,
    };
    if (machine.endsSequence) return;
  }
}

/** The state machine of section 6.2.2, run from row to row. Addresses of a sequence that go down are malformed. */
class LineMachine {
  address = 0;
  file = 1;
  line = 1;
  column = 0;
  isStatement = false;
  endsSequence = false;
  #operation = 0;
  #lastRow = Number.NEGATIVE_INFINITY;
  readonly #header: LineHeader;
  readonly #reader: ByteReader;

  constructor(header: LineHeader, at: number, options: LineSectionOptions) {
    this.#header = header;
    this.#reader = new ByteReader(
      options.bytes.subarray(0, header.end),
      `${options.source}(.debug_line)`,
    ).seek(at);
    this.reset();
  }

  get offset(): number {
    return this.#reader.offset;
  }

  reset(): void {
    this.address = 0;
    this.file = 1;
    this.line = 1;
    this.column = 0;
    this.isStatement = this.#header.defaultIsStatement;
    this.endsSequence = false;
    this.#operation = 0;
    this.#lastRow = Number.NEGATIVE_INFINITY;
  }

  /** Runs opcodes until one appends a row; false at the end of the program. */
  runToRow(): boolean {
    const reader = this.#reader;
    while (!reader.atEnd) {
      if (!this.#step(reader.readU8())) continue;
      if (this.address < this.#lastRow) reader.fail('addresses of a sequence go down');
      this.#lastRow = this.address;
      return true;
    }
    return false;
  }

  #advance(operations: number): void {
    const { minimumInstructionBytes, maximumOperations } = this.#header;
    const total = this.#operation + operations;
    this.address += minimumInstructionBytes * Math.floor(total / maximumOperations);
    this.#operation = total % maximumOperations;
  }

  /** Executes one opcode; true when it appends a row. */
  #step(opcode: number): boolean {
    const reader = this.#reader;
    const { opcodeBase, lineBase, lineRange, operandCounts } = this.#header;
    if (opcode >= opcodeBase) {
      const adjusted = opcode - opcodeBase;
      this.#advance(Math.floor(adjusted / lineRange));
      this.line += lineBase + (adjusted % lineRange);
      return true;
    }
    switch (opcode) {
      case 0x00:
        return this.#extended();
      case 0x01: // DW_LNS_copy
        return true;
      case 0x02: // DW_LNS_advance_pc
        this.#advance(reader.readUleb128());
        return false;
      case 0x03: // DW_LNS_advance_line
        this.line += reader.readSleb128();
        return false;
      case 0x04: // DW_LNS_set_file
        this.file = reader.readUleb128();
        return false;
      case 0x05: // DW_LNS_set_column
        this.column = reader.readUleb128();
        return false;
      case 0x06: // DW_LNS_negate_stmt
        this.isStatement = !this.isStatement;
        return false;
      case 0x08: // DW_LNS_const_add_pc
        this.#advance(Math.floor((255 - opcodeBase) / lineRange));
        return false;
      case 0x09: // DW_LNS_fixed_advance_pc
        this.address += reader.readU16();
        this.#operation = 0;
        return false;
      default:
        // DW_LNS_set_basic_block, set_prologue_end, set_epilogue_begin, set_isa, and what later versions may add.
        for (let i = operandCounts[opcode - 1] ?? 0; i > 0; i--) reader.readUleb128();
        return false;
    }
  }

  #extended(): boolean {
    const reader = this.#reader;
    const length = reader.readUleb128();
    if (length === 0) return false;
    const body = reader.readReader(length);
    switch (body.readU8()) {
      case 0x01: // DW_LNE_end_sequence
        this.endsSequence = true;
        return true;
      case 0x02: // DW_LNE_set_address
        if (body.remaining !== 8) body.fail(`an address of ${body.remaining} bytes`);
        this.address = body.readAddress();
        this.#operation = 0;
        return false;
      default:
        // DW_LNE_define_file (whose name no table keeps), set_discriminator, vendor extensions: nothing a row shows.
        return false;
    }
  }
}
