import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { x86_64 } from '../../src/arch/x86-64/index.js';
import { linkAddress } from '../../src/base/brand.js';
import { evaluateExpression } from '../../src/dwarf/expression.js';
import { frameRows } from '../../src/dwarf/frame-program.js';
import { FrameSection } from '../../src/dwarf/frame-section.js';
import { parseElf } from '../../src/elf/reader.js';
import { encodeProof, parseProof } from '../../src/validate/proof.js';
import { validateElf } from '../../src/validate/validate-file.js';

const PROGRAM = `
#include <alloca.h>
#include <string.h>
volatile int sink;
__attribute__((noinline)) int leaf(int a, int b) { return a * b + sink; }
__attribute__((noinline)) int many(int a, int b, int c, int d, int e, int f, int g, int h) {
  int x = leaf(a, b), y = leaf(c, d), z = leaf(e, f);
  return x + y * z + leaf(g, h);
}
__attribute__((noinline)) int dynamic(int n) {
  char *p = alloca(n + 1);
  memset(p, n, n);
  return leaf(p[0], n);
}
__attribute__((noinline)) int aligned(int n) {
  int block[16] __attribute__((aligned(64)));
  for (int i = 0; i < 16; i++) block[i] = leaf(i, n);
  return block[n & 15];
}
__attribute__((noinline)) int deep(int n) { return n == 0 ? 1 : deep(n - 1) + many(n, 1, 2, 3, 4, 5, 6, 7); }
int main(void) { return (deep(2) + dynamic(20) + aligned(3)) & 1; }
`;

/** gdb steps through the program and prints, at each instruction of ours, what a walk would start from. */
const STEPS = `
set pagination off
set confirm off
set disable-randomization on
break main
run
python
import gdb
names = ['rax','rdx','rcx','rbx','rsi','rdi','rbp','rsp'] + ['r%d' % i for i in range(8, 16)]
inferior = gdb.selected_inferior()
depth = []
program = gdb.current_progspace().filename
for step in range(4000):
    pc = int(gdb.parse_and_eval('(unsigned long)$pc'))
    registers = [int(gdb.parse_and_eval('(unsigned long)$' + name)) for name in names]
    sp = registers[7]
    stack = bytes(inferior.read_memory(sp - 128, 2048))
    owner = gdb.solib_name(pc) or 'main'
    print('STEP', owner == 'main' and 1 or 0, pc, ' '.join(map(str, registers)), stack.hex())
    try:
        gdb.execute('stepi', to_string=True)
    except gdb.error:
        break
    if not inferior.pid: break
    if int(gdb.parse_and_eval('(unsigned long)$sp')) > registers[7] + 4096: break
end
kill
quit
`;

interface Step {
  readonly isOurs: boolean;
  readonly pc: number;
  readonly registers: readonly number[];
  read64(address: number): number | undefined;
}

function parseStep(line: string): Step {
  const words = line.split(' ');
  const registers = words.slice(3, 19).map((word) => Number(BigInt.asIntN(64, BigInt(word))));
  const stack = Buffer.from(words[19] ?? '', 'hex');
  const start = (registers[7] as number) - 128;
  return {
    isOurs: words[1] === '1',
    pc: Number(words[2]),
    registers,
    read64: (address) => {
      const at = address - start;
      return at >= 0 && at + 8 <= stack.length ? Number(stack.readBigInt64LE(at)) : undefined;
    },
  };
}

it.each([
  ['-O2', '-fomit-frame-pointer'],
  ['-O2', '-fno-omit-frame-pointer'],
  ['-O0', '-fcf-protection'],
])('rows that are proven give the true caller at every instruction that runs (%s %s)', (...flags) => {
  const folder = mkdtempSync(join(tmpdir(), 'livegraft-step-'));
  try {
    const [source, program, script] = ['p.c', 'p', 'steps.gdb'].map((name) => join(folder, name)) as [
      string,
      string,
      string,
    ];
    writeFileSync(source, PROGRAM);
    writeFileSync(script, STEPS);
    const built = spawnSync(
      'gcc',
      [...flags, '-no-pie', '-static-libgcc', '-Wl,--build-id', '-o', program, source],
      { encoding: 'utf8' },
    );
    expect([built.status, built.stderr]).toEqual([0, '']);
    const bytes = new Uint8Array(readFileSync(program));
    const elf = parseElf(bytes, program);
    const result = validateElf(elf, { architecture: x86_64 });
    expect(result.findings.filter((f) => f.level !== 'note')).toEqual([]);
    const proof = parseProof(encodeProof(result, 'dwarf') as Uint8Array, program);

    const run = spawnSync('gdb', ['-q', '-nx', '-batch', '-x', script, program], {
      encoding: 'utf8',
      maxBuffer: 2 ** 28,
      timeout: 200_000,
    });
    const steps = run.stdout
      .split('\n')
      .filter((line) => line.startsWith('STEP '))
      .map(parseStep);
    expect(steps.length, run.stderr.slice(-500)).toBeGreaterThan(300);

    const section = elf.findSection('.eh_frame');
    const frames = new FrameSection({
      bytes: section?.data ?? new Uint8Array(),
      address: section?.address ?? 0,
      kind: 'eh_frame',
      source: program,
    });
    const fdes = [...frames.entries()];
    // What a call pushed, and the stack pointer before it, are the truth about the frame that it opened.
    const calls: { returnAddress: number; cfa: number; registers: readonly number[] }[] = [];
    let checked = 0;
    for (const [index, step] of steps.entries()) {
      const sp = step.registers[7] as number;
      while (calls.length > 0 && (calls[calls.length - 1] as { cfa: number }).cfa <= sp) calls.pop();
      const frame = calls[calls.length - 1];
      const fde = fdes.find((each) => each.start <= step.pc && step.pc < each.end);
      const row = fde && [...frameRows(fde, program)].find((r) => step.pc >= r.start && step.pc < r.end);
      if (step.isOurs && frame !== undefined && row !== undefined && proof?.verdictAt(step.pc) === 'proven') {
        const context = {
          register: (n: number) => (n === x86_64.returnAddress ? step.pc : step.registers[n]),
          read64: step.read64,
        };
        const cfa =
          row.cfa.kind === 'register'
            ? (step.registers[row.cfa.register] as number) + row.cfa.offset
            : evaluateExpression(row.cfa.expression, context, undefined);
        expect([index, step.pc.toString(16), cfa]).toEqual([index, step.pc.toString(16), frame.cfa]);
        expect(step.read64(frame.cfa - 8)).toBe(frame.returnAddress);
        for (const register of x86_64.calleeSaved) {
          const rule = row.registers.get(register);
          const value =
            rule === undefined
              ? step.registers[register]
              : rule.kind === 'offset'
                ? step.read64(frame.cfa + rule.offset)
                : undefined;
          if (value !== undefined)
            expect([index, register, value]).toEqual([index, register, frame.registers[register]]);
        }
        checked++;
      }
      // The next step tells whether this one was a call.
      const next = steps[index + 1];
      const instruction = step.isOurs
        ? x86_64.decoder.decode(elf.bytesAt(linkAddress(step.pc), 15) ?? new Uint8Array(), 0, step.pc)
        : undefined;
      if (next !== undefined && (instruction?.flow === 'call' || instruction?.flow === 'indirectCall')) {
        calls.push({ returnAddress: step.pc + instruction.lengthBytes, cfa: sp, registers: step.registers });
      }
    }
    expect(checked).toBeGreaterThan(200);
    process.stdout.write(`${flags.join(' ')}: ${steps.length} steps, ${checked} frames compared\n`);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});
