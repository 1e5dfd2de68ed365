import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { x86_64 } from '../arch/x86-64/index.js';
import type { Patch } from '../patch/content.js';
import { layoutPatch } from '../patch/layout.js';
import { linkPatch } from '../patch/link.js';
import { compareObjects } from './compare.js';
import { readElf, readObject } from './from-objects.js';
import { selectPatch } from './select.js';
import { TargetModel, type TargetSymbolDraft } from './target-model.js';

const folder = mkdtempSync(join(tmpdir(), 'livegraft-kernel-code-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** The kernel's tables as its macros write them, in a few lines each. */
const TABLES = `
#define BUG(flags) asm volatile(".byte 0x0f,0x1f,0x00\\n1: .byte 0x0f,0x0b\\n.pushsection __bug_table,\\"aw\\"\\n" \\
  ".long 1b - .\\n.long %c0 - .\\n.word 321\\n.word %c1\\n.popsection" : : "i" ("some/file.c"), "i" (flags))
#define KEY(branch, yes) asm goto("1: %{disp32%} jmp %l[" #yes "]\\n.pushsection __jump_table,\\"aw\\"\\n.balign 8\\n" \\
  ".long 1b - .\\n.long %l[" #yes "] - .\\n.quad the_key + " #branch " - .\\n.popsection" : : : : yes)
#define ALTERNATIVE(old, new, feature) asm volatile("1: " old "\\n2:\\n.pushsection .altinstructions,\\"a\\"\\n" \\
  ".long 1b - .\\n.long 3f - .\\n.word " #feature "\\n.byte 2b - 1b\\n.byte 4f - 3f\\n.popsection\\n" \\
  ".pushsection .altinstr_replacement,\\"ax\\"\\n3: " new "\\n4:\\n.popsection")
#define FAULT asm volatile("1: movl (%%rdi), %%eax\\n2:\\n.pushsection __ex_table,\\"a\\"\\n" \\
  ".long 1b - .\\n.long 2b - .\\n.long 3\\n.popsection" ::: "eax")
extern int the_key;
`;
/** Where a kernel would have what the code refers to. */
const SYMBOLS = {
  ...{ f: 0x1000, the_key: 0x9000, _printk: 0xa000, __warn: 0xb000, callee: 0xc000 },
  ...{ __SCT__callee: 0xd000, __x86_indirect_thunk_rax: 0xe000, pv_ops: 0xf000 },
};
const BASE = 0x100_0000;

function compile(name: string, body: string) {
  const path = join(folder, `${name}.c`);
  writeFileSync(path, `${TABLES}${body}`);
  const flags = ['-O2', '-c', '-ffunction-sections', '-fdata-sections', '-fno-pic', '-fcf-protection=none'];
  const run = spawnSync('gcc', [...flags, '-o', `${path}.o`, path], { encoding: 'utf8' });
  if (run.status !== 0) throw new Error(run.stderr);
  return readObject(`${path}.o`);
}

function drafts(): TargetSymbolDraft[] {
  return Object.entries(SYMBOLS).map(([name, address]) => ({
    ...{ name, address, sizeBytes: 16, isLocal: false, fileName: undefined },
    kind: name === 'the_key' ? ('object' as const) : ('func' as const),
  }));
}

/** The new version of `f`, linked. */
function link(body: string) {
  const original = compile('original', 'int f(void) { return 0; }');
  const patched = compile('patched', body);
  const target = new TargetModel(readElf(process.execPath), 'vmlinux', drafts(), { isKernel: true });
  const comparison = compareObjects(original, patched);
  const roots = comparison.changedFunctions.map((pair) => pair.patched);
  const find = (d: { readonly name: string }) => target.symbolsNamed(d.name)[0];
  const { sections, symbols } = selectPatch(patched, comparison, roots, target, find, '0.');
  const patch = { sections, symbols, id: '', manifest: {} } as unknown as Patch;
  const layout = layoutPatch(patch, 0);
  const image = linkPatch(
    patch,
    layout,
    BASE,
    {
      resolve: ({ name }) => SYMBOLS[name as keyof typeof SYMBOLS],
      threadOffset: () => undefined,
      moduleOffset: () => undefined,
      moduleId: () => undefined,
    },
    x86_64.redirector,
  );
  const entry = (image.functions.find((fn) => fn.name === 'f')?.address ?? 0) - BASE;
  const view = new DataView(image.bytes.buffer, image.bytes.byteOffset);
  const relative = (at: number) => at + 4 + view.getInt32(at, true);
  return { patch, layout, bytes: image.bytes, entry, view, relative };
}

describe('code of a kernel in a patch', () => {
  it.each([
    [0, true],
    [1, false],
  ])('tests the key of a jump label (branch %i)', (branch, jumpsWhenOn) => {
    const body = `int f(void) { KEY(${branch}, yes); return 1; yes: return 2; }`;
    const { bytes, entry, view, relative } = link(body);
    expect(bytes[entry]).toBe(0xe9);
    const test = relative(entry + 1);
    expect([...bytes.subarray(test, test + 2), bytes[test + 6]]).toEqual([0x83, 0x3d, 0]);
    expect(BASE + test + 7 + view.getInt32(test + 2, true)).toBe(SYMBOLS.the_key);
    const [on, off] = [relative(test + 9), relative(test + 14)];
    // mov $1, %eax behind the label, mov $2, %eax where it leads to
    const returns = (at: number) => view.getInt32(at + 1, true);
    expect([returns(on), returns(off)]).toEqual(jumpsWhenOn ? [2, 1] : [1, 2]);
  });

  it('calls what prints a warning, once if it is one of those, and goes on', () => {
    const { bytes, entry, view, relative } = link('int f(void) { BUG(3); return 7; }');
    expect(bytes[entry]).toBe(0xe9);
    const report = relative(entry + 1);
    const code = Buffer.from(bytes.subarray(report, report + 160));
    expect(code[0]).toBe(0x9c);
    const calls: number[] = [];
    for (let at = report; at < report + 160; ) {
      const instruction = x86_64.decoder.decode(bytes, at, at);
      if (instruction === undefined) break;
      if (instruction.flow === 'call') calls.push(BASE + (instruction.target ?? 0));
      if (instruction.flow === 'jump') {
        expect(instruction.target).toBe(entry + 5);
        break;
      }
      at += instruction.lengthBytes;
    }
    expect(calls).toEqual([SYMBOLS._printk, SYMBOLS.__warn]);
    const file = code.lastIndexOf(Buffer.from([0x48, 0xc7, 0xc7]));
    const name = view.getInt32(report + file + 3, true) - BASE;
    expect(Buffer.from(bytes.subarray(name, name + 11)).toString()).toBe('some/file.c');
    expect(code.readInt32LE(code.indexOf(0xbe, file) + 1)).toBe(321);
  });

  it('traps behind the message of BUG', () => {
    const { bytes, entry, relative } = link('int f(void) { BUG(0); return 7; }');
    const report = relative(entry + 1);
    const trap = Buffer.from(bytes.subarray(report, report + 120)).indexOf(Buffer.from([0x9d, 0x0f, 0x0b]));
    expect(trap).toBeGreaterThan(0);
  });

  it('keeps alternatives for the CPU that the patch meets', () => {
    const { patch, layout, bytes, entry, view } = link(
      'int f(void) { ALTERNATIVE("nop; nop; nop; nop; nop", "call callee", 77); return 7; }',
    );
    const index = patch.sections.findIndex((section) => section.name.startsWith('.livegraft.alternatives.'));
    const at = layout.sectionOffsets[index] as number;
    expect(at + view.getInt32(at, true)).toBe(entry);
    const replacement = at + 4 + view.getInt32(at + 4, true);
    expect(bytes[replacement]).toBe(0xe8);
    expect(BASE + replacement + 5 + view.getInt32(replacement + 1, true)).toBe(SYMBOLS.callee);
    expect([view.getUint16(at + 8, true), view.getUint8(at + 10), view.getUint8(at + 11)]).toEqual([
      77, 5, 5,
    ]);
  });

  it('keeps what may fault, with where it goes on', () => {
    const { patch, layout, entry, view } = link('int f(void) { FAULT; return 7; }');
    const index = patch.sections.findIndex((section) => section.name.startsWith('.livegraft.exceptions.'));
    const at = layout.sectionOffsets[index] as number;
    expect(at + view.getInt32(at, true)).toBe(entry);
    expect(at + 4 + view.getInt32(at + 4, true)).toBe(entry + 2);
    expect(view.getInt32(at + 8, true)).toBe(3);
  });

  it('is refused where only boot could set it up, and where it refers to what no kernel has', () => {
    expect(() => link('int nowhere(void); int f(void) { return nowhere() + 1; }')).toThrow(
      'refers to nowhere',
    );
    const percpu =
      'static int mine __attribute__((section(".data..percpu"))) = 1; int f(void) { return mine++; }';
    expect(() => link(percpu)).toThrow('the new code needs mine in .data..percpu: per-CPU variables');
  });

  it.each([
    ['__tracepoints', 'tracepoints'],
    ['.init.data', 'init or exit code'],
    ['__ksymtab', 'exported symbols'],
    ['__param', 'module parameters'],
    ['__dyndbg', 'dynamic debug'],
    ['.ctors', 'constructors'],
  ])('is refused by name where it needs something new in %s', (section, why) => {
    const body = `static int mine __attribute__((section("${section}"))) = 1; int f(void) { return mine++; }`;
    expect(() => link(body)).toThrow(
      expect.objectContaining({
        code: 'special-section',
        message: expect.stringContaining(`the new code needs mine in ${section}: `),
      }),
    );
    expect(() => link(body)).toThrow(why);
  });

  it.each([
    ['.static_call_sites', 'call __SCT__callee', '__SCT__callee'],
    ['.retpoline_sites', 'call __x86_indirect_thunk_rax', '__x86_indirect_thunk_rax'],
    ['.parainstructions', 'call *pv_ops(%%rip)', 'pv_ops'],
    ['.return_sites', 'call callee', 'callee'],
    ['.smp_locks', 'lock; call callee', 'callee'],
  ] as const)('leaves %s out: what the kernel would patch there is right as it is', (table, call, callee) => {
    const entry = `.pushsection ${table},\\"a\\"\\n.long 1b - .\\n.long 0\\n.popsection`;
    const {
      patch,
      bytes,
      entry: at,
      view,
    } = link(`int f(void) { asm volatile("1: ${call}\\n${entry}" ::: "rax"); return 7; }`);
    expect(patch.sections.map(({ name }) => name).filter((name) => name.includes(table.slice(1)))).toEqual(
      [],
    );
    const place = bytes.indexOf(call.startsWith('call *') ? 0x15 : 0xe8, at) + 1;
    expect(BASE + place + 4 + view.getInt32(place, true)).toBe(SYMBOLS[callee]);
  });

  it('counts a function as changed when only a table does', () => {
    const original = compile('a', 'int f(void) { ALTERNATIVE("nop; nop", "lfence", 77); return 7; }');
    const other = compile('b', 'int f(void) { ALTERNATIVE("nop; nop", "mfence", 77); return 7; }');
    const feature = compile('c', 'int f(void) { ALTERNATIVE("nop; nop", "lfence", 78); return 7; }');
    const changed = (patched: typeof other) =>
      compareObjects(original, patched).changedFunctions.map((pair) => pair.patched.name);
    expect(changed(original)).toEqual([]);
    expect(changed(other)).toEqual(['f']);
    expect(changed(feature)).toEqual(['f']);
  });
});
