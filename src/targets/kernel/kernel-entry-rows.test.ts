import { describe, expect, it } from 'vitest';
import {
  ORC_REG_SP,
  ORC_TYPE_CALL,
  ORC_TYPE_END_OF_STACK,
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
  find: () => undefined,
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

describe('rows of thunks', () => {
  const [PLAIN, DIRECT, RETURN, COUNTED, SAFE] = [0x3000, 0x3020, 0x3100, 0x3140, 0x3180];
  // call 1f; 2: pause; lfence; jmp 2b; 1: mov %rax, (%rsp); jmp __x86_return_thunk
  const retpoline = Uint8Array.from([
    ...[0xe8, 7, 0, 0, 0, 0xf3, 0x90, 0x0f, 0xae, 0xe8, 0xeb, 0xf9],
    ...[0x48, 0x89, 0x04, 0x24, 0xe9, 0, 0, 0, 0],
  ]);
  const thunks: Readonly<Record<string, readonly [number, Uint8Array]>> = {
    __x86_indirect_thunk_rax: [PLAIN, retpoline],
    // jmp *%rcx; int3
    __x86_indirect_its_thunk_rcx: [DIRECT, Uint8Array.of(0xff, 0xe1, 0xcc, 0xcc, 0xcc)],
    __x86_return_thunk: [RETURN, Uint8Array.of(0xc3, 0xcc)],
    call_depth_return_thunk: [COUNTED, new Uint8Array()],
    srso_safe_ret: [SAFE, new Uint8Array()],
  };
  const find = mendEntryRows(
    {
      relocate: (address: number) => address + OFFSET,
      imageBytes: (address: number, sizeBytes: number) =>
        Object.values(thunks)
          .find(([at]) => at + OFFSET === address)?.[1]
          .slice(0, sizeBytes),
      image: {
        symbols: {
          findUnique: (name: string) => {
            const address = thunks[name]?.[0];
            return address === undefined ? undefined : { name, address, sizeBytes: 0x20 };
          },
        },
      },
    } as unknown as KernelAddresses,
    (address) =>
      address > COUNTED + OFFSET && address < SAFE + OFFSET
        ? CALLED
        : // As in 6.1: the stack ends there.
          row(0, ORC_TYPE_END_OF_STACK << TYPE_SHIFT),
  );
  const called = (cfaOffset: number) => ({
    cfaRegister: RSP,
    cfaOffset,
    returnOffset: -8,
    isOutermost: false,
  });

  it.each([
    ['where it begins', PLAIN, 8],
    ['behind the lfence that some processors have there', PLAIN + 3, 8],
    ['behind the call in it', PLAIN + 12, 16],
    ['where it has written the address to go to', PLAIN + 16, 16],
    ['of a single jump', DIRECT, 8],
  ])('lead to who called the function that goes through it: %s', (_, address, cfaOffset) => {
    expect(find(address + OFFSET, true)).toMatchObject(called(cfaOffset));
  });

  it.each([
    ['where the thunk begins', RETURN, 8],
    ['where the kernel has a row of its own behind that', COUNTED + 0x10, 24],
    ['where its thunk has called what takes that call off the stack', SAFE, 16],
    ['behind that', SAFE + 5, 8],
  ])('say of a return that it may be a jump, %s', (_, address, cfaOffset) => {
    expect(find(address + OFFSET, true)).toMatchObject({ ...called(cfaOffset), isReturn: true });
    expect(find(address + OFFSET, false)?.isReturn).toBeUndefined();
  });

  it('say of what is no return that the stack ends there if the kernel does', () => {
    expect(find(RETURN + OFFSET + 1, true)).toMatchObject({ isOutermost: true });
  });

  it('are none in between, and none for what would return there', () => {
    for (const at of [PLAIN + 1, PLAIN + 5, PLAIN + 13, DIRECT + 12])
      expect(find(at + OFFSET, true)).toBeUndefined();
    expect(find(PLAIN + OFFSET, false)).toBeUndefined();
    expect(find(DIRECT + 0x20 + OFFSET, true)).toMatchObject({ isOutermost: true });
  });
});
