import { ByteWriter } from '../../base/byte-writer.js';
import {
  BORROWED_CALL_RETURNED,
  type BorrowedCall,
  type DisplacedCode,
  GATE,
  GATE_BYTES,
  GS_SLOT_NOTE_OFFSET,
  type Redirector,
  type RedirectRefusal,
  type RedirectSite,
  type StateSlotLocation,
  type StateStore,
  type StateTest,
} from '../architecture.js';
import type { Instruction } from '../instruction.js';
import { decoder } from './decoder.js';
import { encodeDoorbell } from './doorbell.js';

const PAGE_BYTES = 4096;
const LONG_JUMP_BYTES = 5;
const SHORT_JUMP_BYTES = 2;
/** Compilers align functions by this much, and fill what is left. */
const ALIGNMENT_BYTES = 16;
const SYS_rt_sigreturn = 15;

/** Redirects of x86-64: `jmp rel32` at the entry, or `jmp rel8` to one that lies in padding. */
export const redirector: Redirector = {
  chooseSite(code, functionStart, functionSizeBytes, address): RedirectSite | RedirectRefusal {
    const body = decodeFunction(code, functionStart, functionSizeBytes);
    if ('refused' in body) return body;
    const offset = startsWithEndbr64(code, functionStart) ? 4 : 0;
    const fillBytes = fillBehind(code, functionStart, functionSizeBytes, body, address);
    const long = coverBytes(body, offset, LONG_JUMP_BYTES, address, fillBytes);
    if (!('refused' in long)) return { ...long, hopOffset: undefined };
    const short = coverBytes(body, offset, SHORT_JUMP_BYTES, address, 0);
    if ('refused' in short) return short;
    const isReachable = functionSizeBytes - (offset + SHORT_JUMP_BYTES) <= 127;
    const page = modulo(address + functionSizeBytes, PAGE_BYTES);
    if (fillBytes < LONG_JUMP_BYTES || !isReachable || page + LONG_JUMP_BYTES > PAGE_BYTES) {
      return { refused: `${long.refused}, and there is no padding within reach of a short jump` };
    }
    return { ...short, hopOffset: functionSizeBytes };
  },

  displace(code, functionStart, site, from, to): DisplacedCode | RedirectRefusal {
    return displaceInstructions(code, functionStart, site, from, to);
  },

  encodeJump(at, to, sizeBytes): Uint8Array {
    const relative = to - (at + sizeBytes);
    if (sizeBytes === SHORT_JUMP_BYTES) {
      if (relative < -128 || relative > 127) throw new RangeError(`short jump of ${relative} bytes`);
      return Uint8Array.of(0xeb, relative & 0xff);
    }
    return new ByteWriter(8).writeU8(0xe9).writeI32(expectRel32(relative)).toBytes();
  },

  encodeFarJump(to): Uint8Array {
    // jmp *0(%rip), then the address.
    return new ByteWriter(16).writeU8(0xff).writeU8(0x25).writeU32(0).writeU64(to).toBytes();
  },

  encodeStateTest(at, patched, slot): StateTest {
    return slot.kind === 'gsBase' ? testGsBase(at, patched) : testThreadPointerTable(at, patched, slot);
  },

  encodeGate(at, gate, below, patched): Uint8Array {
    const out = new ByteWriter(GATE_BYTES);
    out.writeU8(0x80).writeU8(0x3d); // cmpb $choosing, gate
    out.writeI32(expectRel32(gate - (at + 7))).writeU8(GATE.choosing);
    out.writeU8(0x0f).writeU8(0x82); // jb below
    out.writeI32(expectRel32(below - (at + 13)));
    out.writeU8(0x0f).writeU8(0x87); // ja patched
    out.writeI32(expectRel32(patched - (at + 19)));
    return out.toBytes();
  },

  encodeStateStore(slot): StateStore {
    return slot.kind === 'gsBase' ? storeAtGsBase() : storeInThreadPointerTable(slot);
  },

  encodeDoorbell,

  encodeBorrowedCall(at, callee, record): BorrowedCall {
    const code = new ByteWriter(48);
    const relative = (address: number, behindField: number) =>
      code.writeI32(expectRel32(address - (at + code.length + 4 + behindField)));
    code.writeU8(0xe8); // call callee
    relative(callee, 0);
    code.writeU8(0x89).writeU8(0x05); // mov %eax, result
    relative(record + 4, 0);
    code.writeU8(0xc7).writeU8(0x05); // movl $returned, phase
    relative(record, 4);
    code.writeU32(BORROWED_CALL_RETURNED);
    code.writeU8(0x59); // pop %rcx: the frame counts from behind the return address of a handler
    const back = code.length;
    code.writeU8(0xb8).writeU32(SYS_rt_sigreturn); // mov $15, %eax
    code.writeU8(0x0f).writeU8(0x05); // syscall
    const returningAt = code.length;
    // Whoever watches may have the system call passed over, and then vanish.
    code.writeU8(0xeb).writeU8((back - (returningAt + 2)) & 0xff); // jmp back
    return { bytes: code.toBytes(), returningAt };
  },
};

function isRel32(relative: number): boolean {
  return relative >= -(2 ** 31) && relative < 2 ** 31;
}

function expectRel32(relative: number): number {
  if (!isRel32(relative)) throw new RangeError(`jump of ${relative} bytes is out of reach`);
  return relative;
}

function startsWithEndbr64(code: Uint8Array, at: number): boolean {
  return code[at] === 0xf3 && code[at + 1] === 0x0f && code[at + 2] === 0x1e && code[at + 3] === 0xfa;
}

/** All instructions of the function, offsets and targets counted from its first byte. */
function decodeFunction(
  code: Uint8Array,
  functionStart: number,
  sizeBytes: number,
): readonly Instruction[] | RedirectRefusal {
  const instructions: Instruction[] = [];
  for (let offset = 0; offset < sizeBytes; ) {
    const instruction = decoder.decode(code, functionStart + offset, offset, functionStart + sizeBytes);
    if (instruction === undefined) return { refused: `its code can't be decoded at offset ${offset}` };
    instructions.push(instruction);
    offset += instruction.lengthBytes;
  }
  return instructions;
}

type Cover = Omit<RedirectSite, 'hopOffset'>;

/**
 * Whole instructions that make room for a jump at `offset`, when nothing leads into the middle of that jump. Of a
 * function that is too short all, and the fill behind it.
 */
function coverBytes(
  body: readonly Instruction[],
  offset: number,
  jumpSizeBytes: number,
  address: number,
  fillBytes: number,
): Cover | RedirectRefusal {
  // A write inside one page can't be torn by the death of the writer.
  const page = modulo(address + offset, PAGE_BYTES);
  if (page + jumpSizeBytes > PAGE_BYTES) return { refused: 'its first bytes lie on two pages' };
  let end = offset;
  for (const instruction of body) {
    if (instruction.offset < offset) continue;
    if (end - offset >= jumpSizeBytes) break;
    end = instruction.offset + instruction.lengthBytes;
    if (endsFlow(instruction)) break;
  }
  const last = body[body.length - 1];
  const functionEnd = last === undefined ? 0 : last.offset + last.lengthBytes;
  const room = end === functionEnd ? end + fillBytes : end;
  if (room - offset < jumpSizeBytes || end === offset)
    return { refused: `it has only ${end - offset} bytes to place a jump in` };
  const jumpEnd = offset + jumpSizeBytes;
  for (const instruction of body) {
    const { target, flow } = instruction;
    // A jump to the site itself meets the redirect again, which is consistent: a task switches only outside of the
    // function, so the redirect leads it to the version that it came from.
    if (target !== undefined && target > offset && target < jumpEnd) {
      return {
        refused: `the jump at offset ${instruction.offset} leads to offset ${target}, inside its first ${jumpEnd} bytes`,
      };
    }
    const returnsTo = instruction.offset + instruction.lengthBytes;
    if (
      (flow === 'call' || flow === 'indirectCall' || flow === 'systemCall') &&
      returnsTo > offset &&
      returnsTo < jumpEnd
    ) {
      return {
        refused: `the call at offset ${instruction.offset} returns to offset ${returnsTo}, inside its first ${jumpEnd} bytes`,
      };
    }
  }
  return { offset, jumpSizeBytes, displacedSizeBytes: end - offset };
}

/**
 * How many bytes behind the function no code uses: the fill up to the next aligned place. Fill that ends before could
 * be another function that begins with nops, and does not count.
 */
function fillBehind(
  code: Uint8Array,
  functionStart: number,
  sizeBytes: number,
  body: readonly Instruction[],
  address: number,
): number {
  const last = body[body.length - 1];
  if (last === undefined || !endsFlow(last)) return 0;
  const room = modulo(-(address + sizeBytes), ALIGNMENT_BYTES);
  return isPadding(code, functionStart + sizeBytes, room) ? room : 0;
}

/** Whether control never goes on behind an instruction. */
function endsFlow({ flow }: Instruction): boolean {
  return ['jump', 'return', 'indirectJump', 'deadEnd', 'interruptReturn'].includes(flow);
}

/** The remainder that is never negative: kernel addresses are negative numbers. */
function modulo(value: number, divisor: number): number {
  return ((value % divisor) + divisor) % divisor;
}

/** Whether nops or int3 follow for `room` bytes; the last nop may be longer, when there is more to fill. */
function isPadding(code: Uint8Array, position: number, room: number): boolean {
  let used = 0;
  while (used < room) {
    const at = position + used;
    if (at >= code.length) return false;
    const length = code[at] === 0xcc ? 1 : nopLength(code, at);
    if (length === 0) return false;
    used += length;
  }
  return true;
}

/** 90, the long nops 0f 1f /0, and either behind 66 and 2e prefixes, as assemblers fill with. */
function nopLength(code: Uint8Array, at: number): number {
  const length = decoder.length(code, at);
  let opcode = at;
  while (code[opcode] === 0x66 || code[opcode] === 0x2e) opcode++;
  const isNop = code[opcode] === 0x90 || (code[opcode] === 0x0f && code[opcode + 1] === 0x1f);
  return isNop ? length : 0;
}

function displaceInstructions(
  code: Uint8Array,
  functionStart: number,
  site: RedirectSite,
  from: number,
  to: number,
): DisplacedCode | RedirectRefusal {
  const out = new ByteWriter(64);
  const map: { copy: number; original: number }[] = [];
  const pending: { readonly at: number; readonly original: number }[] = [];
  const end = site.offset + site.displacedSizeBytes;
  let fallsThrough = true;
  for (let offset = site.offset; offset < end; ) {
    const at = functionStart + offset;
    const instruction = decoder.decode(code, at, offset);
    const fields = decoder.fields(code, at);
    if (instruction === undefined || fields === undefined)
      return { refused: `its code can't be decoded at offset ${offset}` };
    map.push({ copy: out.length, original: offset });
    const bytes = code.subarray(at, at + instruction.lengthBytes);
    const { target } = instruction;
    fallsThrough = !endsFlow(instruction);
    if (target !== undefined) {
      const refused = writeRelative(out, bytes, instruction, fields.relativeTargetSizeBytes);
      if (refused !== undefined) return { refused };
      pending.push({ at: out.length - 4, original: target });
    } else {
      const start = out.length;
      out.writeBytes(bytes);
      if (fields.ripDisplacementAt !== undefined) {
        const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
        const operand =
          from + offset + instruction.lengthBytes + view.getInt32(fields.ripDisplacementAt, true);
        const relative = operand - (to + start + instruction.lengthBytes);
        if (!isRel32(relative)) return { refused: 'the data it uses is out of reach' };
        out.patchU32(start + fields.ripDisplacementAt, relative >>> 0);
      }
    }
    offset += instruction.lengthBytes;
  }
  if (fallsThrough) {
    map.push({ copy: out.length, original: end });
    out.writeU8(0xe9).writeI32(0);
    pending.push({ at: out.length - 4, original: end });
  }
  for (const { at, original } of pending) {
    const inside = map.find((pair) => pair.original === original);
    const target = inside !== undefined && original < end ? to + inside.copy : from + original;
    const relative = target - (to + at + 4);
    if (!isRel32(relative)) return { refused: 'the code it leads to is out of reach' };
    out.patchU32(at, relative >>> 0);
  }
  return { bytes: out.toBytes(), map };
}

/** Writes a relative jump, branch or call in its form with a 32-bit displacement, which is left to be filled in. */
function writeRelative(
  out: ByteWriter,
  bytes: Uint8Array,
  instruction: Instruction,
  size: number,
): string | undefined {
  if (size === 4) {
    out.writeBytes(bytes.subarray(0, bytes.length - 4)).writeI32(0);
    return undefined;
  }
  const opcode = bytes[bytes.length - 2] as number;
  if (instruction.flow === 'jump') out.writeU8(0xe9).writeI32(0);
  else if (opcode >= 0x70 && opcode <= 0x7f)
    out
      .writeU8(0x0f)
      .writeU8(opcode + 0x10)
      .writeI32(0);
  else if (opcode >= 0xe0 && opcode <= 0xe3) {
    // loop and jrcxz have no long form: over a short jump to the long one.
    out
      .writeBytes(bytes.subarray(0, bytes.length - 1))
      .writeU8(2)
      .writeU8(0xeb)
      .writeU8(5)
      .writeU8(0xe9)
      .writeI32(0);
  } else return `the branch at offset ${instruction.offset} has no long form`;
  return undefined;
}

/** cmpb $0, %gs:0 ; jne patched */
function testGsBase(at: number, patched: number): StateTest {
  const out = new ByteWriter(16);
  out.writeBytes(Uint8Array.of(0x65, 0x80, 0x3c, 0x25, 0, 0, 0, 0, 0));
  const stateReadAt = out.length;
  out.writeU8(0x0f).writeU8(0x85);
  out.writeI32(expectRel32(patched - (at + out.length + 4)));
  return { bytes: out.toBytes(), stateReadAt };
}

/**
 * Looks the thread pointer up in an open-addressing table of {key, state}; a thread that is not in it has the state of the free entry
 * at which the search ends. Three registers are borrowed; they are
 * saved below the red zone, since a jump back to the entry may come here with the red zone in use.
 */
function testThreadPointerTable(at: number, patched: number, slot: ThreadPointerTable): StateTest {
  const out = new ByteWriter(160);
  const emit = (...bytes: number[]) => out.writeBytes(Uint8Array.from(bytes));
  const { free } = findTableEntry(out, slot);
  patchShort(out, free, out.length);
  emit(0x80, 0x7c, 0x0a, 0x08, 0x00); // cmpb $0, 8(%rdx,%rcx)
  const stateReadAt = out.length;
  emit(0x74, 0); // je below
  const below = out.length - 1;
  emit(...RESTORE_AFTER_TABLE, 0xe9);
  out.writeI32(expectRel32(patched - (at + out.length + 4)));
  patchShort(out, below, out.length);
  emit(...RESTORE_AFTER_TABLE);
  return { bytes: out.toBytes(), stateReadAt };
}

/** pop %rdx, %rcx, %rax; lea 128(%rsp), %rsp */
const RESTORE_AFTER_TABLE = [0x5a, 0x59, 0x58, 0x48, 0x8d, 0xa4, 0x24, 0x80, 0, 0, 0];

/**
 * Moves the GS base to the byte of the thread's slot that holds the wanted state, and notes in the slot which one that is.
 * The base is the thread's own, where the slot may be that of the thread which created it.
 */
function storeAtGsBase(): StateStore {
  const out = new ByteWriter(64);
  const emit = (...bytes: number[]) => {
    const at = out.length;
    out.writeBytes(Uint8Array.from(bytes));
    return at;
  };
  const start = emit(0x48, 0x8d, 0xa4, 0x24, 0x80, 0xff, 0xff, 0xff); // lea -128(%rsp), %rsp
  const first = emit(0x50); // push %rax
  const second = emit(0x51); // push %rcx
  const uses = [
    emit(0xf3, 0x48, 0x0f, 0xae, 0xc8), // rdgsbase %rax
    emit(0x48, 0x83, 0xe0, 0xfe), // and $-2, %rax
    emit(0x48, 0x89, 0xc1), // mov %rax, %rcx
    emit(0x48, 0x83, 0xc8, 0), // or $0, %rax
  ];
  const valueAt = out.length - 1;
  uses.push(
    emit(0xf3, 0x48, 0x0f, 0xae, 0xd8), // wrgsbase %rax
    emit(0x88, 0x41, GS_SLOT_NOTE_OFFSET), // mov %al, 2(%rcx)
  );
  const pop = emit(0x59); // pop %rcx
  const popFirst = emit(0x58); // pop %rax
  const leave = emit(0x48, 0x8d, 0xa4, 0x24, 0x80, 0, 0, 0); // lea 128(%rsp), %rsp
  return {
    bytes: out.toBytes(),
    valueAt,
    slotUses: [
      { at: start, resumeAt: out.length },
      { at: first, resumeAt: leave },
      { at: second, resumeAt: popFirst },
      ...uses.map((at) => ({ at, resumeAt: pop })),
    ],
  };
}

function storeInThreadPointerTable(slot: ThreadPointerTable): StateStore {
  const out = new ByteWriter(160);
  const { free } = findTableEntry(out, slot);
  out.writeBytes(Uint8Array.of(0xc6, 0x44, 0x0a, 0x08, 0)); // movb $0, 8(%rdx,%rcx)
  const valueAt = out.length - 1;
  // A free entry is nobody's: it holds the state of all that have none.
  patchShort(out, free, out.length);
  out.writeBytes(Uint8Array.from(RESTORE_AFTER_TABLE));
  return { bytes: out.toBytes(), valueAt, slotUses: [] };
}

type ThreadPointerTable = Extract<StateSlotLocation, { kind: 'threadPointerTable' }>;

/**
 * Goes on with the table in rdx and the offset of the thread's entry in rcx, or jumps through the short displacement at
 * `free` when it has none: with the offset of the free entry where its own would be.
 */
function findTableEntry(out: ByteWriter, slot: ThreadPointerTable): { readonly free: number } {
  const bits = Math.log2(slot.entries);
  const emit = (...bytes: number[]) => out.writeBytes(Uint8Array.from(bytes));
  emit(0x48, 0x8d, 0xa4, 0x24, 0x80, 0xff, 0xff, 0xff); // lea -128(%rsp), %rsp
  emit(0x50, 0x51, 0x52); // push %rax, %rcx, %rdx
  emit(0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0); // mov %fs:0, %rax
  emit(0x48, 0x89, 0xc1); // mov %rax, %rcx
  emit(0x48, 0xc1, 0xe9, 12); // shr $12, %rcx
  emit(0x69, 0xc9, 0xb1, 0x79, 0x37, 0x9e); // imul $0x9e3779b1, %ecx, %ecx
  emit(0xc1, 0xe9, 32 - bits); // shr $(32-bits), %ecx
  emit(0xc1, 0xe1, 4); // shl $4, %ecx
  emit(0x48, 0xba); // movabs $table, %rdx
  out.writeU64(slot.table);
  const probe = out.length;
  emit(0x48, 0x3b, 0x04, 0x0a); // cmp (%rdx,%rcx), %rax
  emit(0x74, 0); // je found
  const found = out.length - 1;
  emit(0x48, 0x83, 0x3c, 0x0a, 0x00); // cmpq $0, (%rdx,%rcx)
  emit(0x74, 0); // je free
  const free = out.length - 1;
  emit(0x83, 0xc1, 16); // add $16, %ecx
  emit(0x81, 0xe1); // and $mask, %ecx
  out.writeU32((slot.entries - 1) * 16);
  emit(0xeb, 0);
  patchShort(out, out.length - 1, probe);
  patchShort(out, found, out.length);
  return { free };
}

function patchShort(out: ByteWriter, at: number, target: number): void {
  out.patchU8(at, (target - (at + 1)) & 0xff);
}
