import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { x86_64 } from '../arch/x86-64/index.js';
import { parseElf } from '../elf/reader.js';
import { encodeProof, parseProof } from './proof.js';
import { validateElf } from './validate-file.js';

const folder = mkdtempSync(join(tmpdir(), 'livegraft-proof-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** Two sections, each with a function; the second one's row is wrong behind its push. */
const SOURCE = `
  .section .text.right, "ax", @progbits
  .type right, @function
right:
  .cfi_startproc
  push %rax
  .cfi_def_cfa_offset 16
  pop %rax
  .cfi_def_cfa_offset 8
  ret
  .cfi_endproc
  .section .text.wrong, "ax", @progbits
  .type wrong, @function
wrong:
  .cfi_startproc
  push %rax
  pop %rax
  ret
  .cfi_endproc
`;
const NOTE = `
  .section .note.gnu.build-id, "a", @note
  .long 4, 4, 3
  .asciz "GNU"
  .byte 0xde, 0xad, 0xbe, 0xef
`;

function validate(source: string) {
  const [text, object] = [join(folder, 'a.s'), join(folder, 'a.o')];
  writeFileSync(text, source);
  expect(spawnSync('as', ['-o', object, text]).status).toBe(0);
  return validateElf(parseElf(readFileSync(object), object), { architecture: x86_64 });
}

it('of a relocatable object tells sections apart', () => {
  const bytes = encodeProof(validate(SOURCE + NOTE), 'dwarf');
  const proof = bytes && parseProof(bytes, 'proof');
  expect(proof?.buildId).toBe('deadbeef');
  const verdicts = (name: string) => [0, 1, 2].map((offset) => proof?.verdictInSection(name, offset));
  expect(verdicts('.text.right')).toEqual(['proven', 'proven', 'proven']);
  expect(verdicts('.text.wrong')[1]).toBe('disproved');
  expect(verdicts('.text.none')).toEqual(['unknown', 'unknown', 'unknown']);
});

it('needs a build-id', () => {
  expect(encodeProof(validate(SOURCE), 'dwarf')).toBeUndefined();
});
