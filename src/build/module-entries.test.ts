import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { x86_64 } from '../arch/x86-64/index.js';
import { type ModuleImage, readModuleImage } from '../kernel-image/module-image.js';
import { readElf } from './from-objects.js';
import { LinkedModule } from './linked-module.js';
import { ModuleEntries } from './module-entries.js';

const folder = mkdtempSync(join(tmpdir(), 'livegraft-module-entries-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function run(command: string, ...args: string[]): void {
  const { status, stderr } = spawnSync(command, args, { cwd: folder, encoding: 'utf8' });
  if (status !== 0) throw new Error(stderr);
}

let count = 0;
/** A module's file from assembly. */
function module(assembly: string): ModuleImage {
  const name = `m${count++}`;
  const information = '.section .modinfo,"a"\n.asciz "name=mod"\n.asciz "vermagic=6.1.0 SMP"\n';
  writeFileSync(join(folder, `${name}.s`), `${information}${assembly}\n`);
  run('as', '-o', `${name}.o`, `${name}.s`);
  run('ld', '-r', '--build-id=sha1', '-o', `${name}.ko`, `${name}.o`);
  return readModuleImage(readElf(join(folder, `${name}.ko`)));
}

const fn = (name: string, code: string, section = '.text') =>
  `.section ${section},"ax"\n.type ${name}, @function\n${name}:\n${code}\n.size ${name}, . - ${name}\n`;
const BODY = 'push %rbx\nmov %rdi, %rbx\nmov $text, %esi\nxor %eax, %eax\npop %rbx\nret';
const TEXT = '.section .rodata.str,"a"\ntext: .asciz "text"\n';
const F = `${TEXT}${fn('f', BODY)}`;

function plan(assembly: string, isKnownInC = () => true) {
  const image = module(assembly);
  const [f] = image.findAll('f');
  const entries = new ModuleEntries(image, new LinkedModule(image), x86_64, isKnownInC);
  return entries.plan({ name: 'f', address: f?.textOffset ?? 0, sizeBytes: f?.sizeBytes ?? 0 });
}

describe('the entry of a module’s function', () => {
  it('is the nop of ftrace where the compiler has left room for one', () => {
    expect(plan(`${TEXT}${fn('f', `call __fentry__\n${BODY}`)}`)).toBeUndefined();
    const table = '.section __mcount_loc,"a"\n.quad f\n';
    expect(plan(`${TEXT}${fn('f', `.byte 0x0f,0x1f,0x44,0,0\n${BODY}`)}${table}`)).toBeUndefined();
    const pad = fn('f', `endbr64\ncall __fentry__\n${BODY}`);
    expect(plan(`${TEXT}${pad}`)).toBeUndefined();
  });

  it('is over its first instructions otherwise, and says what the kernel fills in', () => {
    expect(plan(F)).toEqual({
      offset: 0,
      bytes: expect.stringMatching(/^534889fbbe..000000$/),
      relocated: [5],
    });
  });

  it('is behind a landing pad', () => {
    expect(plan(`${TEXT}${fn('f', `endbr64\n${BODY}`)}`)).toMatchObject({ offset: 4 });
  });

  const traced = fn('caller', 'call __fentry__\ncall f\nret');
  const table = (name: string, place: string, flags = 'a') =>
    `.section ${name},"${flags}"\n.long ${place} - .\n`;
  it('may be called by code compiled for ftrace, kept as an address, and in tables of the stack', () => {
    for (const more of [
      traced,
      '.data\n.quad f\n',
      table('.orc_unwind_ip', 'f + 1'),
      table('__ksymtab', 'f'),
    ])
      expect(plan(`${F}${more}`)).toBeDefined();
  });

  it.each([
    ['text without probes', `${TEXT}${fn('f', BODY, '.noinstr.text')}`, 'it lies in .noinstr.text'],
    ['too few instructions', fn('f', 'xor %eax, %eax\nret'), 'bytes'],
    ['a call at once', fn('f', 'push %rbx\ncall elsewhere\npop %rbx\nret'), 'calls another function at once'],
    ['a loop into them', `${TEXT}${fn('f', BODY.replace('ret', 'jmp f + 1'))}`, 'inside its first'],
    ['a jump from elsewhere', `${F}${fn('g', 'nop\njmp f + 1')}`, 'g seems to lead into its first'],
    ['a jump from another section', `${F}${fn('g', 'jmp f + 4', '.text.unlikely')}`, 'g seems to lead into'],
    [
      'a caller that may know its registers',
      `${F}${fn('g', 'call f\nret')}`,
      'g, which was compiled without it, too',
    ],
    [
      'a neighbour that goes on in it',
      `${fn('g', 'xor %ecx, %ecx\njmp f')}${F}`,
      'g, which was compiled without',
    ],
    ['a jump label', `${F}${table('__jump_table', 'f + 1')}`, 'in __jump_table'],
    ['a place that may fault', `${F}${table('__ex_table', 'f')}`, 'in __ex_table'],
    ['alternatives', `${F}${table('.altinstructions', 'f + 4')}`, 'in .altinstructions'],
    ['a static call', `${F}${table('.static_call_sites', 'f')}`, 'in .static_call_sites'],
    ['a lock prefix', `${F}${table('.smp_locks', 'f')}`, 'in .smp_locks'],
    ['a return', `${F}${table('.return_sites', 'f + 1')}`, 'in .return_sites'],
    ['a label in data', `${F}.data\n.quad f + 1\n`, 'in .data'],
    [
      'a label in code',
      `${F}${fn('g', 'call __fentry__\nlea f + 1(%rip), %rax\nret')}`,
      'g seems to lead into',
    ],
    ['NOKPROBE_SYMBOL', `${F}.section _kprobe_blacklist,"aw"\n.quad f\n`, 'in _kprobe_blacklist'],
  ])('is refused for %s', (_, assembly, reason) => {
    expect(() => plan(assembly)).toThrow(reason);
  });

  it('is refused for what may be assembly', () => {
    expect(() => plan(F, () => false)).toThrow('C function');
  });
});
