import { describe, expect, it } from 'vitest';
import {
  ORC_REG_SP,
  ORC_TYPE_CALL,
  ORC_TYPE_REGS_PARTIAL,
  SIGNAL_BIT,
  TYPE_SHIFT,
} from '../../orc/format.js';
import { convertOrcEntry } from '../../orc/row.js';
import { prepareRow, type UnwindRow } from '../../unwind/unwind-row.js';
import { mendEntryRows } from './kernel-entry-rows.js';
import type { KernelAddresses } from './running-kernel.js';

const [RSP, RIP_OFFSET, SP_OFFSET] = [7, -40, -16];
const OFFSET = 0x20_0000;
const STUB = 0x1000;
const SAVER = 0x2000;
const SAVER_BYTES = 0x100;
/** Behind the call in the stub. */
const BEHIND = STUB + OFFSET + 15;

/** The stub of an interrupt: `endbr64; clac; cld; push $-1`, then `call error_entry`. */
const stub = new Uint8Array(32).fill(0x90);
stub[10] = 0xe8;
new DataView(stub.buffer).setInt32(11, SAVER - (STUB + 15), true);

function row(spOffset: number, fields: number): UnwindRow {
  const rule = convertOrcEntry(spOffset, 0, ORC_REG_SP | fields, '6.4');
  if (rule === undefined) throw new Error('no such row');
  return prepareRow({ ...rule, start: 0, end: 0 });
}

const BEFORE_CALL = row(8, (ORC_TYPE_REGS_PARTIAL << TYPE_SHIFT) | SIGNAL_BIT);
const CALLED = row(24, ORC_TYPE_CALL << TYPE_SHIFT);

const kernel = {
  relocate: (address: number) => address + OFFSET,
  imageBytes: (address: number, sizeBytes: number) => {
    const at = address - OFFSET - STUB;
    return at >= 0 && at < stub.length ? stub.slice(at, at + sizeBytes) : undefined;
  },
  image: {
    symbols: {
      findUnique: (name: string) =>
        name === 'error_entry' ? { name, address: SAVER, sizeBytes: SAVER_BYTES } : undefined,
    },
  },
} as unknown as KernelAddresses;

const findRow = mendEntryRows(kernel, (address) => {
  if (address >= STUB + OFFSET && address < STUB + OFFSET + 32) return BEFORE_CALL;
  if (address >= SAVER + OFFSET) return CALLED;
  return undefined;
});

describe('rows of entry code', () => {
  it.each([
    ['stands there', BEHIND, true],
    ['returns there, from what the saver jumped to', BEHIND - 1, false],
  ])(
    'are those of whole registers behind the call that saves them, when a task %s',
    (_, address, interrupted) => {
      const mended = findRow(address, interrupted);
      expect(mended).toMatchObject({ cfaRegister: RSP, cfaOffset: 168, isSignalFrame: true });
      expect(mended?.savedRegisters).toHaveLength(16);
    },
  );

  it('stay what they are before that call and elsewhere', () => {
    expect(findRow(BEHIND - 5, true)).toBe(BEFORE_CALL);
    expect(findRow(BEHIND + 3, true)).toBe(BEFORE_CALL);
    expect(findRow(SAVER + OFFSET + SAVER_BYTES, true)).toBe(CALLED);
    expect(findRow(0x10, true)).toBeUndefined();
  });

  it('lead from a saver, which overwrites its own return address, to the frame of the processor', () => {
    // The return address, orig_ax, and the five words of the frame lie from 16 bytes above the stack pointer on.
    expect(findRow(SAVER + OFFSET + 6, true)).toMatchObject({
      cfaRegister: RSP,
      cfaOffset: 24 + 8 + 40,
      returnOffset: RIP_OFFSET,
      isSignalFrame: true,
    });
    const { savedRegisters = [], savedOffsets = [] } = findRow(SAVER + OFFSET + 6, true) ?? {};
    expect(savedOffsets[savedRegisters.indexOf(RSP)]).toBe(SP_OFFSET);
  });
});
