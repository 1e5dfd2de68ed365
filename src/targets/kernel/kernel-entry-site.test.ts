import { describe, expect, it } from 'vitest';
import { x86_64 } from '../../arch/x86-64/index.js';
import type { PatchFunction } from '../../patch/manifest.js';
import { ENTRY_BYTES, findEntrySite } from './kernel-entry-site.js';
import type { KernelAddresses } from './running-kernel.js';

const old = { name: 'f', address: '0x10', sizeBytes: 64, sha256: '' };
const fn: PatchFunction = { name: 'f', sympos: 0, old, parts: [], newSymbol: 'f', newParts: [] };
/** Of a kernel only where its text ends matters to a module's function. */
const kernel = { expect: () => -0x100_0000 } as unknown as KernelAddresses;
const ENTRY = -4096;

function find(start: readonly number[], displaced?: PatchFunction['displaced']) {
  const code = new Uint8Array(ENTRY_BYTES).fill(0x90);
  code.set(start);
  const replaced = { object: 'ext4', fn: displaced === undefined ? fn : { ...fn, displaced } };
  return findEntrySite(kernel, x86_64, replaced, ENTRY, code);
}

describe("where a module's function is redirected", () => {
  const nop = [0x0f, 0x1f, 0x44, 0x00, 0x00];
  // push %rbx; mov $text, %rdi
  const start = [0x53, 0x48, 0xc7, 0xc7, 0x11, 0x22, 0x33, 0xc4];
  const displaced = { offset: 0, bytes: '5348c7c700000000', relocated: [4] };

  it('is the nop of ftrace', () => {
    expect(find(nop)).toEqual({ site: ENTRY, original: nop, isDisplaced: false });
    expect(find(nop, displaced)).toMatchObject({ isDisplaced: false });
  });

  it.each([
    ['it begins with them', start],
    ['a landing pad is before them', [0xf3, 0x0f, 0x1e, 0xfa, ...start]],
  ])('is refused in a patch of before livegraft looked at first instructions, where %s', (_, code) => {
    expect(() => find(code)).toThrow(
      expect.objectContaining({
        code: 'no-fentry',
        message: expect.stringContaining('the patch does not say which instructions of ext4'),
        remedy: 'build the patch again, with --module ext4.ko',
      }),
    );
  });

  it.each([
    ['traced', [0xe8, 0, 0, 0, 0]],
    ['traced behind a landing pad', [0xf3, 0x0f, 0x1e, 0xfa, 0xe8, 0, 0, 0, 0]],
    ['probed', [0xcc, 0x1f, 0x44, 0, 0]],
  ])('is refused while it is %s', (_, code) => {
    expect(() => find(code)).toThrow(
      expect.objectContaining({ remedy: 'stop tracing or probing it in the guest' }),
    );
  });

  it('is over the first instructions, as the kernel has completed them', () => {
    expect(find(start, displaced)).toEqual({ site: ENTRY, original: start, isDisplaced: true });
    const pad = [0xf3, 0x0f, 0x1e, 0xfa];
    expect(find([...pad, ...start], { ...displaced, offset: 4 })).toMatchObject({
      site: ENTRY + 4,
      original: start,
    });
  });

  it.each([
    ['a probe', [0xcc, ...start.slice(1)]],
    ['the jump of a probe', [0xe9, 0x10, 0, 0, 0, ...start.slice(5)]],
    ['other code', [0x53, 0x48, 0xc7, 0xc6, ...start.slice(4)]],
  ])('is refused where %s is there', (_, code) => {
    expect(() => find(code, displaced)).toThrow("not those of the module's file");
  });
});
