import { expect, it } from 'vitest';
import { x86_64 } from '../../arch/x86-64/index.js';
import { ENTRY_BYTES, findEntrySite } from './kernel-entry-site.js';
import type { KernelAddresses } from './running-kernel.js';

const old = { name: 'f', address: '0x10', sizeBytes: 64, sha256: '' };
const fn = { name: 'f', sympos: 0, old, parts: [], newSymbol: 'f', newParts: [] };
/** Nothing of it is needed to tell that a module's function has no nop. */
const kernel = {} as KernelAddresses;

it("finds the nop of ftrace in a module's function, and refuses one without: its instructions are not displaced", () => {
  const code = new Uint8Array(ENTRY_BYTES).fill(0x90);
  const find = () => findEntrySite(kernel, x86_64, { object: 'ext4', fn }, -4096, code);
  expect(find).toThrow('only in the kernel itself can instructions be displaced');
  code.set([0x0f, 0x1f, 0x44, 0x00, 0x00]);
  expect(find()).toEqual({ site: -4096, original: [0x0f, 0x1f, 0x44, 0x00, 0x00], isDisplaced: false });
});
