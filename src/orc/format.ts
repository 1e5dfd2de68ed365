import { ParseError } from '../base/errors.js';

/**
 * The published formats of `struct orc_entry` (arch/x86/include/asm/orc_types.h), named by the first kernel that has
 * them. All are 6 bytes: `sp_offset` and `bp_offset`, then 16 bits of fields.
 *
 * | format | fields from bit 0 | kernel commit |
 * |---|---|---|
 * | 4.14 | sp_reg 4, bp_reg 4, type 2 | ee9f8fce9964 |
 * | 4.18 | … type 2, end 1 | d31a580266ee (in stable 4.14 and 4.16 too: an older kernel has 0 there) |
 * | 5.12 | as 4.18; `SP_INDIRECT` adds the offset behind the load instead of before it | 87ccc826bf1c |
 * | 6.3 | … type 2, signal 1, end 1 | ffb1b4a41016 |
 * | 6.4 | … type 3, signal 1; "undefined" and "end of stack" are types | fb799447ae29 |
 * | 7.2 | as 6.4, with other numbers for the registers | seen in Debian's 7.2, by its `.orc_header` |
 */
export type OrcFormat = '4.14' | '4.18' | '5.12' | '6.3' | '6.4' | '7.2';

export const ORC_ENTRY_BYTES = 6;

/** `ORC_REG_…`, numbered as in 6.4. */
export const ORC_REG_UNDEFINED = 0;
export const ORC_REG_PREV_SP = 1;
export const ORC_REG_DX = 2;
export const ORC_REG_DI = 3;
export const ORC_REG_BP = 4;
export const ORC_REG_SP = 5;
export const ORC_REG_R10 = 6;
export const ORC_REG_R13 = 7;
export const ORC_REG_BP_INDIRECT = 8;
export const ORC_REG_SP_INDIRECT = 9;

/**
 * The same registers by their numbers in 7.2, `ORC_REG_UNDEFINED` first. 1 is a new one (AX), which no entry of Debian's kernel has: as
 * for a number that no register has, nothing is claimed.
 */
const NO_REGISTER = 15;
const REGISTERS_OF_7_2 = [
  ...[ORC_REG_UNDEFINED, NO_REGISTER, ORC_REG_DX, ORC_REG_SP, ORC_REG_BP, ORC_REG_DI, ORC_REG_R10],
  ...[ORC_REG_R13, ORC_REG_PREV_SP, ORC_REG_SP_INDIRECT, ORC_REG_BP_INDIRECT],
];

/** `ORC_TYPE_…`, numbered as in 6.4. Other formats are converted. */
export const ORC_TYPE_UNDEFINED = 0;
export const ORC_TYPE_END_OF_STACK = 1;
export const ORC_TYPE_CALL = 2;
export const ORC_TYPE_REGS = 3;
export const ORC_TYPE_REGS_PARTIAL = 4;

/** The fields of all formats in the layout of 6.4. */
export const SP_REG_MASK = 0x0f;
export const BP_REG_SHIFT = 4;
export const TYPE_SHIFT = 8;
export const TYPE_MASK = 7;
export const SIGNAL_BIT = 0x800;

/**
 * The contents of `.orc_header`: the SHA-1 that scripts/orc_hash.sh takes of orc_types.h. It exists since 6.5
 * (b9f174c811e3) and in stable 6.3.10 and 6.4.
 */
const FORMAT_OF_HEADER: ReadonlyMap<string, OrcFormat> = new Map([
  ['137c36ad7627c4dd55932176bb0ecdbd5041fc82', '7.2'],
  ['fe5d32bf581bd63b2ca9a5c65ba5a625eab3fe24', '6.4'],
  ['db84aed4103b31dd51e017f8f79783ca985c2c51', '6.3'],
]);

/** What is known of the kernel that a table belongs to. */
export interface OrcOrigin {
  /** The contents of `.orc_header`, where there is one: it decides. */
  readonly header?: Uint8Array | undefined;
  /** `6.1.0-50-cloud-amd64`: the release of the kernel, or the start of a module's `vermagic`. */
  readonly kernelRelease?: string | undefined;
}

/** Which format a table has. Throws a ParseError for an unknown header and for a kernel that nothing is known of. */
export function orcFormatOf(origin: OrcOrigin, source: string): OrcFormat {
  const { header, kernelRelease } = origin;
  if (header !== undefined) {
    const hash = Array.from(header.subarray(0, 64), (byte) => byte.toString(16).padStart(2, '0')).join('');
    const format = FORMAT_OF_HEADER.get(hash);
    if (format !== undefined) return format;
    throw new ParseError(source, 0, `unknown ORC format (.orc_header is ${hash})`, {
      remedy: 'this kernel has an entry format newer than this livegraft: use a newer one',
    });
  }
  const version = /^(\d+)\.(\d+)/.exec(kernelRelease ?? '');
  if (version === null) {
    throw new ParseError(
      source,
      0,
      'the ORC format is unknown: no .orc_header, and no kernel release is known',
      {
        remedy: 'name the kernel release that the file was built for',
      },
    );
  }
  const number = Number(version[1]) * 1000 + Number(version[2]);
  if (number < 4014) throw new ParseError(source, 0, `kernel ${kernelRelease} has no ORC tables`);
  if (number < 4018) return '4.14';
  if (number < 5012) return '4.18';
  if (number < 6003) return '5.12';
  return number < 6004 ? '6.3' : '6.4';
}

/** The 16 bits of fields of any format in the layout and with the numbers of 6.4. */
export function normalizeOrcFields(fields: number, format: OrcFormat): number {
  if (format === '6.4') return fields & 0xfff;
  if (format === '7.2') {
    const numbered = (shift: number) => (REGISTERS_OF_7_2[(fields >> shift) & 0xf] ?? NO_REGISTER) << shift;
    return (fields & 0xf00) | numbered(BP_REG_SHIFT) | numbered(0);
  }
  const registers = fields & 0xff;
  const oldType = (fields >> 8) & 3;
  const hasEnd = (fields & (format === '6.3' ? 0x800 : 0x400)) !== 0;
  if ((fields & SP_REG_MASK) === ORC_REG_UNDEFINED) {
    // 4.14 has no end bit: its unwinder took every undefined sp_reg for an unreliable end.
    const type = hasEnd ? ORC_TYPE_END_OF_STACK : ORC_TYPE_UNDEFINED;
    return registers | (type << TYPE_SHIFT);
  }
  // Before 6.3, a frame of registers always was an interrupted one.
  const isSignal = format === '6.3' ? (fields & 0x400) !== 0 : oldType !== 0;
  // A type of 3 was never written; it becomes one that does not exist in 6.4 either.
  return registers | ((oldType + ORC_TYPE_CALL) << TYPE_SHIFT) | (isSignal ? SIGNAL_BIT : 0);
}
