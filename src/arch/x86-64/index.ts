import type { Architecture } from '../architecture.js';
import { codeIdioms } from './code-idioms.js';
import { decoder } from './decoder.js';
import { findFarTransfer } from './far-transfer.js';
import { redirector } from './redirector.js';
import { CALLEE_SAVED, DW_RA, DW_RBP, DW_RSP } from './registers.js';
import { skimmer } from './skim.js';
import { sweeper } from './sweep.js';
import { findTableJump } from './table-jump.js';

export const x86_64: Architecture = {
  name: 'x86-64',
  // EM_X86_64
  elfMachine: 62,
  decoder,
  sweeper,
  skimmer,
  redirector,
  findTableJump,
  findFarTransfer,
  idioms: codeIdioms,
  pointerSizeBytes: 8,
  stackPointer: DW_RSP,
  framePointer: DW_RBP,
  returnAddress: DW_RA,
  calleeSaved: CALLEE_SAVED,
  redZoneBytes: 128,
};
