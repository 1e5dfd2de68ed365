import {
  FlowCode,
  firstOf,
  OpCode,
  opOf,
  secondOf,
  TOUCHES_ALL,
  TOUCHES_FRAME,
  writesOf,
} from '../instruction-table.js';
import { DW_RBP, DW_RSP } from './registers.js';

const FRAME_REGISTERS = (1 << DW_RSP) | (1 << DW_RBP);

/** {@link InstructionTable.touches} of an instruction, by where it leads and its effect. */
export function touchedBy(flow: number, done: number): number {
  if (flow !== FlowCode.next) return TOUCHES_ALL;
  const [a, b, writes] = [firstOf(done), secondOf(done), writesOf(done)];
  switch (opOf(done)) {
    case OpCode.none:
      return touching(writes, writes);
    case OpCode.add:
    case OpCode.load:
      return touching(writes | (1 << a) | (1 << b), writes | (1 << a));
    case OpCode.store:
      // Where the stack pointer is kept is news, wherever that is.
      return a === DW_RSP ? TOUCHES_ALL : touching(writes | (1 << b), writes | (1 << b));
    case OpCode.and:
      return a === DW_RSP || a === DW_RBP ? TOUCHES_ALL : touching(writes | (1 << a), 0);
    default:
      return TOUCHES_ALL;
  }
}

/** Whether a state of no more than stack pointer, frame pointer and slots may be another one behind the instruction. */
export function touchesFrame(touches: number): boolean {
  return (touches & (TOUCHES_FRAME | (1 << DW_RSP))) !== 0;
}

/** `needed`: of which the state has to know something; `frame`: the same where it knows of no others than the frame's registers. */
function touching(needed: number, frame: number): number {
  return needed | ((frame & FRAME_REGISTERS) === 0 ? 0 : TOUCHES_FRAME);
}
