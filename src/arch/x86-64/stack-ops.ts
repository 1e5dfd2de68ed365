import type { StackOp } from '../instruction.js';
import {
  displacement,
  dwarfOf,
  immediate,
  immediateWord,
  isRegisterForm,
  plainBase,
  regOperand,
  rmOperand,
} from './operands.js';
import { clobber, clobberBoth, NO_OPS, registerWrites } from './register-writes.js';
import { DW_RBP, DW_RSP } from './registers.js';
import { Encoding, type Scan } from './scanner.js';

const HARDWARE_RSP = 4;
const HARDWARE_RBP = 5;

const share = (op: StackOp): readonly StackOp[] => Object.freeze([Object.freeze(op)]);
const perRegister = (make: (register: number) => StackOp) =>
  Array.from({ length: 16 }, (_, hardware) => share(make(dwarfOf(hardware))));

const PUSH = perRegister((register) => ({ kind: 'push', register, sizeBytes: 8 }));
const POP = perRegister((register) => ({ kind: 'pop', register, sizeBytes: 8 }));
const PUSH_WORD = perRegister((register) => ({ kind: 'push', register, sizeBytes: 2 }));
const POP_WORD = perRegister((register) => ({ kind: 'pop', register, sizeBytes: 2 }));
const CALL = share({ kind: 'callPush' });
const RETURN = share({ kind: 'returnPop', extraBytes: 0 });
const LEAVE = share({ kind: 'leave' });

/**
 * The stack operations of the instruction that was scanned, in the order in which they happen. The most frequent
 * results are shared and frozen.
 */
export function stackOpsOf(scan: Scan): readonly StackOp[] {
  if (scan.encoding !== Encoding.legacy || scan.map > 1) return registerWrites(scan);
  return scan.map === 0 ? oneByteOps(scan) : twoByteOps(scan);
}

/** Pushes and pops are 64 bits wide, or 16 with 66h: there is no 32-bit form (SDM volume 1, 6.2.2). */
function isWordSized(scan: Scan): boolean {
  return scan.operandSize && (scan.rex & 8) === 0;
}

function isWide(scan: Scan): boolean {
  return (scan.rex & 8) !== 0;
}

function push(scan: Scan, hardware: number): readonly StackOp[] {
  return (isWordSized(scan) ? PUSH_WORD : PUSH)[hardware] as readonly StackOp[];
}

function pop(scan: Scan, hardware: number): readonly StackOp[] {
  return (isWordSized(scan) ? POP_WORD : POP)[hardware] as readonly StackOp[];
}

function pushOther(
  scan: Scan,
  source: Extract<StackOp, { kind: 'pushOther' }>['source'],
): readonly StackOp[] {
  return [{ kind: 'pushOther', sizeBytes: isWordSized(scan) ? 2 : 8, source }];
}

function popOther(scan: Scan, target: Extract<StackOp, { kind: 'popOther' }>['target']): readonly StackOp[] {
  return [{ kind: 'popOther', sizeBytes: isWordSized(scan) ? 2 : 8, target }];
}

function oneByteOps(scan: Scan): readonly StackOp[] {
  const { opcode, modrm } = scan;
  if ((opcode & 0xf0) === 0x50) {
    const register = (opcode & 7) | ((scan.rex & 1) << 3);
    return opcode < 0x58 ? push(scan, register) : pop(scan, register);
  }
  switch (opcode) {
    case 0x68:
    case 0x6a:
      return pushOther(scan, 'immediate');
    case 0x81:
    case 0x83:
      return arithmetic(scan);
    case 0x89:
      return isRegisterForm(scan) ? move(scan, rmOperand(scan), regOperand(scan)) : store(scan);
    case 0x8b:
      return isRegisterForm(scan) ? move(scan, regOperand(scan), rmOperand(scan)) : load(scan);
    case 0x8d:
      return loadAddress(scan);
    case 0x8f:
      return isRegisterForm(scan) ? pop(scan, rmOperand(scan)) : popOther(scan, 'memory');
    case 0x9c:
      return pushOther(scan, 'flags');
    case 0x9d:
      return popOther(scan, 'flags');
    case 0xc2:
      return [{ kind: 'returnPop', extraBytes: immediateWord(scan) }];
    case 0xc3:
      return RETURN;
    case 0xc8:
      if (isWordSized(scan)) return clobberBoth(HARDWARE_RSP, HARDWARE_RBP);
      // The nesting level counts modulo 32.
      return [
        {
          kind: 'enter',
          sizeBytes: immediateWord(scan),
          nesting: (scan.bytes[scan.immediateAt + 2] as number) & 31,
        },
      ];
    case 0xc9:
      return isWordSized(scan) ? clobberBoth(HARDWARE_RSP, HARDWARE_RBP) : LEAVE;
    case 0xca:
      return [{ kind: 'returnPop', extraBytes: farPointerBytes(scan) - 8 + immediateWord(scan) }];
    case 0xcb:
      return [{ kind: 'returnPop', extraBytes: farPointerBytes(scan) - 8 }];
    case 0xcf:
      // rip, cs, rflags, rsp, ss of the operand size each.
      return [{ kind: 'returnPop', extraBytes: (farPointerBytes(scan) / 2) * 5 - 8 }];
    case 0xe8:
      return CALL;
    case 0xff:
      switch ((modrm >> 3) & 7) {
        case 2:
          return CALL;
        case 3:
          return farPointerBytes(scan) === 8 ? CALL : clobber(HARDWARE_RSP);
        case 6:
          return isRegisterForm(scan) ? push(scan, rmOperand(scan)) : pushOther(scan, 'memory');
        default:
          return registerWrites(scan);
      }
    default:
      return registerWrites(scan);
  }
}

/** Instruction pointer and segment that a far call pushes: of the operand size each, which is 32 bits by default. */
function farPointerBytes(scan: Scan): number {
  return isWide(scan) ? 16 : scan.operandSize ? 4 : 8;
}

function twoByteOps(scan: Scan): readonly StackOp[] {
  switch (scan.opcode) {
    case 0xa0:
    case 0xa8:
      return pushOther(scan, 'segment');
    case 0xa1:
    case 0xa9:
      return popOther(scan, 'segment');
    case 0x01: // uiret, erets, eretu
      return (scan.modrm === 0xec && scan.repeat === 0xf3) || (scan.modrm === 0xca && scan.repeat !== 0)
        ? clobber(HARDWARE_RSP)
        : registerWrites(scan);
    case 0x34: // sysenter
    case 0x35: // sysexit
    case 0xaa: // rsm
      return clobber(HARDWARE_RSP);
    default:
      return registerWrites(scan);
  }
}

/** add, sub and `and` of an immediate to rsp or rbp. */
function arithmetic(scan: Scan): readonly StackOp[] {
  if (!isRegisterForm(scan) || !isWide(scan)) return registerWrites(scan);
  const hardware = rmOperand(scan);
  if (hardware !== HARDWARE_RSP && hardware !== HARDWARE_RBP) return registerWrites(scan);
  const register = dwarfOf(hardware);
  switch ((scan.modrm >> 3) & 7) {
    case 0:
      return [{ kind: 'add', destination: register, source: register, offset: immediate(scan) }];
    case 4:
      return [{ kind: 'and', register, mask: immediate(scan) }];
    case 5:
      return [{ kind: 'add', destination: register, source: register, offset: 0 - immediate(scan) }];
    default:
      return registerWrites(scan);
  }
}

function move(scan: Scan, destination: number, source: number): readonly StackOp[] {
  const concerns = destination === HARDWARE_RSP || destination === HARDWARE_RBP || source === HARDWARE_RSP;
  if (!isWide(scan) || !concerns) return clobber(destination);
  return [{ kind: 'add', destination: dwarfOf(destination), source: dwarfOf(source), offset: 0 }];
}

function store(scan: Scan): readonly StackOp[] {
  const base = plainBase(scan);
  if (!isWide(scan) || base < 0) return NO_OPS;
  return [
    {
      kind: 'store',
      register: dwarfOf(regOperand(scan)),
      base: dwarfOf(base),
      offset: displacement(scan),
    },
  ];
}

function load(scan: Scan): readonly StackOp[] {
  const base = plainBase(scan);
  const destination = regOperand(scan);
  if (!isWide(scan) || base < 0) return clobber(destination);
  return [{ kind: 'load', register: dwarfOf(destination), base: dwarfOf(base), offset: displacement(scan) }];
}

function loadAddress(scan: Scan): readonly StackOp[] {
  const base = plainBase(scan);
  const destination = regOperand(scan);
  if (!isWide(scan) || base < 0) return clobber(destination);
  const register = dwarfOf(destination);
  const source = dwarfOf(base);
  if (register !== DW_RSP && register !== DW_RBP && source !== DW_RSP) return clobber(destination);
  return [{ kind: 'add', destination: register, source, offset: displacement(scan) }];
}
